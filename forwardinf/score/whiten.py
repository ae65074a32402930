"""Whitening: linear scores under the empirical Fisher, made from plain ones by how the training examples respond.

With S = G g_q the plain scores, K = GGᵀ and P⁻¹ = GᵀG/N + λI, G P g_q = N(K + λN)⁻¹ S: the scores that pushing along
``Perturbation("hold")`` gives in the limit of length 0, without a backward per query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.errors import DataError
from forwardinf.core.ridge import Ridge


def whitened(
    scores: Tensor,
    *,
    gram: Tensor | None = None,
    responses: Tensor | None = None,
    damping: float | str = "auto",
    unit: bool = False,
) -> Tensor:
    """Return N(K + λN)⁻¹ s of each query's plain linear scores.

    Args:
        scores: ``(Q, N)``: gᵢᵀg_q.
        gram: K, ``(N, N)``.
        responses: Instead: R ``(N, M)`` with K ≈ RRᵀ, such as responses to M probes over √M.
        damping: λN as a multiple of mean ‖gᵢ‖²; ``"auto"``: :data:`forwardinf.core.ridge.DAMPING`.
        unit: With uᵢ = gᵢ/‖gᵢ‖ in place of gᵢ, in K and in the scores.

    Returns:
        ``(Q, N)`` float64.

    Raises:
        DataError: The number of training examples differs.

    Example:
        >>> whitened(torch.tensor([[2.0, 4.0]]), gram=torch.eye(2), damping=1.0).tolist()
        [[2.0, 4.0]]
    """
    ridge = Ridge(gram, responses=responses, damping=damping, unit=unit)
    return ridge.size * ridge.solve(_fits(scores, ridge) * ridge.inverse)


@dataclass(frozen=True)
class Linear:
    """Linear scores and what belongs to them, float64: ``values (Q, N)``, ``rise (Q,)``, ``cross (Q, Q)``."""

    values: Tensor
    rise: Tensor
    cross: Tensor


def hold_linear(ridge: Ridge, scores: Tensor, rise: Tensor, cross: Tensor, losses: Tensor | None = None) -> Linear:
    """Return what ``Perturbation("hold", length="linear")`` scores, from the plain linear reading of all queries.

    Args:
        ridge: (K + λN)⁻¹, of all training examples: ``fit_held(fitting).ridge(damping, unit)``.
        scores: ``(Q, N)``: gᵢᵀg_q, g_q the gradient of what the query is asked.
        rise: ``(Q,)``: ‖g_q‖².
        cross: ``(Q, Q)``: row q holds ℓ′ᵀg_q of every query's own loss gradient ℓ′.
        losses: ``(Q, N)``: gᵢᵀℓ′, where a query is asked something other than its training loss; default ``scores``.

    Returns:
        values = G P g_q, rise = g_qᵀP g_q, cross = ℓ′ᵀP g_q, with P⁻¹ = GᵀG/N + λI. With ``unit``, G is of unit gradients
        and every score is divided by ‖g_q‖ (‖ℓ′‖ too where losses and measurements are the same): like a cosine, it has
        no unit. A copy of the query has share 1 either way.
    """
    plain = _fits(scores, ridge) * ridge.inverse
    solved = ridge.solve(plain)
    asked = plain if losses is None else _fits(losses, ridge) * ridge.inverse
    values, down = ridge.size * solved, ridge.damping
    own = (rise.double() - (plain * solved).sum(1)) / down
    between = (cross.double() - solved @ asked.T) / down
    if ridge.unit:
        length = rise.double().sqrt()
        values, own = values / length[:, None], own / length.square()
        between = between / length[:, None] / (length if losses is None else 1.0)
    return Linear(values, own, between)


def _fits(scores: Tensor, ridge: Ridge) -> Tensor:
    if scores.ndim != 2 or scores.shape[1] != ridge.size:
        raise DataError("whitened(scores)", expected=f"(Q, {ridge.size}) scores of all training examples",
                        got=str(tuple(scores.shape)))  # fmt: skip
    return torch.as_tensor(scores, dtype=torch.float64)
