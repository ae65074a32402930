"""A small DDPM is trained again without the images that a method names, or without random halves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.images import rows as r
from benchmarks.images.bench import Bench, Size, kept, top
from benchmarks.images.strips import beside, regenerated
from benchmarks.kept import kept_json, place
from benchmarks.runner import say
from forwardinf.core.fingerprint import digest
from forwardinf.truth.agreement import difference, mean_interval, ratio, spearman

REMOVED_BY = (r.PIXELS, r.COSINE, r.UNIT, r.OURS, r.JOINTLY, r.HOLD, r.ABU)
Scores = dict[str, r.Array]


def removal(size: Size, noise: int = 1000, removed_by: Sequence[str] = REMOVED_BY) -> dict[str, Any]:
    """Remove each method's top images for each query, train again with the same seeds, and compare the query's loss."""
    bench = Bench.of(size, noise)
    model = bench.full()
    queries = bench.drawn(model)
    scores, costs = rankings(bench, model, queries)
    named = {name: [top(row, size.removed) for row in values] for name, values in scores.items() if name != r.JOINTLY}
    named[r.JOINTLY] = [row.astype(int).tolist() for row in scores.pop(r.JOINTLY)]
    draw = np.random.default_rng(5)
    sets = [np.sort(draw.choice(size.images, size.removed, replace=False)).tolist() for _ in range(size.randoms)]
    full = {seed: bench.outcome(queries, seed) for seed in size.seeds}
    by_chance = [_rise(bench, queries, without) for without in sets]
    rises = {r.RANDOM: torch.stack([own.mean(0) for own, _ in by_chance]).mean(0)}  # over sets and seeds
    moves = {r.RANDOM: torch.stack([moved for _, moved in by_chance]).mean(0)}
    by_seed: dict[str, list[list[float]]] = {}
    for name in [name for name in removed_by if name in named]:
        found = [_rise(bench, queries, without) for without in named[name]]
        rises[name] = torch.stack([own[:, q].mean() for q, (own, _) in enumerate(found)])
        moves[name] = torch.stack([moved[q] for q, (_, moved) in enumerate(found)])
        by_seed[name] = [own[:, q].tolist() for q, (own, _) in enumerate(found)]
        say(f"{name}: rise {rises[name].mean():.5f}, random {rises[r.RANDOM].mean():.5f}")
    if removed_by is REMOVED_BY:
        pictures(bench, queries, scores, named, sets[0])
    return {
        "images": size.images, "removed": size.removed, "queries": len(queries), "seeds": list(size.seeds),
        "random sets": size.randoms, "training steps": size.steps, "parameters": sum(p.numel() for p in model.parameters()),
        "loss before": round(float(full[size.seeds[0]]["losses"].mean()), 6), "ranking seconds": costs,
        "seconds of a training": round(float(np.median([one["seconds"] for one in full.values()])), 1),
        "rows": _rows(rises, moves, by_seed),
    }  # fmt: skip


def fresh(size: Size) -> dict[str, Any]:
    """Do the same for other generated images, on which no setting was chosen."""
    return removal(size, 3000, (r.PIXELS, r.OURS, r.JOINTLY))


def _rise(bench: Bench, queries: Tensor, without: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return how every query's loss rises, by seed, and how far the same noise's image moves."""
    pairs = [(bench.outcome(queries, seed, without), bench.outcome(queries, seed)) for seed in bench.size.seeds]
    first, before = pairs[0]
    moved = (first["images"] - before["images"]).square().flatten(1).mean(1)
    return torch.stack([one["losses"] - full["losses"] for one, full in pairs]), moved


def _rows(rises: Mapping[str, Tensor], moves: Mapping[str, Tensor], by_seed: Mapping[str, Any]) -> list[dict[str, Any]]:
    chance = rises[r.RANDOM].numpy()
    sure = mean_interval(chance).low > 0
    return [{
        "row": name, "rise": asdict(mean_interval(rise)), "above random": asdict(difference(rise, chance)),
        "above pixel neighbours": asdict(difference(rise, rises[r.PIXELS])),
        "times random": asdict(ratio(rise, chance)) if sure else None,
        "regenerated": asdict(mean_interval(moves[name])),
        "regenerated above random": asdict(difference(moves[name], moves[r.RANDOM])),
        "per query": rise.tolist(), "per query and seed": by_seed.get(name),
    } for name, rise in rises.items()]  # fmt: skip


def halves(size: Size) -> dict[str, Any]:
    """Train on random halves; compare each generated image's losses with the sum of its scores over what was left out."""
    bench = Bench.of(replace(size, queries=size.judged))
    model = bench.full()
    queries = bench.drawn(model)
    draw = np.random.default_rng(1)
    left_out = [np.sort(draw.choice(size.images, size.images // 2, replace=False)).tolist() for _ in range(size.halves)]
    losses = torch.stack([bench.outcome(queries, size.seeds[0], without)["losses"] for without in left_out], 1).numpy()
    missing = np.zeros((size.images, size.halves))
    for half, without in enumerate(left_out):
        missing[without, half] = 1
    scores, _ = rankings(bench, model, queries)
    foretold = {name: spearman(values @ missing, losses) for name, values in scores.items() if name != r.JOINTLY}
    rows = []
    for name, each in foretold.items():
        above = asdict(difference(each, foretold[r.PIXELS]))
        rows.append({"row": name, "LDS": asdict(mean_interval(each)), "above pixel neighbours": above})
    return {"images": size.images, "halves": size.halves, "queries": size.judged, "rows": rows}


def rankings(bench: Bench, model: nn.Module, queries: Tensor) -> tuple[Scores, dict[str, float]]:
    """Return every method's scores of the perceptron's training images (jointly: their order), and seconds; kept."""
    size, images, costs = bench.size, bench.images, dict[str, float]()
    task = bench.task(size.timesteps)

    def timed(name: str, work: Callable[..., Any], *given: Any, **more: Any) -> Any:
        return r.timed(costs, name, partial(work, *given, **more))

    def make() -> dict[str, Tensor]:
        found = r.free(images, queries, r.classifier(images, bench.labels, steps=size.classified))
        rows = timed("gradients of all images, sketched", r.sketched, model, task, images)
        asked = timed("gradients of the generated images", r.sketched, model, task, queries)
        found |= r.by_gradients(rows, asked)
        found[r.JOINTLY] = timed("named jointly", r.together, rows, asked, size.removed)
        found |= r.by_own_noise(*(r.sketched(model, task, data, noise="own") for data in (images, queries)))
        found[r.ABU_LINEAR] = timed(r.ABU_LINEAR, r.by_unlearning, model, task, images, queries)
        found[r.ABU] = timed(r.ABU, r.by_unlearning, model, task, images, queries, length=0.01)
        return {name: torch.from_numpy(values) for name, values in found.items()}

    key = digest(size.timesteps, size.removed, images, queries, r.WHITENING)
    found = {name: values.numpy() for name, values in kept("rankings", key, make).items()}
    return found, kept_json(place("trace-images", "rankings", f"{key}.json"), lambda: costs)


def pictures(
    bench: Bench, queries: Tensor, scores: Scores, named: dict[str, list[list[int]]], chance: Sequence[int]
) -> None:
    """Draw what the same noise becomes after each removal, and the images that were named."""
    seed = bench.size.seeds[0]
    columns = {"generated": queries, "random": bench.outcome(queries, seed, chance)["images"]}
    for name in [name for name in REMOVED_BY if name in named]:
        redrawn = [bench.outcome(queries, seed, without)["images"][q] for q, without in enumerate(named[name])]
        columns[name] = torch.stack(redrawn)
    regenerated(columns)
    beside("removal", queries, bench.images, {name: scores[name] for name in (r.PIXELS, r.OURS, r.ABU)})
