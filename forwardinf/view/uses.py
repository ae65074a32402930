"""What the uses found, for people: a table in the terminal with the free alternatives beside, a page with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from forwardinf.use.tables import Found
from forwardinf.view.pictures import Show, picture
from forwardinf.view.report import ReportPage, Table, write_report
from forwardinf.view.terminal import table

TITLES = {
    "leaks": "Test examples and the training examples that react as their copies",
    "mislabeled": "Training labels, the most doubtful first",
    "memorized": "Training examples, those known by heart first",
    "pairs": "Test predictions and the training examples they rest on",
}
FREE = {
    "leaks": ("input_neighbour",),
    "mislabeled": ("model_margin", "last_neighbours"),
    "memorized": ("gradient_norm", "leverage"),
}
MOST_PICTURED = 60


def best_first(found: Found) -> pd.DataFrame:
    """Return the rows that a person wants to see first, free alternatives beside them."""
    free = [name for name in FREE.get(found.use, ()) if name in found.baselines]
    rows = pd.concat([found.table, found.baselines[free]], axis=1)
    if found.use == "leaks":
        order = rows.groupby("query", sort=False)["score"].transform("max")
        keys = pd.DataFrame({"leak": ~rows.groupby("query", sort=False)["is_leak"].transform("any"), "score": -order})
        return rows.loc[keys.assign(rank=rows["rank"]).sort_values(["leak", "score", "rank"], kind="stable").index]
    if found.use == "mislabeled":
        return rows.sort_values("label_score", kind="stable")
    return rows.sort_values("memorization", ascending=False, kind="stable")


def show(found: Found, console: Console, k: int) -> None:
    """Print the first rows, the decision, and where its rate is from."""
    table(best_first(found).head(k), console, title=TITLES[found.use])
    for name, frame in found.frames.items():
        if name not in ("table", "baselines") and len(frame):
            console.print()
            table(frame.sort_values("influence", ascending=False, kind="stable").head(k), console, title=TITLES[name])
    for line in lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def lines(found: Found) -> list[str]:
    """Return the decision in words, units, notes."""
    count = int(found.table[found.decision].sum())
    rate = (
        "no false-positive rate"
        if found.false_positive_rate is None
        else f"false-positive rate {found.false_positive_rate:.2g}"
    )
    told = [
        f"{count} of {len(found.table)} rows: {found.decision} (threshold {found.threshold:.3g}; {rate}; {found.calibration})"
    ]
    told += [f"{name}: {unit}" for name, unit in found.units.items() if name in found.table or name == "influence"]
    return told + [f"note: {note}" for note in found.notes]


def report(found: Found, path: str | Path, show: Show | None = None) -> Path:
    """Write the page; see :meth:`Found.report`."""
    rows = best_first(found)
    tables = [_pictured(found, rows.reset_index() if rows.index.name else rows, TITLES[found.use], show)]
    tables += [
        _pictured(found, frame.sort_values("influence", ascending=False, kind="stable"), TITLES[name], show)
        for name, frame in found.frames.items() if name not in ("table", "baselines") and len(frame)
    ]  # fmt: skip
    tables.append(Table.from_frame(found.baselines, "The free alternatives on the same rows"))
    rate = found.false_positive_rate
    summary: list[tuple[str, object]] = [
        ("rows", len(found.table)), (found.decision, int(found.table[found.decision].sum())), ("threshold", found.threshold),
        ("false-positive rate", "none" if rate is None else rate), ("decided by", found.calibration),
    ]  # fmt: skip
    card = {name: str(value) for name, value in found.facts().items() if name in ("cost", "weights")}
    notes = [*found.notes, *_units(found)]
    page = ReportPage(title=f"forwardinf {found.use}", summary=summary, notes=notes, tables=tables, run_card=card)
    return write_report(Path(path), page)


def _units(found: Found) -> list[str]:
    return [f"{name}: {unit}" for name, unit in found.units.items()]


def _pictured(found: Found, rows: pd.DataFrame, title: str, show: Show | None) -> Table:
    """Put the examples beside their ids, in the first rows."""
    places: dict[str, Mapping[Any, int]] = {
        kind: {value: at for at, value in enumerate(examples.ids)} for kind, examples in found.pictured.items()
    }
    kinds = {"query": "queries", "train": "train", "id": "train"}
    shown = rows.head(MOST_PICTURED)
    columns: list[str] = []
    cells: list[list[object]] = []
    for name in shown.columns:
        columns.append(str(name))
        cells.append(shown[name].tolist())
        kind = kinds.get(str(name))
        if kind is not None and kind in found.pictured:
            columns.append(f"{name} example")
            cells.append([picture(found.pictured[kind][places[kind][value]], show=show) for value in shown[name]])
    said = "" if len(rows) <= len(shown) else f"The first {len(shown)} of {len(rows):,} rows."
    return Table(title, columns, list(zip(*cells, strict=True)), said)
