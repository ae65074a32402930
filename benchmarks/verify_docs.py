"""docs/verify.md from results/verify.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs" / "verify.md"


def write_docs(checks: list[dict[str, Any]]) -> None:
    """Write the page."""
    DOCS.write_text(page(checks), encoding="utf-8")


def page(checks: list[dict[str, Any]]) -> str:
    return "# Verify\n"
