"""What does a model know by heart? `fi.memorized` beside self-influence and loss; truth: models trained on random subsets.

The truth is Feldman and Zhang's estimator (uses/subsets.py); what its models said is committed under results/memorized/. Then
the most memorised examples by each score are removed and the network is trained again: accuracy on all tests and the rare ones.

python benchmarks/evaluate_memorized.py [--sets digits] [--docs]      # says its time first; resumable chunk by chunk
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from harness import RESULTS, commit, write
from uses import sets
from uses.figures import gallery, scatter
from uses.memorized_page import write_docs
from uses.subsets import Bank, Recipe, bank, train

import forwardinf as fi
from forwardinf.core.files import write_json
from forwardinf.truth.agreement import ranks, spearman
from forwardinf.use.labels.memorized import INFLUENTIAL, MEMORIZED
from forwardinf.use.responses import unit

FOLDER, WORK = RESULTS / "memorized", sets.WORK / "memorized"
OURS, STRENGTH = "`fi.memorized`, memorization", "`fi.memorized`, self-influence (gfim by the root)"
BOTH = "both, mean rank"
OTHERS = {
    "hold": fi.Perturbation("hold"), "hold by the root": fi.Perturbation("hold", reading="root"),
    "EK-FAC by the root": fi.Perturbation("ekfac", reading="root"), "gfim": fi.Perturbation("gfim"),
}  # fmt: skip
PROBABILITY, RIGHT = "truth, by probability", "truth, by right answers"
SHARES, FULL, AGAIN, RARE = (0.01, 0.03, 0.1), (0, 1), (10, 11, 12), 0.2
SECONDS = {"digits": (0.9, 200), "Fashion-MNIST": (0.8, 200)}  # a training on one shared core; how many
Array = np.ndarray[Any, Any]


def recipe(name: str) -> Recipe:
    """Return how a set's models are trained: until they fit their training set."""
    if name == "digits":
        return Recipe(sets.digits(), epochs=12, models=SECONDS[name][1])
    return Recipe(sets.fashion(600), epochs=18, models=SECONDS[name][1])


def scores(given: Recipe, seed: int) -> tuple[dict[str, Array], Any]:
    """Return every score of a model trained on everything, high = known by heart, and what the use found."""
    everything = range(len(given.data.train[1]))
    model = sets.kept(f"memorized-{given.data.name}-{seed}", given.data.build, lambda: train(given, everything, seed))
    task, settings = fi.Classification(), {"progress": False}
    found = fi.memorized(model, given.data.train, given.data.test, task=task, k=5, direction="gfim", **settings)
    others = {
        f"self-influence, {name}": fi.self_influence(
            model, given.data.train, direction=rule, task=task, **settings
        ).values
        for name, rule in OTHERS.items()
    }
    inputs = unit(given.data.train[0].flatten(1))
    near = inputs @ inputs.T
    near.fill_diagonal_(-1)
    table = found.baselines
    return {
        OURS: found.table["memorization"].to_numpy(), STRENGTH: found.table["self_influence"].to_numpy(),
        BOTH: _ranked(found.table), **others, "gradient norm": table["gradient_norm"].to_numpy(),
        "loss": table["loss"].to_numpy(), "leverage": table["leverage"].to_numpy(),
        "nearest input of its class (free)": _lonely(near, given.data.train[1]),
    }, found  # fmt: skip


def _ranked(table: Any) -> Array:
    return ranks(table[["memorization", "self_influence"]].to_numpy().T).mean(0)


def _lonely(near: torch.Tensor, labels: torch.Tensor) -> Array:
    """Return how unlike an example is to its nearest neighbour of the same label, less the same of another label."""
    same = labels[:, None] == labels
    return (near.masked_fill(same, -1).max(1).values - near.masked_fill(~same, -1).max(1).values).numpy()


def evaluate(name: str) -> dict[str, Any]:
    """Return agreement with the truth, pairs, and removal, of one set."""
    given = recipe(name)
    began = time.perf_counter()
    kept = bank(given, FOLDER / f"{name}.npz", WORK / name, lambda line: print(line, flush=True))
    took = time.perf_counter() - began
    truths = {RIGHT: kept.memorization(), PROBABILITY: kept.memorization(right=False)}
    by_seed = [scores(given, seed) for seed in FULL]
    rows = [
        {"row": row, **{truth: [round(float(spearman(own[row][None], values[None])[0]), 4) for own, _ in by_seed]
                        for truth, values in truths.items()}}
        for row in by_seed[0][0]
    ]  # fmt: skip
    own, found = by_seed[0]
    draw_figures(name, given, kept, own)
    return {
        "set": name, "N": len(given.data.train[1]), "tests": len(given.data.test[1]), "models": len(kept.masks),
        "mean right, seen and unseen": [round(float(kept.train_right[kept.masks == seen].mean()), 4) for seen in (True, False)],
        "memorised by the truth": round(float((truths[RIGHT] >= MEMORIZED).mean()), 4),
        "memorised by ours": round(float((own[OURS] >= MEMORIZED).mean()), 4),
        "ceiling": {RIGHT: round(kept.reliability(), 4), PROBABILITY: round(kept.reliability(right=False), 4)},
        "rows": rows, "pairs": pairs(given, kept, found), "removal": removal(given, kept, own, truths[PROBABILITY]),
        "seconds": round(found.cost["seconds"], 1), "seconds of the models (this call)": round(took, 1), "commit": commit(),
    }  # fmt: skip


def pairs(given: Recipe, kept: Bank, found: Any) -> dict[str, Any]:
    """Return the true influence of each test example's first pair by ours, beside the nearest input's and the true best."""
    truth = kept.influence()
    table = found.pairs
    first = table.groupby("query", sort=True)["train"].first().to_numpy()
    five = table.groupby("query", sort=True)["train"].apply(list)
    rows = np.arange(len(first))
    near = unit(given.data.test[0].flatten(1)) @ unit(given.data.train[0].flatten(1)).T
    same = given.data.test[1][:, None] == given.data.train[1]
    nearest = near.masked_fill(~same, -1).argmax(1).numpy()
    known = kept.memorization() >= MEMORIZED
    strong = np.where(known, truth, -1.0)
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
    }  # fmt: skip


def _mean(hits: list[Any]) -> float | None:
    return round(float(np.mean(hits)), 4) if hits else None


def removal(given: Recipe, kept: Bank, own: dict[str, Array], truth: Array) -> dict[str, Any]:
    """Return test accuracy, all and the rare part, after training without the most memorised by each score."""
    right = kept.test_right.mean(0)
    rare = np.argsort(right, kind="stable")[: round(RARE * len(right))]
    scored = {OURS: own[OURS], STRENGTH: own[STRENGTH], BOTH: own[BOTH], "loss": own["loss"], PROBABILITY: truth,
              "random": np.random.default_rng(5).random(len(truth))}  # fmt: skip
    found: dict[str, Any] = {
        "rare part": len(rare),
        "nothing removed": accuracies(given, np.arange(len(truth)), rare, "all"),
    }
    for share in SHARES:
        count = round(share * len(truth))
        found[f"{share:.0%}"] = {
            name: accuracies(given, np.sort(np.argsort(-values, kind="stable")[count:]), rare, f"{name}-{share}")
            for name, values in scored.items()
        }
    return found


def accuracies(given: Recipe, rows: Array, rare: Array, name: str) -> dict[str, float]:
    """Return mean test accuracy over seeds, of all test examples and of the rare part; kept."""
    plain = "".join(c if c.isalnum() else "-" for c in name)
    path = WORK / f"{given.data.name}-removal" / f"{plain}.json"
    if not path.exists():
        found = []
        for seed in AGAIN:
            model = train(given, rows, seed)
            right = (sets.probabilities(model, given.data.test[0]).argmax(1) == given.data.test[1]).numpy()
            found.append([right.mean(), right[rare].mean()])
        whole, part = np.mean(found, 0)
        write_json(path, {"all": round(float(whole), 4), "rare": round(float(part), 4)})
    return json.loads(path.read_text())


def draw_figures(name: str, given: Recipe, kept: Bank, own: dict[str, Array]) -> None:
    """Draw the truth against ours and the loss, and the most memorised by each beside one another."""
    truth = kept.memorization(right=False)
    scatter([(f"{name}: {row.strip('`')}", own[row], truth, row.strip("`"), "memorisation by subset models")
             for row in (OURS, STRENGTH, "loss")], FOLDER / f"{name}-scatter.png")  # fmt: skip
    images, labels = given.data.train
    lines = []
    for row, values in (("most memorised by subset models", truth), ("most memorised by fi.memorized", own[OURS]),
                        ("highest loss", own["loss"])):  # fmt: skip
        best = np.argsort(-values, kind="stable")[:10]
        lines.append((row, [(images[at], f"label {int(labels[at])}\ntruth {truth[at]:.2f}") for at in best]))
    gallery(lines, FOLDER / f"{name}-gallery.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=list(SECONDS), choices=list(SECONDS))
    parser.add_argument("--docs", action="store_true", help="run nothing: only write the page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.docs:
        return write_docs(json.loads((RESULTS / "memorized.json").read_text()))
    todo = [name for name in given.sets if not (WORK / f"{name}.json").exists()]
    again = len(AGAIN) * (1 + 5 * len(SHARES))
    minutes = sum(each * ((0 if (FOLDER / f"{name}.npz").exists() else models) + again) for name in todo
                  for each, models in [SECONDS[name]]) / 60  # fmt: skip
    print(f"about {minutes:.0f} minutes on one thread; resumable", file=sys.stderr, flush=True)
    for name in todo:
        write_json(WORK / f"{name}.json", evaluate(name))
    there = [json.loads((WORK / f"{name}.json").read_text()) for name in SECONDS if (WORK / f"{name}.json").exists()]
    result = {"question": "what is known by heart", "sets": there,
              "seeds": {"full models": list(FULL), "removal": list(AGAIN), "subsets": "1000 + model"}}  # fmt: skip
    write("memorized", result)
    write_docs(result)
    return None


if __name__ == "__main__":
    main()
