"""What the others would make of an example: ridge regression of the labels on any features, without row i, in closed form.

With the responses of the logits to shared probes as features this is leave-one-out in the model's own tangent space: the
kernel is K_ij = Σ_c ⟨∇f_c(xᵢ), ∇f_c(xⱼ)⟩. It does not vanish with the loss and does not see the label. With U, s the
eigenvectors and eigenvalues of K (divided by its mean diagonal), f = s/(s + λ) and h = U² f, the fit is ŷ = U f Uᵀ y and the
prediction without row i is (ŷᵢ − hᵢ yᵢ)/(1 − hᵢ). λ is the one whose predictions without the row come closest to the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.errors import ModelError
from forwardinf.core.progress import EIGENVECTORS

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # in units of the kernel's mean diagonal
SMALLEST = 1e-10  # eigenvalues below this share of the largest are rounding


@dataclass(frozen=True)
class Without:
    """A ridge regression and what becomes of it without each row. Built by :func:`leave_one_out`.

    Attributes:
        predicted: ``(N, C)`` float64: the prediction of row i by the others.
        fitted: ``(N, C)``: the prediction with it.
        leverage: ``(N,)``: how much of its own fit a row is.
        ridge: λ.
        error: Mean squared error of ``predicted``.
    """

    predicted: Tensor
    fitted: Tensor
    leverage: Tensor
    ridge: float
    error: float
    labels: Tensor
    features: Tensor
    scale: float
    vectors: Tensor
    values: Tensor

    def weights(self, features: Tensor) -> Tensor:
        """Return ``(Q, N)``: how much of each label enters the prediction of new examples' features."""
        cross: Tensor = (features.double() / self.scale**0.5) @ (self.features.double() / self.scale**0.5).T
        inside: Tensor = ((cross @ self.vectors) / (self.values + self.ridge)) @ self.vectors.T
        return inside + self._rest(cross)

    def _rest(self, cross: Tensor) -> Tensor:
        """Return the part of the cross kernel outside the eigenvectors (rounding, where K has full row space)."""
        left: Tensor = cross - (cross @ self.vectors) @ self.vectors.T
        return left / self.ridge

    def predict(self, features: Tensor) -> Tensor:
        """Return the prediction of new examples, ``(Q, C)``."""
        return self.weights(features) @ self.labels

    def influence(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return ``(Q, N)``: prediction of query q's class with training row i, minus without it, exactly."""
        residual = (self.labels - self.fitted) / (1 - self.leverage)[:, None]
        return self.weights(features) * residual.T[classes]


def leave_one_out(features: Tensor, labels: Tensor, classes: int) -> Without:
    """Return predictions of each row's one-hot label by all other rows.

    Args:
        features: ``(N, F)``.
        labels: ``(N,)`` int64.
        classes: C.

    Cost: one eigendecomposition of the smaller of N×N and F×F; every λ after that is a product.

    Raises:
        ModelError: All features are zero, or one is not finite.
    """
    rows = features.double()
    scale = float(rows.square().sum(1).mean())
    if not 0 < scale < float("inf"):
        raise ModelError("responses of the logits", expected="finite, and not all zero", got="none to learn from",
                         do="Look at the model's outputs, and at parameters=.")  # fmt: skip
    vectors, values = _spectrum(rows / scale**0.5)
    onehot = torch.nn.functional.one_hot(labels, classes).double()
    down = vectors.T @ onehot
    best: Without | None = None
    for ridge in RIDGES:
        share = values / (values + ridge)
        leverage = (vectors.square() @ share).clamp_max(1 - 1e-9)
        fitted = vectors @ (share[:, None] * down)
        predicted = (fitted - leverage[:, None] * onehot) / (1 - leverage)[:, None]
        error = float((predicted - onehot).square().mean())
        if best is None or error < best.error:
            best = Without(predicted, fitted, leverage, ridge, error, onehot, features, scale, vectors, values)
    assert best is not None
    return best


def multiplications(rows: int, width: int) -> float:
    """Return what :func:`leave_one_out` multiplies, about: products and eigenvectors of the smaller side."""
    smaller = min(rows, width)
    return 2 * rows * width * smaller + EIGENVECTORS * smaller**3


def margin(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return the best other class's prediction minus the given one's, ``(N,)``: positive = the label looks wrong."""
    given = predicted.gather(1, labels[:, None])[:, 0]
    other = predicted.scatter(1, labels[:, None], -torch.inf).max(1).values
    return other - given


def _spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (U ``(N, r)``, s ``(r,)``) of K = rows rowsᵀ."""
    if len(rows) <= rows.shape[1]:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        kept = values > SMALLEST * values[-1]
        return vectors[:, kept], values[kept]
    values, right = torch.linalg.eigh(rows.T @ rows)
    kept = values > SMALLEST * values[-1]
    return rows @ right[:, kept] / values[kept].sqrt(), values[kept]
