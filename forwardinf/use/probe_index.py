"""An index of a training set: responses to shared perturbations, read once and kept; any number of queries then ask it.

A response is the rate at which an example's loss changes along a random direction: M of them are a sketch of its gradient,
and forward passes alone can take them. Their cosine finds copies; whitened, they rank training examples as curvature does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from forwardinf.core.borrow import borrowed
from forwardinf.core.errors import DataError, FileError, ModelError, QueryError, RunMismatch, SettingError, choose
from forwardinf.core.examples import Collate, Examples, Id
from forwardinf.core.feed import Feed
from forwardinf.core.files import read_json, read_table, write_json, write_table
from forwardinf.core.fingerprint import code_digest, differences, digest, model_digest
from forwardinf.core.noise import seed_of
from forwardinf.core.paths import as_path
from forwardinf.core.progress import ARITHMETIC, Setting, Stages, progress, stages
from forwardinf.core.progress import progress as shown
from forwardinf.core.ridge import Ridge, tempers
from forwardinf.core.task import FunctionTask, Task, as_task
from forwardinf.core.uses import as_uses
from forwardinf.job.options import Options, device_of, open_examples
from forwardinf.perturb.gradient import query_gradient
from forwardinf.perturb.lend import lend, tensors_of
from forwardinf.perturb.probes import KINDS, WIDEST, Probes, tables_of
from forwardinf.perturb.ruler import Ruler
from forwardinf.perturb.select import Parameters, select
from forwardinf.read.check import noise_floor
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.index import Lent, ResponseFiles, by_differences, by_projection
from forwardinf.read.tune import tune
from forwardinf.read.whitened import along, sketched
from forwardinf.score.scores import Scores
from forwardinf.score.store import id_column, plain_ids

FORMAT, TRAIN = "forwardinf.index/1", "forwardinf.train/1"
HOW = ("projected", "forward")
COMPARE = ("whitened", "cosine", "covariance")
LENGTHS = {torch.float64: 1e-4, torch.float32: 1e-2}  # a random direction bends a loss little, and moves it little
NARROW = 3e-2
TEMPER = 0.5  # β: every gradient counts at length ‖g‖^(1−β)


class ProbeIndex:
    """How every training example responds to M shared perturbations, kept in a folder.

    Build it once, with :meth:`build`; then :meth:`query` asks it for the price of one gradient a query (or of M forward
    passes of the query itself), whatever the size of the training set. Scores are estimates: a cosine is known to about
    ±1/√M. Nothing chooses it by itself.

    Attributes:
        path: The folder.
        settings: How it was made: ``how``, ``draw``, ``seed``, ``length``, ``two_sided``, ``parameters``.

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
        kept = read_json(self.path / "index.json", FORMAT, what="an index")
        self.settings: dict[str, Any] = kept["settings"]
        self._made_from: dict[str, Any] = kept["made_from"]
        self._digests: list[str] = list(kept["parts"])
        self.unit = str(kept["unit"])
        self._files = ResponseFiles(self.path)
        self._ridges: dict[tuple[Any, ...], Ridge] = {}
        self._last: tuple[str, Tensor, Tensor, Tensor] | None = None  # the last queries' responses and losses

    def __repr__(self) -> str:
        missing = len(self._files.todo(whole_rows=self.settings["how"] == "projected"))
        whole = f"; {missing} pieces are missing: make the call that was interrupted again" if missing else ""
        size = f"{self.size:,} training examples × {self.probes:,} probes, {self.settings['how']}"
        return (
            f"ProbeIndex({str(self.path)!r}: {size}, {self.nbytes / 2**20:,.1f} MiB{whole}; see .query(model, queries))"
        )

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
        with stages("index", progress) as whole, _opened(model, task, settings, options) as reader:
            rows, data = reader.read(train, "train", collate_fn, ids)
            made_from = reader.made_from
            if (where / "index.json").is_file():
                index = cls(where)
                index._same({"settings": index.settings, "data": index._digests[0], **index._made_from},
                            {"settings": settings, "data": data, **made_from})  # fmt: skip
            else:
                index = cls._new(where, settings, made_from, reader.task.unit)
            index._add(reader, rows, data, max(probes, index.probes), whole)
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
        with stages("index", progress) as whole, _opened(model, task, self.settings, options) as reader:
            rows, data = reader.read(train, "train", collate_fn, ids)
            if ids is None and data not in self._digests:
                rows.examples.ids = [self.size + place for place in rows.examples.ids if isinstance(place, int)]
            self._same(self._made_from, reader.made_from)
            self._add(reader, rows, data, self.probes, whole)

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
        return [value for number in range(len(self._digests)) for value in plain_ids(self._table(number), "id", TRAIN)]

    @property
    def losses(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """``(N,)``: training losses."""
        parts = [read_table(self._table(n), TRAIN, what="training losses")["loss"] for n in range(len(self._digests))]
        return np.concatenate([np.asarray(part.to_pylist(), dtype=np.float64) for part in parts])

    def responses(self, probes: int | None = None) -> Tensor:
        """Return R ``(N, M)`` float32, of the first ``probes``: gᵢᵀu_m. Mapped from the file where one holds it.

        Raises:
            FileError: The filling was interrupted.
        """
        missing = len(self._files.todo(whole_rows=self.settings["how"] == "projected"))
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
        whitening factors an M×M matrix once (N·M² + M³/3). The same queries again (``compare=``, fewer ``probes=``) are not read.

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
            with _opened(model, task, self.settings, options) as reader:
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
            notes=[f"estimated by {count} shared probes: a cosine is known to about ±{1 / math.sqrt(count):.2g}"],
            made_from={**self._made_from, "data": digest(self._digests), "queries": asked_digest},
        )  # fmt: skip
        return found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _compared(
        self, table: Tensor, asked: Tensor, own: Tensor, compare: str, damping: float | str, temper: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (values ``(Q, N)``, rise ``(Q,)``, cross ``(Q, rows)``) from responses ``(Q, M)`` and ``(rows, M)``."""
        if compare == "whitened":
            key = table.shape[1], damping, temper, self.size
            if key not in self._ridges:
                self._ridges[key] = Ridge(responses=table, damping=damping, temper=temper)
            ridge = self._ridges[key]
            found = sketched(ridge, table, list(asked), list(own), lambda done: None)
            scale, lengths = asked.norm(dim=1) ** -temper, own.norm(dim=1)
            others = tempers(lengths, temper)
            return (found.values * ridge.inverse * scale[:, None], found.rise * scale.square(),
                    found.cross * scale[:, None] * others)  # fmt: skip
        if compare == "covariance":
            count = table.shape[1]
            return along(table, asked) / count, asked.square().sum(1) / count, asked @ own.T / count
        lengths = torch.cat([piece.double().norm(dim=1) for piece in torch.split(table, 4096)])
        one = asked / asked.norm(dim=1, keepdim=True)
        values = along(table, one) / lengths
        return values, torch.ones(len(asked), dtype=torch.float64), one @ (own / own.norm(dim=1, keepdim=True)).T

    def _usable(self, asked: Tensor, names: Sequence[Id], options: Options) -> Tensor:
        good = asked.square().sum(1) > 0
        if bool(good.all()) or options.on_bad_query == "skip":
            return good
        place = int((~good).nonzero()[0])
        raise QueryError(f"query {names[place]!r}", expected="a response to at least one probe", got="none",
                         do="A query fitted perfectly has none: ask its margin, or on_bad_query='skip'.")  # fmt: skip

    @classmethod
    def _new(cls, where: Path, settings: dict[str, Any], made_from: dict[str, Any], unit: str) -> ProbeIndex:
        if where.is_dir() and any(where.iterdir()):
            raise FileError(str(where), expected="a new folder", got="one with files in it", do="Choose another.")
        write_json(where / "index.json", {"format": FORMAT, "settings": settings, "made_from": made_from, "parts": [],
                                          "unit": unit})  # fmt: skip
        return cls(where)

    def _same(self, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        apart = differences(kept, now)
        if apart:
            raise RunMismatch(str(self.path), differs=apart, do="Build another index, in another folder.")

    def _table(self, number: int) -> Path:
        return self.path / f"train-{number:03d}.parquet"

    def _add(self, reader: _Reader, rows: Feed, data: str, probes: int, whole: Stages) -> None:
        """Fill what is missing of these examples: the whole of them where they are new. ``whole``: the call's progress."""
        every = range(len(rows.examples))
        if data not in self._digests:
            whole.expect("losses", len(every))
        a_pass = 4 if self.settings["how"] == "projected" else probes * (1 + self.settings["two_sided"])
        whole.expect("responses", a_pass * len(every))
        rows, size = reader.tuned(rows)
        if data not in self._digests:
            noise_floor(rows, every, size)
            taken = set(self.ids)
            twice = [value for value in rows.examples.ids if value in taken]
            if twice:
                raise DataError("index.append(ids=)", expected="ids that are not taken", got=repr(twice[0]))
            with progress("losses", len(every), reader.options.progress) as advance:
                losses = rows.losses(every, size, advance)
            write_table(
                self._table(len(self._digests)), {"id": id_column(rows.examples.ids), "loss": losses.numpy()}, TRAIN
            )
            self._files.grow(len(losses), probes)
            self._digests.append(data)
            write_json(self.path / "index.json", {"format": FORMAT, "settings": self.settings, "made_from": self._made_from,
                                                  "parts": self._digests, "unit": self.unit})  # fmt: skip
        elif probes > self.probes:
            self._files.grow(0, probes)
        first, last = self._files.parts[self._digests.index(data)]
        projected = self.settings["how"] == "projected"
        todo = [tile for tile in self._files.todo(whole_rows=projected) if first <= tile[0] and tile[1] <= last]
        total = sum((stop - start) if projected else (to - at) for start, stop, at, to in todo)
        with progress("responses", total, reader.options.progress) as advance:
            for tile in todo:
                start, stop, at, to = tile
                if projected:
                    piece = rows.examples.rows_of(range(start - first, stop - first))
                    found = torch.cat([part for part, _ in reader.projected(rows, piece, to, size, advance)])[:, at:to]
                else:
                    ask = partial(ForwardEngine(rows, size).losses, every)
                    before = None if self.settings["two_sided"] else torch.from_numpy(self.losses[first:last])
                    found = by_differences(ask, reader.sides, range(at, to), before, advance)
                if not bool(torch.isfinite(found).all()):
                    raise ModelError("index", expected="finite responses", got=f"others (rows {start} to {stop})",
                                     do="Take a shorter length=.")  # fmt: skip
                self._files.put(tile, found.float())


OF_MODEL = ("model", "parameters")


class _Reader:
    """A model (or an object that can be perturbed), ready to respond to probes."""

    def __init__(
        self, model: nn.Module, task: Task, settings: Mapping[str, Any], options: Options, subject: Any
    ) -> None:
        self.model, self.task, self.options, self.subject = model, task, options, subject
        self.settings = settings
        self.parameters: Parameters = {}
        self.device = torch.device("cpu")
        self._drawn: Probes | None = None
        if subject is None:
            self.device = device_of(model, options.device)
            wanted = any(parameter.requires_grad for parameter in model.parameters())
            patterns = settings["parameters"]
            self.parameters = select(model, patterns if patterns or wanted else ["*"])
            self.ruler, self.live = Ruler(model, self.parameters), tensors_of(model)
            self.tables = tables_of(model, self.parameters)

    @property
    def made_from(self) -> dict[str, Any]:
        """Return fingerprints of what responses depend on beside the data."""
        if self.subject is not None:
            return {"model": f"version {getattr(self.subject, 'version', None)}", "task": "losses", "parameters": []}
        code = code_digest(self.task, getattr(self.task, "version", None))
        return {"model": model_digest(self.model), "task": code, "parameters": sorted(self.parameters)}

    def read(self, data: Any, name: str, collate: Collate | None, ids: str | Sequence[Id] | None) -> tuple[Feed, str]:
        """Return (feed, digest of the content) of data in any form."""
        rows: Examples = open_examples(data, name, self.task, collate, self.options)
        task = self.task.whole() if name == "queries" else self.task
        with progress("hashing", len(rows), self.options.progress) as advance:
            found = rows.seal(range(len(rows)), advance, task.parts if task.packed else None, ids)
        return Feed(self.model, task, rows, self.device, seed=self.options.seed), found

    def tuned(self, rows: Feed) -> tuple[Feed, int]:
        """Return (the feed in its fastest layout, batch size)."""
        asked = None if self.options.batch_size == "auto" else self.options.batch_size
        found = tune(rows, range(len(rows.examples)), asked, min(10.0, max(0.2, 5e-4 * len(rows.examples))), None)
        return replace(rows, channels_last=found.channels_last), found.batch_size

    def few(self, rows: Feed) -> int:
        """Return a batch size for a few rows."""
        return 16 if self.options.batch_size == "auto" else self.options.batch_size

    def probes(self, count: int) -> Probes:
        """Return the first ``count`` probes."""
        if not self.parameters:
            raise SettingError("how='projected'", expected="a model with gradients", got="an object without",
                               do="how='forward'.")  # fmt: skip
        if self._drawn is None or self._drawn.count != count:
            self._drawn = Probes(self.parameters, count, seed=self.settings["seed"], kind=self.settings["draw"],
                                 tables=self.tables, width=WIDEST)  # fmt: skip
        return self._drawn

    def projected(self, rows: Feed, piece: Sequence[int], count: int, size: int, advance: Callable[[int], None]) -> Any:
        """Yield the responses of these rows to the first ``count`` probes, by their gradients."""
        return by_projection(rows, piece, self.parameters, self.probes(count).responses, size, advance)

    def sides(self, m: int) -> tuple[list[Lent], float]:
        """Return a probe's ways to move the model, and the length of a step."""
        signs = (1, -1) if self.settings["two_sided"] else (1,)
        length = self.settings["length"]
        if self.subject is not None:
            step = 0.01 if length == "auto" else float(length)
            own = seed_of("probe", self.settings["seed"], m)
            return [partial(self.subject.perturb, own, side * step) for side in signs], step
        if length == "auto":
            length = max(LENGTHS.get(parameter.dtype, NARROW) for parameter in self.parameters.values())
        u = self.probes(WIDEST).direction(m)  # how many there are does not matter to one of them
        step = self.ruler.step_for(u, float(length))

        def moved(side: int) -> AbstractContextManager[None]:
            return lend(self.live, {name: torch.add(self.parameters[name].detach().to(tensor.dtype), tensor, alpha=side * step)
                                    .to(self.parameters[name].dtype) for name, tensor in u.items()})  # fmt: skip

        return [partial(moved, side) for side in signs], step

    def queries(self, rows: Feed, count: int, *, forward: bool) -> tuple[Tensor, Tensor]:
        """Return responses ``(Q, M)`` float64 of what each query is asked (the way it falls), and of its own loss."""
        every, size = range(len(rows.examples)), self.few(rows)
        plain = replace(rows, asked=None)  # its own loss is that of the label it has
        if forward:

            def ask() -> Tensor:
                return torch.stack([-rows.measures(every, size), plain.losses(every, size)])

            with progress("queries", count, self.options.progress) as advance:
                before = None if self.settings["two_sided"] else ask()
                both = by_differences(ask, self.sides, range(count), before, advance)
            return both[0], both[1]
        probes = self.probes(count)
        asked = []
        with progress("queries", len(every), self.options.progress) as advance:
            for row in every:
                gradient = query_gradient(rows, [row], self.parameters, 1)
                asked.append(probes.responses(as_uses(gradient), 1)[0].double().cpu())
                advance(1)
        own = [part.double() for part, _ in by_projection(plain, every, self.parameters, probes.responses, size)]
        return torch.stack(asked), torch.cat(own)


@contextmanager
def _opened(model: Any, task: Any, settings: Mapping[str, Any], options: Options) -> Iterator[_Reader]:
    """Yield what responds to probes, the model borrowed."""
    if isinstance(model, nn.Module):
        if task is None:
            raise SettingError("task", expected="a task, or a function (model, batch) -> (B,)", got="none")
        with borrowed(model) as lent:
            yield _Reader(lent, as_task(task), settings, options, None)
        return
    if not callable(getattr(model, "perturb", None)) or not callable(getattr(model, "losses", None)):
        raise ModelError("model", expected="a torch.nn.Module, or an object with perturb(seed, length) and losses(batch)",
                         got=type(model).__name__)  # fmt: skip
    if settings["how"] != "forward":
        raise SettingError(
            "ProbeIndex.build(how=)", expected="'forward' for an object without gradients", got="'projected'"
        )
    spoken = FunctionTask(lambda _, batch: torch.as_tensor(model.losses(batch)))
    yield _Reader(nn.Module(), spoken, settings, options, model)


def _spread(rows: Tensor, usable: Tensor, size: int) -> Tensor:
    """Put rows where usable queries are; the others are NaN."""
    found = rows.new_full((size, *rows.shape[1:]), math.nan)
    found[usable] = rows
    return found
