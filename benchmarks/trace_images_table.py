"""docs/trace-images.md: the tables, from the JSON. Only what stands between the two marks is written by this."""

from __future__ import annotations

import json
from typing import Any

import page
from harness import RESULTS


def write_docs(result: dict[str, Any]) -> None:
    """Put the tables into the page."""
    page.put("trace-images", "evaluate_trace_images", tables(result))


def tables(result: dict[str, Any]) -> str:
    """Return Markdown: a section for each part that has been run."""
    write = {
        "removal": _removal,
        "fresh": _fresh,
        "halves": _halves,
        "timesteps": _timesteps,
        "customised": _customised,
        "conditioned": _customised,
    }
    return "\n\n".join("\n".join(write[part](result[part]["found"])) for part in write if part in result) + "\n"


def _removal(found: dict[str, Any]) -> list[str]:
    lines = [
        "### Removed and trained again", "",
        f"A perceptron of {found['parameters']:,} parameters, {found['training steps']:,} steps on {found['images']:,} MNIST "
        f"digits of 14×14 pixels; {found['queries']} images that it generated; the {found['removed']} best images of each method "
        f"are removed for each of them, and the model is trained again with seeds {_list(found['seeds'])} "
        f"({found['random sets']} random sets, the same for all). Rise of the generated image's loss × 1000 "
        f"(before: {1000 * found['loss before']:.1f}), mean over seeds; 95 % intervals over images, differences paired. "
        "\"Redrawn\": squared distance × 1000 between the image and what the same noise becomes afterwards.", "",
        "| removed | rise × 1000 | less random's | less pixel neighbours' | ÷ random's | redrawn | less random's |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        times = row["times random"]
        lines.append("| " + " | ".join([
            row["row"], _thousand(row["rise"]), _thousand(row["above random"], "+"),
            _thousand(row["above pixel neighbours"], "+"),
            f"{times['mean']:.2f} [{times['low']:.2f}, {times['high']:.2f}]" if times else "–",
            _thousand(row["regenerated"], digits=1), _thousand(row["regenerated above random"], "+", 1),
        ]) + " |")  # fmt: skip
    if found["rows"][0]["times random"] is None:
        lines += ["", "No ratios: random removal's own rise cannot be told from 0."]
    costs = ", ".join(f"{name} {seconds:g} s" for name, seconds in found["ranking seconds"].items())
    costs += f"; each training {found['seconds of a training']:g} s"
    return [*lines, "", f"Seconds, {found['queries']} images asked: {costs}."]


def _fresh(found: dict[str, Any]) -> list[str]:
    return ["### The same for other images", "", "Generated from other noise; no setting was chosen on these.", "",
            *[line for line in _removal(found) if line.startswith("|")]]  # fmt: skip


def _halves(found: dict[str, Any]) -> list[str]:
    lines = [
        "### Foretold on random halves", "",
        f"The same perceptron, trained again on {found['halves']} random halves of its {found['images']:,} images: the rank "
        f"correlation of each generated image's losses with the sum of its scores over what was left out (LDS), over "
        f"{found['queries']} generated images.", "",
        "| | LDS | less pixel neighbours' |", "|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        own, beside = row["LDS"], row["above pixel neighbours"]
        lines.append(f"| {row['row']} | {own['mean']:.3f} [{own['low']:.3f}, {own['high']:.3f}] | "
                     f"{beside['mean']:+.3f} [{beside['low']:+.3f}, {beside['high']:+.3f}] |")  # fmt: skip
    return lines


def _timesteps(found: dict[str, Any]) -> list[str]:
    lines = ["### How many timesteps", "",
             f"Against {found['reference']} timesteps with other noise: what two readings that share nothing agree on. Means "
             "over generated images; seconds for the gradients of all training images."]  # fmt: skip
    for model in found["models"]:
        rows = [name for name in model["grid"][0] if name not in ("timesteps", "seconds")]
        kinds = list(model["grid"][0][rows[0]])
        lines += ["", f"**{model['model']}**, {model['queries']} images, ranked among {model['images']:,}", "",
                  "| timesteps | seconds | " + " | ".join(f"{row}: {kind}" for row in rows for kind in kinds) + " |",
                  "|---" * (2 + len(rows) * len(kinds)) + "|"]  # fmt: skip
        for line in model["grid"]:
            cells = [f"{line[row][kind]['mean']:.3f}" for row in rows for kind in kinds]
            lines.append(f"| {line['timesteps']} | {line['seconds']:g} | " + " | ".join(cells) + " |")
    return lines


def _customised(found: list[dict[str, Any]]) -> list[str]:
    lines = []
    for model in found:
        alike = f"{model['look-alikes']} look-alikes"
        lines += [
            f"### Customised: {model['model']}", "",
            f"{model['parameters']:,} parameters, {_many(model['exemplars'], 'exemplar')} among {model['images']:,} training "
            f"images, {model['samples']} images sampled from the fine-tuned model, {model['timesteps']} timesteps (unlearning "
            f"{model['timesteps of unlearning']}); 95 % "
            f"intervals over samples. \"{alike}\": as many images beside them that are like the exemplars, but that this "
            "model was not fine-tuned on.", "",
            f"| | Recall@10 | mAP | mAP, {alike} |", "|---|---|---|---|",
        ]  # fmt: skip
        for row in model["rows"]:
            few = row["mAP"]["count"] != model["samples"]
            name = row["row"] + (f" (the first {row['mAP']['count']} samples)" if few else "")
            harder = row.get("with look-alikes")
            lines.append(f"| {name} | {_interval(row['Recall@10'])} | {_interval(row['mAP'])} | "
                         f"{_interval(harder['mAP']) if harder else '–'} |")  # fmt: skip
        costs = ", ".join(f"{name} {seconds:g} s" for name, seconds in model["seconds"].items())
        lines += ["", f"Seconds: {costs}.", ""]
    return lines


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _thousand(found: dict[str, float], sign: str = "", digits: int = 2) -> str:
    mean, low, high = (f"{1000 * found[part]:{sign}.{digits}f}" for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


if __name__ == "__main__":
    write_docs(json.loads((RESULTS / "trace_images.json").read_text(encoding="utf-8")))
