"""Σᵢ (UₗᵀGᵢUᵣ)²: squares of per-example gradients in a given basis, without forming more of them than fit in the cache.

With no basis it is the diagonal of the Fisher; in the eigenbases of the Kronecker factors it is EK-FAC's corrected
eigenvalues (George et al. 2018, arXiv:1806.03884, §3). Gradients are summed over tokens before they are squared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forwardinf.gradients.layer_uses import Convolved, Direct, Lookup, Use
from forwardinf.gradients.parts import Part, sides, wide

NUMBERS_AT_ONCE = 2**22  # of gradients (or patches) held at a time: 16 MiB in float32


def squares(part: Part, uses: Sequence[Use], left: Tensor | None = None, right: Tensor | None = None) -> Tensor:
    """Return the sum over examples of squares of (rotated) gradients, ``(groups, rows, columns)``.

    Args:
        part: What the gradient is of.
        uses: All uses of the part in one batch.
        left: Basis of the rows, ``(groups, rows, rows)``, columns are its vectors; None: as they are.
        right: Basis of the columns, likewise.
    """
    size = len(uses[0].came_back)
    if isinstance(uses[0], Direct):
        whole = wide(_sum([use.gradient() for use in uses]).reshape(size, 1, -1))
        return (whole if right is None else whole @ right).square().sum(0, keepdim=True)
    tables, matrices = [u for u in uses if isinstance(u, Lookup)], [u for u in uses if not isinstance(u, Lookup)]
    if not matrices:
        return _table_squares(part, tables, right)
    groups, rows, columns = part.shape
    most = max(places_of(use) for use in matrices)
    if most == 1 and len(matrices) == 1 and not tables:
        one, other = (
            _turned(side.flatten(1, 2), basis) for side, basis in zip(sides(matrices[0]), (left, right), strict=True)
        )
        return torch.bmm(one.square().mT, other.square())
    held = groups * max(rows * columns, *(places_of(u) * columns for u in matrices if isinstance(u, Convolved)), 1)
    step = max(1, NUMBERS_AT_ONCE // held)
    total = None
    for start in range(0, size, step):
        found = gradients(part, [u.part(start, start + step) for u in matrices],
                           [u.part(start, start + step) for u in tables], left, right)  # fmt: skip
        got = found.square_().sum(1)
        total = got if total is None else total.add_(got)
    assert total is not None
    return total


def gradients(
    part: Part, matrices: Sequence[Use], tables: Sequence[Use], left: Tensor | None = None, right: Tensor | None = None
) -> Tensor:
    """Return (rotated) gradients of a weight's uses, one at least not a lookup, ``(groups, B, rows, columns)``."""
    groups, rows, columns = part.shape
    pairs = [sides(use) for use in matrices]
    one = pairs[0][0] if len(pairs) == 1 else torch.cat([pair[0] for pair in pairs], 2)
    other = pairs[0][1] if len(pairs) == 1 else torch.cat([pair[1] for pair in pairs], 2)
    size, places = one.shape[1:3]
    p, q = (0 if left is None else rows), (0 if right is None else columns)
    early = places * (rows * p + columns * q) < rows * columns * (p + q)  # fewer products where vectors are rotated
    if early:
        one, other = _turned(one, left), _turned(other, right)
    found = torch.bmm(one.reshape(-1, places, rows).mT, other.reshape(-1, places, columns))
    found = found.view(groups, size, rows, columns)
    if tables:  # a table's rows are never rotated: its left basis is None
        for use in tables:
            index, d = _looked_up(use)
            flat = index + torch.arange(size, device=index.device)[:, None] * rows
            d = _turned(d[None], right)[0] if early else d
            found.view(-1, columns).index_add_(0, flat.flatten(), d.flatten(0, 1))
    if not early:
        if right is not None:
            found = torch.bmm(found.flatten(1, 2), right).view(groups, size, rows, columns)
        if left is not None:
            found = torch.bmm(left.mT, found.transpose(1, 2).reshape(groups, rows, -1))
            found = found.view(groups, rows, size, columns).transpose(1, 2)
    return found


def _table_squares(part: Part, tables: Sequence[Use], right: Tensor | None) -> Tensor:
    _, rows, columns = part.shape
    row, summed = looked_up(part, tables)
    if right is not None:
        summed = summed @ right[0]
    return summed.new_zeros(rows, columns).index_add_(0, row, summed.square_())[None]


def looked_up(part: Part, tables: Sequence[Use]) -> tuple[Tensor, Tensor]:
    """Return (row of the table, gradient) wherever an example has one, ``(M,)`` and ``(M, columns)``.

    Rows looked up several times by one example are summed first; nothing is formed for rows that were not.
    """
    _, rows, columns = part.shape
    pairs = [_looked_up(use) for use in tables]
    index, d = torch.cat([pair[0] for pair in pairs], 1), torch.cat([pair[1] for pair in pairs], 1)
    flat = (index + torch.arange(len(index), device=index.device)[:, None] * rows).flatten()
    seen, place = torch.unique(flat, return_inverse=True)
    return seen % rows, d.new_zeros(len(seen), columns).index_add_(0, place, d.flatten(0, 1))


def _looked_up(use: Use) -> tuple[Tensor, Tensor]:
    assert isinstance(use, Lookup)
    index, d = use.factors()
    return index, wide(d)


def _turned(side: Tensor, basis: Tensor | None) -> Tensor:
    """Return vectors ``(groups, …, n)`` in a basis ``(groups, n, n)``."""
    if basis is None:
        return side
    return torch.bmm(side.reshape(len(side), -1, side.shape[-1]), basis.to(side.dtype)).view(side.shape)


def places_of(use: Use) -> int:
    """Return how many terms a gradient is the sum of."""
    back = use.came_back
    return back.shape[2:].numel() if isinstance(use, Convolved) else back.shape[1]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
