"""The tables of docs/trace-images.md: a section for each part that has been run."""

from functools import partial
from typing import Any

from benchmarks.page import interval, table

thousand = partial(interval, times=1000)


def tables(result: dict[str, Any]) -> str:
    """Return Markdown."""
    sections = {"removal": _removal, "fresh": _fresh, "halves": _halves, "timesteps": _timesteps, "customised": _customised,
                "conditioned": _customised}  # fmt: skip
    return "\n\n".join(block for part, of in sections.items() if part in result for block in of(result[part]["found"]))


def _removal(found: dict[str, Any]) -> list[str]:
    told = (
        f"A perceptron of {found['parameters']:,} parameters, {found['training steps']:,} steps on {found['images']:,} MNIST "
        f"digits of 14×14 pixels; {found['queries']} images that it generated; the {found['removed']} best images of each method "
        f"are removed for each of them, and the model is trained again with seeds {', '.join(map(str, found['seeds']))} "
        f"({found['random sets']} random sets, the same for all). Rise of the generated image's loss × 1000 "
        f"(before: {1000 * found['loss before']:.1f}), mean over seeds; 95 % intervals over images, differences paired. "
        '"Redrawn": squared distance × 1000 between the image and what the same noise becomes afterwards.'
    )
    unsure = found["rows"][0]["times random"] is None
    costs = ", ".join(f"{name} {seconds:g} s" for name, seconds in found["ranking seconds"].items())
    costs += f"; each training {found['seconds of a training']:g} s"
    return [
        "### Removed and trained again", told, _removed(found),
        *(["No ratios: random removal's own rise cannot be told from 0."] if unsure else []),
        f"Seconds, {found['queries']} images asked: {costs}.",
    ]  # fmt: skip


def _removed(found: dict[str, Any]) -> str:
    head = [
        "removed",
        "rise × 1000",
        "less random's",
        "less pixel neighbours'",
        "÷ random's",
        "redrawn",
        "less random's",
    ]
    rows = [
        [row["row"], thousand(row["rise"], ".2f"), thousand(row["above random"], "+.2f"),
         thousand(row["above pixel neighbours"], "+.2f"),
         interval(row["times random"], ".2f") if row["times random"] else "–",
         thousand(row["regenerated"], ".1f"), thousand(row["regenerated above random"], "+.1f")]
        for row in found["rows"]
    ]  # fmt: skip
    return table(head, rows)


def _fresh(found: dict[str, Any]) -> list[str]:
    return [
        "### The same for other images",
        "Generated from other noise; no setting was chosen on these.",
        _removed(found),
    ]


def _halves(found: dict[str, Any]) -> list[str]:
    told = (
        f"The same perceptron, trained again on {found['halves']} random halves of its {found['images']:,} images: the rank "
        f"correlation of each generated image's losses with the sum of its scores over what was left out (LDS), over "
        f"{found['queries']} generated images."
    )
    rows = [
        [row["row"], interval(row["LDS"]), interval(row["above pixel neighbours"], "+.3f")] for row in found["rows"]
    ]
    return ["### Foretold on random halves", told, table(["", "LDS", "less pixel neighbours'"], rows)]


def _timesteps(found: dict[str, Any]) -> list[str]:
    told = (
        f"Against {found['reference']} timesteps with other noise: what two readings that share nothing agree on. Means "
        "over generated images; seconds for the gradients of all training images."
    )
    blocks = ["### How many timesteps", told]
    for model in found["models"]:
        first = model["grid"][0]
        cells = [(row, kind) for row in first if row not in ("timesteps", "seconds") for kind in first[row]]
        rows = [[line["timesteps"], f"{line['seconds']:g}", *(f"{line[row][kind]['mean']:.3f}" for row, kind in cells)]
                for line in model["grid"]]  # fmt: skip
        blocks.append(f"**{model['model']}**, {model['queries']} images, ranked among {model['images']:,}")
        blocks.append(table(["timesteps", "seconds", *(f"{row}: {kind}" for row, kind in cells)], rows))
    return blocks


def _customised(found: list[dict[str, Any]]) -> list[str]:
    blocks = []
    for model in found:
        alike, count = f"{model['look-alikes']} look-alikes", model["exemplars"]
        told = (
            f"{model['parameters']:,} parameters, {count} exemplar{'s' if count > 1 else ''} among {model['images']:,} training "
            f"images, {model['samples']} images sampled from the fine-tuned model, {model['timesteps']} timesteps (unlearning "
            f"{model['timesteps of unlearning']}); 95 % "
            f'intervals over samples. "{alike}": as many images beside them that are like the exemplars, but that this '
            "model was not fine-tuned on."
        )
        rows = []
        for row in model["rows"]:
            asked, harder = row["mAP"]["count"], row.get("with look-alikes")
            name = row["row"] + (f" (the first {asked} samples)" if asked != model["samples"] else "")
            rows.append(
                [name, interval(row["Recall@10"]), interval(row["mAP"]), interval(harder["mAP"]) if harder else "–"]
            )
        costs = ", ".join(f"{name} {seconds:g} s" for name, seconds in model["seconds"].items())
        blocks += [f"### Customised: {model['model']}", told, table(["", "Recall@10", "mAP", f"mAP, {alike}"], rows),
                   f"Seconds: {costs}."]  # fmt: skip
    return blocks
