"""The plan: how the reading will be done, settled and written down before the first unit, so that a resumed run follows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from forwardinf.core.errors import FileError, choose
from forwardinf.read.tune import Tuning

FORMAT = "forwardinf.plan/1"
UNIT_SECONDS = 10.0  # what a killed run loses at most, about
ENGINES = ("auto", "forward")


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
        return f"scores/b-{self.block:05d}/s-{self.shard:05d}.parquet"


@dataclass(frozen=True)
class Plan:
    """Which engine, how many examples at a time, in which pieces, at what cost.

    Attributes:
        engine: ``"forward"``.
        batch_size: Examples at a time at the start; see ``revisions``.
        channels_last: Memory layout of images.
        shard_rows: Rows of a unit.
        query_block: Queries of a unit.
        queries: How many queries will be read.
        rows: How many training rows each reads (with candidates: in all, over the queries).
        sides: Readings of each row for each query.
        seconds_per_row: Measured while tuning.
        eager_seconds_per_row: The floor F per row: best batch size, ordinary layout.
        revisions: ``[unit number, batch size]``: memory ran out there, and from there on this many at a time.
        baseline: ``"read"`` or ``"cached"``.
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

    @property
    def forwards(self) -> int:
        """Forward passes of single examples that the readings take, the baseline apart."""
        return self.queries * self.sides * self.rows

    @property
    def seconds(self) -> dict[str, float]:
        """Expected seconds: of the baseline, of the readings, in all."""
        baseline = 0.0 if self.baseline == "cached" else self.rows * self.seconds_per_row
        reading = self.forwards * self.seconds_per_row
        return {"baseline": baseline, "reading": reading, "total": baseline + reading}

    def revised(self, unit: int, batch_size: int) -> Plan:
        """Return the plan after memory ran out at a unit."""
        return replace(self, revisions=(*self.revisions, (unit, batch_size)))

    def batch_size_at(self, unit: int) -> int:
        """Return how many examples at a time this unit reads."""
        return min([self.batch_size, *(size for start, size in self.revisions if start <= unit)])

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
    engine: str, tuning: Tuning, *, rows: int, queries: int, sides: int, shard_rows: int | None, baseline: str
) -> Plan:
    """Settle how to read: units of about ten seconds, whole batches each.

    Raises:
        SettingError: There is no such engine.
    """
    if engine not in ENGINES:
        raise choose("engine", str(engine), ENGINES)
    size = min(tuning.batch_size, max(rows, 1))
    per_row = max(tuning.seconds_per_row * sides, 1e-9)
    if shard_rows is None:
        shard_rows = max(size, math.floor(UNIT_SECONDS / per_row / size) * size)
    shard = min(shard_rows, max(rows, 1))
    block = 1 if shard < rows else max(1, min(queries, math.floor(UNIT_SECONDS / per_row / max(rows, 1))))
    return Plan("forward", size, tuning.channels_last, shard, block, queries, rows, sides,
                tuning.seconds_per_row, tuning.eager_seconds_per_row, (), baseline)  # fmt: skip


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
        rows_of: With candidates, the rows of each query; each query is then a block of its own.
        rows: Without, the rows of all.
        cross: The rows of the queries.
    """
    if rows_of is not None:
        blocks: list[tuple[tuple[int, ...], Sequence[int]]] = [((query,), rows_of[query]) for query in queries]
    else:
        size = plan.query_block
        blocks = [(tuple(queries[start : start + size]), rows) for start in range(0, len(queries), size)]
    found = []
    for block, (members, read) in enumerate(blocks):
        found.append(Unit("queries", block, 0, members, cross))
        found += [
            Unit("train", block, shard, members, piece) for shard, piece in enumerate(shards(read, plan.shard_rows))
        ]
    return found
