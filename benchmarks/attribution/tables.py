"""The tables of docs/faithfulness.md: what the banks are, and a row for each way of scoring."""

from collections.abc import Callable
from typing import Any

from benchmarks import page
from benchmarks.banks import use

Entry = dict[str, Any]


def tables(result: dict[str, Any]) -> str:
    """Return Markdown."""
    banks = {bank: {row["row"]: row for row in rows} for bank, rows in result["banks"].items() if rows}
    names = list(dict.fromkeys(name for rows in banks.values() for name in rows))

    def body(cell: Callable[[Entry], str]) -> str:
        rows = [[name, *(cell(rows[name]) if name in rows else "" for rows in banks.values())] for name in names]
        return page.table(["", *banks], [row for row in rows if any(row[1:])])

    head = ["bank", "model", "training examples, queries", "regime", "ceiling"]
    return "\n\n".join([
        page.table(head, [_bank(bank, next(iter(rows.values()))) for bank, rows in banks.items()]),
        body(_score),
        "Beside kronfluence's EK-FAC at its default damping (ratio of means, paired 95 % interval over queries):",
        body(lambda row: page.interval(row["times reference"], ".2f") if row.get("times reference") else ""),
    ])  # fmt: skip


def _bank(bank: str, row: Entry) -> list[str]:
    meta = use.bank_of(bank).meta
    return [bank, f"{meta['model']}, {meta['parameters']:,} parameters",
            f"{len(meta['train_ids']):,}, {len(row['per query'])}", meta["regime"], page.number(row["ceiling"])]  # fmt: skip


def _score(row: Entry) -> str:
    setting = f" ({row['setting']})" if row["tried"] > 1 else ""
    return page.short_interval(row) + setting
