"""How far rankings depend on how many timesteps are read."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.images import rows as r
from benchmarks.images.bench import Bench, Size, kept
from benchmarks.images.customised import customised_perceptron, measured
from benchmarks.runner import say
from forwardinf.core.fingerprint import digest
from forwardinf.truth.agreement import mean_interval, spearman, top_overlap


def timesteps(size: Size) -> dict[str, Any]:
    """Rank with 1, 2, 4, … timesteps and compare with many timesteps of other noise; Recall on a customised perceptron."""
    bench = Bench.of(size)
    model = bench.full()
    custom = customised_perceptron(bench)
    tuned = (custom.model, custom.train, custom.queries, custom.exemplars)
    found = []
    for name, noise, (how, train, asked, exemplars) in (
        ("generated digits", "shared", (model, bench.images, bench.drawn(model), None)),
        ("customised to trousers", "shared", tuned),
        ("customised to trousers, each image its own noise", "own", tuned),
    ):
        reference = _linear(bench, how, train, asked, size.reference, noise, 1)[0]
        lines = []
        for count in size.grid:
            scores, seconds = _linear(bench, how, train, asked, count, noise, 0)
            rows = {row: _compared(scores[row], reference[row], exemplars) for row in scores}
            lines.append({"timesteps": count, "seconds": seconds, **rows})
            say(f"{name} {count}: " + ", ".join(f"{each['spearman']['mean']:.3f}" for each in rows.values()))
        found.append({"model": name, "queries": len(asked), "images": len(train), "grid": lines})
    return {"reference": size.reference, "models": found}


def _compared(scores: r.Array, reference: r.Array, exemplars: list[int] | None) -> dict[str, Any]:
    values = {"spearman": spearman(scores, reference),
              "top 20 shared": top_overlap(scores, reference, min(20, scores.shape[1]))}  # fmt: skip
    values |= {} if exemplars is None else measured(scores, exemplars)
    return {name: asdict(mean_interval(each)) for name, each in values.items()}


def _linear(
    bench: Bench, model: nn.Module, train: Tensor, queries: Tensor, count: int, noise: str, seed: int
) -> tuple[dict[str, r.Array], float]:
    """Return the linear scores under so many timesteps, and the seconds of the training images' gradients; kept."""
    task, costs = bench.task(count), {}

    def make() -> dict[str, Tensor]:
        rows = r.timed(costs, "rows", lambda: r.sketched(model, task, train, noise=noise, seed=seed))
        asked = r.sketched(model, task, queries, noise=noise, seed=seed)
        scores = r.by_gradients(rows, asked)
        return {r.COSINE: torch.from_numpy(scores[r.COSINE]), r.OURS: torch.from_numpy(scores[r.OURS]),
                "seconds": torch.tensor(costs["rows"])}  # fmt: skip

    found = kept("timesteps", digest(model, train, queries, count, noise, seed, r.OURS, r.WHITENING), make)
    return {name: found[name].numpy() for name in (r.COSINE, r.OURS)}, round(float(found["seconds"]), 1)
