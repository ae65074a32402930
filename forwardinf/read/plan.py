"""The plan: how the reading will be done, settled and written down before the first unit, so that a resumed run follows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from forwardinf.core.errors import FileError
from forwardinf.read.tune import Tuning

FORMAT = "forwardinf.plan/1"
UNIT_SECONDS = 10.0  # what a killed run loses at most, about
LEFT = "with the scores"  # a baseline that the pass with gradients leaves


@dataclass(frozen=True)
class Unit:
    """A piece of work that ends in one file: these queries, these rows of ``"train"``, or of the ``"queries"`` themselves."""

    of: str
    block: int
    shard: int
    queries: tuple[int, ...]
    rows: Sequence[int]

    @property
    def name(self) -> str:
        """Where it goes in the run folder."""
        if self.of == "queries":
            return f"cross/b-{self.block:05d}.parquet"
        return self.beside("scores")

    def beside(self, what: str) -> str:
        """Return where something else of the same queries and training rows goes."""
        return f"{what}/b-{self.block:05d}/s-{self.shard:05d}.parquet"


@dataclass(frozen=True)
class Plan:
    """Which engine, how many examples at a time, in which pieces, at what cost.

    Attributes:
        engine: Its name (``read/registry.py``).
        batch_size: Examples at a time of a plain forward (the baseline), at the start; see ``revisions``.
        channels_last: Memory layout of images of a plain forward.
        shard_rows: Rows of a unit.
        query_block: Queries of a unit.
        queries: How many queries will be read.
        rows: How many training rows each reads (with candidates: in all, over the queries).
        sides: Readings of each row for each query.
        seconds_per_row: Of a plain forward, measured while tuning.
        eager_seconds_per_row: The floor F per row: best batch size, ordinary layout.
        revisions: ``[unit number, batch size]``: memory ran out there, and from there on this many at a time.
        baseline: ``"read"``, ``"cached"``, or ``"with the scores"``: a pass with gradients leaves it.
        pass_batch_size: Factored: examples at a time of a forward and backward.
        pass_channels_last: Factored: memory layout of images.
        pass_seconds_per_row: Factored: of one pass with a block of directions, measured.
        gradient_error: Factored: how far an example's gradient was off at most when the model was checked.
        direction_bytes: Factored: memory of a block of directions.
        direction_seconds: Expected, of making all queries' directions, where that takes passes over the training set.
        query_seconds: Expected, of all queries' gradients, lengths and own rises; only where a plan is all that is shown.
        fit_seconds: Expected, of the direction's fit, likewise.
        cut: Trunk: the module at whose inputs the rest begins.
        trunk_bytes: Trunk: what is kept on disk, about.
        trunk_rows: Trunk: how many rows' are kept already.
        rest_seconds_per_row: Trunk: of the rest of a forward, measured.
        considered: Expected seconds of directions and reading by each engine that was looked at.
        why: Why this engine.
    """

    engine: str
    batch_size: int
    channels_last: bool
    shard_rows: int
    query_block: int
    queries: int
    rows: int
    sides: int
    seconds_per_row: float
    eager_seconds_per_row: float
    revisions: tuple[tuple[int, int], ...] = ()
    baseline: str = "read"
    pass_batch_size: int = 0
    pass_channels_last: bool = False
    pass_seconds_per_row: float = 0.0
    gradient_error: float = 0.0
    direction_bytes: int = 0
    direction_seconds: float = 0.0
    query_seconds: float = 0.0
    fit_seconds: float = 0.0
    cut: str = ""
    trunk_bytes: int = 0
    trunk_rows: int = 0
    rest_seconds_per_row: float = 0.0
    considered: dict[str, float] = field(default_factory=dict)
    why: str = ""

    @property
    def exact(self) -> bool:
        """Whether scores come from gradients, not from differences of losses."""
        return self.pass_batch_size > 0

    @property
    def passes(self) -> int:
        """How often the training rows are read, the baseline apart."""
        return math.ceil(self.queries / self.query_block) if self.exact else self.queries * self.sides

    @property
    def forwards(self) -> int:
        """Forward passes of single examples that the readings take, the baseline apart."""
        return self.passes * self.rows

    @property
    def seconds(self) -> dict[str, float]:
        """Expected seconds: of the fit, the queries, the baseline, the queries' directions, the readings, and in all."""
        baseline = 0.0 if self.baseline in ("cached", LEFT) else self.rows * self.seconds_per_row
        reading = self.forwards * (self.pass_seconds_per_row if self.exact else self.seconds_per_row)
        if self.cut:  # what is not kept yet is a whole forward in the first reading
            first = min(max(self.rows - self.trunk_rows, 0), self.forwards)
            reading = first * self.seconds_per_row + (self.forwards - first) * self.rest_seconds_per_row
        found = {"fit, unless kept": self.fit_seconds, "queries": self.query_seconds, "baseline": baseline,
                 "directions": self.direction_seconds, "reading": reading}  # fmt: skip
        return {**found, "total": sum(found.values())}

    def revised(self, unit: int, batch_size: int) -> Plan:
        """Return the plan after memory ran out at a unit."""
        return replace(self, revisions=(*self.revisions, (unit, batch_size)))

    def batch_size_at(self, unit: int) -> int:
        """Return how many examples at a time this unit reads."""
        return min(
            [
                self.pass_batch_size if self.exact else self.batch_size,
                *(size for start, size in self.revisions if start <= unit),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, ready for JSON."""
        return {"format": FORMAT, **asdict(self), "revisions": [list(revision) for revision in self.revisions]}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Plan:
        """Undo :meth:`to_dict`."""
        fields = {name: value for name, value in kept.items() if name != "format"}
        try:
            return cls(**fields | {"revisions": tuple((int(a), int(b)) for a, b in fields["revisions"])})
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(
                "plan.json", expected="a plan", got=str(error), do="Start over with overwrite=True."
            ) from error


def make_plan(
    tuning: Tuning, *, rows: int, queries: int, sides: int, shard_rows: int | None, baseline: str = "read",
    direction_rows: int = 0,
) -> Plan:  # fmt: skip
    """Settle how to read with the forward engine: units of about ten seconds, whole batches each.

    Args:
        tuning: Batch size, layout and seconds per row.
        rows: Training rows that each query reads.
        queries: How many.
        sides: Readings for each.
        shard_rows: As the user asked, or None.
        baseline: ``"read"`` or ``"cached"``.
        direction_rows: Forwards that making all the directions is worth.
    """
    size = min(tuning.batch_size, max(rows, 1))
    per_row = max(tuning.seconds_per_row * sides, 1e-9)
    shard = _shard(shard_rows, per_row, size, rows)
    block = 1 if shard < rows else max(1, min(queries, math.floor(UNIT_SECONDS / per_row / max(rows, 1))))
    plan = Plan("forward", size, tuning.channels_last, shard, block, queries, rows, sides,
                tuning.seconds_per_row, tuning.eager_seconds_per_row, (), baseline,
                direction_seconds=direction_rows * tuning.seconds_per_row)  # fmt: skip
    return replace(plan, considered={"forward": round(plan.direction_seconds + plan.seconds["reading"], 4)})


def factored_plan(
    plan: Plan, tuning: Tuning, *, rows: int, block: int, shard_rows: int | None, error: float, direction_bytes: int,
    whitened: bool = False,
) -> Plan:  # fmt: skip
    """Return the plan of reading the same with the factored engine.

    Args:
        plan: With the forward engine.
        tuning: Of one pass with a block of directions.
        rows: How many rows a pass reads (with candidates: the union over the block's queries).
        block: Queries of a pass.
        shard_rows: As the user asked, or None.
        error: See :class:`forwardinf.gradients.recorder.Recorder`.
        direction_bytes: Memory of the block.
        whitened: Whether plain scores are read and then whitened, so that no query needs a direction of its own.
    """
    size = min(tuning.batch_size, max(rows, 1))
    shard = _shard(shard_rows, max(tuning.seconds_per_row, 1e-9), size, rows)
    found = replace(
        plan, engine="factored", shard_rows=shard, query_block=block, rows=rows, sides=1, pass_batch_size=size,
        pass_channels_last=tuning.channels_last, pass_seconds_per_row=tuning.seconds_per_row, gradient_error=error,
        direction_bytes=direction_bytes, direction_seconds=0.0 if whitened else plan.direction_seconds,
    )  # fmt: skip
    expected = found.direction_seconds + found.seconds["reading"]
    return replace(found, considered=plan.considered | {"factored": round(expected, 4)})


def _shard(asked: int | None, per_row: float, size: int, rows: int) -> int:
    shard_rows = asked or max(size, math.floor(UNIT_SECONDS / per_row / size) * size)
    return min(shard_rows, max(rows, 1))


def shards(rows: Sequence[int], shard_rows: int) -> list[Sequence[int]]:
    """Cut rows into shards, in order."""
    return [rows[start : start + shard_rows] for start in range(0, len(rows), shard_rows)]


def units(
    plan: Plan,
    queries: Sequence[int],
    rows_of: Mapping[int, Sequence[int]] | None,
    rows: Sequence[int],
    cross: Sequence[int],
) -> list[Unit]:
    """Return all units in the order they are read: queries outside, shards inside; the queries' own rows first.

    Args:
        plan: Sizes of shards and blocks.
        queries: Those that can be read.
        rows_of: With candidates, the rows of each query; each query is then a block of its own (factored: a block reads
            the rows of all its queries).
        rows: Without, the rows of all.
        cross: The rows of the queries.
    """
    size = plan.query_block if rows_of is None or plan.exact else 1
    blocks = []
    for start in range(0, len(queries), size):
        members = tuple(queries[start : start + size])
        read = rows if rows_of is None else sorted({row for query in members for row in rows_of[query]})
        blocks.append((members, read))
    found = []
    for block, (members, read) in enumerate(blocks):
        found.append(Unit("queries", block, 0, members, cross))
        found += [
            Unit("train", block, shard, members, piece) for shard, piece in enumerate(shards(read, plan.shard_rows))
        ]
    return found
