"""The inverse of a positive definite matrix by matrix products alone: X ← X (2I − A X), started where it must converge.

Schulz 1933; the way of HyperINF (2024). Every step squares I − AX, so a start whose I − AX has an eigenvalue beyond
±1 diverges, and one stopped early is another, much stronger damping. Both are refused here. One step is 4 d³ operations: Cholesky
does with d³/3 for all, so this pays only where products are far cheaper than factorisations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from forwardinf.core.errors import ModelError

TOLERANCE = 1e-8  # of ‖I − AX‖/√d: the error left in the inverse, relative
MOST = 100  # steps: 2⁵⁰, the worst condition that float64 can tell, takes about 60


def schulz(matrix: Tensor, *, start: float | None = None, tolerance: float = TOLERANCE, most: int = MOST) -> Tensor:
    """Return A⁻¹, float64.

    Args:
        matrix: A, ``(d, d)``, symmetric and positive definite.
        start: X₀ = start·I; default 1/‖A‖∞, which is at most one over the largest eigenvalue, so that it converges.
        tolerance: ‖I − AX‖/√d (Frobenius) at which it ends.
        most: Steps at most.

    Raises:
        ModelError: It diverges, or has not converged after ``most`` steps.

    Example:
        >>> schulz(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]], dtype=torch.float64)
    """
    a = matrix.double()
    one = torch.eye(len(a), dtype=a.dtype, device=a.device)
    found = one * (1 / float(a.abs().sum(1).max()) if start is None else start)
    before = math.inf
    for _ in range(most):
        product = a @ found
        left = float(torch.linalg.matrix_norm(one - product)) / math.sqrt(len(a))
        if left <= tolerance:
            return found
        if not left <= before * 1.01:  # also NaN
            raise ModelError("Schulz iteration", expected="‖I − AX‖ to fall", got=f"{before:.1e}, then {left:.1e}: it diverges",
                             do="Start lower, damp more, or use Cholesky.")  # fmt: skip
        before = left
        found = found @ (2 * one - product)
        found = (found + found.mT) / 2
    raise ModelError("Schulz iteration", expected=f"‖I − AX‖/√d ≤ {tolerance:.0e} in {most} steps", got=f"{before:.1e}",
                     do="Damp more, or use Cholesky.")  # fmt: skip
