"""Whitening: linear scores under the empirical Fisher, made from plain ones by how the training examples respond.

With S = G g_q the plain scores, K = GGᵀ and P⁻¹ = GᵀG/N + λI, G P g_q = N(K + λN)⁻¹ S: the scores that pushing along
``Perturbation("hold")`` gives in the limit of length 0, without a backward per query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from forwardinf.core.errors import DataError
from forwardinf.gradients.ridge import Ridge


def whitened(
    scores: Tensor,
    *,
    gram: Tensor | None = None,
    responses: Tensor | None = None,
    damping: float | str = "auto",
    temper: float = 0.0,
) -> Tensor:
    """Return N(K + λN)⁻¹ s of each query's plain linear scores.

    Args:
        scores: ``(Q, N)``: gᵢᵀg_q.
        gram: K, ``(N, N)``.
        responses: Instead: R ``(N, M)`` with K ≈ RRᵀ, such as responses to M probes over √M.
        damping: λN as a multiple of mean ‖gᵢ‖²; ``"auto"``: :data:`forwardinf.gradients.ridge.DAMPING`.
        temper: β: P⁻¹ is of gᵢ/‖gᵢ‖^β in place of gᵢ; the scores stay those of gᵢ.

    Returns:
        ``(Q, N)`` float64; 0 for an example without gradient.

    Raises:
        DataError: The number of training examples differs.

    Example:
        >>> whitened(torch.tensor([[2.0, 4.0]]), gram=torch.eye(2), damping=1.0).round(decimals=6).tolist()
        [[2.0, 4.0]]
    """
    ridge = Ridge(gram, responses=responses, damping=damping, temper=temper)
    return ridge.scores(ridge.solve(_fits(scores, ridge) * ridge.inverse))


def _fits(scores: Tensor, ridge: Ridge) -> Tensor:
    if scores.ndim != 2 or scores.shape[1] != ridge.size:
        raise DataError("whitened(scores)", expected=f"(Q, {ridge.size}) scores of all training examples",
                        got=str(tuple(scores.shape)))  # fmt: skip
    return torch.as_tensor(scores, dtype=torch.float64)
