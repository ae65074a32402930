"""What does a model know by heart? `fi.memorized` beside self-influence and loss; truth: models trained on random subsets.

The truth is Feldman and Zhang's estimator (subsets.py); what its models said is committed under results/memorized/. Then
the most memorised examples by each score are removed and the network is trained again: accuracy on all tests and the rare ones.
"""

import time
from argparse import Namespace
from functools import partial
from typing import Any

import numpy as np
import torch

import forwardinf as fi
from benchmarks import pictures, sets
from benchmarks.kept import kept_json, place
from benchmarks.labels.memorized_tables import TRUTHS
from benchmarks.labels.memorized_tables import tables as tables
from benchmarks.labels.subsets import Array, Bank, Recipe, bank, train
from benchmarks.results import RESULTS, commit
from benchmarks.runner import Found, Part, plain_name
from benchmarks.training import probabilities
from forwardinf.truth.agreement import ranks, spearman
from forwardinf.use.labels.memorized import INFLUENTIAL, MEMORIZED
from forwardinf.use.responses import unit

PAGE = "memorized"
FOLDER = RESULTS / "memorized"
OURS, STRENGTH = "`fi.memorized`, memorization", "`fi.memorized`, self-influence (gfim by the root)"
BOTH = "both, mean rank"
OTHERS = {
    "hold": fi.Perturbation("hold"), "hold by the root": fi.Perturbation("hold", reading="root"),
    "EK-FAC by the root": fi.Perturbation("ekfac", reading="root"), "gfim": fi.Perturbation("gfim"),
}  # fmt: skip
RIGHT, PROBABILITY = TRUTHS
SHARES, FULL, AGAIN, RARE = (0.01, 0.03, 0.1), (0, 1), (10, 11, 12), 0.2
SECONDS = {"digits": (0.9, 200), "Fashion-MNIST": (0.8, 200)}  # a training on one shared core; how many


def parts(given: Namespace) -> list[Part]:
    again = len(AGAIN) * (1 + 5 * len(SHARES))
    found = []
    for name, (each, models) in SECONDS.items():
        there = (FOLDER / f"{name}.npz").exists()
        found.append(Part(name, partial(evaluate, name), each * (again if there else again + models)))
    return found


def result(given: Namespace, found: Found) -> Found:
    return {"sets": list(found.values()),
            "seeds": {"full models": list(FULL), "removal": list(AGAIN), "subsets": "1000 + model"}}  # fmt: skip


def recipe(name: str) -> Recipe:
    """Return how a set's models are trained: until they fit their training set."""
    if name == "digits":
        return Recipe(sets.digits(), epochs=12, models=SECONDS[name][1])
    return Recipe(sets.fashion(600), epochs=18, models=SECONDS[name][1])


def scores(given: Recipe, seed: int) -> tuple[dict[str, Array], Any]:
    """Return every score of a model trained on everything, high = known by heart, and what the use found."""
    data, settings = given.data, {"task": fi.Classification(), "progress": False}
    everything = range(len(data.train[1]))
    model = sets.trained(f"memorized-{data.name}-{seed}", data, lambda: train(given, everything, seed))
    found = fi.memorized(model, data.train, data.test, k=5, direction="gfim", **settings)
    others = {f"self-influence, {name}": fi.self_influence(model, data.train, direction=rule, **settings).values
              for name, rule in OTHERS.items()}  # fmt: skip
    own = found.table[["memorization", "self_influence"]].to_numpy().T
    return {
        OURS: own[0], STRENGTH: own[1], BOTH: ranks(own).mean(0), **others,
        "gradient norm": found.baselines["gradient_norm"].to_numpy(), "loss": found.baselines["loss"].to_numpy(),
        "leverage": found.baselines["leverage"].to_numpy(), "nearest input of its class (free)": _lonely(*data.train),
    }, found  # fmt: skip


def _lonely(images: torch.Tensor, labels: torch.Tensor) -> Array:
    """Return how unlike an example is to its nearest neighbour of the same label, less the same of another label."""
    inputs = unit(images.flatten(1))
    near = inputs @ inputs.T
    near.fill_diagonal_(-1)
    same = labels[:, None] == labels
    return (near.masked_fill(same, -1).max(1).values - near.masked_fill(~same, -1).max(1).values).numpy()


def evaluate(name: str) -> dict[str, Any]:
    """Return agreement with the truth, pairs, and removal, of one set."""
    given = recipe(name)
    began = time.perf_counter()
    kept = bank(given, FOLDER / f"{name}.npz")
    took = time.perf_counter() - began
    truths = {RIGHT: kept.memorization(), PROBABILITY: kept.memorization(right=False)}
    by_seed = [scores(given, seed) for seed in FULL]
    own, found = by_seed[0]
    rows = [
        {"row": row, **{truth: [round(float(spearman(other[row][None], values[None])[0]), 4) for other, _ in by_seed]
                        for truth, values in truths.items()}}
        for row in own
    ]  # fmt: skip
    draw_figures(name, given, kept, own)
    right = kept.train_right
    return {
        "set": name, "N": len(given.data.train[1]), "tests": len(given.data.test[1]), "models": len(kept.masks),
        "mean right, seen and unseen": [round(float(right[kept.masks == seen].mean()), 4) for seen in (True, False)],
        "memorised by the truth": round(float((truths[RIGHT] >= MEMORIZED).mean()), 4),
        "memorised by ours": round(float((own[OURS] >= MEMORIZED).mean()), 4),
        "ceiling": {RIGHT: round(kept.reliability(), 4), PROBABILITY: round(kept.reliability(right=False), 4)},
        "rows": rows, "pairs": pairs(given, kept, found), "removal": removal(given, kept, own, truths[PROBABILITY]),
        "seconds": round(found.cost["seconds"], 1), "seconds of the models (this call)": round(took, 1), "commit": commit(),
    }  # fmt: skip


def pairs(given: Recipe, kept: Bank, found: Any) -> dict[str, Any]:
    """Return the true influence of each test example's first pair by ours, beside the nearest input's and the true best."""
    truth, by_query = kept.influence(), found.pairs.groupby("query", sort=True)["train"]
    first, five = by_query.first().to_numpy(), by_query.apply(list)
    rows = np.arange(len(first))
    near = unit(given.data.test[0].flatten(1)) @ unit(given.data.train[0].flatten(1)).T
    same = given.data.test[1][:, None] == given.data.train[1]
    nearest = near.masked_fill(~same, -1).argmax(1).numpy()
    strong = np.where(kept.memorization() >= MEMORIZED, truth, -1.0)
    there = np.flatnonzero(strong.max(1) >= INFLUENTIAL)
    best = strong.argmax(1)
    return {
        "mean influence of the first pair": {
            "`fi.memorized`": round(float(truth[rows, first].mean()), 4),
            "nearest input of its class (free)": round(float(truth[rows, nearest].mean()), 4),
            "true best": round(float(truth.max(1).mean()), 4),
        },
        "tests with a pair of high influence": len(there),
        "its training example first by ours": _mean([first[q] == best[q] for q in there]),
        "among the first five by ours": _mean([best[q] in five[q] for q in there]),
        "nearest input names it": _mean([nearest[q] == best[q] for q in there]),
    }


def _mean(hits: list[Any]) -> float | None:
    return round(float(np.mean(hits)), 4) if hits else None


def removal(given: Recipe, kept: Bank, own: dict[str, Array], truth: Array) -> dict[str, Any]:
    """Return test accuracy, all and the rare part, after training without the most memorised by each score."""
    right = kept.test_right.mean(0)
    rare = np.argsort(right, kind="stable")[: round(RARE * len(right))]
    scored = {OURS: own[OURS], STRENGTH: own[STRENGTH], BOTH: own[BOTH], "loss": own["loss"], PROBABILITY: truth,
              "random": np.random.default_rng(5).random(len(truth))}  # fmt: skip
    everything = np.arange(len(truth))
    found: dict[str, Any] = {"rare part": len(rare), "nothing removed": accuracies(given, everything, rare, "all")}
    for share in SHARES:
        count = round(share * len(truth))
        found[f"{share:.0%}"] = {
            name: accuracies(given, np.sort(np.argsort(-values, kind="stable")[count:]), rare, f"{name}-{share}")
            for name, values in scored.items()
        }
    return found


def accuracies(given: Recipe, rows: Array, rare: Array, name: str) -> dict[str, float]:
    """Return mean test accuracy over seeds, of all test examples and of the rare part; kept."""

    def make() -> dict[str, float]:
        inputs, labels = given.data.test
        said = [probabilities(train(given, rows, seed), inputs).argmax(1) for seed in AGAIN]
        right = [(each == labels).numpy() for each in said]
        whole, part = np.mean([[each.mean(), each[rare].mean()] for each in right], 0)
        return {"all": round(float(whole), 4), "rare": round(float(part), 4)}

    return kept_json(place("memorized", f"{given.data.name}-removal", f"{plain_name(name)}.json"), make)


def draw_figures(name: str, given: Recipe, kept: Bank, own: dict[str, Array]) -> None:
    """Draw the truth against ours and the loss, and the most memorised by each beside one another."""
    truth = kept.memorization(right=False)
    pictures.scatter([(f"{name}: {row.strip('`')}", own[row], truth, row.strip("`"), "memorisation by subset models")
                      for row in (OURS, STRENGTH, "loss")], FOLDER / f"{name}-scatter.png")  # fmt: skip
    images, labels = given.data.train
    titles = {
        "most memorised by subset models": truth,
        "most memorised by fi.memorized": own[OURS],
        "highest loss": own["loss"],
    }
    rows = []
    for title, values in titles.items():
        best = np.argsort(-values, kind="stable")[:10]
        rows.append((title, [(images[at], f"label {int(labels[at])}\ntruth {truth[at]:.2f}") for at in best]))
    pictures.gallery(rows, FOLDER / f"{name}-gallery.png")
