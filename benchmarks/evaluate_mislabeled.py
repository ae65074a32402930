"""Which labels are wrong? `fi.mislabeled` beside what costs as much, before memorisation and after it; and what acting gains.

Planted wrong labels (uniform, class-dependent; 5 to 40 %) on digits and Fashion-MNIST, human ones (CIFAR-10N) on 1,000 images.
Two models each: the one that a validation set with the same kind of wrong labels stops, and one that has learnt its training set
by heart. Cleanlab gets the model's own probabilities of the examples that it was trained on; in a block of its own the
out-of-sample ones of five further trainings.

python benchmarks/evaluate_mislabeled.py [--sets digits] [--docs]      # says its time first; resumable case by case
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from harness import RESULTS, commit, write
from uses import sets, wrong
from uses.found import beside, measured
from uses.mislabeled_page import write_docs
from uses.rival_labels import NoVenv, cleanlab

import forwardinf as fi
from forwardinf.core.files import write_json, written

WORK = sets.WORK / "mislabeled"
STAGES = ("stopped early", "memorised")
OURS = "`fi.mislabeled`"
OWN, FOLDED = "cleanlab, own probabilities: ", "cleanlab, 5-fold retraining: "
FREE = {"loss": "loss", "self_influence": "self-influence", "input_neighbours": "neighbours' labels, input",
        "early_neighbours": "neighbours' labels, early layer", "last_neighbours": "neighbours' labels, last layer"}  # fmt: skip
FOLDS, SEEDS, HELD = 5, 2, 200
ACTED = (0.2,)  # rates of planted wrong labels at which acting is tried
FASHION, CIFAR = 1000, 1000  # training examples
SECONDS = {"digits": 40, "Fashion-MNIST": 40, "CIFAR-10N": 90}  # a case, on one shared core
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Plan:
    """How a set's networks are trained: epochs until memorisation at most, and those among which one would stop early."""

    data: sets.Set
    long: int
    short: int


@dataclass(frozen=True)
class Case:
    """One set of wrong labels. The last ``HELD`` test examples, with wrong labels of the same kind, tell when to stop."""

    name: str
    kind: str
    rate: float
    plan: Plan
    given: Tensor
    validation: sets.Part

    @property
    def train(self) -> sets.Part:
        return self.plan.data.train[0], self.given

    @property
    def wrong(self) -> Array:
        return (self.given != self.plan.data.train[1]).numpy()

    @property
    def key(self) -> str:
        return f"{self.name}-{self.kind}-{self.rate:g}"

    @property
    def test(self) -> sets.Part:
        inputs, labels = self.plan.data.test
        return inputs[:-HELD], labels[:-HELD]


def cases(name: str) -> Iterator[Case]:
    """Yield every case of a set."""
    if name == "CIFAR-10N":
        data = sets.cifar(CIFAR)
        order = np.sort(np.random.default_rng(0).permutation(sets.LOSSLESS)[CIFAR:])
        for which in wrong.HUMAN:
            given = wrong.human(data.rows, which)
            held = data.test[0][-HELD:], wrong.human(order[-HELD:], which)
            rate = float((given != data.train[1]).double().mean())
            yield Case(name, which, round(rate, 3), Plan(data, 40, 10), given, held)
        return
    plan = Plan(sets.digits(), 120, 15) if name == "digits" else Plan(sets.fashion(FASHION), 80, 12)
    held = plan.data.test[0][-HELD:], plan.data.test[1][-HELD:]
    for kind in wrong.KINDS:
        for rate in wrong.RATES:
            given = wrong.flipped(plan.data.train[1], kind, rate, name)
            noisy = held[0], wrong.flipped(held[1], kind, rate, name, seed=1)
            yield Case(name, kind, rate, plan, given, noisy)


# -- training -----------------------------------------------------------------------------------------------------------


def stages(case: Case, seed: int = 0) -> dict[str, nn.Module]:
    """Return the model at each stage, of one training each."""
    return {
        "stopped early": sets.kept(f"{case.key}-early-{seed}", case.plan.data.build, lambda: early(case, case.train, seed)),
        "memorised": sets.kept(f"{case.key}-long-{seed}", case.plan.data.build, lambda: memorised(case, seed)),
    }  # fmt: skip


def early(case: Case, train: sets.Part, seed: int) -> nn.Module:
    """Return the model of the epoch that is right most often on the validation labels."""
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})

    def look(epoch: int, model: nn.Module) -> bool:
        nonlocal best
        found = sets.accuracy(model, case.validation)
        if found > best[0]:
            best = found, {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return False

    model = sets.fit(case.plan.data.build, train, epochs=case.plan.short, seed=seed, each=look)
    model.load_state_dict(best[1])
    return model.eval()


def memorised(case: Case, seed: int) -> nn.Module:
    """Train until the model says what it was told of 99.5 % of the training set."""
    return sets.fit(case.plan.data.build, case.train, epochs=case.plan.long, seed=seed,
                    each=lambda epoch, model: epoch % 5 == 4 and sets.accuracy(model, case.train) >= 0.995)  # fmt: skip


def out_of_sample(case: Case, seed: int = 0) -> tuple[Array, float]:
    """Return probabilities of every example by a model that was trained without it, and the seconds of the five trainings."""
    path = WORK / f"{case.key}-folds.npz"
    if not path.exists():
        found, began = np.zeros((len(case.given), 10)), time.perf_counter()
        fold = torch.from_numpy(np.random.default_rng(seed).permutation(len(case.given)) % FOLDS)
        for place in range(FOLDS):
            inside, outside = fold != place, fold == place
            model = early(case, (case.train[0][inside], case.given[inside]), seed)
            found[outside.numpy()] = sets.probabilities(model, case.train[0][outside]).numpy()
        with written(path) as part, part.open("wb") as file:
            np.savez(file, found=found, seconds=time.perf_counter() - began)
    with np.load(path, allow_pickle=False) as kept:
        return kept["found"], float(kept["seconds"])


# -- measuring ----------------------------------------------------------------------------------------------------------


def scored(case: Case, model: nn.Module, **settings: Any) -> tuple[dict[str, Array], fi.use.mislabel.Mislabeled]:
    """Return every score at no further training, high = wrong, and what the use found."""
    result = fi.mislabeled(model, case.train, task=fi.Classification(), progress=False, **settings)
    own = {OURS: 1 - result.table["label_score"].to_numpy()}
    own |= {name: result.baselines[column].to_numpy() for column, name in FREE.items() if column in result.baselines}
    return own, result


def evaluate(case: Case) -> dict[str, Any]:
    """Return how well each score finds the wrong labels at both stages, and what acting on them gains."""
    found: dict[str, Any] = {}
    folds, fold_s = out_of_sample(case)
    tables, probabilities = {}, {}
    for stage, model in stages(case).items():
        tables[stage] = scored(case, model)
        probabilities[stage] = sets.probabilities(model, case.train[0]).numpy()
    asked = {**probabilities, FOLDED: folds}
    rivals = _cleanlab({name: (case.given.numpy(), values) for name, values in asked.items()})
    for stage, (own, result) in tables.items():
        rows = own | {OWN + method: values for method, values in rivals.get(stage, {}).items()}
        apart = {FOLDED + method: values for method, values in rivals.get(FOLDED, {}).items()}
        measures = {name: measured(case.wrong, values) for name, values in (rows | apart).items()}
        best = {of: max((name for name in rows if name != OURS), key=lambda name, of=of: measures[name][of])
                for of in ("AUROC", "AP")}  # fmt: skip
        issue = result.table["is_label_issue"].to_numpy()
        found[stage] = {
            "rows": measures, "best of equal cost": best,
            "beside the best": {of: beside(case.wrong, rows[OURS], rows[name])[of] for of, name in best.items()},
            "beside the loss": beside(case.wrong, rows[OURS], rows["loss"]),
            "weights": dict(result.weights), "flagged": int(issue.sum()),
            "precision": round(float(case.wrong[issue].mean()), 4) if issue.any() else None,
            "recall": round(float(issue[case.wrong].mean()), 4), "seconds": result.cost["seconds"],
            "fits its labels": round(sets.accuracy(stages(case)[stage], case.train), 4),
            "test accuracy": round(sets.accuracy(stages(case)[stage], case.test), 4),
        }  # fmt: skip
    acted = gain(case, tables["stopped early"]) if case.rate in ACTED else None
    return {"set": case.name, "kind": case.kind, "rate": case.rate, "N": len(case.given), "wrong": int(case.wrong.sum()),
            "stages": found, "fold seconds": round(fold_s, 1), "acting": acted}  # fmt: skip


def _cleanlab(asked: dict[str, tuple[Array, Array]]) -> dict[str, dict[str, Array]]:
    try:
        return cleanlab(asked)
    except NoVenv as reason:
        print(f"without cleanlab: {reason}", file=sys.stderr, flush=True)
        return {}


def gain(case: Case, found: tuple[dict[str, Array], Any]) -> dict[str, Any]:
    """Retrain with what the early model's table says, mean test accuracy over seeds."""
    own, result = found
    issue = torch.from_numpy(result.table["is_label_issue"].to_numpy().copy())
    said = torch.from_numpy(result.table["predicted_label"].to_numpy().copy())
    inputs, given = case.train
    truth, count = case.plan.data.train[1], int(issue.sum())
    by_loss = torch.ones(len(given), dtype=torch.bool)
    by_loss[torch.from_numpy(np.argsort(-own["loss"], kind="stable")[:count].copy())] = False
    draw = torch.from_numpy(np.random.default_rng(0).permutation(len(given)) >= count)
    trained_on: dict[str, Callable[[], sets.Part]] = {
        "as given": lambda: (inputs, given), "flagged dropped": lambda: (inputs[~issue], given[~issue]),
        "flagged corrected": lambda: (inputs, torch.where(issue, said, given)),
        "as many of highest loss dropped": lambda: (inputs[by_loss], given[by_loss]),
        "as many at random dropped": lambda: (inputs[draw], given[draw]), "all labels right": lambda: (inputs, truth),
    }  # fmt: skip
    return {
        name: [round(sets.accuracy(early(case, of(), seed), case.test), 4) for seed in range(1, 1 + SEEDS)]
        for name, of in trained_on.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=list(SECONDS), choices=list(SECONDS))
    parser.add_argument("--only", default="", help="cases whose name holds this, like `worse` or `uniform-0.1`")
    parser.add_argument("--docs", action="store_true", help="run nothing: only write the page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.docs:
        return write_docs(json.loads((RESULTS / "mislabeled.json").read_text()))
    todo = [case for name in given.sets for case in cases(name) if not (WORK / f"{case.key}.json").exists()]
    todo = [case for case in todo if given.only in case.key]
    todo.sort(key=lambda case: case.rate in (0.05, 0.2))  # the far ends first, should it be stopped
    minutes = sum(SECONDS[case.name] for case in todo) / 60
    print(f"about {minutes:.0f} minutes on one thread; resumable", file=sys.stderr, flush=True)
    for case in todo:
        began = time.perf_counter()
        found = evaluate(case)
        write_json(WORK / f"{case.key}.json", {**found, "commit": commit()})
        told = {stage: (one["rows"][OURS]["AUROC"], one["best of equal cost"]["AUROC"], one["beside the best"]["AUROC"]["mean"])
                for stage, one in found["stages"].items()}  # fmt: skip
        print(case.key, told, f"{time.perf_counter() - began:.0f} s", flush=True)
    there = [case for name in SECONDS for case in cases(name) if (WORK / f"{case.key}.json").exists()]
    result = {
        "question": "which labels are wrong", "seeds": {"training": 0, "acting": list(range(1, 1 + SEEDS)), "flips": 0},
        "cases": [json.loads((WORK / f"{case.key}.json").read_text()) for case in there],
    }  # fmt: skip
    write("mislabeled", result)
    write_docs(result)
    return None


if __name__ == "__main__":
    main()
