"""docs/probes.md: the tables, from the JSON. Only what stands between the two marks is written by this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import page


def write_docs(path: Path) -> None:
    """Put the tables into the page."""
    page.put("probes", "evaluate_probes", tables(json.loads(path.read_text(encoding="utf-8"))))


def tables(result: dict[str, Any]) -> str:
    """Return Markdown: LDS and copies found, a row for each way and M."""
    banks = result["banks"]
    told = [f"{bank} (N = {found['N']:,}, ceiling {_short(found['ceiling'])})" for bank, found in banks.items()]
    lines = ["Linear datamodelling score, mean over queries [95 % interval]; whitened, β = ½. Cost: of filling, in F.", "",
             "| | M | cost | " + " | ".join(told) + " |", "|---|---|---|" + "---|" * len(banks)]  # fmt: skip
    for name, count in _keys(banks):
        entries = {bank: _entry(found, name, count) for bank, found in banks.items()}
        cost = " / ".join(dict.fromkeys(_cost(entry) for entry in entries.values() if entry and "fill_F" in entry))
        cells = [f"{_short(e['LDS'])} [{_short(e['low'])}, {_short(e['high'])}]" if e else "" for e in entries.values()]
        lines.append(f"| {name} | {count or ''} | {cost} | " + " | ".join(cells) + " |")
    for bank, found in banks.items():
        kinds = next(e["copies"] for row in found["rows"].values() for e in row if "copies" in e)
        lines += ["", f"Copies, {bank}: how often the original comes first, by cosine / by whitened unit responses", "",
                  "| | M | " + " | ".join(kinds) + " |", "|---|---|" + "---|" * len(kinds)]  # fmt: skip
        for name, count in _keys({bank: found}):
            entry = _entry(found, name, count)
            if entry and "copies" in entry:
                cells = [" / ".join(f"{value:.2f}" for value in entry["copies"][kind].values()) for kind in kinds]
                lines.append(f"| {name.replace(' (same label)', '')} | {count or ''} | " + " | ".join(cells) + " |")
    facts = f"One model each (seed {result['model seed']}), {result['machine']['processor']}, {result['date']}."
    return "\n".join([*lines, "", facts]) + "\n"


def _keys(banks: dict[str, Any]) -> list[tuple[str, int | None]]:
    found: dict[tuple[str, int | None], None] = {}
    for bank in banks.values():
        for name, entries in bank["rows"].items():
            found.update(dict.fromkeys((name, entry.get("M")) for entry in entries))
    names = list(dict.fromkeys(name for name, _ in found))
    return sorted(found, key=lambda key: (names.index(key[0]), key[1] or 0))


def _entry(found: dict[str, Any], name: str, count: int | None) -> dict[str, Any] | None:
    return next((entry for entry in found["rows"].get(name, []) if entry.get("M") == count), None)


def _cost(entry: dict[str, Any]) -> str:
    return f"{entry['fill_F']:,g} F"


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


if __name__ == "__main__":
    write_docs(Path(__file__).parent / "results" / "probes.json")
