"""Pages with generated tables: only what stands between the two marks is written by code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
END = "<!-- end of table -->"


def begin(name: str) -> str:
    """Return the mark where the tables of a result begin; ``name, part``: of a part of them."""
    stem, _, part = name.partition(", ")
    return f"<!-- table: benchmarks/results/{stem}.json{part and f', {part}'} -->"


def put(page: str, name: str, text: str) -> None:
    """Put the tables of a result into a page of docs/."""
    path = DOCS / f"{page}.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def filled(page: str, name: str, text: str) -> str:
    """Return a page with its tables replaced."""
    before, mark, rest = page.partition(begin(name))
    if not mark:
        raise SystemExit(f"the page lacks {begin(name)}")
    return f"{before}{mark}\n\n{text.strip()}\n\n{END}{rest.partition(END)[2]}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    return "\n".join(line(cells) for cells in (head, ["---"] * len(head), *rows))


def line(cells: Sequence[Any]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def number(value: float | None, form: str = ".3f") -> str:
    """Return .123 below one and 1.234 above; – where there is no value."""
    if value is None:
        return "–"
    told = f"{value:{form}}"
    return told.replace("0.", ".", 1) if abs(value) < 1 else told


def short(value: float | None, places: int = 3) -> str:
    """Return .123, and two places from one on."""
    return number(value, f".{places if value is None or abs(value) < 1 else 2}f")


def interval(found: Mapping[str, float], form: str = ".3f", times: float = 1) -> str:
    """Return a mean with its interval, as the numbers are."""
    mean, low, high = (f"{times * found[end]:{form}}" for end in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def short_interval(found: Mapping[str, float], form: str = ".3f") -> str:
    """Return a mean with its interval, without the zeros before the point."""
    mean, low, high = (number(found[end], form) for end in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def signed(found: Mapping[str, float]) -> str:
    """Return a difference with its interval."""
    return short_interval(found, "+.3f")
