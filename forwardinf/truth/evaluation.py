"""What an evaluation found, as tables: one row for each way of scoring and truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forwardinf.core.files import write_json, written
from forwardinf.core.paths import as_path
from forwardinf.truth.agreement import Array, mean_interval
from forwardinf.truth.bank import Bank
from forwardinf.truth.retrainings import Removal

FORMAT = "forwardinf.evaluation/1"
CONTROL = "control: "
SHOWN = 4  # rows that the result names itself
COLUMNS = ("scores", "truth", "metric", "mean", "low", "high", "queries", "ceiling")
CURVE = ("scores", "k", "queries", "fall", "low", "high", "random_fall", "excess", "excess_low", "excess_high", "flipped",
         "random_flipped")  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation:
    """What :func:`evaluate` returns.

    Attributes:
        table: A row for each (scores, truth, metric): ``scores, truth, metric, mean, low, high, queries, ceiling``.
            Controls are rows too; their means should be near 0 (top overlap: near k/n).
        curve: A row for each (scores, k) of the removals: ``fall`` with its interval, ``random_fall``, ``excess`` (the
            paired difference) with its interval, ``flipped``, ``random_flipped``; empty where none were asked for.
        per_query: ``{(scores, truth, metric): (Q,)}``: for paired comparisons.
        bank: The bank, given or made here.
        leave_one_out: ``(Q, n)`` realised falls, or None.
        left_out: The n training positions.
        notes: What a person should know.
        threshold: None: an evaluation decides nothing.
        false_positive_rate: None.
    """

    table: pd.DataFrame
    curve: pd.DataFrame
    per_query: Mapping[tuple[str, str, str], Array]
    bank: Bank | None = None
    leave_one_out: Array | None = None
    left_out: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    threshold: float | None = None
    false_positive_rate: float | None = None

    def __repr__(self) -> str:
        own = self.table[~self.table["scores"].str.contains(CONTROL, regex=False)]
        lines = [f"{row['scores']}: {row['truth']} {row['metric']} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] "
                 f"over {row['queries']} queries" for row in own.head(SHOWN).to_dict("records")]  # fmt: skip
        more = [f"{len(own) - SHOWN} more rows"] if len(own) > SHOWN else []
        beside = [f"{len(self.baselines)} rows of controls"] if len(self.baselines) else []
        falls = [f"{len(self.curve)} removals"] if len(self.curve) else []
        see = ".table, .curve, .baselines, .save(path)"
        return f"Evaluation({'; '.join([*lines, *more, *falls, *beside])}; see {see})"

    @property
    def baselines(self) -> pd.DataFrame:
        """The controls' rows of the table."""
        return self.table[self.table["scores"].str.contains(CONTROL)].reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON (NaN as None)."""
        return {"format": FORMAT, "table": _plain(self.table), "curve": _plain(self.curve), "left_out": self.left_out,
                "notes": self.notes}  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write ``evaluation.json``, ``table.csv``, ``per_query.csv``, ``curve.csv``, and the bank, if one was made."""
        folder = as_path("folder", path)
        wide = pd.DataFrame({" | ".join(key): values for key, values in self.per_query.items()})
        for name, frame in {"table": self.table, "per_query": wide, "curve": self.curve}.items():
            with written(folder / f"{name}.csv") as part:
                frame.to_csv(part, index=False)
        if self.bank is not None:
            self.bank.save(folder / "bank")
        write_json(folder / "evaluation.json", self.to_dict())
        return folder


class Rows:
    """Collects the table and what is behind it."""

    def __init__(self, ci: float, seed: int) -> None:
        """Start an empty table whose intervals have this coverage."""
        self.ci, self.seed = ci, seed
        self.found: list[dict[str, Any]] = []
        self.per_query: dict[tuple[str, str, str], Array] = {}

    def add(self, scores: str, truth: str, metric: str, values: Array, ceiling: float = float("nan")) -> None:
        """Add a row: the mean of ``values (Q,)`` over queries with its interval."""
        self.per_query[scores, truth, metric] = values
        over = mean_interval(values, self.ci, self.seed)
        self.found.append({"scores": scores, "truth": truth, "metric": metric, "mean": over.mean, "low": over.low,
                           "high": over.high, "queries": over.count, "ceiling": ceiling})  # fmt: skip

    @property
    def table(self) -> pd.DataFrame:
        """Return the rows as a data frame."""
        return pd.DataFrame(self.found, columns=list(COLUMNS))


def curve_of(found: Sequence[tuple[str, Removal]], ci: float, seed: int) -> pd.DataFrame:
    """Return a row for each (scores, k): how far queries fell, beside random removals, with intervals over queries."""
    rows = []
    for name, k in dict.fromkeys((name, each.k) for name, each in found):
        these = [each for called, each in found if (called, each.k) == (name, k)]
        fall = mean_interval([each.fall for each in these], ci, seed)
        excess = mean_interval([each.fall - each.random_fall for each in these], ci, seed)
        row = {"scores": name, "k": k, "queries": len(these), "fall": fall.mean, "low": fall.low, "high": fall.high,
               "random_fall": float(np.mean([each.random_fall for each in these])), "excess": excess.mean,
               "excess_low": excess.low, "excess_high": excess.high}  # fmt: skip
        for column in ("flipped", "random_flipped"):
            values = [getattr(each, column) for each in these]
            row[column] = float("nan") if None in values else float(np.mean(values))
        rows.append(row)
    return pd.DataFrame(rows, columns=list(CURVE))


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): None if isinstance(value, float) and value != value else value for name, value in row.items()}
            for row in frame.to_dict("records")]  # fmt: skip
