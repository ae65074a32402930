"""The metric that curvature makes: gradients in which directions that the model knows well count for little.

g → (F + λI)^−½ g, by K-FAC, with the root of every block again a Kronecker product (Martens & Grosse 2015, §6.3: damping shared
out between the factors). Products of gradients so taken stand for gᵢᵀ(F + λI)⁻¹g_q, the influence under that curvature; and a
projection that is taken *through* the metric loses the least of what counts, where a plain one loses it among the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.perturb.blocks import Block, mean_diagonal
from forwardinf.perturb.damping import damping
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.kronecker import kfac_blocks


@dataclass(frozen=True)
class Side:
    """U diag Uᵀ, one side's root.

    Attributes:
        diagonal: ``(n,)``.
        basis: U ``(n, n)``; None: the identity.
    """

    diagonal: Tensor
    basis: Tensor | None

    def times(self, projection: Tensor) -> Tensor:
        """Return it times ``(n, m)``, never formed: m is small."""
        diagonal = self.diagonal.to(projection)[:, None]
        if self.basis is None:
            return diagonal * projection
        basis = self.basis.to(projection)
        return basis @ (diagonal * (basis.T @ projection))


@dataclass(frozen=True)
class Sides:
    """(F + λI)^−½ of one parameter, a matrix G of which it takes to L G R; of a vector g to R g.

    Attributes:
        left: L, or None: the identity.
        right: R, likewise.
        scale: Times this.
    """

    left: Side | None = None
    right: Side | None = None
    scale: float = 1.0


def metric(fitting: Fitting) -> dict[str, Sides]:
    """Return the metric of every parameter.

    Cost: K-FAC's fit, a forward and a backward of the sample that it is fitted to, and the eigenvectors of every side.
    Memory: two squares for each weight, as any K-FAC. What K-FAC has no one block for that is shaped as the parameter is
    (parts of a matrix, groups of a convolution, a matrix that is used as one vector) is scaled by its mean curvature.
    """
    blocks = kfac_blocks(fitting)
    ridge = damping("kfac", fitting.perturbation.damping, mean_diagonal(blocks, fitting.parameters))
    found: dict[str, Sides] = {}
    for name, parameter in fitting.parameters.items():
        own = [block for block in blocks if block.part.name == name]
        as_it_is = (1, len(parameter) if parameter.ndim > 1 else 1)  # groups, rows
        if len(own) == 1 and own[0].part.span is None and own[0].part.shape[:2] == as_it_is:
            found[name] = _sides(own[0], ridge)
        else:
            found[name] = Sides(scale=(sum(block.trace() for block in own) / parameter.numel() + ridge) ** -0.5)
    return found


def _sides(block: Block, ridge: float) -> Sides:
    """Return the root of one block: its eigenvalues as a product of one number a row and one a column, each with its damping."""
    values = block.values[0].double()
    left, right = (None if basis is None else basis[0] for basis in (block.left, block.right))
    if len(values) == 1:
        return Sides(right=Side((values[0] + ridge).rsqrt(), right))
    mean = values.mean().clamp_min(torch.finfo(torch.float64).tiny)
    rows, columns = values.mean(1) / mean.sqrt(), values.mean(0) / mean.sqrt()
    # both sides have the same mean, so that the damping is shared out evenly
    return Sides(Side((rows + ridge**0.5).rsqrt(), left), Side((columns + ridge**0.5).rsqrt(), right))
