"""Fill the cost table of README.md and those of docs/published.md from benchmarks/results/: `make docs`.

Tests check that both are up to date.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START, END = "<!-- cost table: docs/make_tables.py -->", "<!-- end of cost table -->"
MODELS = {"cnn": "CNN", "resnet": "ResNet with BatchNorm", "decoder": "decoder"}
COLUMNS = {
    "one query ÷ F*": "one_query_over_F_star",
    "two-sided ÷ F*": "two_readings_over_F_star",
    "one query ÷ F": "one_query_over_F",
    "whole call ÷ F*": "whole_call_cached_over_F_star",
}


PUBLISHED = {
    "own copy first, by abs. score": "own copy first, by |score|",
    "its median rank": "own copy's median rank",
    "own copy first, by share nearest 1": "own copy first, by share nearest 1",
    "Spearman with `as_published`": "Spearman of |score| with as_published (median)",
    "negative scores": "share of negative scores (lost by the absolute value)",
    "resampled": "queries resampled",
}


def published_tables() -> str:
    """Return the tables of docs/published.md, one a model."""
    found = json.loads((ROOT / "benchmarks" / "results" / "published.json").read_text())["results"]
    parts = []
    for model, case in found.items():
        lines = [f"## {model}, N = {case['N']:,}", "", "| setting | " + " | ".join(PUBLISHED) + " |"]
        lines.append("|---" * (len(PUBLISHED) + 1) + "|")
        for setting, row in case["settings"].items():
            lines.append(f"| {setting} | " + " | ".join(_cell(row.get(key)) for key in PUBLISHED.values()) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def cost_table(results: Path = ROOT / "benchmarks" / "results") -> str:
    """Return the table, every number as the benchmark wrote it, and one line on memory where it was measured."""
    forward = json.loads((results / "forward.json").read_text())
    lines = [
        "| model | N | parameters | threads | " + " | ".join(COLUMNS) + " |",
        "|---|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for name, found in forward["results"].items():
        model, threads = name.split(", ")
        ratios = " | ".join(f"{found[key]['median']:.2f}" for key in COLUMNS.values())
        parameters = f"{found['parameters'] / 1e6:.1f} M"
        lines.append(f"| {MODELS[model]} | {found['N']:,} | {parameters} | {threads.split()[0]} | {ratios} |")
    pairs = next(iter(forward["results"].values()))["one_query_over_F_star"]["pairs"]
    clock = {"cpu": "CPU", "wall": "wall-clock"}[forward["clock"]]
    lines += ["", f"Medians of {pairs} interleaved pairs, {clock} time, {forward['machine']['processor']}, torch "
              f"{forward['versions']['torch']}, {forward['date']}."]  # fmt: skip
    memory = results / "memory.json"
    if memory.exists():
        lines[-1] += f" {_memory(json.loads(memory.read_text())['results'])}"
    return "\n".join(lines)


def _memory(cases: dict[str, Any]) -> str:
    worst = {
        copies: max(case["reading_mib"] for case in cases.values() if case["copies_allowed"] == copies)
        for copies in (1, 2)
    }
    size = max(case["parameters_mib"] for case in cases.values())
    return f"Memory while reading, models of {size:.0f} MiB: at most {worst[1]:.0f} MiB one-sided, {worst[2]:.0f} MiB two-sided."


def readme(text: str) -> str:
    """Return README.md with its table filled."""
    head, _, rest = text.partition(START)
    return f"{head}{START}\n\n{cost_table()}\n\n{END}{rest.partition(END)[2]}"


def published(text: str) -> str:
    """Return docs/published.md with its tables filled: they stand between the first heading of a model and the last row."""
    head, mark, rest = text.partition("\n## ")
    tail = rest.rpartition(" |\n")[2]
    return f"{head}{mark.rstrip('# ')}{published_tables()}\n{tail}"


if __name__ == "__main__":
    for path, fill in ((ROOT / "README.md", readme), (ROOT / "docs" / "published.md", published)):
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")
