"""A job: what has been settled before the first reading, and what becomes of each piece of work.

The method itself is in ``method.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forwardinf.core import machine
from forwardinf.core.errors import FileError
from forwardinf.core.progress import Advance, progress
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Id
from forwardinf.gradients.directions import Directions
from forwardinf.job.baseline import Before
from forwardinf.job.options import Options
from forwardinf.models.feed import Feed
from forwardinf.perturb.push import OFF_RATE, Pusher, Query
from forwardinf.read.cut import Cut, find_cut
from forwardinf.read.engine import Engine
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.plan import Plan, Unit, units
from forwardinf.read.trunk import TrunkEngine, TrunkFiles
from forwardinf.read.whitened import Whitened, loss_gradient, read_whitened, sketched
from forwardinf.score.scores import Scores, gather, write_facts
from forwardinf.score.store import REPAIR, Entry, Folder
from forwardinf.score.top import Floats, Ints, extremes
from forwardinf.tasks.root import slope


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
    baseline: Before
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
        if todo and self.folder is not None:
            self.folder.reopen()
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
            found = engine.read(perturbations, unit.rows, self._advance)
        finally:
            self.forwards += engine.forwards
        if isinstance(engine, FactoredEngine) and unit.of == "train" and self.candidates is None:
            self.baseline.put(unit.rows, engine.losses)
        return found

    def directions(self, queries: tuple[int, ...]) -> Directions:
        """Return the directions of a block of queries; the last block is kept for its next shard."""
        if self._block is None or self._block[0] != queries:
            self._block = None  # its memory is needed for the next one
            found = FactoredEngine(self.train, self.pusher.parameters, 1).directions(len(queries))
            for place, query in enumerate(queries):
                found.put(place, self.pusher.along(self.asked[query]))
            self.pusher.forget()
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
        """Fill in the rises that come with the scores."""
        usable = self._usable()
        if usable and self.pusher.whitened:
            self.tables = self._read_whitened()
            for place, query in enumerate(usable):
                self.asked[query] = replace(self.asked[query], rise=float(self.tables.rise[place]))

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
                        self.halved,
                    )
                    for feed in (self.train, self.queries)
                )
                before = torch.tensor([self.asked[query].baseline for query in usable], dtype=torch.float64)
                weights = slope(before) if self.pusher.rooted else torch.ones_like(before)
                found = read_whitened(
                    train, queries, held.ridge, lambda place: self.pusher.gradient(self.asked[usable[place]]), weights,
                    self.plan.query_block, advance,
                )  # fmt: skip
                self.forwards += train.forwards
        self.clock["whitened_s"] = time.perf_counter() - began
        return found

    def before(self, unit: Unit) -> Tensor:
        """Return the same losses under the model as it was."""
        if unit.of == "queries":
            return self.query_baseline
        return self.baseline.of(unit.rows)

    def keep(self, unit: Unit, scores: Mapping[int, Tensor], bends: Mapping[int, Tensor] | None = None) -> None:
        """Take a unit's scores, by query: write them (or hold them in memory), only what the keep rule wants.

        ``bends``, how far each loss is from straight between two sides, is kept where all scores are, as the scores'
        uncertainty.
        """
        if bends and unit.of == "train" and self.keep_rule == "all":
            self._put("uncertainty", unit, {q: bend.clamp_min(self._floor(q)) for q, bend in bends.items()})
        self._put(unit.of, unit, scores)  # last: the unit is done once they are there

    def _put(self, what: str, unit: Unit, found: Mapping[int, Tensor]) -> None:
        entries = [(q, *self._kept(unit, q, numbers)) for q, numbers in found.items()]
        if self.folder is not None:
            self.folder.write_entries(unit.name if what == unit.of else unit.beside(what), entries)
        else:
            self.memory[what, unit.block, unit.shard] = entries

    def _kept(self, unit: Unit, query: int, scores: Tensor) -> tuple[Ints, Floats]:
        if unit.of == "queries":
            return np.arange(len(self.members)), self._means(scores).numpy().astype(np.float32)
        places, found = self.train.examples.units_of(unit.rows), scores.numpy().astype(np.float32)
        if self.candidates is not None:
            wanted = np.isin(places, self.candidates[query])
            places, found = places[wanted], found[wanted]
        if isinstance(self.keep_rule, int):
            found, places = extremes(found, places, self.keep_rule)
        return places, found

    def _means(self, of_rows: Tensor) -> Tensor:
        """Return each query's mean over its rows."""
        sizes = torch.tensor([len(rows) for rows in self.members])
        owner = torch.empty(int(sizes.sum()), dtype=torch.int64)
        owner[torch.tensor([row for rows in self.members for row in rows])] = torch.arange(
            len(sizes)
        ).repeat_interleave(sizes)
        return of_rows.new_zeros(len(sizes)).index_add_(0, owner, of_rows) / sizes

    def _engine(self, feed: Feed) -> Engine:
        size = self.plan.batch_size_at(self._unit)
        if self.plan.engine == "trunk" and feed is self.train:
            return TrunkEngine(feed, size, *self._kept_trunk(size), self.halved)
        if not self.plan.exact:
            return ForwardEngine(feed, size, self.halved)
        placed = replace(feed, channels_last=self.plan.pass_channels_last)
        return FactoredEngine(placed, self.pusher.parameters, size, self.halved)

    def _kept_trunk(self, size: int) -> tuple[Cut, TrunkFiles]:
        """Return where the forward is cut and what is kept of its trunk: in the cache, or for this call only."""
        if self._trunk is None:
            few = range(min(size, len(self.train.examples)))
            cut = find_cut(self.train, self.pusher.parameters, few, self.plan.cut)
            folder = self.trunk_folder
            if folder is None:
                self._scratch = TemporaryDirectory(prefix="forwardinf-trunk-")
                folder = Path(self._scratch.name)
            files = TrunkFiles(folder / cut.name)
            files.believe(self.train, cut, size, self.notes)
            files.need(self.plan.trunk_bytes)
            self._trunk = cut, files
        return self._trunk

    def halved(self, size: int) -> None:
        """Go on with fewer examples at a time from this unit on, in a resumed run too."""
        self.plan = self.plan.revised(self._unit, size)
        self.notes.append(f"out of memory: {size} examples at a time from unit {self._unit} on")
        if self.folder is not None:
            self.folder.write_plan(self.plan.to_dict(), revised=True)

    # -- result ------------------------------------------------------------------------------------------------------

    def scores(self) -> Scores:
        """Join what was read into the result; mark the run folder as finished."""
        self.baseline.read(
            ForwardEngine(self.train, self.plan.batch_size_at(0)), lambda done: None
        )  # what no pass has left
        size = len(self.asked)
        dense, best = gather(self._found("train"), size, self.train.examples.units, self.keep_rule)
        cross, _ = gather(self._found("queries"), size, size, "all")
        assert cross is not None
        uncertainty = None
        if self.perturbation.straddles and self.keep_rule == "all":
            uncertainty, _ = gather(self._found("uncertainty"), size, self.train.examples.units, "all")

        def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
            return np.asarray([getattr(query, name) for query in self.asked], dtype=np.float64)

        scores = Scores(
            ids=self.train.examples.ids, query_ids=self.query_ids, baseline=self.baseline.losses.numpy(), dense=dense,
            best=best, cross=cross.astype(np.float64), query_baseline=column("baseline"),
            rise=column("rise"),
            length=column("length"), step=column("step"), status=[query.status for query in self.asked],
            noise_floor=self.floor(), kind=self.perturbation.kind,
            uncertainty=uncertainty,
            unit=self.perturbation.unit_of(self.train.task.unit),
            signed=self.perturbation.signed, kept=self.keep_rule, perturbation=self.perturbation.to_dict(),
            plan=self.plan.to_dict(), cost=self._cost(), notes=[*self.notes, *self._remarks()], made_from=self.made_from,
            pictured=(self.train.examples, self.queries.examples),
        )  # fmt: skip
        if self.folder is not None:
            self.folder.must_stand()  # or what was joined is another run's
        if self.folder is not None and not self.folder.has("done.json"):
            write_facts(self.folder, scores)
            self.folder.finish({"cost": dict(scores.cost), "notes": self._remarks()})
        elif self.folder is not None:
            self.folder.leave()
        return scores

    def _found(self, what: str) -> Iterator[Entry]:
        """Yield what was kept: of ``"train"``, ``"queries"`` or ``"uncertainty"``; all of it, or an error that names it."""
        sums = {} if self.folder is None else self.folder.sums()
        for unit in self.units():
            if (unit.of == "queries") != (what == "queries"):
                continue
            name = unit.beside(what) if what == "uncertainty" else unit.name
            if self.folder is not None:
                found = list(self.folder.entries([name], sums))
            else:
                found = self.memory[what, unit.block, unit.shard]
            self._whole(unit, name, found)
            yield from found

    def _whole(self, unit: Unit, name: str, found: Sequence[Entry]) -> None:
        """Refuse a unit of which some row was never read, or that is another plan's."""
        places = {query: at for query, at, _ in found}
        for query in unit.queries:
            wanted = np.arange(len(self.members))
            if unit.of == "train":
                wanted = self.train.examples.units_of(unit.rows)
                wanted = wanted if self.candidates is None else wanted[np.isin(wanted, self.candidates[query])]
            got = places.pop(query, np.empty(0, np.int64))
            some = isinstance(self.keep_rule, int) and unit.of == "train"
            if not (
                np.isin(got, wanted).all() and bool(len(got)) == bool(len(wanted))
                if some
                else np.array_equal(got, wanted)
            ):
                raise FileError(
                    name if self.folder is None else str(self.folder.path / name),
                    expected=f"scores of {len(wanted)} examples for query {self.query_ids[query]!r}",
                    got=f"those of {len(got)}" if len(got) != len(wanted) else "those of others", do=REPAIR,
                )  # fmt: skip
        if places:
            raise FileError(name, expected=f"scores of {len(unit.queries)} queries", got="of others too", do=REPAIR)

    def floor(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return each query's noise floor in the unit of its scores."""
        return np.asarray([self._floor(query) for query in range(len(self.asked))], dtype=np.float64)

    def _floor(self, query: int) -> float:
        floor, known = self.baseline.floor, self.asked[query]
        here = floor.root if self.perturbation.reading == "root" else floor.loss
        if not self.exact:
            return here / (known.step if self.perturbation.kind == "linear" else 1.0)
        steep = here / floor.loss if floor.loss > 0 else 1.0  # what the reading makes of a small change of a loss
        return self.plan.gradient_error * known.direction_norm * steep

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
        off = sum(query.status == OFF_RATE for query in self.asked)
        if off:
            remarks.append(f"{off} of {len(self.asked)} queries: a short push moves their loss otherwise than its gradient says, "
                           "by more than 10 %: these scores are what happens, not what gradients say")  # fmt: skip
        skipped = sum(not query.usable for query in self.asked)
        if skipped:
            remarks.append(f"{skipped} of {len(self.asked)} queries skipped: their rows are NaN, status says why")
        return remarks
