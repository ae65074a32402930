"""The tables of docs/probes.md: LDS and copies found, a row for each way and M."""

from typing import Any

from benchmarks import page

Bank = dict[str, Any]


def tables(result: dict[str, Any]) -> str:
    """Return Markdown."""
    banks = result["banks"]
    blocks = ["Linear datamodelling score, mean over queries [95 % interval]; whitened, β = ½. Cost: of filling, in F.",
              _scores(banks)]  # fmt: skip
    for bank, found in banks.items():
        blocks += [
            f"Copies, {bank}: how often the original comes first, by cosine / by whitened unit responses",
            _copies(found),
        ]
    return "\n\n".join([*blocks, f"One model each (seed {result['model seed']}), {result['machine']['processor']}, "
                        f"{result['date']}."])  # fmt: skip


def _scores(banks: dict[str, Bank]) -> str:
    titles = [f"{bank} (N = {found['N']:,}, ceiling {page.number(found['ceiling'])})" for bank, found in banks.items()]
    rows = []
    for name, count in _keys(banks.values()):
        entries = [_entry(found, name, count) for found in banks.values()]
        costs = dict.fromkeys(f"{entry['fill_F']:,g} F" for entry in entries if entry and "fill_F" in entry)
        scores = [page.short_interval({"mean": entry["LDS"], **entry}) if entry else "" for entry in entries]
        rows.append([name, count or "", " / ".join(costs), *scores])
    return page.table(["", "M", "cost", *titles], rows)


def _copies(found: Bank) -> str:
    kinds = list(next(entry["copies"] for row in found["rows"].values() for entry in row if "copies" in entry))
    rows = []
    for name, count in _keys([found]):
        entry = _entry(found, name, count)
        if "copies" in entry:
            cells = [" / ".join(f"{value:.2f}" for value in entry["copies"][kind].values()) for kind in kinds]
            rows.append([name.replace(" (same label)", ""), count or "", *cells])
    return page.table(["", "M", *kinds], rows)


def _keys(banks: Any) -> list[tuple[str, int | None]]:
    """Return (row, M) of every entry, by row and then by M."""
    found = dict.fromkeys(
        (name, entry.get("M")) for bank in banks for name, row in bank["rows"].items() for entry in row
    )
    names = list(dict.fromkeys(name for name, _ in found))
    return sorted(found, key=lambda key: (names.index(key[0]), key[1] or 0))


def _entry(found: Bank, name: str, count: int | None) -> dict[str, Any] | None:
    return next((entry for entry in found["rows"].get(name, []) if entry.get("M") == count), None)
