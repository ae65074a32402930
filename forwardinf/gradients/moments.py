"""Σ l lᵀ and Σ r rᵀ: second moments of what leaves and enters a layer, the factors of Kronecker-factored curvature.

A layer used at many places (tokens, pixels) is approximated as if gradients at different places of an example had nothing
to do with one another (K-FAC "expand": Grosse & Martens 2016, arXiv:1602.01407; Eschenhagen et al. 2023, arXiv:2311.00636):
F ≈ 1/(N·n) (Σ l lᵀ) ⊗ (Σ r rᵀ), n the number of places. Places to which no gradient came back (padding) count nowhere,
so that what a text is padded to does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forwardinf.gradients.layer_uses import Convolved, Direct, Lookup, Use
from forwardinf.gradients.parts import Part, sides, wide
from forwardinf.gradients.squares import NUMBERS_AT_ONCE

Sums = dict[str, Tensor]

LARGEST_SIDE = 8192  # a factor of more rows is kept as its diagonal: 256 MiB in float32
LARGEST_BLOCK = 2048  # numbers of a bias, scale or shift whose covariance is kept whole


def kind_of(use: Use) -> str:
    """Return which Kronecker product a use belongs to: a tied embedding is the sum of two."""
    return "table" if isinstance(use, Lookup) else "vector" if isinstance(use, Direct) else "matrix"


def add_moments(sums: Sums, part: Part, uses: Sequence[Use]) -> None:
    """Add one batch: for each kind of use, both second moments and the number of places (in place, float32 or wider)."""
    vectors = [use for use in uses if isinstance(use, Direct)]
    if vectors:
        whole = vectors[0].gradient()
        for other in vectors[1:]:
            whole = whole + other.gradient()
        _add(sums, part, "vector", None, wide(whole.reshape(1, len(whole), -1)), len(whole))
        return
    tied = any(isinstance(use, Lookup) for use in uses)
    for use in uses:
        if isinstance(use, Lookup):
            index, d = use.factors()
            d = wide(d)
            live = _above_rounding(d)
            _add_table(sums, part, index[live], d[live])
            continue
        size, step = len(use.came_back), len(use.came_back)
        if isinstance(use, Convolved):
            step = max(1, NUMBERS_AT_ONCE // max(1, part.shape[0] * part.shape[2] * use.came_back.shape[2:].numel()))
        for start in range(0, size, step):
            piece = use if step >= size else use.part(start, start + step)
            _add_matrix(sums, part, *sides(piece), tied)


def _add_matrix(sums: Sums, part: Part, left: Tensor, right: Tensor, tied: bool) -> None:
    """Add vectors ``(groups, B, T, ·)``, leaving out places where no gradient came back to the output.

    Which side is the output's does not matter: where either is zero, so is the gradient.
    """
    live = _above_rounding(left) & _above_rounding(right)
    if bool(live.all()):
        _add(sums, part, "matrix", _flat(left), _flat(right), live[0].numel(), tied)
    elif len(live) == 1 and left.is_contiguous():
        left, right = left[live][None], right[live][None]
        _add(sums, part, "matrix", left, right, left.shape[1], tied)
    else:  # patches lie place by place, and each group has live places of its own: a product is faster than a choice
        _add(
            sums,
            part,
            "matrix",
            _flat(left * live[..., None]),
            _flat(right * live[..., None]),
            live.flatten(1).sum(1),
            tied,
        )


def _above_rounding(side: Tensor) -> Tensor:
    """Return which vectors ``(…, B, T, n)`` are more than rounding beside the largest of their example, ``(…, B, T)``.

    What is zero by the mathematics (a first token attends to itself alone) may come out as rounding, in some batches only.
    """
    size = side.abs().amax(-1)
    return size > 100 * torch.finfo(side.dtype).eps * size.amax(-1, keepdim=True)


def _flat(side: Tensor) -> Tensor:
    """Return ``(groups, B, T, n)`` as ``(groups, B, T, n)`` where products go example by example without a copy."""
    return side if not side.is_contiguous() and side.shape[2] >= 64 else side.flatten(1, 2)


def _add(sums: Sums, part: Part, kind: str, left: Tensor | None, right: Tensor, places: int | Tensor,
         tied: bool = False) -> None:  # fmt: skip
    groups, rows, columns = part.shape
    largest = LARGEST_BLOCK if kind == "vector" else LARGEST_SIDE
    if left is not None:
        _add_side(sums, f"{part.key}|{kind}|left", left, rows <= largest and not tied)
    else:  # one row: it is the right side that holds everything
        _sum_into(sums, f"{part.key}|{kind}|left", right.new_full((groups, 1, 1), float(right.shape[1])))
    _add_side(sums, f"{part.key}|{kind}|right", right, columns <= largest)
    counted = torch.as_tensor(places, dtype=torch.float64, device=right.device).expand(groups)
    _sum_into(sums, f"{part.key}|{kind}|places", counted)


def _add_table(sums: Sums, part: Part, index: Tensor, d: Tensor) -> None:
    counts = d.new_zeros(1, part.shape[1]).index_add_(1, index, d.new_ones(1, len(index)))
    _sum_into(sums, f"{part.key}|table|left", counts)
    _add_side(sums, f"{part.key}|table|right", d[None], part.shape[2] <= LARGEST_SIDE)
    _sum_into(sums, f"{part.key}|table|places", torch.full((1,), len(index), dtype=torch.float64, device=d.device))


def _add_side(sums: Sums, key: str, side: Tensor, whole: bool) -> None:
    """Add Σ s sᵀ ``(groups, n, n)``, or its diagonal ``(groups, n)``."""
    groups, size = len(side), side.shape[-1]
    kept = sums.get(key)
    if not whole and kept is not None and kept.ndim == 3:
        sums[key] = kept.diagonal(dim1=1, dim2=2).clone()
    if not whole or (kept is not None and kept.ndim == 2):
        _sum_into(sums, key, side.square().flatten(1, -2).sum(1))
        return
    if key not in sums:
        sums[key] = side.new_zeros(groups, size, size)
    for total, vectors in zip(sums[key], side, strict=True):
        if vectors.ndim == 2:
            total.addmm_(vectors.mT, vectors)
        else:
            total.addbmm_(vectors.mT, vectors)


def _sum_into(sums: Sums, key: str, value: Tensor) -> None:
    if key in sums:
        sums[key] += value
    else:
        sums[key] = value.clone()
