"""How strongly each example acts on its own loss, gᵢᵀ P gᵢ, from the factors of a recorded batch: no gradient is kept.

Where curvature is diagonal in a basis, P is too: gᵀPg = Σ w (UₗᵀGUᵣ)², part by part. A layer that saw one vector has
G = l rᵀ, so the sum is l′² · W r′²; with few places and even weights it is the product of two small Gram matrices; else the
gradients of a few examples are formed at a time, into one buffer that stays in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.gradients.kernels import form_kernels, pieces
from forwardinf.gradients.layer_uses import Convolved, Direct, Lookup, Outer, Use
from forwardinf.gradients.parts import Part, sides, sorted_uses, wide
from forwardinf.gradients.squares import NUMBERS_AT_ONCE, gradients
from forwardinf.perturb.blocks import Block, Solved
from forwardinf.perturb.direction import Direction, plain, sign
from forwardinf.perturb.gfim import Slices

BUFFER = 2**22  # numbers of the buffer in which gradients are formed: 16 MiB in float32
TOUCH = 10  # what writing and reading one number costs, in multiplications of a matrix product


@dataclass(frozen=True)
class Form:
    """P of one part: (Uₗ ⊗ Uᵣ) diag(weight) (Uₗ ⊗ Uᵣ)ᵀ.

    Attributes:
        part: Which numbers.
        weight: ``(groups, rows, columns)``, or one number for all.
        left: ``(groups, rows, rows)``, columns are basis vectors (of any length); None: the identity.
        right: ``(groups, columns, columns)``, likewise.
    """

    part: Part
    weight: Tensor | float = 1.0
    left: Tensor | None = None
    right: Tensor | None = None


class Own:
    """Takes gᵢᵀ P gᵢ of batches; holds the forms and a buffer.

    Args:
        forms: Of the parts whose curvature is known, by key.
        rest: What P is for everything else: one number.
        signs: Instead of all that, P g = sign(g): the result is ‖gᵢ‖₁.
    """

    def __init__(self, forms: Mapping[str, Form] | None = None, rest: float = 1.0, *, signs: bool = False) -> None:
        """Keep the forms; the buffer grows to what is needed, at most 16 MiB or one example's gradient."""
        self.forms, self.rest, self.signs = dict(forms or {}), rest, signs
        self._keys: dict[str, set[str]] = {}
        for key, form in self.forms.items():
            self._keys.setdefault(form.part.name, set()).add(key)
        self._buffer = torch.empty(0)

    @torch.no_grad()
    def __call__(self, uses: Sequence[Use], size: int) -> Tensor:
        """Return gᵢᵀ P gᵢ of ``size`` examples, ``(B,)`` float64 on the CPU, from all uses of one batch."""
        found = torch.zeros(size, dtype=torch.float64)
        known, odd = sorted_uses(uses)
        apart = dict.fromkeys(odd)
        for part, members in known.values():
            if self._fits(part):
                form = self.forms.get(part.key) or Form(part, self.rest)
                found += self._part(part, members, form).double().cpu()
            else:  # fitted in another shape than it is used in here
                apart[part.name] = None
        for name in apart:
            found += self._whole(name, [use for use in uses if use.name == name]).double().cpu()
        return found

    def _fits(self, part: Part) -> bool:
        keys = self._keys.get(part.name)
        if keys is None:
            return True
        form = self.forms.get(part.key)
        if form is None:  # other rows of this parameter have curvature, these have none
            return part.span is not None and all(self.forms[key].part.span is not None for key in keys)
        return form.part == part

    def _part(self, part: Part, uses: list[Use], form: Form) -> Tensor:
        if isinstance(uses[0], Direct):
            return self._summed(_sum([wide(use.flat()) for use in uses])[None, :, None], form)
        tables, matrices = [u for u in uses if isinstance(u, Lookup)], [u for u in uses if not isinstance(u, Lookup)]
        if not matrices:
            return self._table(part, tables, form)
        even = not isinstance(form.weight, Tensor) and not self.signs
        if not tables and all(isinstance(use, Outer) for use in matrices):
            places = sum(use.came_back.shape[1] for use in matrices)
            if places == 1 and not self.signs:
                return self._one_place(matrices[0], form)
            _, rows, columns = part.shape
            if even and places**2 * (rows + columns) < (places + TOUCH) * rows * columns:
                return self._few_places(matrices, form)
        alone = len(matrices) == 1 and not tables and form.left is None and form.right is None
        if alone and isinstance(matrices[0], Convolved):
            return self._kernels(matrices[0], form)
        return self._formed(part, matrices, tables, form)

    def _one_place(self, use: Use, form: Form) -> Tensor:
        """G = l rᵀ: Σ w (l′ r′ᵀ)²."""
        left, right = (
            _turned(side, basis)[0, :, 0].square()
            for side, basis in zip(sides(use), (form.left, form.right), strict=True)
        )
        if not isinstance(form.weight, Tensor):
            return form.weight * left.sum(1) * right.sum(1)
        return ((left @ form.weight[0].to(left.dtype)) * right).sum(1)

    def _few_places(self, uses: Sequence[Use], form: Form) -> Tensor:
        """‖Σₜ lₜ rₜᵀ‖² = Σₜₛ (lₜ·lₛ)(rₜ·rₛ)."""
        pairs = [sides(use) for use in uses]
        left, right = (
            _turned(torch.cat([pair[at] for pair in pairs], 2), basis)[0]
            for at, basis in enumerate((form.left, form.right))
        )
        found, places = [], left.shape[1]
        for piece in pieces(len(left), places**2):
            one, other = left[piece], right[piece]
            found.append(((one @ one.mT) * (other @ other.mT)).sum((1, 2)))
        return float(form.weight) * torch.cat(found)

    def _kernels(self, use: Convolved, form: Form) -> Tensor:
        """A convolution's kernel as it is: formed into the buffer."""
        found, size = [], use.shape.numel()
        dtype = torch.promote_types(use.entered.dtype, torch.float32)
        for piece in pieces(len(use.entered), size, BUFFER):
            room = self._room(len(use.entered[piece]), size, dtype, use.entered.device)
            form_kernels(use, piece, room)
            found.append(self._squares(room, form.weight))
        return torch.cat(found)

    def _formed(self, part: Part, matrices: Sequence[Use], tables: Sequence[Use], form: Form) -> Tensor:
        groups, rows, columns = part.shape
        size = len(matrices[0].came_back)
        held = groups * max([rows * columns, *(u.came_back.shape[2:].numel() * columns for u in matrices
                                               if isinstance(u, Convolved))])  # fmt: skip
        step, found = max(1, NUMBERS_AT_ONCE // held), []
        for start in range(0, size, step):
            here = [[use.part(start, start + step) for use in kind] for kind in (matrices, tables)]
            formed = gradients(part, here[0], here[1], _same(form.left, matrices), _same(form.right, matrices))
            found.append(self._squares(formed.transpose(0, 1).flatten(1), form.weight))
        return torch.cat(found)

    def _table(self, part: Part, tables: Sequence[Use], form: Form) -> Tensor:
        """Rows looked up, each summed over its places in an example first; nothing is formed for the others."""
        size, (_, rows, columns) = len(tables[0].came_back), part.shape
        pairs = [use.factors() for use in tables if isinstance(use, Lookup)]
        index = torch.cat([pair[0] for pair in pairs], 1)
        d = wide(torch.cat([pair[1] for pair in pairs], 1))
        flat = (index + torch.arange(size, device=index.device)[:, None] * rows).flatten()
        seen, place = torch.unique(flat, return_inverse=True)
        summed = d.new_zeros(len(seen), columns).index_add_(0, place, d.flatten(0, 1))
        if form.right is not None:
            summed = summed @ form.right[0].to(summed.dtype)
        row = seen % rows
        if self.signs:
            each = summed.abs().sum(1)
        elif isinstance(form.weight, Tensor):
            each = (summed.square() * form.weight[0, row].to(summed.dtype)).sum(1)
        else:
            each = form.weight * summed.square().sum(1)
        return each.new_zeros(size).index_add_(0, seen // rows, each)

    def _whole(self, name: str, uses: Sequence[Use]) -> Tensor:
        """Form a parameter's gradients as they are, whatever used it: for what has no other way."""
        whole, shape = _sum([wide(use.flat()) for use in uses]), uses[0].shape
        keys = self._keys.get(name, set())
        if self.signs or not keys:
            return self._squares(whole, self.rest)
        found, seen = whole.new_zeros(len(whole)), whole.new_zeros(len(whole))
        for form in (self.forms[key] for key in keys):
            span = form.part.span
            own = whole if span is None else whole.view(-1, *shape)[:, slice(*span)].flatten(1)
            found += self._summed(own.view(len(own), *form.part.shape).transpose(0, 1), form)
            seen += own.square().sum(1)
        return found + self.rest * (whole.square().sum(1) - seen).clamp_min(0)

    def _summed(self, formed: Tensor, form: Form) -> Tensor:
        """``(groups, B, rows, columns)``, or ``(1, B, 1, columns)``: rotate, square, weigh, add up."""
        formed = formed.view(formed.shape[0], formed.shape[1], *form.part.shape[1:])
        if form.right is not None:
            formed = formed @ form.right[:, None].to(formed.dtype)
        if form.left is not None:
            formed = form.left.mT[:, None].to(formed.dtype) @ formed
        return self._squares(formed.transpose(0, 1).flatten(1), form.weight)

    def _squares(self, rows: Tensor, weight: Tensor | float) -> Tensor:
        """Return Σ w x² of each row ``(B, n)``, which is written over; or Σ |x|."""
        if self.signs:
            absolute: Tensor = torch.linalg.vector_norm(rows, ord=1, dim=1)
            return absolute
        if isinstance(weight, Tensor):
            return rows.square() @ weight.to(rows.dtype).flatten()
        found: Tensor = weight * torch.linalg.vector_norm(rows, dim=1).square()
        return found

    def _room(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self._buffer.numel() < rows * columns or self._buffer.dtype != dtype or self._buffer.device != device:
            self._buffer = torch.empty(rows * columns, dtype=dtype, device=device)
        return self._buffer[: rows * columns].view(rows, columns)


def own_of(direction: Direction) -> Own | None:
    """Return what takes gᵢᵀ P gᵢ under a direction, or None where P cannot be applied to factors."""
    if direction is plain:
        return Own()
    if direction is sign:
        return Own(signs=True)
    if not isinstance(direction, Solved):
        return None
    forms = {}
    for block in direction.blocks:
        if isinstance(block, Block):
            form = Form(block.part, 1.0 / (block.values + direction.damping), block.left, block.right)
        elif isinstance(block, Slices):
            root = _root(block.gram, direction.damping)
            form = Form(block.part, 1.0, **{"right" if block.side == "columns" else "left": root})
        else:
            return None
        forms[block.part.key] = form
    return Own(forms, 1.0 / direction.damping)


def _root(gram: Tensor, damping: float) -> Tensor:
    """Return R with R Rᵀ = (G + λI)⁻¹, ``(groups, d, d)``: gᵀ(G + λI)⁻¹g is the square of Rᵀg."""
    one = torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device)
    factor = torch.linalg.cholesky(gram.double() + damping * one)
    inverse: Tensor = torch.linalg.solve_triangular(factor, one.expand_as(factor), upper=False)
    return inverse.mT.to(gram.dtype)


def _turned(side: Tensor, basis: Tensor | None) -> Tensor:
    """Return vectors ``(1, B, T, n)`` in a basis ``(1, n, n)``."""
    return side if basis is None else side @ basis[:, None].to(side.dtype)


def _same(basis: Tensor | None, uses: Sequence[Use]) -> Tensor | None:
    """Return a basis in the dtype that products with these uses are taken in."""
    return None if basis is None else basis.to(torch.promote_types(uses[0].came_back.dtype, torch.float32))


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
