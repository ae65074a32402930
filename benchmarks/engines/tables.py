"""The tables of docs/engines.md: what was measured, a table for each part."""

from typing import Any

from benchmarks import page


def tables(result: dict[str, Any]) -> str:
    """Return Markdown."""
    found, blocks = result["results"], []
    for name, of in (("goals", _goals), ("growth", _growth), ("rivals", _rivals)):
        if name in found:
            blocks += [*of(found[name]), _how(found[name])]
    return "\n\n".join([*blocks, f"{result['machine']['processor']}, torch {result['versions']['torch']}."])


def _goals(part: dict[str, Any]) -> list[str]:
    head = ["", "N", "ratio to F (median)", "from, to", "goal", "multiplications, ratio", "estimate of the plan off by"]
    rows = [
        [name, row["N"], f"{row['median']:.2f}", f"{row['min']:.2f}, {row['max']:.2f}", f"{row['goal']:g}",
         f"{row['multiplications']:.2f}", f"{row['plan off by']:+.0%}" if "plan off by" in row else ""]
        for name, row in part["rows"].items()
    ]  # fmt: skip
    return [page.table(head, rows)]


def _growth(part: dict[str, Any]) -> list[str]:
    by: dict[str, dict[str, Any]] = {}
    for key, row in part["rows"].items():
        by.setdefault(key.partition(",")[0], {})[row["engine"]] = row
    rows = [[key, f"{both['forward']['N']:,}", both["forward"]["Q"], f"{both['forward']['P']:,}",
             *(f"{both[engine]['read_s']:.3f}" for engine in ("forward", "factored"))] for key, both in by.items()]  # fmt: skip
    return ["Seconds of reading, an MLP with 256 inputs (N = 1,000, Q = 10, width 128, but for what grows):",
            page.table(["", "N", "Q", "P", "forward", "factored"], rows)]  # fmt: skip


def _rivals(part: dict[str, Any]) -> list[str]:
    told = (
        f"The same work by each system: the {part['bank']} bank's network ({part['parameters']:,} parameters), one thread, "
        "CPU seconds as fit + scores, everything of ours counted (tuning, checks, baseline). Memory: growth of the "
        "high-water mark (0: never above what importing took). Agreement: median correlation with our scores of the same "
        "kind (with kronfluence's EK-FAC the dampings differ)."
    )
    by = part["by Q"]
    rows = []
    for name in next(iter(by.values())):
        asked = [found[name] for found in by.values()]
        times = [f"{row['fit_s']:.1f} + {row['score_s']:.1f}" if "score_s" in row else "–" for row in asked]
        last = next((row for row in asked[::-1] if "score_s" in row), None)
        if last is None:
            rows.append([name, *times, "", asked[0]["not run"]])
        else:
            agreement = f"{last['agreement']:.4f}" if "agreement" in last else ""
            rows.append([name, *times, f"{last['peak_bytes'] / 2**20:.0f} MiB", agreement])
    return [told, page.table(["", *(f"Q = {q}" for q in by), "memory", "agreement"], rows)]


def _how(part: dict[str, Any]) -> str:
    beside = "nothing else ran" if part["quiet"] else "other work ran beside it"
    small = "The small form: an eighth of the examples, so that the queries' own cost weighs more. "
    return f"{small if part['small'] else ''}{part['clock']} clock, {beside}, {part['date']}."
