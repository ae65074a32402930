"""Curvature as one block for each part of a parameter, each diagonal in a basis of its own; and its damped inverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from forwardinf.gradients.parts import Part, wide
from forwardinf.perturb.direction import Tensors
from forwardinf.perturb.parameters import Parameters


class Solvable(Protocol):
    """Curvature of one part of a parameter."""

    @property
    def part(self) -> Part:
        """Which numbers."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def trace(self) -> float:
        """Return the sum of its diagonal."""

    def solve(self, gradient: Tensor, damping: float) -> Tensor:
        """Return (F + λI)⁻¹ g, ``(groups, rows, columns)`` in and out."""


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

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.values.device

    def trace(self) -> float:
        """Return the sum of its diagonal."""
        return float(self.values.double().sum())

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


def mean_diagonal(blocks: Sequence[Solvable], parameters: Parameters) -> float:
    """Return the mean of the curvature's diagonal over all numbers that move, those without curvature included."""
    return sum(block.trace() for block in blocks) / sum(parameter.numel() for parameter in parameters.values())


@dataclass(frozen=True)
class Solved:
    """The direction (F + λI)⁻¹ g. Where a parameter has no curvature at all it is g / λ."""

    blocks: Sequence[Solvable]
    damping: float

    @torch.no_grad()
    def __call__(self, gradient: Tensors) -> Tensors:
        """Return the direction, by name."""
        parts: dict[str, list[Solvable]] = {}
        for block in self.blocks:
            parts.setdefault(block.part.name, []).append(block)
        found = {}
        for name, tensor in gradient.items():
            tensor = wide(tensor)
            whole = tensor / self.damping
            for block in parts.get(name, []):
                solved = block.solve(block.part.of(tensor).to(block.device), self.damping)
                if block.part.span is None:
                    whole = solved.reshape(tensor.shape)
                else:
                    whole[slice(*block.part.span)] = solved.reshape(-1, *tensor.shape[1:])
            found[name] = whole.contiguous()
        return found
