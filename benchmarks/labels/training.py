"""Sets with wrong labels, and the two models each is looked for in: one stopped early, and one that knows them by heart."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import sets
from benchmarks.data import LOSSLESS, Examples
from benchmarks.kept import kept_arrays, place
from benchmarks.labels import wrong
from benchmarks.training import accuracy, fit, probabilities

FOLDS, HELD = 5, 200
FASHION, CIFAR = 1000, 1000  # training examples
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
    validation: Examples

    @property
    def train(self) -> Examples:
        return self.plan.data.train[0], self.given

    @property
    def wrong(self) -> Array:
        return (self.given != self.plan.data.train[1]).numpy()

    @property
    def key(self) -> str:
        return f"{self.name}-{self.kind}-{self.rate:g}"

    @property
    def test(self) -> Examples:
        inputs, labels = self.plan.data.test
        return inputs[:-HELD], labels[:-HELD]


def cases(name: str) -> Iterator[Case]:
    """Yield every case of a set."""
    if name == "CIFAR-10N":
        data = sets.cifar(CIFAR)
        order = np.sort(np.random.default_rng(0).permutation(LOSSLESS)[CIFAR:])
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


def stages(case: Case, seed: int = 0) -> dict[str, nn.Module]:
    """Return the model at each stage, of one training each."""
    data = case.plan.data
    return {
        "stopped early": sets.trained(f"{case.key}-early-{seed}", data, lambda: early(case, case.train, seed)),
        "memorised": sets.trained(f"{case.key}-long-{seed}", data, lambda: memorised(case, seed)),
    }


def early(case: Case, train: Examples, seed: int) -> nn.Module:
    """Return the model of the epoch that is right most often on the validation labels."""
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})

    def look(epoch: int, model: nn.Module, rate: float) -> bool:
        nonlocal best
        found = accuracy(model, case.validation)
        if found > best[0]:
            best = found, {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return False

    model = fit(case.plan.data.build, train, epochs=case.plan.short, seed=seed, each=look)
    model.load_state_dict(best[1])
    return model.eval()


def memorised(case: Case, seed: int) -> nn.Module:
    """Train until the model says what it was told of 99.5 % of the training set."""
    return fit(case.plan.data.build, case.train, epochs=case.plan.long, seed=seed,
               each=lambda epoch, model, rate: epoch % 5 == 4 and accuracy(model, case.train) >= 0.995)  # fmt: skip


def out_of_sample(case: Case, seed: int = 0) -> tuple[Array, float]:
    """Return probabilities of every example by a model that was trained without it, and the seconds of the five trainings."""

    def make() -> dict[str, Any]:
        found, began = np.zeros((len(case.given), 10)), time.perf_counter()
        fold = torch.from_numpy(np.random.default_rng(seed).permutation(len(case.given)) % FOLDS)
        for part in range(FOLDS):
            inside, outside = fold != part, fold == part
            model = early(case, (case.train[0][inside], case.given[inside]), seed)
            found[outside.numpy()] = probabilities(model, case.train[0][outside]).numpy()
        return {"found": found, "seconds": time.perf_counter() - began}

    kept = kept_arrays(place("mislabeled", f"{case.key}-folds.npz"), make)
    return kept["found"], float(kept["seconds"])
