"""What the uses found, for people: a table in the terminal with the free alternatives beside, a page with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from forwardinf.core.paths import as_path
from forwardinf.core.registry import brought
from forwardinf.use.registry import USES, Use
from forwardinf.use.tables import Found
from forwardinf.view.clean import BEYOND, beyond
from forwardinf.view.marked_text import language_of
from forwardinf.view.pictures import Show, picture
from forwardinf.view.report import ReportPage, Table, write_report
from forwardinf.view.terminal import table

MOST_PICTURED = 60


def best_first(found: Found) -> pd.DataFrame:
    """Return the rows in the order in which a person wants to see them, free alternatives beside them."""
    use = _use(found)
    free = [name for name in use.free if name in found.baselines]
    rows = pd.concat([found.table, found.baselines[free]], axis=1)
    ordered: pd.DataFrame = rows if use.best_first is None else brought(use.best_first)(rows)
    return ordered


def _use(found: Found) -> Use:
    return USES.get(found.use) or Use(type(found))


def _title(found: Found, name: str = "") -> str:
    """Return what a table shows: the rows, or another one of the use's."""
    use = _use(found)
    return use.titles.get(name, name) if name else use.title or found.use


def show(found: Found, console: Console, k: int) -> None:
    """Print the first rows, the decision, and where its rate is from."""
    rows = best_first(found)
    table(rows.head(k), console, title=_title(found) + _of(len(rows), k))
    for name, frame in found.frames.items():
        if name not in ("table", "baselines") and len(frame):
            console.print()
            table(_strongest(frame).head(k), console, title=_title(found, name) + _of(len(frame), k))
    for line in lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _of(rows: int, k: int) -> str:
    return f" (the first {k} of {rows:,} rows)" if rows > k else ""


def _strongest(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.sort_values("influence", ascending=False, kind="stable") if "influence" in pairs else pairs


def lines(found: Found) -> list[str]:
    """Return the decision in words, units, notes."""
    why = "" if found.calibration in found.rate else f" ({found.calibration})"
    told = [f"{found.decided}: {found.decision}, by {found.rule}; {found.rate}{why}"]
    return [*told, *_units(found), *(f"note: {note}" for note in found.notes)]


def report(found: Found, path: str | Path, show: Show | None = None, tokenizer: Any = None) -> Path:
    """Write the page; see :meth:`Found.report`."""
    rows = best_first(found)
    draw = partial(_pictured, found, show=show, tokenizer=tokenizer)
    tables = [draw(rows.reset_index() if rows.index.name else rows, _title(found))]
    tables += [
        draw(_strongest(frame), _title(found, name))
        for name, frame in found.frames.items() if name not in ("table", "baselines") and len(frame)
    ]  # fmt: skip
    tables.append(Table.from_frame(found.baselines, "The free alternatives on the same rows",
                                   "What costs little or nothing: compare before trusting the rest."))  # fmt: skip
    summary: list[tuple[str, object]] = [
        ("found", found.decided), ("decided by", found.rule), ("how often that is wrong", found.rate),
        ("calibration", found.calibration),
    ]  # fmt: skip
    notes = [*found.notes, *_units(found)]
    if "share" in found.table and beyond(found.table["share"]):
        notes.append(f"share: {BEYOND}")
    page = ReportPage(
        title=f"forwardinf {found.use}", summary=summary, notes=notes, tables=tables, run_card=_run_card(found)
    )
    return write_report(as_path("report", path), page)


def _run_card(found: Found) -> dict[str, object]:
    """Return what the call took, and what each detector counted for where there are several."""
    facts = found.facts()
    card = {str(name): value for name, value in facts["cost"].items()}
    if "weights" in facts:
        card["weights of the detectors"] = facts["weights"]
    return {
        name: ", ".join(f"{key} {part:.3g}" for key, part in value.items()) if isinstance(value, Mapping) else value
        for name, value in card.items()
    }


def _units(found: Found) -> list[str]:
    """Return what the columns that are shown mean."""
    shown = {str(name) for frame in found.frames.values() for name in frame.columns}
    return [f"{name}: {unit}" for name, unit in found.units.items() if name in shown]


def _pictured(found: Found, rows: pd.DataFrame, title: str, *, show: Show | None, tokenizer: Any) -> Table:
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
            language = language_of(found.pictured[kind], tokenizer)
            cells.append([
                picture(found.pictured[kind][places[kind][value]], show=show, language=language) for value in shown[name]
            ])  # fmt: skip
    said = "" if len(rows) <= len(shown) else f"The first {len(shown)} of {len(rows):,} rows."
    return Table(title, columns, list(zip(*cells, strict=True)), said)
