"""The tables of docs/memorized.md."""

from typing import Any

import numpy as np

from benchmarks.page import short, table

TRUTHS = ("truth, by right answers", "truth, by probability")


def tables(result: dict[str, Any]) -> str:
    """Return every table as Markdown."""
    return "\n\n".join(text for found in result["sets"] for text in _set(found))


def _set(found: dict[str, Any]) -> list[str]:
    seen, unseen = found["mean right, seen and unseen"]
    rows = [[row["row"], *(short(float(np.mean(row[truth]))) for truth in TRUTHS)] for row in found["rows"]]
    rows.append(["ceiling: the truth with itself", *(short(found["ceiling"][truth]) for truth in TRUTHS)])
    pairs = found["pairs"]
    influence = ", ".join(f"{name} {short(value)}" for name, value in pairs["mean influence of the first pair"].items())
    removal = found["removal"]
    shares = [name for name in removal if name.endswith("%")]
    ways = list(removal[shares[0]])
    nothing = removal["nothing removed"]
    cells = [[way, *(f"{short(removal[share][way]['all'])}, {short(removal[share][way]['rare'])}" for share in shares)]
             for way in ways]  # fmt: skip
    stem = f"../benchmarks/results/memorized/{found['set']}"
    return [
        f"## {found['set']}, N = {found['N']:,}, {found['models']} subset models",
        f"A model is right on {seen:.1%} of what it saw and {unseen:.1%} of what it did not. Memorised (at least .25): "
        f"{found['memorised by the truth']:.1%} by the truth, {found['memorised by ours']:.1%} by ours. Spearman with the truth, "
        "mean of two models:",
        table(["", *TRUTHS], rows),
        f"First pair of each of {found['tests']} test examples, its true influence on the probability: {influence}. "
        f"{pairs['tests with a pair of high influence']} test examples rest on one training example (memorised, influence at "
        f"least .15): ours names it first for {short(pairs['its training example first by ours'], 2)}, among the first five for "
        f"{short(pairs['among the first five by ours'], 2)}; the nearest input of its class is it for "
        f"{short(pairs['nearest input names it'], 2)}.",
        f"Removing the most memorised and training again: test accuracy, and that of the {removal['rare part']} test images that "
        f"subset models get right least often. Nothing removed: {short(nothing['all'])}, {short(nothing['rare'])}.",
        table(["removed by", *shares], cells),
        f"[Scatter]({stem}-scatter.png), [gallery]({stem}-gallery.png).",
    ]  # fmt: skip
