"""A job: everything that is settled before the first reading, and what becomes of each piece of work.

Data in every form, queries checked, batch size and layout found, baseline read or recalled, run folder claimed. The
method itself is in ``method.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from forwardinf.core import machine
from forwardinf.core.errors import DataError, ModelError, SettingError, choose
from forwardinf.core.examples import Collate, Examples, Id, examples
from forwardinf.core.feed import Feed
from forwardinf.core.files import read_json, read_table, write_json
from forwardinf.core.fingerprint import code_digest, digest, model_digest
from forwardinf.core.progress import Advance, Setting, progress
from forwardinf.core.settings import Perturbation
from forwardinf.core.task import Classification, Task, as_task
from forwardinf.perturb.direction import Direction, Fitting
from forwardinf.perturb.gradient import query_gradient
from forwardinf.perturb.hold import Holding
from forwardinf.perturb.makers import PASSES_OF_A_QUERY, make_direction
from forwardinf.perturb.own import Own, own_of
from forwardinf.perturb.push import Pusher, Query
from forwardinf.perturb.select import Parameters, select
from forwardinf.read import plan as planning
from forwardinf.read.baseline import Baseline, baseline_key, load_baseline, read_baseline, save_baseline
from forwardinf.read.check import noise_floor
from forwardinf.read.choose import Asked, choose_engine
from forwardinf.read.cut import Cut, find_cut
from forwardinf.read.directions import Directions
from forwardinf.read.engine import Engine
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.per_example import OwnEngine, self_products
from forwardinf.read.plan import Plan, Unit, make_plan, shards, units
from forwardinf.read.predict import misclassified
from forwardinf.read.support import unsupported
from forwardinf.read.trunk import TrunkEngine, TrunkFiles
from forwardinf.read.tune import tune
from forwardinf.read.whitened import Whitened, loss_gradient, read_whitened, sketched
from forwardinf.score.scores import Scores, gather, write_facts
from forwardinf.score.store import QUERIES, Entry, Folder, id_column, plain_ids
from forwardinf.score.top import Floats, Ints, extremes

ALL_UP_TO = 10**8  # scores kept whole by keep="auto"
KEPT_BEYOND = 1000
UNFITTED = ("plain", "sign")
LOW_RANK = ("plain", "sign", "kfac", "hold")  # read along the few ranks of a query's gradient (hold: and then whitened)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of :func:`forwardinf.attribute` that say how, checked at birth; see there for their meaning."""

    engine: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    shard_rows: int | Literal["auto"] = "auto"
    device: str = "auto"
    keep: int | Literal["all", "auto"] = "auto"
    num_workers: int = 0
    output_dir: str | Path | None = None
    overwrite: bool = False
    cache_dir: str | Path | None = None
    on_bad_query: str = "raise"
    progress: Setting = "auto"
    seed: int = 0
    config: str | None = None  # what replays a command-line run; kept in its folder

    def __post_init__(self) -> None:
        if self.engine == "probes":
            raise SettingError("engine", expected=f"one of {', '.join(map(repr, planning.ENGINES))}", got="'probes'",
                               do="Responses to shared probes are an index: fi.ProbeIndex.build(...).query(...).")  # fmt: skip
        if self.engine not in planning.ENGINES:
            raise choose("engine", str(self.engine), planning.ENGINES)
        if self.on_bad_query not in ("raise", "skip"):
            raise choose("on_bad_query", str(self.on_bad_query), ("raise", "skip"))
        if self.progress not in (True, False, "auto"):
            raise SettingError("progress", expected="True, False or 'auto'", got=repr(self.progress))
        for name, words in (("batch_size", ("auto",)), ("shard_rows", ("auto",)), ("keep", ("all", "auto"))):
            value = getattr(self, name)
            if value not in words and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                told = " or ".join(map(repr, words))
                raise SettingError(name, expected=f"a whole number ≥ 1, or {told}", got=repr(value))
        for name in ("num_workers", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SettingError(name, expected="a whole number ≥ 0", got=repr(value))
        for name in ("output_dir", "cache_dir"):
            if not isinstance(getattr(self, name), str | PathLike | None):
                raise SettingError(name, expected="a path, or None", got=repr(getattr(self, name)))

    @property
    def cache(self) -> Path | None:
        """Where baselines and tunings are kept between calls."""
        return machine.cache_folder(self.cache_dir)


@dataclass
class Job:
    """What :func:`prepare` settled. ``pending`` gives the work; ``keep`` takes its results; ``scores`` joins them."""

    train: Feed
    queries: Feed
    pusher: Pusher
    perturbation: Perturbation
    options: Options
    members: list[list[int]]
    query_ids: list[Id]
    candidates: list[Ints] | None
    made_from: dict[str, Any]
    plan: Plan
    keep_rule: int | str
    asked: list[Query]
    baseline_file: Path | None
    baseline: Baseline
    query_baseline: Tensor
    folder: Folder | None
    notes: list[str]
    clock: dict[str, float] = field(default_factory=dict)
    memory: dict[tuple[str, int, int], list[Entry]] = field(default_factory=dict)
    forwards: int = 0
    _unit: int = 0
    _advance: Advance = lambda done: None
    tables: Whitened | None = None
    trunk_folder: Path | None = None
    _trunk: tuple[Cut, TrunkFiles] | None = None
    _scratch: TemporaryDirectory[str] | None = None
    _block: tuple[tuple[int, ...], Directions] | None = None

    # -- work --------------------------------------------------------------------------------------------------------

    def units(self) -> list[Unit]:
        """Return all pieces of work, done or not."""
        usable = self._usable()
        rows_of = None
        if self.candidates is not None:
            rows_of = {q: self.train.examples.rows_of(list(self.candidates[q])) for q in usable}
        rows = range(len(self.train.examples))
        return units(self.plan, usable, rows_of, rows, range(len(self.queries.examples)))

    def pending(self) -> Iterator[Unit]:
        """Yield the pieces of work that no earlier run has finished, under a progress bar."""
        started = time.perf_counter()
        todo = [(n, u) for n, u in enumerate(self.units()) if self.folder is None or not self.folder.has(u.name)]
        total = sum(
            len(unit.rows) * (1 if self.plan.exact else len(unit.queries) * self.plan.sides) for _, unit in todo
        )
        with progress("reading", total, self.options.progress) as self._advance:
            for self._unit, unit in todo:
                began = time.perf_counter()
                yield unit
                if self.folder is not None:
                    self.folder.event("unit", name=unit.name, seconds=round(time.perf_counter() - began, 3))
        self.clock["read_s"] = time.perf_counter() - started

    def read(self, unit: Unit, perturbations: Any) -> Tensor:
        """Return what the engine reads of a unit: a row for each perturbation (losses, or exact scores)."""
        engine = self._engine(self.train if unit.of == "train" else self.queries)
        try:
            return engine.read(perturbations, unit.rows, self._advance)
        finally:
            self.forwards += engine.forwards

    def directions(self, queries: tuple[int, ...]) -> Directions:
        """Return the directions of a block of queries; the last block is kept for its next shard."""
        if self._block is None or self._block[0] != queries:
            self._block = None  # its memory is needed for the next one
            found = FactoredEngine(self.train, self.pusher.parameters, 1).directions(len(queries))
            for place, query in enumerate(queries):
                found.put(place, self.pusher.along(self.asked[query]))
            self._block = queries, found
        return self._block[1]

    @property
    def exact(self) -> bool:
        """Whether scores come from gradients, not from differences of losses."""
        return self.plan.exact or self.pusher.whitened is not None

    def whitened(self, unit: Unit) -> dict[int, Tensor]:
        """Return a unit's scores from those of all queries, which one plain reading has given."""
        if self.tables is None:
            self.tables = self._read_whitened()
        usable = {query: place for place, query in enumerate(self._usable())}
        if unit.of == "queries":
            return {query: self.tables.cross[usable[query]] for query in unit.queries}
        at = torch.from_numpy(self.train.examples.units_of(unit.rows))
        return {query: self.tables.values[usable[query], at] for query in unit.queries}

    def settle_rises(self) -> None:
        """Fill in the rises that come with the scores, and divide them as scores are divided."""
        usable = self._usable()
        if usable and self.pusher.whitened:
            self.tables = self._read_whitened()
        for place, query in enumerate(usable):
            known = self.asked[query]
            rise = known.rise if self.tables is None else float(self.tables.rise[place])
            self.asked[query] = replace(known, rise=rise * self._temper_of(query) ** 2)

    def _usable(self) -> list[int]:
        return [q for q, query in enumerate(self.asked) if query.usable]

    def _read_whitened(self) -> Whitened:
        began, usable, held = time.perf_counter(), self._usable(), self.pusher.whitened
        assert held is not None
        rows, sketch = range(len(self.queries.examples)), held.held.responses
        with progress("reading", len(self.train.examples) * self.plan.passes, self.options.progress) as advance:
            if sketch is not None:
                asked = [held.respond(self.pusher.gradient(self.asked[query])) for query in usable]
                own = [held.respond(loss_gradient(self.queries, row, self.pusher.parameters)) for row in rows]
                found = sketched(held.ridge, sketch, asked, own, advance)
            else:
                size = self.plan.batch_size_at(self._unit)
                train, queries = (
                    FactoredEngine(
                        replace(feed, channels_last=self.plan.pass_channels_last),
                        self.pusher.parameters,
                        size,
                        self._halved,
                    )
                    for feed in (self.train, self.queries)
                )
                found = read_whitened(
                    train, queries, held.ridge, lambda place: self.pusher.gradient(self.asked[usable[place]]), len(usable),
                    self.plan.query_block, advance,
                )  # fmt: skip
                self.forwards += train.forwards
        self.clock["whitened_s"] = time.perf_counter() - began
        return found

    def before(self, unit: Unit) -> Tensor:
        """Return the same losses under the model as it was."""
        if unit.of == "queries":
            return self.query_baseline
        return self.baseline.losses[torch.from_numpy(self.train.examples.units_of(unit.rows))]

    def keep(self, unit: Unit, scores: Mapping[int, Tensor]) -> None:
        """Take a unit's scores, by query: write them (or hold them in memory), only what the keep rule wants."""
        entries = [(q, *self._kept(unit, q, found)) for q, found in scores.items()]
        if self.folder is not None:
            self.folder.write_entries(unit.name, entries)
        else:
            self.memory[unit.of, unit.block, unit.shard] = entries

    def _tempered(self, unit: Unit, query: int, scores: Tensor) -> Tensor:
        """Divide linear scores by (‖gᵢ‖‖g_q‖)^β where gradients are tempered, whichever engine read them."""
        own = self._temper_of(query)
        if own == 1.0:
            return scores
        if unit.of == "train":
            scale = self._row_tempers()[torch.from_numpy(self.train.examples.units_of(unit.rows))]
        else:
            scale = torch.ones(len(scores), dtype=torch.float64)
            for place, rows in enumerate(self.members):
                scale[torch.tensor(rows)] = self._temper_of(place)
        return scores * scale * own

    def _row_tempers(self) -> Tensor:
        direction = self.pusher.direction
        assert isinstance(direction, Holding)
        return direction.ridge.inverse

    def _temper_of(self, query: int) -> float:
        beta = self.perturbation.tempering if self.perturbation.kind == "linear" else 0.0
        norm = self.asked[query].grad_norm
        return float(norm**-beta) if beta and norm > 0 else 1.0

    def _kept(self, unit: Unit, query: int, scores: Tensor) -> tuple[Ints, Floats]:
        scores = self._tempered(unit, query, scores)
        if unit.of == "queries":
            means = [float(scores[torch.tensor(rows)].mean()) for rows in self.members]
            return np.arange(len(means)), np.asarray(means, dtype=np.float32)
        places, found = self.train.examples.units_of(unit.rows), scores.numpy().astype(np.float32)
        if self.candidates is not None:
            wanted = np.isin(places, self.candidates[query])
            places, found = places[wanted], found[wanted]
        if isinstance(self.keep_rule, int):
            found, places = extremes(found, places, self.keep_rule)
        return places, found

    def _engine(self, feed: Feed) -> Engine:
        size = self.plan.batch_size_at(self._unit)
        if self.plan.engine == "trunk" and feed is self.train:
            return TrunkEngine(feed, size, *self._kept_trunk(size), self._halved)
        if not self.plan.exact:
            return ForwardEngine(feed, size, self._halved)
        placed = replace(feed, channels_last=self.plan.pass_channels_last)
        return FactoredEngine(placed, self.pusher.parameters, size, self._halved)

    def _kept_trunk(self, size: int) -> tuple[Cut, TrunkFiles]:
        """Return where the forward is cut and what is kept of its trunk: in the cache, or for this call only."""
        if self._trunk is None:
            cut = find_cut(self.train, self.pusher.parameters, range(min(size, len(self.train.examples))))
            folder = self.trunk_folder
            if folder is None:
                self._scratch = TemporaryDirectory(prefix="forwardinf-trunk-")
                folder = Path(self._scratch.name)
            files = TrunkFiles(folder / cut.name)
            files.need(self.plan.trunk_bytes)
            self._trunk = cut, files
        return self._trunk

    def _halved(self, size: int) -> None:
        self.plan = self.plan.revised(self._unit, size)
        self.notes.append(f"out of memory: {size} examples at a time from unit {self._unit} on")
        if self.folder is not None:
            write_json(self.folder.path / "plan.json", self.plan.to_dict())

    # -- result ------------------------------------------------------------------------------------------------------

    def scores(self) -> Scores:
        """Join what was read into the result; mark the run folder as finished."""
        if self.folder is not None:
            found, crossed = self.folder.entries("scores/b-*/s-*.parquet"), self.folder.entries("cross/b-*.parquet")
        else:
            found = (entry for key in sorted(self.memory) if key[0] == "train" for entry in self.memory[key])
            crossed = (entry for key in sorted(self.memory) if key[0] == "queries" for entry in self.memory[key])
        size = len(self.asked)
        dense, best = gather(found, size, self.train.examples.units, self.keep_rule)
        cross, _ = gather(crossed, size, size, "all")
        assert cross is not None

        def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
            return np.asarray([getattr(query, name) for query in self.asked], dtype=np.float64)

        scores = Scores(
            ids=self.train.examples.ids, query_ids=self.query_ids, baseline=self.baseline.losses.numpy(), dense=dense,
            best=best, cross=cross.astype(np.float64), query_baseline=column("baseline"),
            rise=column("rise"),
            length=column("length"), step=column("step"), status=[query.status for query in self.asked],
            noise_floor=self.floor(), kind=self.perturbation.kind,
            unit=None if self.perturbation.unitless else self.train.task.unit,
            signed=self.perturbation.signed, kept=self.keep_rule, perturbation=self.perturbation.to_dict(),
            plan=self.plan.to_dict(), cost=self._cost(), notes=[*self.notes, *self._remarks()], made_from=self.made_from,
            pictured=(self.train.examples, self.queries.examples),
        )  # fmt: skip
        if self.folder is not None and not self.folder.has("done.json"):
            write_facts(self.folder, scores)
            self.folder.finish({"cost": dict(scores.cost), "notes": self._remarks()})
        return scores

    def floor(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return each query's noise floor in the unit of its scores."""
        floors = []
        for place, query in enumerate(self.asked):
            if self.exact:
                floor = self.plan.gradient_error * query.direction_norm
            else:
                floor = self.baseline.noise_floor / (query.step if self.perturbation.kind == "linear" else 1.0)
            floors.append(floor * self._temper_of(place) ** 2)
        return np.asarray(floors, dtype=np.float64)

    def _cost(self) -> dict[str, Any]:
        peak = machine.peak_bytes() - int(self.clock.get("resident_bytes", 0))
        if self.train.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.train.device)
        expected = self.plan.seconds["reading"]
        return {"fit_s": round(self.pusher.fit_seconds, 4), "setup_s": round(self.clock["setup_s"], 4),
                "queries_s": round(self.clock["queries_s"], 4), "baseline_s": round(self.clock["baseline_s"], 4),
                "read_s": round(self.clock["read_s"] + self.clock.get("whitened_s", 0.0), 4),
                "expected_read_s": round(expected, 4),
                "forwards": self.forwards, "peak_bytes": max(peak, 0)}  # fmt: skip

    def _remarks(self) -> list[str]:
        """Return what the numbers themselves call for."""
        remarks = []
        shares = [query.share_moved for query in self.asked if query.usable]
        if shares and min(shares) < 0.5:
            remarks.append(f"only {min(shares):.0%} of the weights moved after rounding to the model's dtype")
        for status in ("capped", "unreachable"):
            count = sum(query.status == status for query in self.asked)
            if count:
                remarks.append(f"{count} of {len(self.asked)} queries: rise {status}")
        skipped = sum(not query.usable for query in self.asked)
        if skipped:
            remarks.append(f"{skipped} of {len(self.asked)} queries skipped: their rows are NaN, status says why")
        return remarks


def prepare(
    model: nn.Module,
    train: Any,
    queries: Any,
    *,
    task: Any,
    perturbation: Perturbation | str | Mapping[str, Any] | None,
    ids: str | Sequence[Id] | None,
    query_ids: str | Sequence[Id] | None,
    groups: Sequence[Id] | None,
    candidates: Any,
    collate_fn: Collate | None,
    options: Options,
    dry: bool = False,
) -> Job:
    """Settle everything before the first reading; see :func:`forwardinf.attribute`. Call it with the model borrowed.

    ``dry`` stops short of the baseline and of the run folder: for showing the plan.
    """
    clock = {
        "started": time.perf_counter(),
        "resident_bytes": float(machine.resident_bytes()),
        "baseline_s": 0.0,
        "queries_s": 0.0,
    }
    rule, spoken = as_perturbation(perturbation), as_task(task)
    device = device_of(model, options.device)
    cache = options.cache
    rows = open_examples(train, "train", spoken, collate_fn, options)
    questions = open_examples(queries, "queries", spoken, collate_fn, options)
    members, names = _groups(questions, groups, query_ids)

    with progress("hashing", len(rows) + len(questions), options.progress) as advance:
        data = rows.seal(range(len(rows)), advance, spoken.parts if spoken.packed else None)
        asked_for = questions.seal(range(len(questions)), advance, None)
    rows.label_with(ids)
    chosen = _candidates(candidates, rows, names)
    code = code_digest(spoken, getattr(spoken, "version", None))
    whole = model_digest(model)
    feed = Feed(model, spoken, rows, device, seed=options.seed)
    made_from = {
        "model": whole, "data": data, "queries": asked_for, "task": code, "ids": digest(rows.ids, names, members),
        "candidates": None if chosen is None else digest([list(map(int, c)) for c in chosen]),
        "perturbation": digest(rule.to_dict()), "seed": options.seed, "keep": options.keep,
        "engine": options.engine, "batch_size": options.batch_size, "shard_rows": options.shard_rows,
        "on_bad_query": options.on_bad_query, "device": device.type,
    }  # fmt: skip
    folder = _folder(options, code)
    kept = folder is not None and not options.overwrite and folder.has("plan.json") and folder.has("queries.parquet")
    keep_rule: int | str = options.keep
    if keep_rule == "auto":
        keep_rule = "all" if len(names) * rows.units <= ALL_UP_TO else KEPT_BEYOND
    about = {"kind": rule.kind, "unit": None if rule.unitless else spoken.unit, "signed": rule.signed,
             "perturbation": rule.to_dict(), "notes": [*rows.notes, *questions.notes], "kept": keep_rule,
             "versions": machine.versions()}  # fmt: skip
    if folder is not None and kept:
        _claim(folder, made_from, about, options)  # refuses another run before anything long starts

    read_rows = range(len(rows)) if chosen is None else rows.rows_of(sorted({int(u) for c in chosen for u in c}))
    parameters = select(model, rule.parameters)
    notes = [*rows.notes, *questions.notes]
    if folder is not None and kept:
        plan = Plan.from_dict(read_json(folder.path / "plan.json", planning.FORMAT, what="a plan"))
    else:
        first = Feed(model, spoken.whole(), questions, device, seed=options.seed, asked={}), members[0]
        plan, note = _plan(feed, read_rows, chosen, len(names), rule, parameters, first, whole, options)
        notes += [note] if note else []
    feed = replace(feed, channels_last=plan.channels_last)
    key = baseline_key(feed, whole, data, code, plan.batch_size)
    name = digest(key, None if chosen is None else list(read_rows)) if key is not None and cache is not None else None
    path = cache / "baselines" / f"{name}.safetensors" if name is not None and cache is not None else None
    known = load_baseline(path)
    if not kept:
        plan = replace(plan, baseline="read" if known is None else "cached")

    floor = known.noise_floor if known is not None else noise_floor(feed, read_rows, plan.batch_size)
    asking = Feed(model, spoken.whole(), questions, device, plan.channels_last, options.seed, asked={})
    known_fit = None if code is None else digest(whole, data, code)
    fitting = Fitting(rule, feed, parameters, plan.batch_size, known_fit, cache, options.progress, notes)
    pusher, asked, block = Pusher(asking, fitting, exact=plan.exact), list[Query](), None
    if folder is not None and kept:
        asked = _load_queries(folder)
    elif not dry:
        began = time.perf_counter()
        if plan.exact and rule.direction != "hold" and len(names) <= plan.query_block:
            block = FactoredEngine(feed, parameters, 1).directions(len(names))
            places = {tuple(group): place for place, group in enumerate(members)}
            pusher.take = lambda rows, direction: block.put(places[rows], direction)
        with progress("queries", len(names), options.progress) as advance:
            for group, called in zip(members, names, strict=True):
                asked.append(pusher.check(group, called, skip=options.on_bad_query == "skip"))
                advance(1)
        clock["queries_s"] = time.perf_counter() - began - pusher.fit_seconds

    clock["setup_s"] = time.perf_counter() - clock["started"] - pusher.fit_seconds
    unread = Baseline(torch.empty(0), floor)
    aside = frozenset(row for query in asked if not query.usable for row in query.rows)
    read_as_rows = replace(asking, asked=None, skipped=aside)
    job = Job(feed, read_as_rows, pusher, rule, options, members, names, chosen, made_from, plan, keep_rule,
              asked, path, known or unread, torch.empty(0), folder, notes, clock)  # fmt: skip
    if block is not None and all(query.usable for query in asked):  # what checking has made need not be made again
        job._block = tuple(range(len(names))), block
    pusher.take = None
    job.trunk_folder = cache / "trunks" / digest(key) if key is not None and cache is not None else None
    if not dry:
        if not kept:
            job.settle_rises()
        if folder is not None and not kept:
            _claim(folder, made_from, about, options)
            _save_queries(folder, job)
            write_json(folder.path / "plan.json", plan.to_dict())
        _start(job, read_rows, known, unread)
    return job


@dataclass
class SelfJob:
    """What :func:`prepare_self` settled: how gᵢᵀ P gᵢ of every training example is read.

    Attributes:
        feed: Model and training data.
        parameters: Those that count.
        perturbation: The settings of P.
        direction: P itself.
        own: Takes the products of whole batches, or None: one example at a time.
        batch_size: Examples at a time.
        notes: What a person should know, among it why it is one example at a time.
        clock: Seconds of ``setup_s`` and ``fit_s``.
    """

    feed: Feed
    parameters: Parameters
    perturbation: Perturbation
    direction: Direction
    own: Own | None
    batch_size: int
    notes: list[str]
    clock: dict[str, float]
    progress: Setting = "auto"

    def read(self) -> tuple[Tensor, Tensor]:
        """Return (gᵢᵀ P gᵢ, losses), ``(units,)`` float64. Under ``hold`` the products are tempered as scores are."""
        rows = range(len(self.feed.examples))
        with progress("self-influence", self.feed.examples.units, self.progress) as advance:
            if (
                isinstance(self.direction, Holding) and self.direction.held.whole
            ):  # K is there: nothing is left to be read
                return self.direction.ridge.own(), self.feed.losses(rows, self.batch_size, advance)
            if self.own is not None:
                return OwnEngine(self.feed, self.parameters, self.own, self.batch_size, self._halved).read(
                    rows, advance
                )
            values, losses, lengths = self_products(self.feed, rows, self.parameters, self.direction, advance)
        beta = self.perturbation.tempering
        return (torch.where(lengths > 0, values / lengths ** (2 * beta), 0.0) if beta else values), losses

    def _halved(self, size: int) -> None:
        self.notes.append(f"out of memory: {size} examples at a time from there on")


def prepare_self(
    model: nn.Module,
    train: Any,
    *,
    task: Any,
    perturbation: Perturbation,
    ids: str | Sequence[Id] | None,
    collate_fn: Collate | None,
    options: Options,
) -> SelfJob:
    """Settle how self-influence is read; see :func:`forwardinf.self_influence`. Call it with the model borrowed."""
    began, spoken, notes = time.perf_counter(), as_task(task), list[str]()
    device = device_of(model, options.device)
    rows = open_examples(train, "train", spoken, collate_fn, options)
    data = rows.seal(range(len(rows)), lambda done: None, spoken.parts if spoken.packed else None)
    rows.label_with(ids)
    feed = Feed(model, spoken, rows, device, seed=options.seed)
    chosen = select(model, perturbation.parameters)
    why = unsupported(feed, chosen, range(len(rows))).reason
    size = 1 if options.batch_size == "auto" else options.batch_size
    if not why:
        squares = Own()

        def work(trial: Feed, piece: Sequence[int], size: int) -> None:
            OwnEngine(trial, chosen, squares, size).values(piece, size)

        asked = None if options.batch_size == "auto" else options.batch_size
        tuning = tune(feed, range(len(rows)), asked, min(10.0, max(0.2, 5e-4 * len(rows))), None, work, turns=1)
        size, feed = tuning.batch_size, replace(feed, channels_last=tuning.channels_last)
    setup = time.perf_counter()
    code = code_digest(spoken, getattr(spoken, "version", None))
    key = None if code is None or perturbation.direction in UNFITTED else digest(model_digest(model), data, code)
    direction = make_direction(
        Fitting(perturbation, feed, chosen, size, key, options.cache, progress=options.progress, notes=notes)
    )
    own = None if why else own_of(direction)
    if not why and own is None and not isinstance(direction, Holding):
        why = f"direction {perturbation.direction!r} does not apply to factors"
    if why and not isinstance(direction, Holding):
        notes.append(f"read one example at a time: {why}")
    clock = {"setup_s": setup - began, "fit_s": time.perf_counter() - setup}
    return SelfJob(feed, chosen, perturbation, direction, own, size, notes, clock, options.progress)


def _plan(
    feed: Feed, rows: Sequence[int], chosen: list[Ints] | None, queries: int, rule: Perturbation, parameters: Parameters,
    first: tuple[Feed, list[int]], model: str, options: Options,
) -> tuple[Plan, str]:  # fmt: skip
    """Return (engine, batch size, layout and pieces: found on a few batches, or recalled; a note, or nothing)."""
    reading = len(rows) if chosen is None else round(sum(map(len, chosen)) / max(len(chosen), 1))
    sides, cache = 2 if rule.both_sides else 1, options.cache
    batch_size = None if options.batch_size == "auto" else options.batch_size
    shard_rows = None if options.shard_rows == "auto" else options.shard_rows
    sample = feed.examples[rows[0]] if len(rows) else None
    known = digest(model, code_digest(feed.task), _shape(sample), len(rows) if len(rows) < 1024 else "many", options.batch_size,
                   str(feed.device), torch.get_num_threads(), torch.__version__, machine.describe()["processor"])  # fmt: skip
    budget = min(20.0, max(0.5, 0.02 * len(rows) * sides * queries / 100))
    kept = None if cache is None else cache / "tuning" / f"{known}.json"
    tuning = tune(feed, rows, batch_size, budget, kept)
    making = PASSES_OF_A_QUERY.get(rule.direction, 0) * queries * len(feed.examples) * rule.steps
    plan = make_plan(tuning, rows=reading, queries=queries, sides=sides, shard_rows=shard_rows, direction_rows=making)
    moved = digest(known, sorted(parameters), rule.direction)
    asked = Asked(
        engine=options.engine, linear=rule.kind == "linear", signed=rule.signed,
        whitened=rule.direction == "hold" and rule.fit_examples == "auto",
        batch_size=batch_size, shard_rows=shard_rows,
        kept=None if cache is None else cache / "tuning" / moved,
    )  # fmt: skip

    def fill(directions: Directions) -> None:
        """Put in what the queries' directions will be like: of few ranks, or of many."""
        gradient = query_gradient(*first, parameters, plan.batch_size)
        if rule.direction not in LOW_RANK:
            gradient = {name: torch.randn_like(tensor) for name, tensor in gradient.items()}
        for place in range(len(directions)):
            directions.put(place, gradient)

    return choose_engine(asked, plan, feed, parameters, rows, fill)


def _start(job: Job, rows: Sequence[int], known: Baseline | None, unread: Baseline) -> None:
    """Read the baseline (or recall it), guard the shards, read the queries' own losses."""
    began = time.perf_counter()
    pieces = shards(rows, job.plan.shard_rows)
    for unit in job.units():
        if unit.of == "train" and isinstance(unit.rows, range):
            job.train.examples.guard(unit.rows)
    engine = ForwardEngine(job.train, job.plan.batch_size_at(0))
    with progress("baseline", 0 if known else len(rows), job.options.progress) as advance:
        losses = known.losses if known else torch.empty(0)
        units_of = job.train.examples.units_of

        def kept(shard: int) -> Tensor | None:
            if known is not None:
                return losses[torch.from_numpy(units_of(pieces[shard]))]
            found = job.folder.base(shard) if job.folder is not None else None
            return None if found is None else torch.from_numpy(found)

        def keep(shard: int, found: Tensor) -> None:
            if job.folder is not None:
                job.folder.write_base(shard, units_of(pieces[shard]), found.numpy())

        losses = read_baseline(engine, pieces, kept, keep, advance)
    if known is not None and job.folder is not None:
        for shard, piece in enumerate(pieces):
            if job.folder.base(shard) is None:
                keep(shard, losses[torch.from_numpy(units_of(piece))])
    job.baseline = Baseline(losses, unread.noise_floor)
    if known is None and job.baseline_file is not None:
        save_baseline(job.baseline_file, job.baseline)
    if isinstance(job.queries.task, Classification) and job.queries.task.query == "label":
        wrong = len(misclassified(job.queries, job.plan.batch_size))
        if wrong:
            job.notes.append(f"{wrong} of {len(job.queries.examples)} queries are misclassified: asked by their true label, what "
                             "made the model answer as it did is among the opponents; ask query='predicted' to see it as "
                             "proponents")  # fmt: skip
    job.query_baseline = job.queries.losses(range(len(job.queries.examples)), job.plan.batch_size)
    job.forwards += engine.forwards
    job.clock["baseline_s"] = time.perf_counter() - began


def as_perturbation(value: Perturbation | str | Mapping[str, Any] | None) -> Perturbation:
    """Return a perturbation from one, a preset's name, its settings, or None (the preset ``"linear"``)."""
    if isinstance(value, Perturbation):
        return value
    if value is None or isinstance(value, str):
        return Perturbation.preset(value or "linear")
    if isinstance(value, Mapping):
        return Perturbation.from_dict(value)
    raise SettingError("perturbation", expected="fi.Perturbation(...) or a preset's name", got=repr(value))


def device_of(model: nn.Module, asked: str) -> torch.device:
    """Return where the model's parameters are; a user's model is never moved."""
    if not isinstance(model, nn.Module):
        raise ModelError("model", expected="a torch.nn.Module", got=type(model).__name__)
    devices = {parameter.device for parameter in model.parameters()}
    if not devices:
        raise ModelError("model", expected="parameters", got="none")
    found = next(model.parameters()).device
    if asked != "auto" and torch.device(asked).type != found.type:
        raise SettingError("device", expected=f"'auto' or {found.type!r}, where the model is", got=repr(asked),
                           do="Move the model there first: model.to(...).")  # fmt: skip
    return found


def open_examples(data: Any, name: str, task: Task, collate_fn: Collate | None, options: Options) -> Examples:
    """Return data in any form as rows read by position, joined as the user or the task says."""
    workers = options.num_workers if name == "train" else 0
    return examples(
        data, name=name, collate_fn=collate_fn, task_collate=task.collate, seed=options.seed, num_workers=workers
    )


def _groups(
    questions: Examples, groups: Sequence[Id] | None, query_ids: str | Sequence[Id] | None
) -> tuple[list[list[int]], list[Id]]:
    """Return each query's rows and name. A group is one query: its members' mean is perturbed."""
    if groups is None:
        questions.label_with(query_ids)
        return [[row] for row in range(len(questions))], questions.ids
    if query_ids is not None:
        raise SettingError("query_ids", expected="none beside groups (the group's label is its id)", got="both")
    labels = [value.item() if isinstance(value, np.generic | Tensor) else value for value in groups]
    if len(labels) != len(questions):
        raise DataError("groups", expected=f"{len(questions)} labels, one for each query", got=str(len(labels)))
    found: dict[Id, list[int]] = {}
    for row, label in enumerate(labels):
        found.setdefault(label, []).append(row)
    return list(found.values()), list(found)


def _candidates(candidates: Any, rows: Examples, names: list[Id]) -> list[Ints] | None:
    """Return each query's candidate positions, sorted, each once."""
    if candidates is None:
        return None
    if isinstance(candidates, Mapping):
        unknown = [key for key in candidates if key not in set(names)]
        missing = [name for name in names if name not in candidates]
        if unknown or missing:
            raise DataError("candidates", expected="an entry for each query id",
                            got=f"unknown {unknown[:3]}, missing {missing[:3]}")  # fmt: skip
        place = {value: position for position, value in enumerate(rows.ids)}
        lists = []
        for name in names:
            strange = [value for value in candidates[name] if value not in place]
            if strange:
                raise DataError(f"candidates of query {name!r}", expected="training ids", got=repr(strange[0]))
            lists.append([place[value] for value in candidates[name]])
    else:
        plain = candidates.tolist() if isinstance(candidates, np.ndarray | Tensor) else candidates
        if len(plain) != len(names):
            raise DataError("candidates", expected=f"a list for each of {len(names)} queries", got=str(len(plain)))
        lists = [list(entry) for entry in plain]
    found = []
    for name, entry in zip(names, lists, strict=True):
        array = np.unique(np.asarray(entry, dtype=np.int64))
        if len(array) == 0:
            raise DataError(f"candidates of query {name!r}", expected="at least one", got="none")
        if array[0] < 0 or array[-1] >= rows.units:
            bad = array[0] if array[0] < 0 else array[-1]
            raise DataError(
                f"candidates of query {name!r}", expected=f"positions from 0 to {rows.units - 1}", got=str(bad)
            )
        found.append(array)
    return found


def _folder(options: Options, code: str | None) -> Folder | None:
    if options.output_dir is None:
        return None
    if code is None:
        raise SettingError(
            "output_dir", expected="a task whose code can be told apart from another's", got="one that holds something opaque",
            do="Give the function a `version` attribute and keep state out of it, or drop output_dir.",
        )  # fmt: skip
    return Folder(Path(options.output_dir).expanduser())


def _claim(folder: Folder, made_from: dict[str, Any], about: dict[str, Any], options: Options) -> None:
    resumed = folder.claim(made_from, about, overwrite=options.overwrite, config=options.config)
    folder.event("resumed" if resumed else "started")


def _save_queries(folder: Folder, job: Job) -> None:
    """Write what is known of the queries: a resumed run pushes them the same way."""
    columns: dict[str, Any] = {"id": id_column(job.query_ids)}
    records = [asdict(query) for query in job.asked]
    for name in records[0]:
        if name != "rows":
            columns[name if name != "baseline" else "query_baseline"] = [record[name] for record in records]
    columns["rows"] = [list(record["rows"]) for record in records]
    columns["noise_floor"] = job.floor()
    folder.write_columns("queries.parquet", columns, QUERIES)


def _load_queries(folder: Folder) -> list[Query]:
    path = folder.path / "queries.parquet"
    records = read_table(path, QUERIES, what="the queries of a run").to_pylist()
    plain_ids(path, "id", QUERIES)
    return [
        Query(tuple(record["rows"]), record["grad_norm"], record["query_baseline"], record["size"], record["length"],
              record["step"], record["rise"], record["status"], record["usable"], record["share_moved"],
              record.get("direction_norm", math.nan))
        for record in records
    ]  # fmt: skip


def _shape(example: Any) -> Any:
    """Return the shapes inside an example: what the speed of a reading depends on."""
    if isinstance(example, Tensor | np.ndarray):
        return [list(example.shape), str(example.dtype)]
    if isinstance(example, Mapping):
        return {str(name): _shape(value) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return [len(example), *map(_shape, example[:2])]
    return type(example).__name__
