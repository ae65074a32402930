"""Multinomial logistic regression fitted many times to its exact optimum: once on everything, then with rows left out or added.

The objective is ``Σᵢ wᵢ CEᵢ(W, b) + strength/2 ‖W‖²``, the intercept b free, as in scikit-learn (strength = 1/C). All fits of a
chunk move together, so that every product with the data is one matrix product; each is a Newton step solved by conjugate
gradients, with the full fit's curvature as preconditioner. All in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.errors import DataError, ModelError

TOLERANCE = 1e-11  # of ‖∇‖₂ of the mean objective
MOST_NEWTON, MOST_INNER, MOST_HALVINGS = 40, 400, 30
FORCING = 1e-3  # a Newton system is solved to this share of the gradient
LARGEST_BLOCK = 6000  # unknowns whose curvature is kept dense: 288 MB

Precondition = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """Examples in the coordinates the solver works in.

    Features are rotated to their principal directions, strongest first (a rotation changes neither ‖W‖ nor any prediction;
    features that are 0 everywhere are left out: their weights are 0), and the constant 1 of the intercept stands last.
    The C classes share one direction that no prediction depends on; it is 0 at the optimum and left out too, which
    leaves c = C − 1 and a strongly convex problem.

    Attributes:
        features: ``(n, D)`` float64.
        labels: ``(n,)`` int64.
        basis: ``(C, c)``, orthonormal, orthogonal to the ones: logits are ``features @ params @ basisᵀ``.
        energy: ``(D,)``: Σ of squares of each feature.
    """

    features: Tensor
    labels: Tensor
    basis: Tensor
    energy: Tensor

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.labels)


def make_rows(features: Tensor, labels: Tensor, classes: int) -> Rows:
    """Return rows in the solver's coordinates.

    Args:
        features: ``(n, d)``: all rows that will ever be trained on or read.
        labels: ``(n,)`` whole numbers below ``classes``.
        classes: C.

    Raises:
        DataError: Shapes or values do not fit.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not bool(torch.isfinite(features).all()):
        raise DataError("features", expected="finite numbers (n, d) with labels (n,)",
                        got=f"{tuple(features.shape)} and {tuple(labels.shape)}")  # fmt: skip
    if classes < 2 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError("labels", expected=f"whole numbers from 0 to {classes - 1}, two classes at least",
                        got=f"{int(labels.min())} to {int(labels.max())}")  # fmt: skip
    wide = features.double()
    wide = wide[:, (wide != 0).any(0)]
    _, turn = torch.linalg.eigh(wide.T @ wide)
    rotated = torch.cat([wide @ turn.flip(1), wide.new_ones(len(wide), 1)], 1)
    square = torch.eye(classes, dtype=torch.float64)
    square[:, 0] = 1
    basis = torch.linalg.qr(square).Q[:, 1:]
    return Rows(rotated, labels.long(), basis, rotated.square().sum(0))


@dataclass(frozen=True)
class Fits:
    """Optima of K problems.

    Attributes:
        params: ``(D, K, c)``.
        gradient: ``(K,)``: ‖∇‖₂ of the mean objective (over Σ w) that is left.
        newton: Newton steps taken (the slowest problem's).
        products: Hessian products taken, times problems.
    """

    params: Tensor
    gradient: Tensor
    newton: int
    products: int


def losses(rows: Rows, params: Tensor, which: Tensor | slice) -> Tensor:
    """Return the cross-entropy of some rows under each problem's parameters, ``(rows, K)``, in nats."""
    logits = _times(rows.features[which], params) @ rows.basis.T
    own = rows.labels[which][:, None, None].expand(-1, logits.shape[1], 1)
    return logits.logsumexp(2) - logits.gather(2, own).squeeze(2)


def fit(
    rows: Rows,
    weights: Tensor,
    strength: Tensor,
    start: Tensor,
    precondition: Precondition,
    tolerance: float = TOLERANCE,
) -> Fits:
    """Return the optimum of each problem.

    Args:
        rows: The data.
        weights: ``(n, K)``: the weight of each row in each problem; 0 leaves it out.
        strength: ``(K,)``: of the penalty.
        start: ``(D, c)`` parameters to start from.
        precondition: From :func:`curvature`: approximates the inverse Hessian.
        tolerance: ‖∇‖₂ of the mean objective to reach.

    Raises:
        ModelError: The tolerance was not reached.
    """
    total = weights.sum(0)
    params = start[:, None, :].repeat(1, weights.shape[1], 1)
    probs, gradient = _gradient(rows, weights, strength, params)
    size = _norm(gradient) / total
    newton = products = 0
    while bool((size > tolerance).any()):
        if newton == MOST_NEWTON:
            break
        at = (size > tolerance).nonzero().flatten()
        w, s, here = weights[:, at], strength[at], params[:, at]
        step, taken = _solve(rows, w, s, probs[:, at], -gradient[:, at], precondition)
        newton, products = newton + 1, products + taken
        scale, kept = torch.ones(len(at), dtype=torch.float64), torch.zeros(len(at), dtype=torch.bool)
        for _ in range(
            MOST_HALVINGS
        ):  # the step is a descent direction of ‖∇‖; far from the optimum it may be too long
            new = here + scale[None, :, None] * step
            new_probs, new_gradient = _gradient(rows, w, s, new)
            new_size = _norm(new_gradient) / total[at]
            kept = new_size <= (1 - 1e-4 * scale) * size[at]
            if bool(kept.all()):
                break
            scale = torch.where(kept, scale, scale / 2)
        if not bool(kept.any()):
            break
        good = at[kept]
        params[:, good], gradient[:, good], size[good] = new[:, kept], new_gradient[:, kept], new_size[kept]
        probs[:, good] = new_probs[:, kept]
        if not bool(kept.all()):
            break
    if bool((size > tolerance).any()):
        raise ModelError("logistic regression", expected=f"‖∇‖ ≤ {tolerance:g}", got=f"{float(size.max()):.2g}",
                         do="Scale the features to about 1, or allow a larger tolerance.")  # fmt: skip
    return Fits(params, size, newton, products)


def curvature(
    rows: Rows, weights: Tensor, strength: float, params: Tensor | None = None, largest: int = LARGEST_BLOCK
) -> Precondition:
    """Return an approximate inverse Hessian at ``params``: exact on the leading directions, diagonal on the rest.

    The trailing principal directions carry so little of the data that the penalty is nearly all of their curvature.

    Args:
        rows: The data.
        weights: ``(n,)``.
        strength: Of the penalty.
        params: ``(D, c)``; None: zero, where all classes are equally likely.
        largest: How many unknowns may be dense.
    """
    count, c = rows.features.shape[1], rows.basis.shape[1]
    params = rows.features.new_zeros(count, c) if params is None else params
    probs = _probabilities(rows, params[:, None, :]).squeeze(1)
    spread = _spread(rows, probs) * weights[:, None, None]  # (n, c, c)
    weak = rows.energy * float(spread.diagonal(dim1=1, dim2=2).mean()) < strength / 40
    room = max(1, largest // c) - 1
    leading = min(int((~weak[:-1]).sum()), room)
    inside = torch.tensor([*range(leading), count - 1])
    ridge = torch.full((count,), strength, dtype=torch.float64)
    ridge[-1] = 0
    diagonal = rows.features.square().T @ spread.diagonal(dim1=1, dim2=2) + ridge[:, None]
    near = rows.features[:, inside]
    block = near.new_empty(c, len(inside), c, len(inside))
    for one in range(c):
        for other in range(one + 1):
            part = near.T @ (near * spread[:, one, other, None])
            block[one, :, other], block[other, :, one] = part, part.T
    block = block.view(c * len(inside), -1)
    block.diagonal().add_(ridge[inside].repeat(c))
    factor = torch.linalg.cholesky(block)

    def precondition(residual: Tensor) -> Tensor:
        found = residual / diagonal[:, None, :]
        dense = residual[inside].permute(2, 0, 1).reshape(c * len(inside), -1)
        solved = torch.cholesky_solve(dense, factor)
        found[inside] = solved.view(c, len(inside), -1).permute(1, 2, 0)
        return found

    return precondition


def hessian(rows: Rows, weights: Tensor, strength: float, params: Tensor) -> Tensor:
    """Return the dense Hessian ``(c·D, c·D)``, class by class: slow and obvious, for small problems and tests."""
    spread = _spread(rows, _probabilities(rows, params[:, None, :]).squeeze(1)) * weights[:, None, None]
    count, c = params.shape
    dense = torch.einsum("nd,nab,ne->adbe", rows.features, spread, rows.features).reshape(c * count, c * count)
    ridge = torch.full((count,), strength, dtype=torch.float64)
    ridge[-1] = 0
    return dense + torch.diag(ridge.repeat(c))


def row_gradients(rows: Rows, params: Tensor, which: Tensor | slice) -> Tensor:
    """Return each row's gradient of its cross-entropy, ``(rows, c·D)``, in the order of :func:`hessian`."""
    probs = _probabilities(rows, params[:, None, :])[which].squeeze(1)
    wrong = (probs - torch.nn.functional.one_hot(rows.labels[which], len(rows.basis))) @ rows.basis
    return torch.einsum("nc,nd->ncd", wrong, rows.features[which]).flatten(1)


def _times(features: Tensor, params: Tensor) -> Tensor:
    """Return ``(n, K, c)``: one matrix product for all problems."""
    return (features @ params.flatten(1)).view(len(features), *params.shape[1:])


def _probabilities(rows: Rows, params: Tensor) -> Tensor:
    return (_times(rows.features, params) @ rows.basis.T).softmax(2)


def _spread(rows: Rows, probs: Tensor) -> Tensor:
    """Return each row's covariance of the predicted class, ``(n, c, c)``: its Hessian over the logits."""
    mean = probs @ rows.basis
    return torch.einsum("nk,ka,kb->nab", probs, rows.basis, rows.basis) - mean[:, :, None] * mean[:, None, :]


def _gradient(rows: Rows, weights: Tensor, strength: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Return (probabilities ``(n, K, C)``, gradient of the summed objective ``(D, K, c)``)."""
    probs = _probabilities(rows, params)
    wrong = probs * weights[:, :, None]
    wrong.scatter_add_(2, rows.labels[:, None, None].expand(-1, weights.shape[1], 1), -weights[:, :, None])
    found = _back(rows, wrong)
    found[:-1] += strength[:, None] * params[:-1]
    return probs, found


def _back(rows: Rows, logits: Tensor) -> Tensor:
    """Return Zᵀ (logits U) as ``(D, K, c)``."""
    inner = (logits @ rows.basis).flatten(1)
    return (rows.features.T @ inner).view(rows.features.shape[1], logits.shape[1], -1)


def _product(rows: Rows, weights: Tensor, strength: Tensor, probs: Tensor, vector: Tensor) -> Tensor:
    """Return the Hessian of each problem times its vector."""
    moved = _times(rows.features, vector) @ rows.basis.T
    moved -= (probs * moved).sum(2, keepdim=True)
    moved *= probs
    moved *= weights[:, :, None]
    found = _back(rows, moved)
    found[:-1] += strength[:, None] * vector[:-1]
    return found


def _solve(
    rows: Rows, weights: Tensor, strength: Tensor, probs: Tensor, target: Tensor, precondition: Precondition
) -> tuple[Tensor, int]:
    """Solve H x = target for each problem by preconditioned conjugate gradients (Hestenes & Stiefel 1952)."""
    found, residual = torch.zeros_like(target), target.clone()
    goal = FORCING * _norm(target)
    towards = precondition(residual)
    way, energy = towards, _dot(residual, towards)
    taken = 0
    for _ in range(MOST_INNER):
        taken += 1
        through = _product(rows, weights, strength, probs, way)
        live = _norm(residual) > goal  # a solved problem stays as it is while the others go on
        length = torch.where(live, energy / _dot(way, through), torch.zeros_like(energy))
        found += length[None, :, None] * way
        residual -= length[None, :, None] * through
        if bool((_norm(residual) <= goal).all()):
            break
        towards = precondition(residual)
        before, energy = energy, _dot(residual, towards)
        way = towards + (energy / before)[None, :, None] * way
    return found, taken * target.shape[1]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((0, 2))


def _norm(vector: Tensor) -> Tensor:
    return vector.square().sum((0, 2)).sqrt()
