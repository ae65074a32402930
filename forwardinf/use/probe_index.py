"""An index of a training set: responses to shared perturbations, read once and kept; any number of queries then ask it.

A response is the rate at which an example's loss changes along a random direction: M of them are a sketch of its gradient,
and forward passes alone can take them. Their cosine finds copies; whitened, they rank training examples as curvature does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.errors import FileError, ModelError, QueryError, RunMismatch, SettingError, choose
from forwardinf.core.fingerprint import differences, digest
from forwardinf.core.paths import as_path
from forwardinf.core.pieces import Pieces
from forwardinf.core.progress import ARITHMETIC, Setting, Stages, progress, stages
from forwardinf.core.progress import progress as shown
from forwardinf.data.examples import Collate, Id
from forwardinf.gradients.ridge import DAMPING, tempers
from forwardinf.job.options import Options
from forwardinf.perturb.probes import KINDS
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.noise_floor import noise_floor
from forwardinf.read.responses import by_differences
from forwardinf.read.whitened import along
from forwardinf.score.scores import Scores
from forwardinf.tasks.feed import Feed
from forwardinf.use.probe_reader import Reader, opened
from forwardinf.use.response_files import ResponseFiles, Tile
from forwardinf.use.whitening import AT_ONCE, Kept, Whitening

FORMAT, INDEX = "forwardinf.index/2", "index"
HOW = ("projected", "forward")
COMPARE = ("whitened", "cosine", "covariance")
TEMPER = 0.5  # β: every gradient counts at length ‖g‖^(1−β)


OF_MODEL = ("model", "parameters")


class ProbeIndex:
    """How every training example responds to M shared perturbations, kept in a folder.

    Build it once, with :meth:`build`; then :meth:`query` asks it for the price of one gradient a query (or of M forward
    passes of the query itself), whatever the size of the training set. Scores are estimates: a cosine is known to about
    ±1/√M. Nothing chooses it by itself.

    Attributes:
        path: The folder.
        settings: How it was made: ``how``, ``draw``, ``seed``, ``length``, ``two_sided``, ``parameters``.
        notes: What was found wrong with its files, and made anew.

    Example:
        >>> import tempfile, torch, forwardinf as fi
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(20, 4), torch.randint(2, (20,))
        >>> index = fi.ProbeIndex.build(tempfile.mkdtemp() + "/i", model, (x, y), task=fi.Classification(), probes=64)
        >>> scores = index.query(model, (x[3:4], y[3:4]), task=fi.Classification(), compare="cosine")
        >>> scores.top(1)["train"].item(), round(float(scores.values[0, 3]), 3)
        (3, 1.0)
    """

    def __init__(self, path: str | Path) -> None:
        """Open an index that was built.

        Raises:
            FileError: There is none, or it is damaged.
        """
        self.path = as_path("index", path)
        self._files = ResponseFiles(self.path)
        kept = self._files.pieces.get(INDEX)
        if kept is None or kept.about.get("format") != FORMAT:
            got = "one that is damaged" if INDEX in self._files.pieces.damaged else "none"
            if kept is not None or (self.path / "index.json").is_file():
                got = "one of another version"
            raise FileError(str(self.path), expected="an index", got=got,
                            do="Check the path, or build it in another folder.")  # fmt: skip
        self.settings: dict[str, Any] = kept.about["settings"]
        self.unit = str(kept.about["unit"])
        self.notes: list[str] = []
        self._made_from: dict[str, Any] = kept.about["made_from"]
        self._layout: dict[str, Any] = kept.about["layout"]
        self._whitened: tuple[Any, Tensor, Tensor, Whitening] | None = None
        self._last: tuple[str, Tensor, Tensor, Tensor] | None = None  # the last queries' responses and losses

    def __repr__(self) -> str:
        missing = len(self._files.todo(whole_rows=self._projected))
        whole = f"; {missing} pieces are missing: make the call that was interrupted again" if missing else ""
        size = f"{self.size:,} training examples × {self.probes:,} probes, {self.settings['how']}"
        return (
            f"ProbeIndex({str(self.path)!r}: {size}, {self.nbytes / 2**20:,.1f} MiB{whole}; see .query(model, queries))"
        )

    @property
    def _projected(self) -> bool:
        return bool(self.settings["how"] == "projected")

    # -- making it ---------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        path: str | Path,
        model: Any,
        train: Any,
        *,
        task: Any = None,
        probes: int = 1024,
        how: str = "projected",
        draw: str = "structured",
        length: float | Literal["auto"] = "auto",
        two_sided: bool = False,
        parameters: str | Sequence[str] | None = None,
        ids: str | Sequence[Id] | None = None,
        collate_fn: Collate | None = None,
        num_workers: int = 0,
        batch_size: int | Literal["auto"] = "auto",
        device: str = "auto",
        progress: Setting = "auto",
        seed: int = 0,
    ) -> ProbeIndex:
        """Make an index of a training set, or go on with one that was interrupted; the same call again returns it.

        With more ``probes`` than it has, an index is widened: those that are there stay.

        Cost: 1 F for the losses, and then ``"projected"``: one forward, one backward through activations and the
        projections, a few F whatever M; ``"forward"``: M F (``two_sided``: 2 M F), and no gradient is needed. Disk:
        4 bytes × N × M (:meth:`nbytes_of`), refused where there is no room for it. Memory: one copy of the parameters.

        It is put piece by piece, each with a checksum that is verified whenever it is read: a call that was killed goes on,
        with the same bytes, and two at once share what either has put. Of what is there a row of each piece is read anew
        (``"projected"``); what is damaged or does not agree is made anew, and said in ``notes``.

        Args:
            path: A folder of its own.
            model: Any module; ``"forward"`` also takes one without gradients (compiled, inference only), or any object with
                ``perturb(seed, length)``, a context manager within which the model is moved by ``length`` along a direction
                that ``seed`` alone decides (a negative length: the other way), and ``losses(batch)``, one number an
                example. Give such an object a ``version``: it is all that tells one from another.
            train: As in :func:`forwardinf.attribute`.
            task: As in :func:`forwardinf.attribute`; none for an object with ``losses``.
            probes: M.
            how: ``"projected"`` or ``"forward"``.
            draw: ``"structured"``: signed rows of Hadamard matrices, orthogonal within 4,096; ``"gaussian"``: independent
                normal numbers (slow to draw). Objects draw their own.
            length: ‖Δθ‖/‖θ‖ of a forward perturbation; ``"auto"``: 1e-2 in float32, 1e-4 in float64, 3e-2 in bfloat16. For an
                object it is what ``perturb`` gets, .01 unless given.
            two_sided: Half the difference between there and back: no error of first order in the length, at twice the cost.
                Ranks hardly notice (docs/probes.md).
            parameters: Globs over the names of those that move; None: those with ``requires_grad``, or all if none has it.
            ids: As in :func:`forwardinf.attribute`.
            collate_fn: As in :func:`forwardinf.attribute`.
            num_workers: As in :func:`forwardinf.attribute`.
            batch_size: As in :func:`forwardinf.attribute`.
            device: As in :func:`forwardinf.attribute`.
            progress: As in :func:`forwardinf.attribute`.
            seed: Of the probes, and of what the data draws.

        Raises:
            RunMismatch: The folder holds an index of another model, task, training set or setting.
            Error: With where / expected / got / do.
        """
        options = Options(batch_size=batch_size, device=device, num_workers=num_workers, progress=progress, seed=seed)
        if how not in HOW:
            raise choose("ProbeIndex.build(how=)", str(how), HOW)
        if draw not in KINDS:
            raise choose("ProbeIndex.build(draw=)", str(draw), KINDS)
        if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
            raise SettingError("ProbeIndex.build(probes=)", expected="a whole number ≥ 1", got=repr(probes))
        patterns = [parameters] if isinstance(parameters, str) else None if parameters is None else list(parameters)
        settings = {
            "how": how,
            "draw": draw,
            "seed": seed,
            "length": length,
            "two_sided": two_sided,
            "parameters": patterns,
        }
        where = as_path("index", path)
        with stages("index", progress) as whole, opened(model, task, settings, options) as reader:
            rows, data = reader.read(train, "train", collate_fn, ids)
            made_from = reader.made_from
            if not (where / f"{INDEX}.safetensors").is_file():
                cls._new(where, settings, made_from, reader, rows)
            index = cls(where)
            first = index._files.parts[0].data if index._files.parts else data
            index._same({"settings": index.settings, "data": first, **index._made_from},
                        {"settings": settings, "data": data, **made_from})  # fmt: skip
            index._add(reader, rows, data, None if ids is None else rows.examples.ids, max(probes, index.probes), whole)
        return index

    def append(
        self, model: Any, train: Any, *, task: Any = None, ids: str | Sequence[Id] | None = None,
        collate_fn: Collate | None = None, num_workers: int = 0, batch_size: int | Literal["auto"] = "auto",
        device: str = "auto", progress: Setting = "auto",
    ) -> None:  # fmt: skip
        """Add more training examples, read by the same model; those that are there already are only completed.

        Args:
            model: As in :meth:`build`, with the same weights.
            train: The new examples.
            task: As in :meth:`build`.
            ids: Of the new examples, none of them taken; default the positions that follow.
            collate_fn: As in :meth:`build`.
            num_workers: As in :meth:`build`.
            batch_size: As in :meth:`build`.
            device: As in :meth:`build`.
            progress: As in :meth:`build`.
        """
        options = Options(
            batch_size=batch_size, device=device, num_workers=num_workers, progress=progress, seed=self.settings["seed"]
        )
        with stages("index", progress) as whole, opened(model, task, self.settings, options) as reader:
            rows, data = reader.read(train, "train", collate_fn, ids)
            self._same(self._made_from, reader.made_from)
            self._add(reader, rows, data, None if ids is None else rows.examples.ids, self.probes, whole)

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """N: how many training examples it holds."""
        return self._files.rows

    @property
    def probes(self) -> int:
        """M: how many probes."""
        return self._files.probes

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self._files.nbytes

    @staticmethod
    def nbytes_of(examples: int, probes: int) -> int:
        """Return the bytes that an index of so many examples and probes takes."""
        return 4 * examples * probes

    @property
    def ids(self) -> list[Id]:
        """Training ids, in order."""
        return [value for part in self._files.parts for value in part.ids]

    @property
    def losses(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """``(N,)``: training losses."""
        return np.concatenate([part.losses.numpy() for part in self._files.parts])

    def responses(self, probes: int | None = None) -> Tensor:
        """Return R ``(N, M)`` float32, of the first ``probes``: gᵢᵀu_m. Read once, every piece checked; then in memory.

        Raises:
            FileError: The filling was interrupted, a piece is damaged, or memory has no room for them.
        """
        self._files.refresh()
        missing = len(self._files.todo(whole_rows=self._projected))
        if missing:
            raise FileError(str(self.path), expected="a whole index", got=f"one with {missing} pieces missing",
                            do="Make the call that was interrupted again: it goes on.")  # fmt: skip
        return self._files.table(probes)

    # -- asking it ---------------------------------------------------------------------------------------------------

    def query(
        self, model: Any, queries: Any, *, task: Any = None, compare: str = "whitened", how: str | None = None,
        probes: int | None = None, damping: float | Literal["auto"] = "auto", temper: float = TEMPER,
        query_ids: str | Sequence[Id] | None = None, collate_fn: Collate | None = None,
        batch_size: int | Literal["auto"] = "auto", device: str = "auto", on_bad_query: str = "raise",
        progress: Setting = "auto",
    ) -> Scores:  # fmt: skip
        """Score every training example for each query, positive = proponent; nothing but the queries is read.

        Cost: one forward and backward of each query; ``how="forward"``: 2 M forwards of it instead. Then N·M products a query;
        whitening takes N·M² products once, which are kept with the index, and M³/3 for each new damping. Memory: 8 bytes × N × M
        and 24 × M² (whitened), 4 × N × M else. The same queries again (``compare=``, fewer ``probes=``) are not read.

        Args:
            model: The model that the index was built with.
            queries: As in :func:`forwardinf.attribute`.
            task: As in :func:`forwardinf.attribute`: what a query is asked.
            compare: ``"whitened"``: gᵢᵀPg_q under the empirical Fisher, the most faithful (docs/method.md); ``"cosine"`` of the
                responses: 1 for a copy; ``"covariance"``: gᵢᵀg_q.
            how: How queries respond: by their gradient (``"projected"``), or by forward passes; default as the index was built.
            probes: Use the first so many only.
            damping: For whitened scores, as ``Perturbation("hold", damping=)``.
            temper: For whitened scores: β, every gradient counts at length ‖g‖^(1−β), in the curvature and in the score.
            query_ids: As in :func:`forwardinf.attribute`.
            collate_fn: As in :meth:`build`.
            batch_size: As in :meth:`build`.
            device: As in :meth:`build`.
            on_bad_query: As in :func:`forwardinf.attribute`: what becomes of a query that does not respond.
            progress: As in :meth:`build`.

        Returns:
            :class:`Scores` of kind ``"probe"``; cosines and tempered scores have no unit.
        """
        began = time.perf_counter()
        if compare not in COMPARE:
            raise choose("index.query(compare=)", str(compare), COMPARE)
        if how not in (None, *HOW):
            raise choose("index.query(how=)", str(how), HOW)
        options = Options(batch_size=batch_size, device=device, on_bad_query=on_bad_query, progress=progress,
                          seed=self.settings["seed"])  # fmt: skip
        table = self.responses(probes)
        own_way, count = how or self.settings["how"], table.shape[1]
        with stages("query", progress) as whole:
            with opened(model, task, self.settings, options) as reader:
                made_from = reader.made_from  # a query may be asked otherwise: its task need not be the index's
                self._same(
                    {name: self._made_from[name] for name in OF_MODEL}, {name: made_from[name] for name in OF_MODEL}
                )
                rows, asked_digest = reader.read(queries, "queries", collate_fn, query_ids)
                every = range(len(rows.examples))
                whole.expect("queries", len(every) * (4 if own_way == "projected" else 2 * count))
                whole.expect("comparing", len(table) * count * (count + len(every)) + count**3 / 3, ARITHMETIC)
                key = None if made_from["task"] is None else digest(asked_digest, made_from, own_way)
                if key is None or self._last is None or self._last[0] != key or self._last[1].shape[1] < count:
                    self._last = None
                    rows = replace(rows, asked={})
                    baseline = -rows.measures(every, reader.few(rows))
                    self._last = key or "", *reader.queries(rows, count, forward=own_way == "forward"), baseline
                _, asked, own, baseline = self._last
                asked, own = asked[:, :count], own[:, :count]
            usable = self._usable(asked, rows.examples.ids, options)
            with shown("comparing", 1, progress) as advance:
                values, rise, cross = self._compared(table, asked[usable], own, compare, damping, temper)
                advance(1)
        size = len(asked)
        tempered = compare == "whitened" and temper > 0
        nothing = np.full(size, math.nan)
        found = Scores(
            ids=self.ids, query_ids=rows.examples.ids, baseline=self.losses, query_baseline=baseline.numpy(),
            dense=_spread(values.float(), usable, size).numpy(), rise=_spread(rise, usable, size).numpy(),
            cross=_spread(cross, usable, size).numpy(), length=nothing, step=nothing,
            status=["ok" if good else "does not respond" for good in usable.tolist()], noise_floor=np.zeros(size),
            kind="probe", unit=None if compare == "cosine" or tempered else self.unit,
            plan={"engine": "probes", "compare": compare, "probes": count, "how": own_way},
            cost={"read_s": round(time.perf_counter() - began, 4)},
            notes=[f"estimated by {count} shared probes: a cosine is known to about ±{1 / math.sqrt(count):.2g}", *self.notes],
            made_from={**self._made_from, "data": digest([part.data for part in self._files.parts]), "queries": asked_digest},
        )  # fmt: skip
        return found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _compared(
        self, table: Tensor, asked: Tensor, own: Tensor, compare: str, damping: float | str, temper: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (values ``(Q, N)``, rise ``(Q,)``, cross ``(Q, rows)``) from responses ``(Q, M)`` and ``(rows, M)``."""
        if compare == "whitened":
            fit, whitening = self._whitening(table, damping, temper)
            scale, others = asked.norm(dim=1) ** -temper, tempers(own.norm(dim=1), temper)
            tempered = asked * scale[:, None]
            solved = len(table) * whitening.solve(tempered)  # R̃ (R̃ᵀR̃ + λN)⁻¹ = (R̃R̃ᵀ + λN)⁻¹ R̃
            return along(fit, solved), (solved * tempered).sum(1), solved @ own.T * others
        if compare == "covariance":
            count = table.shape[1]
            return along(table, asked) / count, asked.square().sum(1) / count, asked @ own.T / count
        lengths = torch.cat([piece.double().norm(dim=1) for piece in torch.split(table, 4096)])
        one = asked / asked.norm(dim=1, keepdim=True)
        values = along(table, one) / lengths
        return values, torch.ones(len(asked), dtype=torch.float64), one @ (own / own.norm(dim=1, keepdim=True)).T

    def _whitening(self, table: Tensor, damping: float | str, temper: float) -> tuple[Tensor, Whitening]:
        """Return (tempered responses, what whitens by them); both are there for the same question again."""
        key = table.shape, damping, temper, [part.data for part in self._files.parts]
        if self._whitened is None or self._whitened[0] != key:
            self._whitened = None
            lengths = torch.cat([piece.double().norm(dim=1) for piece in torch.split(table, AT_ONCE)])
            fit = table * tempers(lengths, temper)[:, None].float() if temper else table
            name = digest(self._made_from, self.settings, temper, table.shape, key[-1])
            whitening = Whitening(fit, DAMPING if isinstance(damping, str) else damping,
                                  Kept(self._files.pieces, name, self._note), torch.float64)  # fmt: skip
            self._whitened = key, lengths, fit, whitening
        return self._whitened[2], self._whitened[3]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _usable(self, asked: Tensor, names: Sequence[Id], options: Options) -> Tensor:
        good = asked.square().sum(1) > 0
        if bool(good.all()) or options.on_bad_query == "skip":
            return good
        place = int((~good).nonzero()[0])
        raise QueryError(f"query {names[place]!r}", expected="a response to at least one probe", got="none",
                         do="A query fitted perfectly has none: ask its margin, or on_bad_query='skip'.")  # fmt: skip

    @classmethod
    def _new(cls, where: Path, settings: dict[str, Any], made_from: dict[str, Any], reader: Reader, rows: Feed) -> None:
        """Say what the index is of, once; how batches are made too, or a killed build would not go on with the same bytes."""
        if where.is_dir() and any(not path.name.startswith(".") for path in where.iterdir()):
            raise FileError(str(where), expected="a new folder", got="one with files in it", do="Choose another.")
        tuned, size = reader.tuned(rows)
        about = {"format": FORMAT, "settings": settings, "made_from": made_from, "unit": reader.task.unit,
                 "layout": {"batch_size": size, "channels_last": tuned.channels_last}}  # fmt: skip
        Pieces(where).put(INDEX, {"version": torch.tensor([2])}, about)

    def _same(self, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        apart = differences(kept, now)
        if apart:
            raise RunMismatch(str(self.path), differs=apart, do="Build another index, in another folder.")

    def _add(self, reader: Reader, rows: Feed, data: str, ids: Sequence[Id] | None, probes: int, whole: Stages) -> None:
        """Fill what is missing of these examples: the whole of them where they are new. ``whole``: the call's progress."""
        every, files = range(len(rows.examples)), self._files
        files.pieces.sweep()
        files.refresh()
        part = files.find(data)
        if part is None:
            whole.expect("losses", len(every))
        a_pass = 4 if self._projected else probes * (1 + self.settings["two_sided"])
        whole.expect("responses", a_pass * len(every))
        files.room_for(0 if part is not None else rows.examples.units, probes)
        asked = reader.options.batch_size
        size = int(self._layout["batch_size"]) if asked == "auto" else asked
        rows = replace(rows, channels_last=self._layout["channels_last"])
        if part is None:
            noise_floor(rows, every, size)
            with progress("losses", len(every), reader.options.progress) as advance:
                losses = rows.losses(every, size, advance)
            part = files.add(data, ids, losses.double(), probes)
        files.widen(probes)
        for tile in files.sound(part):
            self._note(f"{tile.name} was damaged: read anew")
        if self._projected:
            self._check(reader, rows, part, size)
        total = sum((tile.last - tile.first) if self._projected else (tile.stop - tile.start)
                    for tile in files.todo(whole_rows=self._projected, part=part))  # fmt: skip
        with progress("responses", total, reader.options.progress) as advance:
            while todo := files.todo(whole_rows=self._projected, part=part):
                for tile in todo:
                    if tile.name not in files.pieces:  # else another build was quicker
                        files.put(tile, self._read(reader, rows, tile, size, advance))

    def _read(self, reader: Reader, rows: Feed, tile: Tile, size: int, advance: Callable[[int], None]) -> Tensor:
        """Return the responses of a tile, ``(rows, probes)`` float32."""
        if self._projected:
            piece = rows.examples.rows_of(range(tile.first, tile.last))
            read = reader.projected(rows, piece, tile.stop, size, advance)
            skipped = tile.first - int(rows.examples.offsets[piece[0]])  # documents of the same packed row
            found = torch.cat([part for part, _ in read])[skipped:, tile.start : tile.stop][: tile.last - tile.first]
        else:
            ask = partial(ForwardEngine(rows, size).losses, range(len(rows.examples)))
            before = None if self.settings["two_sided"] else self._files.parts[tile.part].losses
            found = by_differences(ask, reader.sides, range(tile.start, tile.stop), before, advance)
        if not bool(torch.isfinite(found).all()):
            raise ModelError("index", expected="finite responses", got=f"others (rows {tile.first} to {tile.last})",
                             do="Take a shorter length=.")  # fmt: skip
        return found.float()

    def _check(self, reader: Reader, rows: Feed, part: int, size: int) -> None:
        """Read a row of each tile anew: what does not agree to rounding is read anew as a whole."""
        eps = max(torch.finfo(parameter.dtype).eps for parameter in reader.parameters.values())
        close = max(eps, torch.finfo(torch.float32).eps) ** 0.5
        for tile in self._files.of(part):
            kept = self._files.get(tile)
            one = tile._replace(first=tile.first, last=tile.first + 1)
            if kept is None:
                continue
            again = self._read(reader, rows, one, size, lambda done: None)
            if not bool((again - kept[:1]).norm() <= close * kept[:1].norm()):
                self._files.drop(tile)
                self._note(f"{tile.name} is not what the model gives now: read anew")


def _spread(rows: Tensor, usable: Tensor, size: int) -> Tensor:
    """Put rows where usable queries are; the others are NaN."""
    found = rows.new_full((size, *rows.shape[1:]), math.nan)
    found[usable] = rows
    return found
