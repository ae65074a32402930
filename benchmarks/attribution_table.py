"""docs/faithfulness.md: the table, from the JSON. Only what stands between the two marks is written by this."""

from __future__ import annotations

from typing import Any

import page


def write_docs(results: dict[str, list[dict[str, Any]]], metas: dict[str, Any]) -> None:
    """Put the tables into the page."""
    page.put("faithfulness", "evaluate_attribution", tables(results, metas))


def tables(results: dict[str, list[dict[str, Any]]], metas: dict[str, Any]) -> str:
    """Return Markdown: what the banks are, and a row for each way of scoring."""
    there = [bank for bank in results if results[bank]]
    names = list(dict.fromkeys(row["row"] for bank in there for row in results[bank]))
    lines = ["| bank | model | training examples, queries | regime | ceiling |", "|---|---|---|---|---|"]
    for bank in there:
        meta = metas[bank]
        lines.append(
            f"| {bank} | {meta['model']}, {meta['parameters']:,} parameters | {len(meta['train_ids']):,}, "
            f"{len(results[bank][0]['per query'])} | {meta['regime']} | {_two(results[bank][0]['ceiling'])} |"
        )
    lines += ["", "| | " + " | ".join(there) + " |", "|---|" + "---|" * len(there)]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(_cell(results[bank], name) for bank in there) + " |")
    lines += ["", "Beside kronfluence's EK-FAC at its default damping (ratio of means, paired 95 % interval over queries):", "",
              "| | " + " | ".join(there) + " |", "|---|" + "---|" * len(there)]  # fmt: skip
    for name in names:
        cells = [_ratio(results[bank], name) for bank in there]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _row(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((row for row in rows if row["row"] == name), None)


def _cell(rows: list[dict[str, Any]], name: str) -> str:
    row = _row(rows, name)
    if row is None:
        return ""
    setting = f" ({row['setting']})" if row["tried"] > 1 else ""
    return f"{_two(row['mean'])} [{_two(row['low'])}, {_two(row['high'])}]{setting}"


def _ratio(rows: list[dict[str, Any]], name: str) -> str:
    row = _row(rows, name)
    found = row.get("times reference") if row is not None else None
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]" if found else ""


def _two(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
