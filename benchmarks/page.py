"""Pages with generated tables: only what stands between the two marks is written by code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
END = "<!-- end of table -->"


def begin(script: str) -> str:
    """Return the mark where a script's tables begin."""
    return f"<!-- table: benchmarks/{script}.py -->"


def put(page: str, script: str, text: str) -> None:
    """Put the tables into a page of docs/."""
    path = DOCS / f"{page}.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), script, text), encoding="utf-8")


def filled(page: str, script: str, text: str) -> str:
    """Return a page with its tables replaced."""
    before, mark, rest = page.partition(begin(script))
    if not mark:
        raise SystemExit(f"the page lacks {begin(script)}")
    return f"{before}{mark}\n\n{text.strip()}\n\n{END}{rest.partition(END)[2]}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def short(value: float | None, places: int = 3) -> str:
    """Return .123; – where there is no value."""
    return "–" if value is None else f"{value:.{places}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def signed(found: dict[str, float]) -> str:
    """Return a difference with its interval."""
    told = [f"{found[name]:+.3f}".replace("0.", ".", 1) for name in ("mean", "low", "high")]
    return f"{told[0]} [{told[1]}, {told[2]}]"
