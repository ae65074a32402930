"""The trunk engine: where only the last layers move, what enters them is read once and kept on disk; queries read the rest.

A file for each batch, mapped into memory, its digest checked when it is first read. The first reading of a batch is a whole
forward and writes its file; from then on only what comes after the cut is run (``cut.py``).
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forwardinf.core.cache_files import STALE, discard
from forwardinf.core.errors import Error, FileError, SettingError
from forwardinf.core.files import written
from forwardinf.core.fingerprint import digest
from forwardinf.core.memory import out_of_memory
from forwardinf.core.progress import Advance
from forwardinf.read.asked import Asked, Ground, Reading
from forwardinf.read.cut import Cut, Kept, capture, find_cut, rest
from forwardinf.read.engine import Engine, silent
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.plan import Plan
from forwardinf.read.reproduce import apart
from forwardinf.tasks.feed import Feed

FORMAT = "forwardinf.trunk/1"


class TrunkFiles:
    """What is kept of a training set's trunk, under ``folder/<batch size>/``.

    Args:
        folder: Of this model, data, task and cut alone.
    """

    def __init__(self, folder: Path) -> None:
        """Write nothing yet."""
        self.folder = folder
        self._checked: set[Path] = set()

    def need(self, nbytes: int) -> None:
        """Raise FileError where the disk has no room for so many bytes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if nbytes > free:
            raise FileError(str(self.folder), expected=f"room for {nbytes / 2**30:.1f} GiB of activations",
                            got=f"{free / 2**30:.1f} GiB free",
                            do="Set cache_dir= to another disk, or read with engine='forward'.")  # fmt: skip

    def count(self, size: int) -> int:
        """Return how many batches of this size are there."""
        return sum(1 for _ in (self.folder / str(size)).glob("b-*.safetensors"))

    def load(self, size: int, number: int, device: torch.device, notes: list[str] | None = None) -> Kept | None:
        """Return what is kept of a batch, or None. A damaged file counts as none, and is removed."""
        path = self._path(size, number)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                about = json.loads((file.metadata() or {})["about"])
                # cloned: products round differently where memory is not aligned
                tensors = [[file.get_tensor(f"{call}.{place}").clone() for place in range(count)]
                           for call, count in enumerate(about["counts"])]  # fmt: skip
            if about["format"] != FORMAT or (path not in self._checked and about["digest"] != digest(tensors)):
                raise ValueError(about["format"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            discard(path, "damaged", notes)
            return None
        self._checked.add(path)
        return Kept([[_laid(tensor, last) for tensor, last in zip(call, kinds, strict=True)]
                     for call, kinds in zip(tensors, about["last"], strict=True)], about["shapes"])  # fmt: skip

    def believe(self, feed: Feed, cut: Cut, size: int, notes: list[str]) -> None:
        """Drop everything that is kept where a batch of it does not give the losses of a whole forward any more.

        Call it with the model as it was. Cost: two batches.
        """
        paths = sorted((self.folder / str(size)).glob("b-*.safetensors"))
        for path in {*paths[:1], *paths[-1:]}:
            number = int(path.stem.removeprefix("b-"))
            rows = range(number * size, min((number + 1) * size, len(feed.examples)))
            kept = self.load(size, number, feed.device, notes) if len(rows) else None
            if kept is not None and _differ(feed, cut, rows, kept):
                for each in paths:
                    each.unlink(missing_ok=True)
                notes.append(f"cache: {self.folder.parent.name}/{self.folder.name} is {STALE}: made anew")
                return

    def save(self, size: int, number: int, kept: Kept) -> None:
        """Keep a batch."""
        last = [[_pixel_by_pixel(tensor) for tensor in call] for call in kept.inputs]
        plain = [[(tensor.permute(0, 2, 3, 1) if flag else tensor).cpu().contiguous() for tensor, flag in zip(*pair, strict=True)]
                 for pair in zip(kept.inputs, last, strict=True)]  # fmt: skip
        about = {"format": FORMAT, "counts": [len(call) for call in plain], "last": last, "shapes": kept.shapes,
                 "digest": digest(plain)}  # fmt: skip
        named = {f"{call}.{place}": tensor for call, found in enumerate(plain) for place, tensor in enumerate(found)}
        with written(self._path(size, number)) as part:
            save_file(named, part, metadata={"about": json.dumps(about)})

    def _path(self, size: int, number: int) -> Path:
        return self.folder / str(size) / f"b-{number:06d}.safetensors"


class TrunkEngine(ForwardEngine):
    """Reads losses under models of which only what comes after the cut may have moved.

    Args:
        feed: Model and training data.
        batch_size: Examples at a time, to begin with. Batches are those of the whole training set, whatever is asked for.
        cut: Where the rest begins.
        files: What is kept.
        halved: Told the new batch size each time it is halved.
    """

    def __init__(
        self, feed: Feed, batch_size: int, cut: Cut, files: TrunkFiles, halved: Callable[[int], None] = silent
    ) -> None:
        """Keep what is read and how."""
        super().__init__(feed, batch_size, halved)
        self.cut, self.files, self.captured = cut, files, 0

    def losses(self, rows: Sequence[int], advance: Advance = silent) -> Tensor:
        """Return the loss of every unit in these rows, float64 on the CPU."""
        found = self.whole(lambda count: self._batches(rows, self.batch_size, count), rows, advance)
        self.forwards += self.captured
        self.captured = 0
        return found

    def _batches(self, rows: Sequence[int], size: int, advance: Advance) -> Tensor:
        examples, found = self.feed.examples, []
        for number, group in groupby(rows, key=lambda row: row // size):
            asked = list(group)
            piece = range(number * size, min((number + 1) * size, len(examples)))
            kept = self.files.load(size, number, self.feed.device)
            if kept is None:
                losses, kept = capture(self.feed, self.cut, piece)
                self.files.save(size, number, kept)
                self.captured += len(piece)
            else:
                losses = rest(self.feed, self.cut, piece, kept)
            first = int(examples.offsets[piece.start])
            found.append(
                losses if len(asked) == len(piece) else losses[torch.from_numpy(examples.units_of(asked)) - first]
            )
            advance(len(asked))
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def plan_trunk(asked: Asked, plan: Plan, ground: Ground) -> tuple[Plan, str]:
    """Return (the plan with the forward cut in two, a note): what a query reads is measured on a batch.

    Raises:
        SettingError: The perturbation is the published one.
        ModelError: The model cannot be cut.
    """
    if not asked.signed:
        raise SettingError("engine='trunk'", expected="a clean perturbation", got="preset('as_published')",
                           do="Read with engine='forward'.")  # fmt: skip
    placed, few = replace(ground.feed, channels_last=plan.channels_last), ground.rows[: plan.batch_size]
    cut = find_cut(placed, ground.parameters, few)
    _, kept = capture(placed, cut, few)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        rest(placed, cut, few, kept)
        times.append((time.perf_counter() - began) / len(few))
    nbytes = kept.nbytes * len(ground.feed.examples) // len(few)
    each = statistics.median(times)
    found = replace(plan, engine="trunk", cut=cut.name, trunk_bytes=nbytes, rest_seconds_per_row=each, why="asked for")
    found = replace(found, considered=plan.considered | {"trunk": round(found.seconds["reading"], 4)})
    return found, f"trunk: what enters {cut.name!r} is kept on disk, about {nbytes / 2**20:.1f} MiB"


def open_trunk(reading: Reading) -> Engine:
    """Return the engine for training rows; the queries' own are read by whole forwards."""
    if reading.of == "queries":
        return ForwardEngine(reading.feed, reading.batch_size, reading.halved)
    if "trunk" not in reading.kept:
        reading.kept["trunk"] = _kept_trunk(reading)
    cut, files = reading.kept["trunk"]
    return TrunkEngine(reading.feed, reading.batch_size, cut, files, reading.halved)


def _kept_trunk(reading: Reading) -> tuple[Cut, TrunkFiles]:
    """Return where the forward is cut and what is kept of its trunk: in the cache, or for this call only."""
    feed, size, folder = reading.feed, reading.batch_size, reading.folder
    cut = find_cut(feed, reading.parameters, range(min(size, len(feed.examples))), reading.plan.cut)
    if folder is None:
        reading.kept["scratch"] = TemporaryDirectory(prefix="forwardinf-trunk-")
        folder = Path(reading.kept["scratch"].name)
    files = TrunkFiles(folder / cut.name)
    files.believe(feed, cut, size, reading.notes)
    files.need(reading.plan.trunk_bytes)
    return cut, files


def _differ(feed: Feed, cut: Cut, rows: Sequence[int], kept: Kept) -> bool:
    try:
        found = rest(feed, cut, rows, kept)
    except (Error, RuntimeError, LookupError, ValueError, TypeError) as error:  # what was kept does not fit the model
        if out_of_memory(error):
            raise
        return True
    return apart(feed, found, feed.losses(rows, len(rows)), 0.0) is not None


def _pixel_by_pixel(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _laid(tensor: Tensor, pixel_by_pixel: bool) -> Tensor:
    return tensor.permute(0, 3, 1, 2) if pixel_by_pixel else tensor
