"""A customised model's samples are asked for: the exemplars that it was fine-tuned on are ranked by every method."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import pixels
from benchmarks.images import denoisers as d
from benchmarks.images import rows as r
from benchmarks.images.bench import Bench, Size, kept
from benchmarks.images.custom_models import Custom, conditional, customised_ddpm, customised_perceptron
from benchmarks.images.strips import beside
from benchmarks.runner import say
from forwardinf.core.fingerprint import digest
from forwardinf.truth.agreement import mean_interval
from forwardinf.use.images.trace_images import READINGS

READS = READINGS["both"]


def customised(size: Size) -> list[dict[str, Any]]:
    """Customise the perceptron, and the shared DDPM to each kind, and rank."""
    return [
        ranked(customised_perceptron(Bench.of(size)) if kind == "perceptron" else customised_ddpm(kind, size), size)
        for kind in size.kinds
    ]


def conditioned(size: Size) -> list[dict[str, Any]]:
    """Customise the conditional U-Net and rank; unlearning moves its keys and values."""
    size = replace(size, images=min(size.images, size.conditioned_images))
    return [ranked(conditional(size), size)]


def measured(scores: r.Array, exemplars: Sequence[int]) -> dict[str, r.Array]:
    """Return each query's Recall@10 and average precision; queries that were not asked are NaN."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")
    true = np.isin(order, exemplars)
    precision = true.cumsum(1) / np.arange(1, true.shape[1] + 1)
    asked = np.isfinite(scores).any(1)
    found = {
        "Recall@10": true[:, :10].sum(1) / min(10, len(exemplars)),
        "mAP": (precision * true).sum(1) / len(exemplars),
    }
    return {name: np.where(asked, values, np.nan) for name, values in found.items()}


def ranked(custom: Custom, size: Size) -> dict[str, Any]:
    """Rank one customised model's exemplars by every method; kept method by method."""
    train, queries, alike = custom.pixels
    whole, costs = _scores(custom, size)
    rows = []
    for name, values in whole.items():
        rows.append(_row(name, values, custom.exemplars, len(train)))
        say(f"{custom.name}, {name}: mAP {rows[-1]['mAP']['mean']:.3f}")
    best = {name: whole[name][:, : len(train)] for name in (r.PIXELS, r.COSINE, r.OURS)}
    beside(custom.name, queries, train, best, train[custom.exemplars])
    return {
        "model": custom.name, "images": len(train), "exemplars": len(custom.exemplars), "samples": len(queries),
        "look-alikes": len(alike), "timesteps": len(custom.task.timesteps),
        "timesteps of unlearning": size.timesteps if "perceptron" in custom.name else size.timesteps_slow,
        "parameters": sum(p.numel() for p in custom.model.parameters()), "seconds": costs, "rows": rows,
    }  # fmt: skip


def _row(name: str, values: r.Array, exemplars: list[int], count: int) -> dict[str, Any]:
    """Return how well a method ranks the exemplars, among training images alone and with look-alikes behind them."""
    own = measured(values[:, :count], exemplars)
    row = {"row": name, **{kind: asdict(mean_interval(each)) for kind, each in own.items()},
           "per query": {kind: [None if np.isnan(v) else float(v) for v in each] for kind, each in own.items()}}  # fmt: skip
    if values.shape[1] > count:
        harder = measured(values, exemplars)
        row["with look-alikes"] = {kind: asdict(mean_interval(each)) for kind, each in harder.items()}
    return row


def _scores(custom: Custom, size: Size) -> tuple[dict[str, r.Array], dict[str, float]]:
    """Return every method's scores, and the seconds of what is slow.

    What no model was trained on stands at the end: whitening is fitted on what stands before it.
    """
    train, queries, alike = custom.pixels
    images, labels = pixels("mnist", "train")
    grey = images[:4000]
    seen = d.small(grey) if train.shape[-1] == 14 else torch.from_numpy(grey).float()[:, None] / 255 - 0.5
    features = r.classifier(seen, torch.from_numpy(labels[:4000]), steps=size.classified)
    whole, costs = r.free(torch.cat([train, alike]), queries, features), dict[str, float]()
    sides = {"training images": custom.train, "look-alikes": custom.alike, "generated images": custom.queries}
    rows, extra, asked = (_rows(custom, data, costs, what) for what, data in sides.items())
    whole |= r.by_gradients({name: torch.cat([rows[name], extra[name]]) for name in rows}, asked, fit=rows)
    for name, work in custom.slow.items():
        values = _slow(custom, name, work, size, costs)
        whole[name] = np.full((len(queries), len(train)), np.nan)
        whole[name][: len(values)] = values
    return whole, costs


def _rows(custom: Custom, data: Any, costs: dict[str, float], what: str) -> dict[str, Tensor]:
    own: dict[str, float] = {}

    def make() -> dict[str, Tensor]:
        rows = r.timed(own, what, lambda: r.sketched(custom.model, custom.task, data))
        return {**rows, "seconds": torch.tensor(own[what])}

    found = kept("rows", digest(custom.model, custom.task.timesteps, data, *READS), make)
    costs[f"gradients of the {what}, sketched"] = round(float(found["seconds"]), 1)
    return {name: found[name] for name in READS}


def _slow(custom: Custom, name: str, work: Callable[[], r.Array], size: Size, costs: dict[str, float]) -> r.Array:
    own: dict[str, float] = {}

    def make() -> dict[str, Tensor]:
        values = r.timed(own, name, work)
        return {"values": torch.from_numpy(values), "seconds": torch.tensor(own[name])}

    key = digest(custom.model, custom.task.timesteps, custom.train, custom.queries, name, size.fit, size.unlearned,
                 size.timesteps_slow)  # fmt: skip
    found = kept("rows", key, make)
    if float(found["seconds"]):
        costs[name] = round(float(found["seconds"]), 1)
    return found["values"].numpy()
