"""Curvature as one block for each part of a parameter, each diagonal in a basis of its own; and its damped inverse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.perturb.direction import Tensors
from forwardinf.perturb.parts import Part, wide
from forwardinf.perturb.select import Parameters


@dataclass(frozen=True)
class Block:
    """F of one part: (Uₗ ⊗ Uᵣ) diag(values) (Uₗ ⊗ Uᵣ)ᵀ.

    Attributes:
        part: Which numbers.
        values: ``(groups, rows, columns)``, ≥ 0.
        left: ``(groups, rows, rows)``, columns are basis vectors; None: the identity.
        right: ``(groups, columns, columns)``, likewise.
    """

    part: Part
    values: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    def solve(self, gradient: Tensor, damping: float) -> Tensor:
        """Return (F + λI)⁻¹ g, ``(groups, rows, columns)`` in and out."""
        found = gradient
        left, right = (None if side is None else side.to(gradient.dtype) for side in (self.left, self.right))
        if left is not None:
            found = left.mT @ found
        if right is not None:
            found = found @ right
        found = found / (self.values.to(gradient.dtype) + damping)
        if left is not None:
            found = left @ found
        return found if right is None else found @ right.mT


def mean_diagonal(blocks: list[Block], parameters: Parameters) -> float:
    """Return the mean of the curvature's diagonal over all numbers that move, those without curvature included."""
    trace = sum(float(block.values.double().sum()) for block in blocks)
    return trace / sum(parameter.numel() for parameter in parameters.values())


@dataclass(frozen=True)
class Solved:
    """The direction (F + λI)⁻¹ g. Where a parameter has no curvature at all it is g / λ."""

    blocks: list[Block]
    damping: float

    @torch.no_grad()
    def __call__(self, gradient: Tensors) -> Tensors:
        """Return the direction, by name."""
        parts: dict[str, list[Block]] = {}
        for block in self.blocks:
            parts.setdefault(block.part.name, []).append(block)
        found = {}
        for name, tensor in gradient.items():
            tensor = wide(tensor)
            whole = tensor / self.damping
            for block in parts.get(name, []):
                solved = block.solve(block.part.of(tensor).to(block.values.device), self.damping)
                if block.part.span is None:
                    whole = solved.reshape(tensor.shape)
                else:
                    whole[slice(*block.part.span)] = solved.reshape(-1, *tensor.shape[1:])
            found[name] = whole.contiguous()
        return found
