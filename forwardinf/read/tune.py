"""Find the batch size and memory layout at which this model reads fastest, on a few rows of its own data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forwardinf.core.errors import FileError, ModelError
from forwardinf.core.files import read_json, write_json
from forwardinf.core.memory import out_of_memory
from forwardinf.tasks.feed import Feed

FORMAT = "forwardinf.tuning/2"
SHARE = 0.08  # of the rows that will be read may be read to find out how: a better setting must win them back
NARROW = 8  # channels below which a strided 1×1 convolution is kept in the ordinary layout: seen below 7
FIRST, LARGEST = 32, 512  # batch sizes: tried first, and last
SHORT = 0.3  # seconds that a search may take whatever its share is
ENOUGH = 0.05  # seconds of a setting's readings after which one was enough
TURNS = 3
WORTH = 0.95  # another setting must be 5 % faster: differences below that are noise, and memory is not free
Work = Callable[[Feed, Sequence[int], int], Any]


@dataclass(frozen=True)
class Tuning:
    """How a model reads fastest.

    Attributes:
        batch_size: Examples at a time.
        channels_last: Images laid out pixel by pixel.
        seconds_per_row: Measured at that setting (F* / N).
        eager_seconds_per_row: In the ordinary layout, at the size that was tried first (F / N, or a little above).
    """

    batch_size: int
    channels_last: bool
    seconds_per_row: float
    eager_seconds_per_row: float


def tune(
    feed: Feed, rows: Sequence[int], batch_size: int | None, reading: int, kept: Path | None, work: Work | None = None
) -> Tuning:
    """Return the fastest setting that could be found for a small share of what will be read.

    Args:
        feed: Model and data. Its own layout is ignored.
        rows: The rows to be read; the first few are tried.
        batch_size: Asked for by the user: only the layout is tried then (and halves of it where memory runs out).
        reading: How many rows will be read in all: ``SHARE`` of them may be read here. One size is tried whatever it is.
        kept: A file that holds an earlier result for a model of the same form, machine and threads, or takes this one.
        work: What is timed: reads some rows, so many at a time. Default: their losses, by forward passes.

    Raises:
        ModelError: Not even one example fits into memory.
    """
    if kept is not None and kept.is_file():
        try:
            found = read_json(kept, FORMAT, what="a tuning result")
            return Tuning(**found["tuning"])
        except (FileError, KeyError, TypeError):
            kept.unlink(missing_ok=True)  # a damaged cache entry is worth nothing
    search = _Search(feed, rows, int(SHARE * reading), work or (lambda trial, piece, size: trial.losses(piece, size)))
    tuning = search.best(batch_size)
    if kept is not None:
        write_json(kept, {"format": FORMAT, "tuning": asdict(tuning)})
    return tuning


def may_turn(model: nn.Module) -> bool:
    """Return whether images may be laid out pixel by pixel: there are convolutions, and none whose backward is broken so.

    oneDNN 3.12 (torch 2.13) writes beyond its memory in the weight gradient of a strided 1×1 convolution of fewer than seven
    channels in that layout: the process dies, soon or late (dev/LOG.md).
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return bool(layers) and not any(
        layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.in_channels // layer.groups < NARROW
        for layer in layers
    )


class _Search:
    """Times one kind of work at one setting after another, while it can afford it."""

    def __init__(self, feed: Feed, rows: Sequence[int], allowance: int, work: Work) -> None:
        self.feed, self.rows, self.allowance, self.work = feed, rows, allowance, work
        self.spent, self.began = 0, time.monotonic()

    def best(self, asked: int | None) -> Tuning:
        """Try both layouts at one size, then other sizes in the better one."""
        size = asked or self._first()
        eager = self._timed(size, False)
        while eager is None and size > 1:
            size //= 2
            eager = self._timed(size, False)
        if eager is None:
            raise ModelError("reading", expected="room for one example", got="out of memory",
                             do="Use a device with more memory.")  # fmt: skip
        best, layout = eager, False
        if may_turn(self.feed.model) and (asked or self._affords(size)):
            other = self._timed(size, True)
            if other is not None and other < WORTH * eager:
                best, layout = other, True
        if not asked:
            best, size = self._climbed(best, size, layout)
        return Tuning(size, layout, best, eager)

    def _first(self) -> int:
        """Return the size tried first: both layouts of it, warmed up, are to fit into the allowance."""
        most = max(1, min(FIRST, self.allowance // 4, len(self.rows)))
        return int(2 ** (most.bit_length() - 1))

    def _climbed(self, best: float, size: int, layout: bool) -> tuple[float, int]:
        """Return (seconds per row, size): doubled while that is faster, or else halved."""
        first = size
        for factor in (2.0, 0.5):
            trial = int(factor * first)
            while 1 <= trial <= min(LARGEST, len(self.rows)) and self._affords(trial):
                took = self._timed(trial, layout)
                if took is None or took > WORTH * best:
                    break
                best, size, trial = took, trial, int(factor * trial)
            if size != first:
                break
        return best, size

    def _affords(self, size: int) -> bool:
        return self.spent + 2 * size <= self.allowance or time.monotonic() - self.began < SHORT

    def _timed(self, size: int, channels_last: bool) -> float | None:
        """Return the median seconds per row of a few readings of one batch, or None where it does not fit into memory."""
        trial, rows = replace(self.feed, channels_last=channels_last), self.rows[:size]
        times, all_of_them = list[float](), 0.0
        for turn in range(TURNS + 1):  # the first one warms up
            start = time.perf_counter()
            try:
                self.work(trial, rows, size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                return None
            if self.feed.device.type == "cuda":
                torch.cuda.synchronize(self.feed.device)
            took = time.perf_counter() - start
            self.spent += len(rows)
            times.append(took / len(rows))
            all_of_them += took
            if turn and all_of_them > ENOUGH:
                break
        return statistics.median(times[1:])
