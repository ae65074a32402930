"""What every use returns: rows with scores and a decision, its threshold, and the free alternatives on the same rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from forwardinf.core import machine
from forwardinf.core.errors import SettingError
from forwardinf.core.files import write_json, write_table
from forwardinf.core.paths import as_path
from forwardinf.data.examples import Id
from forwardinf.data.ids import places_of, several
from forwardinf.score.store import id_column
from forwardinf.score.store import id_index as id_index
from forwardinf.score.store import id_values as id_values

FORMAT = "forwardinf.use/1"
IDS = ("query", "question", "image", "train", "id")
# The view stands above: it is named here, not imported, so that `found.report()` reads naturally and floors stay floors.
DRAWN_BY = "forwardinf.view.use_pages"


class ByQuery:
    """What results with rows for each query have in common: they are asked by the query's id.

    ``len(found)`` is the number of queries, ``found[query]`` the rows of one, ``for query in found`` yields the ids.
    """

    table: pd.DataFrame
    asked_by = "query"  # the column that holds the queries' ids

    @property
    def query_ids(self) -> list[Id]:
        """The queries' ids, in order."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return how many queries there are."""
        return len(self.query_ids)

    def __iter__(self) -> Iterator[Id]:
        """Yield the queries' ids."""
        return iter(self.query_ids)

    def __contains__(self, query: object) -> bool:
        """Tell whether there is a query of this id."""
        return query in self.query_ids

    def __getitem__(self, query: Id) -> pd.DataFrame:
        """Return the rows of one query, by its id, best first.

        Raises:
            UnknownId: There is no such query; says which was probably meant. It is a KeyError too.
        """
        return self._rows(places_of(f"found[{self.asked_by}]", [query], self.query_ids))

    def top(self, k: int = 10, query: Id | Iterable[Id] | None = None) -> pd.DataFrame:
        """Return the k best rows of each query.

        Args:
            k: How many of each, of those in the table.
            query: The id of one query, or of several, in that order; None: all.

        Raises:
            UnknownId: There is no such query; says which was probably meant.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise SettingError("top(k=)", expected="a whole number ≥ 1", got=repr(k))
        every = range(len(self.query_ids))
        rows = self._rows(every if query is None else places_of("top(query=)", several(query), self.query_ids))
        return rows[rows["rank"] <= k].reset_index(drop=True)

    def _rows(self, places: Iterable[int]) -> pd.DataFrame:
        groups = self.table.groupby(self.asked_by, sort=False).groups
        wanted = [groups[self.query_ids[place]] for place in places if self.query_ids[place] in groups]
        return self.table.loc[[row for rows in wanted for row in rows]].reset_index(drop=True)


@dataclass(frozen=True, eq=False, repr=False)
class Found:
    """What :func:`forwardinf.leaks`, :func:`forwardinf.mislabeled` and :func:`forwardinf.memorized` have in common.

    Attributes:
        use: ``"leaks"``, ``"mislabeled"``, ``"memorized"``, or the name of an added one (``use/registry.py``).
        table: The rows.
        decision: The column that holds the decision.
        threshold: What the decided score is compared with.
        false_positive_rate: How often a clean row crosses the threshold; None where that cannot be had.
        calibration: Where that rate is from, in words.
        baselines: The free alternatives on the same rows.
        units: The unit of each column that has one.
        notes: What a person should know.
        cost: Seconds and passes.
        pictured: The examples that a report may show, by kind (``"train"``, ``"queries"``).
    """

    use: str
    table: pd.DataFrame
    decision: str
    threshold: float
    false_positive_rate: float | None
    calibration: str
    baselines: pd.DataFrame
    units: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    pictured: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        there = ", ".join(f".{name}" for name, frame in self.frames.items() if len(frame))
        return f"{type(self).__name__}({self.decided}; {self.rule}; {self.rate}; see {there}, .report(path))"

    @property
    def decided(self) -> str:
        """How many of how many are what the use looks for, in words."""
        return f"{int(self.table[self.decision].sum()):,} of {len(self.table):,} rows: {self.decision}"

    @property
    def rule(self) -> str:
        """What was decided by, in words."""
        return f"threshold {self.threshold:.3g}"

    @property
    def rate(self) -> str:
        """How often a clean row is accused, in words."""
        if self.false_positive_rate is None:
            return "no false-positive rate"
        return f"false-positive rate {100 * self.false_positive_rate:.2g} %"

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables by name."""
        return {"table": self.table, "baselines": self.baselines}

    def facts(self) -> dict[str, Any]:
        """Return everything but the rows, as plain values."""
        count = int(self.table[self.decision].sum())
        return {
            "use": self.use, "rows": len(self.table), self.decision: count, "threshold": _finite(self.threshold),
            "false_positive_rate": self.false_positive_rate, "calibration": self.calibration, "units": dict(self.units),
            "notes": list(self.notes), "cost": dict(self.cost),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON; numbers that there are none of are None."""
        frames = {name: records(frame) for name, frame in self.frames.items()}
        return {**self.facts(), **frames}

    def save(self, folder: str | Path) -> Path:
        """Write each table as Parquet and the rest as ``use.json`` into a folder; files are whole or absent."""
        return save(folder, self.frames, self.facts())

    def report(self, path: str | Path, show: Any = None, *, tokenizer: Any = None) -> Path:
        """Write one HTML file with the tables, and pictures or text of what was found.

        Args:
            path: The file.
            show: ``show(example)`` gives a PIL image or text.
            tokenizer: Turns token ids into text; default: the one that the data or the task was made with.
        """
        return import_module(DRAWN_BY).report(self, path, show=show, tokenizer=tokenizer)  # type: ignore[no-any-return]


def save(folder: str | Path, frames: Mapping[str, pd.DataFrame], facts: Mapping[str, Any]) -> Path:
    """Write each table as Parquet and the facts as ``use.json`` into a folder; files are whole or absent."""
    target = as_path("folder", folder)
    for name, frame in frames.items():
        plain = frame.reset_index() if frame.index.name is not None else frame
        columns = {str(column): _column(str(column), plain[column]) for column in plain.columns}
        write_table(target / f"{name}.parquet", columns, FORMAT)
    write_json(target / "use.json", {"format": FORMAT, **facts, "versions": machine.versions()})
    return target


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame's rows, its named index included, as plain values."""
    plain = frame.reset_index() if frame.index.name is not None else frame
    return [{str(name): _finite(value) for name, value in row.items()} for row in plain.to_dict("records")]


def _finite(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _column(name: str, values: pd.Series[Any]) -> Any:
    plain = values.tolist()
    if name in IDS or name.endswith("_neighbour"):
        return id_column(plain)
    if not pd.api.types.is_numeric_dtype(values):
        return pa.array(
            [value if value is None or isinstance(value, str) else json.dumps(value) for value in plain], pa.string()
        )
    return pa.array(values.to_numpy())
