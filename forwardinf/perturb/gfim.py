"""HyperINF's Fisher (Zhou, Fan & Jaggi 2024; SYSTEMS §3): one d×d matrix for each weight, the same for all of its slices.

A weight's gradient is an r×d matrix, d its longer side (the rank of an adapter is the shorter one). Were its r slices alike and
independent, the Fisher would be I ⊗ E[GᵀG]/r. The paper has this 1/r, its code has not; with it the trace is E‖G‖², so that
one λ serves all layers. Tables are taken by their width. Vectors, weights larger than :data:`LARGEST_SIDE` on
both sides, and parameters without factors have their diagonal alone, and are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from forwardinf.core.errors import ModelError
from forwardinf.core.uses import Convolved, Direct, Lookup, Use
from forwardinf.perturb.blocks import Block, Solvable, Solved, mean_diagonal
from forwardinf.perturb.damping import damping
from forwardinf.perturb.direction import Direction, Fitting
from forwardinf.perturb.fits import Fit, fitted, kept_dtype
from forwardinf.perturb.moments import LARGEST_SIDE
from forwardinf.perturb.parts import Part, sides
from forwardinf.perturb.schulz import schulz
from forwardinf.perturb.squares import NUMBERS_AT_ONCE, gradients, squares

NAMED = 8  # parameters that a note names; of more it says how many

SIDES = ("rows", "columns", "diagonal")
Side = Literal["rows", "columns"]
Inverse = Literal["cholesky", "schulz"]


class Slices:
    """F = I ⊗ G of one part: the same G for each of its rows, or for each of its columns.

    Attributes:
        part: Which numbers.
        gram: G, ``(groups, d, d)``.
        side: What d counts: ``"columns"`` where gradients are multiplied from the right, ``"rows"`` from the left.
    """

    def __init__(self, part: Part, gram: Tensor, side: Side, inverse: Inverse = "cholesky") -> None:
        """Take the matrices; nothing is inverted before the damping is known."""
        self.part, self.gram, self.side, self.inverse = part, gram, side, inverse
        self._known: tuple[float, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.gram.device

    def trace(self) -> float:
        """Return the trace of F."""
        times = self.part.shape[1] if self.side == "columns" else self.part.shape[2]
        return times * float(self.gram.diagonal(dim1=1, dim2=2).double().sum())

    def solve(self, gradient: Tensor, damping: float) -> Tensor:
        """Return (F + λI)⁻¹ g, ``(groups, rows, columns)`` in and out. Inverts at the first call: d³ by Cholesky."""
        if self._known is None or self._known[0] != damping:
            self._known = damping, self._inverted(damping)
        known = self._known[1].to(gradient.dtype)
        return gradient @ known if self.side == "columns" else known @ gradient

    def _inverted(self, damping: float) -> Tensor:
        """Return the inverse of G + λI in the dtype of G; computed in float64."""
        damped = self.gram.double() + damping * torch.eye(self.gram.shape[-1], dtype=torch.float64, device=self.device)
        if self.inverse == "cholesky":
            found: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        else:
            found = torch.stack([schulz(one) for one in damped])
        return found.to(self.gram.dtype)


def side_of(part: Part, uses: Sequence[Use]) -> Side | None:
    """Return which side of a part is treated whole: the longer one, or what fits; None for a table and a vector."""
    _, rows, columns = part.shape
    if any(isinstance(use, Direct | Lookup) for use in uses):
        return None
    longer: Side = "columns" if columns >= rows else "rows"
    shorter: Side = "rows" if longer == "columns" else "columns"
    return longer if max(rows, columns) <= LARGEST_SIDE else shorter if min(rows, columns) <= LARGEST_SIDE else None


def add_slices(sums: dict[str, Tensor], part: Part, uses: Sequence[Use]) -> None:
    """Add one batch's Σ GᵀG (or GGᵀ, or squares alone), in place; gradients are summed over places first."""
    side = side_of(part, uses)
    key = f"{part.key}|{side or 'diagonal'}"
    if any(f"{part.key}|{other}" in sums for other in SIDES if other != (side or "diagonal")):
        raise ModelError(f"parameter {part.name}", expected="used the same way by all training examples",
                         got="a table for some, a matrix for others", do="Use direction='ekfac'.")  # fmt: skip
    found = squares(part, uses).double() if side is None else slices(part, uses, side)
    sums[key] = sums[key].add_(found) if key in sums else found


def slices(part: Part, uses: Sequence[Use], side: Side) -> Tensor:
    """Return Σᵢ GᵢᵀGᵢ (``side="columns"``) or Σᵢ GᵢGᵢᵀ over a batch, ``(groups, d, d)`` float32 or wider."""
    groups, rows, columns = part.shape
    size = len(uses[0].came_back)
    if len(uses) == 1 and not isinstance(uses[0], Convolved):
        left, right = sides(uses[0])
        if left.shape[2] == 1:  # one place: G = l rᵀ, GᵀG = ‖l‖² r rᵀ
            left, right = (right, left) if side == "rows" else (left, right)
            left, right = left[:, :, 0], right[:, :, 0]
            return (right * left.square().sum(2, keepdim=True)).mT @ right
    places = [use.came_back.shape[2:].numel() for use in uses if isinstance(use, Convolved)]
    step = max(1, NUMBERS_AT_ONCE // (groups * max([rows * columns, *(p * columns for p in places)])))
    total = None
    for start in range(0, size, step):
        found = gradients(part, [use.part(start, start + step) for use in uses], [])
        flat = found.flatten(1, 2) if side == "columns" else found.transpose(1, 2).flatten(2).mT
        got = flat.mT @ flat
        total = got if total is None else total.add_(got)
    assert total is not None
    return total


def gfim_blocks(fitting: Fitting, inverse: Inverse = "cholesky") -> list[Solvable]:
    """Return the fitted blocks. Cost: about 3 F and r·d² for each example and weight. Memory: d² numbers for each."""

    def means(fit: Fit) -> Fit:
        plain = {
            part.name for key, part in fit.parts.items()
            if f"{key}|diagonal" in fit.tensors and (min(part.shape[1:]) > 1 or part.name in fit.odd)
        }  # fmt: skip
        for key, part in fit.parts.items():
            for side, times in (("rows", part.shape[2]), ("columns", part.shape[1]), ("diagonal", 1)):
                name = f"{key}|{side}"
                if name in fit.tensors:
                    fit.tensors[name] = (fit.tensors[name] / (fit.units * times)).to(kept_dtype(fitting))
        if plain:
            told = sorted(f"{name} ({fit.odd[name]})" if name in fit.odd else name for name in plain)
            more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
            fit.notes.append(f"gfim: curvature by the diagonal only: {', '.join(told[:NAMED])}{more}")
        return fit

    found = fitted(fitting, "gfim", add_slices, means)
    blocks: list[Solvable] = []
    for key, part in found.parts.items():
        if f"{key}|diagonal" in found.tensors:
            blocks.append(Block(part, found.tensors[f"{key}|diagonal"]))
        elif f"{key}|columns" in found.tensors:
            blocks.append(Slices(part, found.tensors[f"{key}|columns"], "columns", inverse))
        else:
            blocks.append(Slices(part, found.tensors[f"{key}|rows"], "rows", inverse))
    return blocks


def gfim(fitting: Fitting, inverse: Inverse = "cholesky") -> Direction:
    """Return the direction (F + λI)⁻¹ g under HyperINF's Fisher."""
    blocks, rule = gfim_blocks(fitting, inverse), fitting.perturbation
    return Solved(blocks, damping(rule.direction, rule.damping, mean_diagonal(blocks, fitting.parameters)))
