"""docs/engines.md: the tables, from the JSON. Only what stands between the two marks is written by this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import page


def write_docs(path: Path) -> None:
    """Put the tables into the page."""
    page.put("engines", "bench_engines", tables(json.loads(path.read_text(encoding="utf-8"))))


def tables(result: dict[str, Any]) -> str:
    """Return Markdown: what was measured, a table for each part."""
    found, lines = result["results"], list[str]()
    if "goals" in found:
        lines += [
            "| | N | ratio to F (median) | from, to | goal | multiplications, ratio | estimate of the plan off by |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in found["goals"]["rows"].items():
            off = f"{row['plan off by']:+.0%}" if "plan off by" in row else ""
            lines.append(
                f"| {name} | {row['median']:.2f} | {row['min']:.2f}, {row['max']:.2f} | {row['goal']:g} | "
                f"{row['multiplications']:.2f} | {off} |"
            )
        lines += ["", _how(found["goals"])]
    if "growth" in found:
        lines += ["", "Seconds of reading, an MLP with 256 inputs (N = 1,000, Q = 10, width 128, but for what grows):", "",
                  "| | N | Q | P | forward | factored |", "|---|---|---|---|---|---|"]  # fmt: skip
        rows: dict[str, dict[str, Any]] = {}
        for key, row in found["growth"]["rows"].items():
            rows.setdefault(key.partition(",")[0], {})[row["engine"]] = row
        for key, both in rows.items():
            one = both["forward"]
            lines.append(f"| {key} | {one['N']:,} | {one['Q']} | {one['P']:,} | {one['read_s']:.3f} | "
                         f"{both['factored']['read_s']:.3f} |")  # fmt: skip
        lines += ["", _how(found["growth"])]
    if "rivals" in found:
        part = found["rivals"]
        told = (
            f"The same work by each system: the {part['bank']} bank's network ({part['parameters']:,} parameters), one thread, "
            "CPU seconds as fit + scores, everything of ours counted (tuning, checks, baseline). Memory: growth of the "
            "high-water mark (0: never above what importing took). Agreement: median correlation with our scores of the same "
            "kind (with kronfluence's EK-FAC the dampings differ)."
        )
        lines += ["", told, "", "| | " + " | ".join(f"Q = {q}" for q in part["by Q"]) + " | memory | agreement |",
                  "|---|" + "---|" * (len(part["by Q"]) + 2)]  # fmt: skip
        names = list(next(iter(part["by Q"].values())))
        for name in names:
            rows_of = [by[name] for by in part["by Q"].values()]
            times = [f"{row['fit_s']:.1f} + {row['score_s']:.1f}" if "score_s" in row else "–" for row in rows_of]
            last = next((row for row in rows_of[::-1] if "score_s" in row), None)
            if last is None:
                lines.append(f"| {name} | " + " | ".join(times) + f" | | {rows_of[0]['not run']} |")
                continue
            agreement = f"{last['agreement']:.4f}" if "agreement" in last else ""
            lines.append(
                f"| {name} | " + " | ".join(times) + f" | {last['peak_bytes'] / 2**20:.0f} MiB | {agreement} |"
            )
        lines += ["", _how(part)]
    lines += ["", f"{result['machine']['processor']}, torch {result['versions']['torch']}."]
    return "\n".join(lines).strip() + "\n"


def _how(part: dict[str, Any]) -> str:
    small = (
        "The small form: an eighth of the examples, so that the queries' own cost weighs more. "
        if part["small"]
        else ""
    )
    beside = "nothing else ran" if part["quiet"] else "other work ran beside it"
    return f"{small}{part['clock']} clock, {beside}, {part['date']}."


if __name__ == "__main__":
    write_docs(Path(__file__).parent / "results" / "engines.json")
