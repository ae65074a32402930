"""HyperINF's Fisher (Zhou, Fan & Jaggi 2024): one d×d matrix for each weight, the same for all of its slices.

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
from forwardinf.gradients.layer_uses import Direct, Lookup, Use
from forwardinf.gradients.moments import LARGEST_SIDE
from forwardinf.gradients.parts import Part, sides, wide
from forwardinf.gradients.squares import NUMBERS_AT_ONCE, gradients, places_of, squares
from forwardinf.perturb.blocks import Block, Solvable, Solved, mean_diagonal
from forwardinf.perturb.damping import damping
from forwardinf.perturb.direction import Direction, Fitting
from forwardinf.perturb.fits import Costs, Fit, fitted, kept_dtype
from forwardinf.perturb.schulz import schulz

EXACT_SIDE = 1024  # sides up to which a part is solved in float64: beyond, in the dtype that it is kept in
NAMED = 8  # parameters that a note names; of more it says how many

SIDES = ("rows", "columns", "diagonal")
FEW = " vectors"  # what few vectors are filed under, beside the side that they are of
Side = Literal["rows", "columns"]
Inverse = Literal["cholesky", "schulz"]


class Slices:
    """F = I ⊗ G of one part: the same G for each of its rows, or for each of its columns.

    Attributes:
        part: Which numbers.
        side: What d counts: ``"columns"`` where gradients are multiplied from the right, ``"rows"`` from the left.
        kept: G itself, ``(groups, d, d)``; or, where few vectors make it up, those: ``(groups, n, d)`` with G = Σ v vᵀ.
        few: Which of the two.
    """

    def __init__(
        self, part: Part, kept: Tensor, side: Side, inverse: Inverse = "cholesky", *, few: bool = False
    ) -> None:
        """Take the matrices; nothing is factored before the damping is known."""
        self.part, self.kept, self.side, self.inverse, self.few = part, kept, side, inverse, few
        self._known: tuple[float, Tensor] | None = None

    @property
    def gram(self) -> Tensor:
        """G, ``(groups, d, d)``."""
        return self.kept.mT @ self.kept if self.few else self.kept

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.kept.device

    def trace(self) -> float:
        """Return the trace of F."""
        times = self.part.shape[1] if self.side == "columns" else self.part.shape[2]
        squares = self.kept.square() if self.few else self.kept.diagonal(dim1=1, dim2=2)
        return times * float(squares.double().sum())

    def solve(self, gradient: Tensor, damping: float) -> Tensor:
        """Return (F + λI)⁻¹ g, ``(groups, rows, columns)`` in and out. Factors at the first call: d³/3 (or n³/3)."""
        if self._known is None or self._known[0] != damping:
            self._known = damping, self._factored(damping)
        known, turned = self._known[1], self.side == "columns"
        given = (gradient.mT if turned else gradient).to(self._dtype)  # (groups, d, …)
        if self.inverse == "schulz":
            found = known @ given.to(known.dtype)
        elif self.few:  # Woodbury: only what the few vectors span differs from g/λ
            kept = self.kept.to(self._dtype)
            solved = torch.cholesky_solve((kept @ given).to(known.dtype), known)
            found = (given - kept.mT @ solved.to(self._dtype)) / damping
        else:
            found = torch.cholesky_solve(given, known)
        return (found.mT if turned else found).to(gradient.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """What products with a side of d are taken in: float64, unless d is so large that they are what a call takes."""
        return torch.float64 if self.kept.shape[-1] <= EXACT_SIDE else self.kept.dtype

    def _factored(self, damping: float) -> Tensor:
        """Return the Cholesky factor of G + λI (of the few vectors' products + λI), or its inverse by Schulz."""
        kept = self.kept.to(self._dtype)
        if self.inverse == "schulz":
            return torch.stack([schulz(_raised(one, damping)) for one in self.gram.double()])
        if self.few:
            return _factor(_raised((kept @ kept.mT).double(), damping))
        factor, failed = torch.linalg.cholesky_ex(_raised(kept, damping))
        return factor if not bool(failed.any()) else _factor(_raised(self.kept.double(), damping))


def _raised(core: Tensor, damping: float) -> Tensor:
    """Return a copy with λ added to the diagonal."""
    core = core.clone()
    core.diagonal(dim1=-2, dim2=-1).add_(damping)
    return core


def _factor(core: Tensor) -> Tensor:
    factor: Tensor = torch.linalg.cholesky(core)
    return factor


def side_of(part: Part, uses: Sequence[Use]) -> Side | None:
    """Return which side of a part is treated whole: the longer one, or what fits; None for a table and a vector."""
    _, rows, columns = part.shape
    if any(isinstance(use, Direct | Lookup) for use in uses):
        return None
    longer: Side = "columns" if columns >= rows else "rows"
    shorter: Side = "rows" if longer == "columns" else "columns"
    return longer if max(rows, columns) <= LARGEST_SIDE else shorter if min(rows, columns) <= LARGEST_SIDE else None


def add_slices(sums: dict[str, Tensor], part: Part, uses: Sequence[Use]) -> None:
    """Add one batch's Σ GᵀG (or GGᵀ, or squares alone), in place; gradients are summed over places first.

    Where every example is one vector, the vectors themselves are kept as long as they are few: a square of d numbers a side is
    dear where d is thousands.
    """
    side = side_of(part, uses)
    key = f"{part.key}|{side or 'diagonal'}"
    if any(
        f"{part.key}|{other}{kept}" in sums for other in SIDES if other != (side or "diagonal") for kept in ("", FEW)
    ):
        raise ModelError(f"parameter {part.name}", expected="used the same way by all training examples",
                         got="a table for some, a matrix for others", do="Use direction='ekfac'.")  # fmt: skip
    if side is None:
        found = squares(part, uses).double()
        sums[key] = sums[key].add_(found) if key in sums else found
        return
    alone = sums.get(key + FEW)
    vectors = None if key in sums else single_vectors(part, uses, side)
    if vectors is not None:
        vectors = vectors if alone is None else torch.cat([alone, vectors], 1)
        if 2 * vectors.shape[1] <= vectors.shape[2]:
            sums[key + FEW] = vectors
            return
    if key not in sums:
        size = part.shape[2] if side == "columns" else part.shape[1]
        like = wide(uses[0].came_back[:0])
        sums[key] = like.new_zeros(part.shape[0], size, size)
        alone = sums.pop(key + FEW, None)
        if alone is not None:
            sums[key].baddbmm_(alone.mT, alone)
    _add_products(sums[key], part, uses, side)


def single_vectors(part: Part, uses: Sequence[Use], side: Side) -> Tensor | None:
    """Return ``(groups, B, d)`` whose outer products are GᵀG (GGᵀ) of each example, where it is of rank one; else None."""
    if len(uses) > 1 or places_of(uses[0]) != 1:
        return None
    left, right = (each[:, :, 0] for each in sides(uses[0]))
    vector, other = (right, left) if side == "columns" else (left, right)
    scaled: Tensor = vector * torch.linalg.vector_norm(other, dim=2, keepdim=True)
    return scaled


def _products_cost(places: int, d: int, other: int) -> tuple[int, int]:
    """Return multiplications of one example's GᵀG (by places, by the formed gradient): see :func:`_add_products`."""
    return places**2 * (other + d) + places * d**2, places * d * other + other * d**2


def _add_products(total: Tensor, part: Part, uses: Sequence[Use], side: Side) -> None:
    """Add Σᵢ GᵢᵀGᵢ (``side="columns"``) or Σᵢ GᵢGᵢᵀ over a batch to ``(groups, d, d)``.

    G = Σₜ lₜ rₜᵀ has no more rank than places: with few of them GᵀG = Rᵀ(LLᵀ)R costs T·d² for an example, and the formed
    gradient, with s rows, s·d².
    """
    groups, rows, columns = part.shape
    d, other = (columns, rows) if side == "columns" else (rows, columns)
    places = sum(map(places_of, uses))
    apart, formed = _products_cost(places, d, other)
    by_places = apart < formed
    held = places * (rows + columns) + (places * (places + d) if by_places else rows * columns)
    step, size = max(1, NUMBERS_AT_ONCE // (groups * held)), len(uses[0].came_back)
    for start in range(0, size, step):
        some = [use.part(start, start + step) if step < size else use for use in uses]
        if by_places:
            pairs = [sides(use) for use in some]
            left, right = (
                torch.cat([pair[at] for pair in pairs], 2) if len(pairs) > 1 else pairs[0][at] for at in (0, 1)
            )
            vector, across = (right, left) if side == "columns" else (left, right)
            taken = (across @ across.mT) @ vector
            total.baddbmm_(taken.flatten(1, 2).mT, vector.flatten(1, 2))
            continue
        found = gradients(part, some, [])
        flat = found.flatten(1, 2) if side == "columns" else found.transpose(1, 2).flatten(2).mT
        total.baddbmm_(flat.mT, flat)


def _work(part: Part, uses: Sequence[Use]) -> float:
    """Return the multiplications of :func:`add_slices` on a batch."""
    side, size = side_of(part, uses), len(uses[0].came_back)
    groups, rows, columns = part.shape
    if side is None:
        return float(size * groups * columns)
    places = sum(map(places_of, uses))
    by_places, formed = _products_cost(places, *((columns, rows) if side == "columns" else (rows, columns)))
    return float(size * groups * (columns + rows if places == 1 else min(by_places, formed)))


def _once(part: Part, uses: Sequence[Use]) -> float:
    """Return the multiplications of a part's factor and of one solution."""
    side = side_of(part, uses)
    if side is None:
        return 0.0
    d, other = (part.shape[2], part.shape[1]) if side == "columns" else (part.shape[1], part.shape[2])
    return float(part.shape[0] * (d**3 / 3 + 2 * d**2 * other))


COSTS = Costs(_work, _once)


def gfim_blocks(fitting: Fitting, inverse: Inverse = "cholesky") -> list[Solvable]:
    """Return the fitted blocks. Cost: about 3 F and r·d² for each example and weight. Memory: d² numbers for each."""

    def means(fit: Fit) -> Fit:
        plain = {
            part.name for key, part in fit.parts.items()
            if f"{key}|diagonal" in fit.tensors and (min(part.shape[1:]) > 1 or part.name in fit.odd)
        }  # fmt: skip
        for key, part in fit.parts.items():
            for side, times in (("rows", part.shape[2]), ("columns", part.shape[1]), ("diagonal", 1)):
                for name, power in ((f"{key}|{side}", 1.0), (f"{key}|{side}{FEW}", 0.5)):
                    if name in fit.tensors:
                        fit.tensors[name] = (fit.tensors[name] / (fit.units * times) ** power).to(kept_dtype(fitting))
        if plain:
            told = sorted(f"{name} ({fit.odd[name]})" if name in fit.odd else name for name in plain)
            more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
            fit.notes.append(f"gfim: curvature by the diagonal only: {', '.join(told[:NAMED])}{more}")
        return fit

    found = fitted(fitting, "gfim", add_slices, means, costs=COSTS)
    blocks: list[Solvable] = []
    for key, part in found.parts.items():
        if f"{key}|diagonal" in found.tensors:
            blocks.append(Block(part, found.tensors[f"{key}|diagonal"]))
            continue
        side: Side = "columns" if any(f"{key}|columns{kept}" in found.tensors for kept in ("", FEW)) else "rows"
        few = found.tensors.get(f"{key}|{side}{FEW}")
        kept = found.tensors[f"{key}|{side}"] if few is None else few
        blocks.append(Slices(part, kept, side, inverse, few=few is not None))
    return blocks


def gfim(fitting: Fitting, inverse: Inverse = "cholesky") -> Direction:
    """Return the direction (F + λI)⁻¹ g under HyperINF's Fisher."""
    blocks, rule = gfim_blocks(fitting, inverse), fitting.perturbation
    return Solved(blocks, damping(rule.direction, rule.damping, mean_diagonal(blocks, fitting.parameters)))
