"""docs/trace.md: the tables, from the JSON. Only what stands between the two marks is written by this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import page

KINDS = ("MRR", "Recall@10", "P@10")


def write_docs(result: dict[str, Any], size: str) -> None:
    """Put the tables of a decoder of this size into the page."""
    page.put("trace", "evaluate_trace" if size == "small" else f"evaluate_trace, {size}", tables(result))


def tables(result: dict[str, Any]) -> str:
    """Return Markdown: what was asked, and a row for each method."""
    asked = result["questions"]
    lines = [
        f"{result['parameters']:,} parameters, {result['texts']:,} texts, {asked['with the mask at the end']:,} questions, "
        f"{asked['answered right']:,} answered right; {result['candidates']:.0f} candidates each, a median of "
        f"{result['proponents, median']:.0f} true."
    ]
    for kind in ("answered right", "answered wrong"):
        rows = result[kind]
        lines += ["", f"**{rows[0]['MRR']['count']} questions {kind}** (mean, 95 % interval over questions)", "",
                  "| | MRR | Recall@10 | P@10 | MRR less filled BM25's | P@10 less filled BM25's |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for row in rows:
            few = row["MRR"]["count"] != rows[0]["MRR"]["count"]
            name = row["row"] + (f" ({row['setting']})" if row["setting"] else "")
            name += f" (the first {row['MRR']['count']})" if few else ""
            beside = [_signed(row["beside filled BM25"][which]) for which in ("MRR", "P@10")]
            lines.append("| " + " | ".join([name, *(_interval(row[which]) for which in KINDS), *beside]) + " |")
    return "\n".join(lines) + "\n"


def write_removal(result: dict[str, Any], size: str) -> None:
    """Put the table of what removing texts of this much of the corpus did into the page."""
    page.put(
        "trace", "evaluate_trace_removal" if size == "part" else f"evaluate_trace_removal, {size}", removal(result)
    )


def removal(result: dict[str, Any]) -> str:
    """Return Markdown: a row for each way of choosing the texts that are removed."""
    size = result["size"]
    lines = [
        f"{result['parameters']:,} parameters, {size['recipe']['epochs']} epochs over {result['texts']:,} texts; "
        f"{result['facts']} facts, "
        f"{100 * result['right before']:.0f} % answered right, log p(answer) {result['log p before']:.2f} on average; "
        f"{size['removed']} texts a fact removed, of all facts together; seeds {', '.join(map(str, size['seeds']))}; "
        "95 % intervals over facts, differences paired. Nats.", "",
        "| removed | texts | P@10 | fall of log p | less random's | less masked BM25's | ÷ random's |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        hits, times = row["P@10"], row["times random"]
        lines.append("| " + " | ".join([
            row["row"], f"{row['texts removed']:,}", f"{hits['mean']:.2f}" if hits else "", _nats(row["fall"]),
            _nats(row["above random"], "+"), _nats(row["above BM25"], "+"),
            f"{times['mean']:.2f} [{times['low']:.2f}, {times['high']:.2f}]" if times else "–"]) + " |")  # fmt: skip
    if not result["rows"][0]["times random"]:
        lines += ["", "No ratios: random removal's own fall cannot be told from 0."]
    return "\n".join(lines) + "\n"


def _nats(found: dict[str, float], sign: str = "") -> str:
    mean, low, high = (f"{found[part]:{sign}.2f}" for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _interval(found: dict[str, float]) -> str:
    return f"{_short(found['mean'])} [{_short(found['low'])}, {_short(found['high'])}]"


def _signed(found: dict[str, float]) -> str:
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]".replace("0.", ".")


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if value < 1 else "1"


if __name__ == "__main__":
    for name, size in (("trace", "small"), ("trace_large", "large")):
        write_docs(json.loads((Path(__file__).parent / "results" / f"{name}.json").read_text(encoding="utf-8")), size)
