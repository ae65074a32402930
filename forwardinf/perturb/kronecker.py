"""K-FAC and EK-FAC: each layer's curvature in the eigenbasis of its Kronecker factors.

K-FAC (Martens & Grosse 2015, arXiv:1503.05671): F ≈ L ⊗ R. EK-FAC (George et al. 2018, arXiv:1806.03884): the same
eigenvectors, with each eigenvalue replaced by the mean square of the gradients along it, exact in that basis.

Weights of every kind have one block each: linear layers, convolutions, tables (whose left factor is diagonal: how often
each row was looked up), and tables tied to an output layer, where the two uses are added: K-FAC's eigenvalues are the sum
of both, EK-FAC's are those of the summed gradient. Biases, scales and shifts have a block of their own, their exact
covariance (their gradient is one vector, so nothing needs factoring); they are not joined to their layer's weight, so that a
bias shared between layers, or one without its weight, is no special case. What has no factors falls back to the diagonal, by
name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forwardinf.gradients.layer_uses import Direct, Lookup, Use
from forwardinf.gradients.moments import LARGEST_BLOCK, LARGEST_SIDE, add_moments
from forwardinf.gradients.parts import Part
from forwardinf.gradients.squares import places_of, squares
from forwardinf.perturb.blocks import Block, Solved, mean_diagonal
from forwardinf.perturb.damping import damping
from forwardinf.perturb.direction import Direction, Fitting
from forwardinf.perturb.fits import Costs, Fit, fitted, kept_dtype

EIGENVECTORS = 9  # n³ of them
KINDS = ("matrix", "table", "vector")


def _work(part: Part, uses: Sequence[Use]) -> float:
    """Return the multiplications of both passes on a batch: the factors, and the gradients rotated into their bases."""
    groups, rows, columns = part.shape
    places = sum(places_of(use) for use in uses if not isinstance(use, Direct | Lookup))
    rotated = rows * columns * (rows + columns) if places else columns**2
    return float(len(uses[0].came_back) * groups * (places * (rows**2 + columns**2 + rows * columns) + rotated))


def _once(part: Part, _: Sequence[Use]) -> float:
    """Return the multiplications of a part's eigenvectors, about."""
    return float(sum(EIGENVECTORS * side**3 for side in part.shape[1:] if side <= LARGEST_SIDE))


COSTS = Costs(_work, _once)


def kfac_blocks(fitting: Fitting) -> list[Block]:
    """Return K-FAC's blocks. Cost: one forward, one backward through activations, the factors, their eigenvectors."""
    found = fitted(fitting, "kronecker", add_moments, _bases, f"fitting {fitting.perturbation.direction}: factors",
                   COSTS)  # fmt: skip
    return [_block(found, key, part) for key, part in found.parts.items()]


def ekfac_blocks(fitting: Fitting) -> list[Block]:
    """Return EK-FAC's blocks: K-FAC's bases, and a second pass for what is exact in them."""
    blocks = {block.part.key: block for block in kfac_blocks(fitting)}

    def bases(part: Part) -> tuple[Tensor | None, Tensor | None]:
        block = blocks.get(part.key)
        return (block.left, block.right) if block is not None and block.part == part else (None, None)

    def add(sums: dict[str, Tensor], part: Part, uses: Sequence[Use]) -> None:
        found = squares(part, uses, *bases(part))
        sums[part.key] = sums[part.key].add_(found) if part.key in sums else found.double()

    def means(fit: Fit) -> Fit:
        for key, total in fit.tensors.items():
            fit.tensors[key] = (total / fit.units).to(kept_dtype(fitting))
        return fit

    found = fitted(fitting, "eigenvalues", add, means, "fitting ekfac: eigenvalues", COSTS)
    return [Block(part, found.tensors[key], *bases(part)) for key, part in found.parts.items()]


def kfac(fitting: Fitting) -> Direction:
    """Return the direction (F + λI)⁻¹ g under K-FAC."""
    return _solved(fitting, kfac_blocks(fitting))


def ekfac(fitting: Fitting) -> Direction:
    """Return the direction (F + λI)⁻¹ g under EK-FAC."""
    return _solved(fitting, ekfac_blocks(fitting))


def _solved(fitting: Fitting, blocks: list[Block]) -> Solved:
    rule = fitting.perturbation
    return Solved(blocks, damping(rule.direction, rule.damping, mean_diagonal(blocks, fitting.parameters)))


def _block(fit: Fit, key: str, part: Part) -> Block:
    return Block(
        part, fit.tensors[f"{key}|values"], fit.tensors.get(f"{key}|left basis"), fit.tensors.get(f"{key}|right basis")
    )


def _bases(fit: Fit) -> Fit:
    """Make eigenbases and K-FAC's eigenvalues of the factors; say what could only be treated by the diagonal."""
    found = Fit(parts=fit.parts, odd=fit.odd, units=fit.units)
    plain: list[str] = []
    for key, part in fit.parts.items():
        terms = [_term(fit, key, kind) for kind in KINDS if f"{key}|{kind}|left" in fit.tensors]
        left, right = _basis(terms, 0, 1), _basis(terms, 1, 0)
        dtype = terms[0][0].dtype
        values = torch.stack(
            [_along(one, left)[..., None] * _along(other, right)[:, None] for one, other in terms]
        ).sum(0)
        found.tensors[f"{key}|values"] = (values / fit.units).clamp_min_(0).to(dtype)
        for name, basis in (("left", left), ("right", right)):
            if basis is not None:
                found.tensors[f"{key}|{name} basis"] = basis.to(dtype)
        table = f"{key}|table|left" in fit.tensors
        sizes = (1 if table else part.shape[1], part.shape[2])
        largest = LARGEST_BLOCK if part.shape[:2] == (1, 1) else LARGEST_SIDE
        if max(sizes) > largest:
            plain.append(f"{key} ({fit.odd.get(part.name) or f'a side of {max(sizes)}'})")
    if plain:
        found.notes.append(f"curvature by the diagonal only: {', '.join(sorted(plain))}")
    return found


def _term(fit: Fit, key: str, kind: str) -> tuple[Tensor, Tensor]:
    """Return one Kronecker product's factors, Σ over examples of gradients' second moments = L ⊗ R."""
    left, right, places = (fit.tensors.pop(f"{key}|{kind}|{what}") for what in ("left", "right", "places"))
    scale = places.clamp_min(1).to(left.dtype)
    return left / scale.view(-1, *[1] * (left.ndim - 1)), right


def _basis(terms: list[tuple[Tensor, Tensor]], side: int, other: int) -> Tensor | None:
    """Return eigenvectors of one side of Σ L ⊗ R (the other side traced out), float64; None where one is diagonal."""
    if any(term[side].ndim == 2 for term in terms) or terms[0][side].shape[-1] == 1:
        return None
    total = None
    for term in terms:
        factor, rest = term[side].double(), term[other].double()
        trace = rest.sum(-1) if rest.ndim == 2 else rest.diagonal(dim1=1, dim2=2).sum(-1)
        got = factor * trace[:, None, None]
        total = got if total is None else total.add_(got)
    assert total is not None
    size = total.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
    found: Tensor = torch.linalg.eigh(total / size[:, None, None])[1]
    return found


def _along(factor: Tensor, basis: Tensor | None) -> Tensor:
    """Return the diagonal of a factor in a basis, ``(groups, n)`` float64."""
    wide = factor.double()
    if wide.ndim == 2:
        return wide
    if basis is None:
        return wide.diagonal(dim1=1, dim2=2)
    return (basis * (wide @ basis)).sum(1)
