"""The convex check: leave-one-out against add-one in multinomial logistic regression, by the published protocol.

Train on a few thousand images with C = 1/(0.01 n); ask the ten validation images of highest loss. Leave every training
image out once and look at the ten; add each of the ten once and look at all training images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forwardinf.truth import convex
from forwardinf.truth.agreement import Array
from forwardinf.truth.mirror import Keep, Learner, Mirror, mirror_losses
from forwardinf.truth.verify_data import Pictures, split

RIDGE = 0.01
CHUNK = 50  # fits that move together: memory is about 2 MB a fit at 4,900 rows

Images = tuple[Tensor, Tensor]

PUBLISHED = {"mnist": {"pearson": 0.9975, "spearman": 0.9027}, "fashion": {"pearson": 0.9939, "spearman": 0.7274}}
AS_PUBLISHED, FIXED, LIBRARY = "C = 1/(0.01 n)", "C held fixed", "scikit-learn's defaults"


@dataclass(frozen=True)
class ConvexPlan:
    """Sizes of one convex check.

    Attributes:
        train: Training images.
        validation: Validation images, of which the tests are the hardest.
        tests: How many tests.
        removed: Training images left out in the published protocol; None: all, one at a time.
        fixed: How many with C held fixed.
        library: How many with scikit-learn, cold and at its defaults.
    """

    train: int
    validation: int
    tests: int = 10
    removed: int | None = 500
    fixed: int = 500
    library: int = 100


PLANS = {
    "mnist": ConvexPlan(4900, 5000, removed=None),
    "fashion": ConvexPlan(4900, 5000),
    "cifar10": ConvexPlan(4800, 5000, library=25),
    "digits": ConvexPlan(900, 800, removed=None, fixed=300),
}
QUICK = ConvexPlan(240, 600, tests=6, removed=None, fixed=60, library=60)


class Converged:
    """Fits to the optimum, many at once.

    Args:
        train: Images ``(n, …)`` and labels.
        tests: Images and labels.
        classes: How many.
        recompute: C = 1/(0.01 n) with the n of each fit, as published; else C stays what it is for the whole training set.
        tolerance: ‖∇‖₂ of the mean objective.
    """

    def __init__(self, train: Images, tests: Images, classes: int, *, recompute: bool, tolerance: float) -> None:
        """Fit the whole training set once; everything else starts there."""
        self.n, self.recompute, self.tolerance = len(train[1]), recompute, tolerance
        every = torch.cat([train[0], tests[0]]).flatten(1), torch.cat([train[1], tests[1]])
        self.rows = convex.make_rows(*every, classes)
        self.own, self.asked = slice(0, self.n), slice(self.n, None)
        weights = self._weights(1)
        strength = RIDGE * self.n
        start = torch.zeros(self.rows.features.shape[1], classes - 1, dtype=torch.float64)
        blind = convex.curvature(self.rows, weights[:, 0], strength)
        self.full = convex.fit(self.rows, weights, self._strength(weights), start, blind, tolerance)
        self.optimum = self.full.params[:, 0]
        self.precondition = convex.curvature(self.rows, weights[:, 0], strength, self.optimum)

    def base(self) -> tuple[Array, Array]:
        """Return the losses under the full fit."""
        found = convex.losses(self.rows, self.full.params, slice(None)).squeeze(1).numpy()
        return found[self.asked], found[self.own]

    def without(self, rows: Sequence[int]) -> tuple[Array, Array]:
        """Return the tests' losses with each of these rows left out, and ‖∇‖ of each fit."""
        weights = self._weights(len(rows))
        weights[list(rows), range(len(rows))] = 0
        return self._losses(weights, self.asked)

    def with_tests(self) -> tuple[Array, Array]:
        """Return the training losses with each test added, and ‖∇‖ of each fit."""
        count = self.rows.size - self.n
        weights = self._weights(count)
        weights[range(self.n, self.n + count), range(count)] = 1
        losses, gradient = self._losses(weights, self.own)
        return losses.T, gradient

    def _losses(self, weights: Tensor, which: slice) -> tuple[Array, Array]:
        found = convex.fit(self.rows, weights, self._strength(weights), self.optimum, self.precondition, self.tolerance)
        return convex.losses(self.rows, found.params, which).numpy(), found.gradient.numpy()

    def _weights(self, fits: int) -> Tensor:
        weights = torch.zeros(self.rows.size, fits, dtype=torch.float64)
        weights[self.own] = 1
        return weights

    def _strength(self, weights: Tensor) -> Tensor:
        return RIDGE * (weights.sum(0) if self.recompute else torch.full_like(weights[0], self.n))


class Library:
    """scikit-learn's LogisticRegression as it comes: L-BFGS from zero, tol=1e-4, max_iter=1000, one fit after another.

    Args:
        train: Images and labels.
        tests: Images and labels.
    """

    def __init__(self, train: Images, tests: Images) -> None:
        """Flatten the images."""
        self.train, self.tests = [(images.flatten(1).numpy(), labels.numpy()) for images, labels in (train, tests)]

    def base(self) -> tuple[Array, Array]:
        """Return the losses under one fit."""
        model = self._fit(*self.train)
        return self._losses(model, self.tests), self._losses(model, self.train)

    def without(self, rows: Sequence[int]) -> tuple[Array, Array]:
        """Return the tests' losses with each of these rows left out; the gradient is not told: NaN."""
        images, labels = self.train
        found = [self._losses(self._fit(np.delete(images, row, 0), np.delete(labels, row)), self.tests) for row in rows]
        return np.stack(found, 1), np.full(len(found), np.nan)

    def with_tests(self) -> tuple[Array, Array]:
        """Return the training losses with each test added."""
        images, labels = self.train
        pairs = zip(*self.tests, strict=True)
        fits = [self._fit(np.concatenate([images, one[None]]), np.append(labels, label)) for one, label in pairs]
        return np.stack([self._losses(model, self.train) for model in fits]), np.full(len(fits), np.nan)

    @staticmethod
    def _fit(images: Array, labels: Array) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=1 / (RIDGE * len(labels)), max_iter=1000).fit(images, labels)

    @staticmethod
    def _losses(model: Any, data: tuple[Array, Array]) -> Array:
        return np.asarray(-model.predict_log_proba(data[0])[np.arange(len(data[1])), data[1]])


def convex_check(
    pictures: Pictures, plan: ConvexPlan, keep: Keep, seed: int, tolerance: float, advance: Callable[[int], None]
) -> list[Mirror]:
    """Return the published protocol at converged fits, C held fixed, and scikit-learn's defaults.

    Args:
        pictures: The data.
        plan: Sizes.
        keep: Where fits are kept.
        seed: Of the split. Which images are left out is drawn by the same seed.
        tolerance: ‖∇‖₂ of the mean objective.
        advance: Told the number of fits done.
    """
    train_rows, validation_rows = split(len(pictures.labels), plan.train, plan.validation, seed)
    train, validation = pictures.take(train_rows), pictures.take(validation_rows)
    classes = int(pictures.labels.max()) + 1
    hardest = keep("convex/hardest", lambda: _hardest(train, validation, classes, plan.tests, tolerance)).astype(int)
    tests = validation[0][hardest], validation[1][hardest]
    drawn = _drawn(plan, seed)

    def run(experiment: str, name: str, make: Callable[[], Learner], chunk: int = CHUNK) -> Mirror:
        rows = drawn[name]
        removal, addition, facts = mirror_losses(make, rows, keep, f"convex/{name}", chunk, advance)
        facts = {"n": plan.train, "seed": seed, "tolerance": None if experiment == LIBRARY else tolerance, **facts}
        published = PUBLISHED.get(pictures.name, {}) if experiment != FIXED else {}
        return Mirror(pictures.name, experiment, removal, addition, hardest.tolist(), rows, published, facts)

    def converged(recompute: bool) -> Callable[[], Converged]:
        return lambda: Converged(train, tests, classes, recompute=recompute, tolerance=tolerance)

    found = [run(AS_PUBLISHED, "published", converged(True))]
    if plan.fixed:
        found.append(run(FIXED, "fixed", converged(False)))
    if plan.library:
        found.append(run(LIBRARY, "library", lambda: Library(train, tests), 10))
        found.append(found[0].only(drawn["library"], f"{AS_PUBLISHED}, those {plan.library} images"))
    return found


def convex_fits(plan: ConvexPlan) -> int:
    """Return how many fits the check takes."""
    counts = [plan.train if plan.removed is None else plan.removed, plan.fixed, plan.library]
    return sum(count + plan.tests for count in counts if count)


def _drawn(plan: ConvexPlan, seed: int) -> dict[str, list[int]]:
    """Draw who is left out: the smaller samples are part of the larger ones."""
    order = np.random.default_rng(seed).permutation(plan.train)
    sizes = {
        "published": plan.train if plan.removed is None else plan.removed,
        "fixed": plan.fixed,
        "library": plan.library,
    }
    return {name: np.sort(order[:size]).tolist() for name, size in sizes.items()}


def _hardest(train: Images, validation: Images, classes: int, count: int, tolerance: float) -> Array:
    """Return the validation places of highest loss under the full fit, hardest first."""
    losses = Converged(train, validation, classes, recompute=True, tolerance=tolerance).base()[0]
    return np.argsort(-losses, kind="stable")[:count]
