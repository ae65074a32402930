"""A job: what has been settled before the first reading, and what becomes of each piece of work.

The method itself is in ``method.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.progress import Advance, progress
from forwardinf.gradients.directions import Directions
from forwardinf.job.baseline import Before
from forwardinf.job.settle import Settled
from forwardinf.perturb.push import Pusher, Query
from forwardinf.read.asked import Reading
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.plan import Unit, units
from forwardinf.read.registry import open_engine
from forwardinf.read.whitened import Whitened, loss_gradient, read_whitened, sketched
from forwardinf.score.store import Entry
from forwardinf.score.top import Floats, Ints, extremes
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.root import slope

NOBODY: Advance = lambda done: None  # noqa: E731


class Job:
    """What has been settled before the first reading, and what becomes of each piece of work.

    ``pending`` gives the work; ``keep`` takes its results; :func:`forwardinf.job.result.scores_of` joins them.

    Args:
        settled: The call and how it is done.
        queries: The queries, read as if they were training rows.
        pusher: Makes the queries' pushes, or directions.
        asked: What has to be known of each query.
        baseline: Every training example's loss before.
        block: The queries' directions, where they are there already.
        clock: Seconds by what they went to.

    Attributes:
        plan: How the reading is done; revised where memory runs out.
        query_baseline: The losses of the query rows before.
        forwards: Of one example each, so far.
    """

    query_baseline: Tensor

    def __init__(
        self, settled: Settled, queries: Feed, pusher: Pusher, asked: list[Query], baseline: Before, block: Directions | None,
        clock: dict[str, float],
    ) -> None:  # fmt: skip
        """Nothing is read yet."""
        opened = settled.opened
        self.settled, self.opened = settled, opened
        self.train, self.queries, self.plan = settled.train, queries, settled.plan
        self.pusher, self.perturbation, self.asked, self.baseline = pusher, opened.rule, asked, baseline
        self.options, self.folder, self.notes = opened.options, settled.place.folder, opened.notes
        self.query_ids, self.members, self.candidates = opened.query_ids, opened.members, opened.candidates
        self.keep_rule, self.clock, self.forwards = opened.keep, clock, 0
        self.memory: dict[tuple[str, int, int], list[Entry]] = {}
        self._unit, self._advance = 0, NOBODY
        self._tables: Whitened | None = None
        self._kept_by_engine: dict[str, Any] = {}
        self._block = None if block is None else (tuple(range(len(asked))), block)

    # -- work --------------------------------------------------------------------------------------------------------

    def units(self) -> list[Unit]:
        """Return all pieces of work, done or not."""
        usable = self.usable()
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
        engine = self._engine(unit.of)
        try:
            found: Tensor = engine.read(perturbations, unit.rows, self._advance)
        finally:
            self.forwards += engine.forwards
        if self.plan.exact and unit.of == "train" and self.candidates is None:
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
        if self._tables is None:
            self._tables = self._read_whitened()
        usable = {query: place for place, query in enumerate(self.usable())}
        if unit.of == "queries":
            return {query: self._tables.cross[usable[query]] for query in unit.queries}
        at = torch.from_numpy(self.train.examples.units_of(unit.rows))
        return {query: self._tables.values[usable[query], at] for query in unit.queries}

    def settle_rises(self) -> None:
        """Fill in the rises that come with the scores."""
        usable = self.usable()
        if usable and self.pusher.whitened:
            self._tables = self._read_whitened()
            for place, query in enumerate(usable):
                self.asked[query] = replace(self.asked[query], rise=float(self._tables.rise[place]))

    def usable(self) -> list[int]:
        """Return the places of the queries that can be read."""
        return [q for q, query in enumerate(self.asked) if query.usable]

    def _read_whitened(self) -> Whitened:
        began, usable, held = time.perf_counter(), self.usable(), self.pusher.whitened
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
            self._put("uncertainty", unit, {q: bend.clamp_min(self.floor_of(q)) for q, bend in bends.items()})
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

    def _engine(self, of: str) -> Any:
        plan, feed = self.plan, self.train if of == "train" else self.queries
        placed = replace(feed, channels_last=plan.pass_channels_last) if plan.exact else feed
        return open_engine(Reading(placed, of, self.pusher.parameters, plan, plan.batch_size_at(self._unit), self.halved,
                                   self.settled.trunk_folder, self.notes, self._kept_by_engine))  # fmt: skip

    def halved(self, size: int) -> None:
        """Go on with fewer examples at a time from this unit on, in a resumed run too."""
        self.plan = self.plan.revised(self._unit, size)
        self.notes.append(f"out of memory: {size} examples at a time from unit {self._unit} on")
        if self.folder is not None:
            self.folder.write_plan(self.plan.to_dict(), revised=True)

    def floor(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return each query's noise floor in the unit of its scores."""
        return np.asarray([self.floor_of(query) for query in range(len(self.asked))], dtype=np.float64)

    def floor_of(self, query: int) -> float:
        """Return one query's noise floor."""
        floor, known = self.baseline.floor, self.asked[query]
        here = floor.root if self.perturbation.reading == "root" else floor.loss
        if not self.exact:
            return here / (known.step if self.perturbation.kind == "linear" else 1.0)
        steep = here / floor.loss if floor.loss > 0 else 1.0  # what the reading makes of a small change of a loss
        return self.plan.gradient_error * known.direction_norm * steep
