"""Tables and panels for the terminal. They print to the console they are given, and to nothing else.

On a terminal they are drawn; into a file or a pipe they are plain aligned lines, whole, one row a line, fit for grep.
Text from data never reaches Rich as markup, and no control character of it reaches the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from forwardinf.view.clean import BEYOND, beyond, cell, for_terminal, is_number, number, share

if TYPE_CHECKING:
    import pandas as pd

Rows = Iterable[Mapping[str, Any]]
SIGNED = frozenset({"score", "share", "influence", "total"})  # columns that print their plus, and are coloured by sign
PERCENT = frozenset({"share"})  # as shares of the query's own rise
LONGEST_CELL = 100


def scores_table(
    frame: pd.DataFrame, console: Console, *, title: str = "", unit: str | None = None, signed: bool = True
) -> None:
    """Print what ``Scores.top`` and ``Scores.bottom`` return, a line under each query.

    Args:
        frame: Columns ``query, rank, train, score, share, baseline, uncertainty``; empty ones are left out, and further
            ones are shown as they are.
        console: Where to print.
        title: A line above.
        unit: The unit of the scores, told below with the meaning of the sign.
        signed: False where scores are magnitudes.
    """
    kept = [str(c) for c in frame.columns if c in ("query", "rank", "train", "score") or frame[c].notna().any()]
    footer = ""
    if signed and len(frame):
        footer = "positive = proponent: it supports the prediction; removing it would hurt it"
    if unit:
        footer = f"score in {unit}; {footer}" if footer else f"score in {unit}"
    _print(_records(frame, kept), kept, console, title, group="query", footer=footer, signed=signed)


def table(
    rows: pd.DataFrame | Rows, console: Console, *, title: str = "", columns: Sequence[str] | None = None
) -> None:
    """Print rows (a DataFrame with its named index, or mappings) under a title; columns in the order first met."""
    if _is_frame(rows):
        frame = rows if rows.index.name is None else rows.reset_index()
        names = list(columns) if columns is not None else [str(name) for name in frame.columns]
        _print(_records(frame.rename(columns=str), names), names, console, title)
    else:
        records = list(cast(Rows, rows))
        names = list(columns) if columns is not None else list(dict.fromkeys(name for row in records for name in row))
        _print(records, names, console, title)


def plan_panel(plan: Mapping[str, Any], console: Console, *, title: str = "Plan") -> None:
    """Print names and values, nested ones indented, with a frame around them on a terminal."""
    lines = list(_lines(plan, 0))
    width = max((cell_len(_clean(name, console)) + 2 * depth for depth, name, _ in lines), default=0)
    body = Text(overflow="fold")
    for i, (depth, name, value) in enumerate(lines):
        told = "  " * depth + _clean(name, console)
        body.append("\n" if i else "")
        body.append(told + " " * (width - cell_len(told) + 2), style="dim")
        body.append(_clean(value, console))
    if console.is_terminal:
        console.print(Panel(body, title=_text(title, console), title_align="left", expand=False, border_style="dim"))
    else:
        _plain(
            console, [_clean(title, console)] * bool(title) + ["  " + line.rstrip() for line in body.plain.split("\n")]
        )


def _lines(plan: Mapping[str, Any], depth: int) -> Iterable[tuple[int, str, str]]:
    for name, value in plan.items():
        if isinstance(value, Mapping):
            yield depth, str(name), ""
            yield from _lines(value, depth + 1)
        elif isinstance(value, list | tuple):
            yield depth, str(name), ", ".join(_value(x) for x in value)
        else:
            yield depth, str(name), _value(value)


def _print(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], console: Console, title: str,
    *, group: str | None = None, footer: str = "", signed: bool = True,
) -> None:  # fmt: skip
    above, below = [[_clean(text, console)] * bool(text) for text in (title, footer)]
    if beyond(row.get("share") for row in rows):
        below.append(_clean(BEYOND, console))
    if not rows:
        _plain(console, [*above, "no rows"])
        return
    head = [_clean(name, console) for name in names]
    right = [_numeric([row.get(name) for row in rows]) for name in names]
    cells = [[_clean(_cell(name, row.get(name), signed), console) for name in names] for row in rows]
    if not console.is_terminal:
        _plain(console, [*above, *_aligned([head, *cells], right), *below])
        return
    _plain(console, above, "bold")
    drawn = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, show_edge=False)
    for name, is_right in zip(head, right, strict=True):
        drawn.add_column(Text(name), justify="right" if is_right else "left", overflow="fold", no_wrap=is_right)
    before: Any = None
    for i, (row, texts) in enumerate(zip(rows, cells, strict=True)):
        new = group is None or i == 0 or row.get(group) != before
        if group is not None and new and i:
            drawn.add_section()
        before = row.get(group) if group is not None else None
        drawn.add_row(*(
            Text("" if name == group and not new else text, style=_style(name, row.get(name), signed))
            for name, text in zip(names, texts, strict=True)
        ))  # fmt: skip
    console.print(drawn)
    _plain(console, below, "dim")


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = []
        for text, width, is_right in zip(row, widths, right, strict=True):
            gap = " " * (width - cell_len(text))
            padded.append(gap + text if is_right else text + gap)
        lines.append("  ".join(padded).rstrip())
    return lines


def _numeric(values: Sequence[Any]) -> bool:
    """Tell whether a column stands at the right: numbers, and gaps at most."""
    return any(map(is_number, values)) and all(value is None or is_number(value) for value in values)


def _plain(console: Console, lines: Sequence[str], style: str = "") -> None:
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=True, markup=False, highlight=False, emoji=False)


def _style(name: str, value: Any, signed: bool) -> str:
    if name == "score" and signed and is_number(value) and value == value:
        return "green" if value > 0 else "red" if value < 0 else ""
    return "dim" if name in ("rank", "baseline", "uncertainty") else ""


def _cell(name: str, value: Any, signed: bool) -> str:
    if name in PERCENT and is_number(value):
        return share(value, minus="-")
    if name in SIGNED and signed and is_number(value):
        return number(value, signed=True, minus="-")
    return _value(value)


def _value(value: Any) -> str:
    return cell(value, minus="-", limit=LONGEST_CELL)


def _clean(text: str, console: Console) -> str:
    return for_terminal(text, encoding=console.encoding or "utf-8")


def _text(text: str, console: Console) -> Text:
    return Text(_clean(text, console))


def _is_frame(rows: Any) -> TypeGuard[pd.DataFrame]:
    return hasattr(rows, "columns") and hasattr(rows, "iloc")


def _records(frame: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    columns = [frame[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
