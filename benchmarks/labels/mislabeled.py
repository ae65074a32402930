"""Which labels are wrong? `fi.mislabeled` beside what costs as much, before memorisation and after it; and what acting gains.

Planted wrong labels (uniform, class-dependent; 5 to 40 %) on digits and Fashion-MNIST, human ones (CIFAR-10N) on 1,000 images.
Two models each: the one that a validation set with the same kind of wrong labels stops, and one that has learnt its training set
by heart. Cleanlab gets the model's own probabilities of the examples that it was trained on; in a block of its own the
out-of-sample ones of five further trainings.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import forwardinf as fi
from benchmarks.data import Examples
from benchmarks.labels.measures import beside, measured
from benchmarks.labels.mislabeled_tables import FOLDED, OURS
from benchmarks.labels.mislabeled_tables import tables as tables
from benchmarks.labels.training import Array, Case, cases, early, out_of_sample, stages
from benchmarks.results import commit
from benchmarks.rivals.run import Tables, cleanlab
from benchmarks.runner import CannotRun, Found, Part, say
from benchmarks.training import accuracy, probabilities
from forwardinf.use.labels.mislabeled import Mislabeled

PAGE = "mislabeled"
OWN = "cleanlab, own probabilities: "
FREE = {"loss": "loss", "self_influence": "self-influence", "input_neighbours": "neighbours' labels, input",
        "early_neighbours": "neighbours' labels, early layer", "last_neighbours": "neighbours' labels, last layer"}  # fmt: skip
SEEDS = 2
ACTED = (0.2,)  # rates of planted wrong labels at which acting is tried
SECONDS = {"digits": 40, "Fashion-MNIST": 40, "CIFAR-10N": 90}  # a case, on one shared core


def parts(given: Namespace) -> list[Part]:
    asked = [case for name in SECONDS for case in cases(name)]
    asked.sort(key=lambda case: case.rate in (0.05, 0.2))  # the far ends first, should it be stopped
    return [Part(case.key, partial(evaluate, case), SECONDS[case.name]) for case in asked]


def result(given: Namespace, found: Found) -> Found:
    keys = [case.key for name in SECONDS for case in cases(name)]
    return {"seeds": {"training": 0, "acting": list(range(1, 1 + SEEDS)), "flips": 0},
            "cases": [found[key] for key in keys if key in found]}  # fmt: skip


def scored(case: Case, model: nn.Module) -> tuple[dict[str, Array], Mislabeled]:
    """Return every score at no further training, high = wrong, and what the use found."""
    result = fi.mislabeled(model, case.train, task=fi.Classification(), progress=False)
    own = {OURS: 1 - result.table["label_score"].to_numpy()}
    own |= {name: result.baselines[column].to_numpy() for column, name in FREE.items() if column in result.baselines}
    return own, result


def evaluate(case: Case) -> dict[str, Any]:
    """Return how well each score finds the wrong labels at both stages, and what acting on them gains."""
    folds, fold_s = out_of_sample(case)
    models = stages(case)
    found = {stage: scored(case, model) for stage, model in models.items()}
    asked = {stage: probabilities(model, case.train[0]).numpy() for stage, model in models.items()} | {FOLDED: folds}
    rivals = _cleanlab({name: (case.given.numpy(), values) for name, values in asked.items()})
    told = {
        stage: _stage(case, models[stage], *found[stage], rivals.get(stage, {}), rivals.get(FOLDED, {}))
        for stage in found
    }
    acted = gain(case, *found["stopped early"]) if case.rate in ACTED else None
    return {"set": case.name, "kind": case.kind, "rate": case.rate, "N": len(case.given), "wrong": int(case.wrong.sum()),
            "stages": told, "fold seconds": round(fold_s, 1), "acting": acted, "commit": commit()}  # fmt: skip


def _cleanlab(asked: dict[str, tuple[Array, Array]]) -> dict[str, Tables]:
    try:
        return cleanlab(asked)
    except CannotRun as reason:
        say(f"without cleanlab: {reason}")
        return {}


def _stage(
    case: Case, model: nn.Module, own: dict[str, Array], result: Mislabeled, rivals: Tables, folded: Tables
) -> dict[str, Any]:
    """Return how well each score finds the wrong labels in one model, ours beside the best of equal cost."""
    rows = own | {OWN + method: values for method, values in rivals.items()}
    apart = {FOLDED + method: values for method, values in folded.items()}
    measures = {name: measured(case.wrong, values) for name, values in (rows | apart).items()}
    others = [name for name in rows if name != OURS]
    best = {of: max(others, key=lambda name, of=of: measures[name][of]) for of in ("AUROC", "AP")}
    issue = result.table["is_label_issue"].to_numpy()
    return {
        "rows": measures, "best of equal cost": best,
        "beside the best": {of: beside(case.wrong, rows[OURS], rows[name])[of] for of, name in best.items()},
        "beside the loss": beside(case.wrong, rows[OURS], rows["loss"]),
        "weights": dict(result.weights), "flagged": int(issue.sum()),
        "precision": round(float(case.wrong[issue].mean()), 4) if issue.any() else None,
        "recall": round(float(issue[case.wrong].mean()), 4), "seconds": result.cost["seconds"],
        "fits its labels": round(accuracy(model, case.train), 4), "test accuracy": round(accuracy(model, case.test), 4),
    }  # fmt: skip


def gain(case: Case, own: dict[str, Array], result: Mislabeled) -> dict[str, Any]:
    """Retrain with what the early model's table says, mean test accuracy over seeds."""
    issue = torch.from_numpy(result.table["is_label_issue"].to_numpy().copy())
    said = torch.from_numpy(result.table["predicted_label"].to_numpy().copy())
    inputs, given = case.train
    truth, count = case.plan.data.train[1], int(issue.sum())
    by_loss = torch.ones(len(given), dtype=torch.bool)
    by_loss[torch.from_numpy(np.argsort(-own["loss"], kind="stable")[:count].copy())] = False
    draw = torch.from_numpy(np.random.default_rng(0).permutation(len(given)) >= count)
    trained_on: dict[str, Callable[[], Examples]] = {
        "as given": lambda: (inputs, given), "flagged dropped": lambda: (inputs[~issue], given[~issue]),
        "flagged corrected": lambda: (inputs, torch.where(issue, said, given)),
        "as many of highest loss dropped": lambda: (inputs[by_loss], given[by_loss]),
        "as many at random dropped": lambda: (inputs[draw], given[draw]), "all labels right": lambda: (inputs, truth),
    }  # fmt: skip
    return {
        name: [round(accuracy(early(case, of(), seed), case.test), 4) for seed in range(1, 1 + SEEDS)]
        for name, of in trained_on.items()
    }
