"""How training examples respond to one another: inner products of their gradients, from factors, never N×P at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forwardinf.gradients.layer_uses import Convolved, Lookup, Outer, Use

ENTRIES = 2**24  # numbers in the largest intermediate of one product


@dataclass
class Part:
    """Some examples' gradients of one parameter, in the cheapest form that still gives their inner products."""

    shape: torch.Size

    def dense(self) -> Tensor:
        """Return them as they are, ``(B, P)``."""
        raise NotImplementedError

    def dot(self, other: Part) -> Tensor:
        """Return ``(B, B′)`` inner products, float64."""
        return (self.dense() @ other.dense().T).double()

    def join(self, others: Sequence[Part]) -> Part:
        """Return this part's examples followed by the others'."""
        return Dense(self.shape, torch.cat([part.dense() for part in (self, *others)]))

    def size(self) -> tuple[int, int]:
        """Return (bytes, multiplications of one inner product) for one example."""
        raise NotImplementedError


@dataclass
class Dense(Part):
    """Formed gradients ``(B, P)``: many places share one kernel (convolutions), or the parameter is small."""

    formed: Tensor

    def dense(self) -> Tensor:
        """Return them."""
        return self.formed

    def size(self) -> tuple[int, int]:
        """P numbers, P multiplications."""
        return self.formed.shape[1] * self.formed.element_size(), self.formed.shape[1]


@dataclass
class Pairs(Part):
    """Σₜ dₜ aₜᵀ with few t: ⟨gᵢ, gⱼ⟩ = Σₜₛ (aᵢₜ·aⱼₛ)(dᵢₜ·dⱼₛ), so that the matrix is never formed."""

    a: Tensor
    d: Tensor

    def dense(self) -> Tensor:
        """Form them, rows of the matrix being those of d."""
        return torch.einsum("bto,bti->boi", self.d, self.a).flatten(1)

    def dot(self, other: Part) -> Tensor:
        """Multiply the two Gram matrices, entry by entry."""
        if not isinstance(other, Pairs):
            return super().dot(other)
        rows, places, count = len(other.a), other.a.shape[1], self.a.shape[1]
        step = max(1, ENTRIES // max(1, rows * places * count))
        a, d = other.a.flatten(0, 1).T, other.d.flatten(0, 1).T
        found = []
        for start in range(0, len(self.a), step):
            piece = slice(start, start + step)
            both = (self.a[piece].flatten(0, 1) @ a) * (self.d[piece].flatten(0, 1) @ d)
            found.append(both.view(-1, count, rows, places).sum((1, 3)).double())
        return torch.cat(found)

    def join(self, others: Sequence[Part]) -> Part:
        """Lay them one after the other; where one has fewer places, zeros stand for the rest."""
        pairs = [part for part in (self, *others) if isinstance(part, Pairs)]
        if len(pairs) <= len(others):
            return super().join(others)
        longest = max(part.a.shape[1] for part in pairs)
        return Pairs(self.shape, *(torch.cat([F.pad(getattr(part, side), (0, 0, 0, longest - part.a.shape[1]))
                                              for part in pairs]) for side in "ad"))  # fmt: skip

    def size(self) -> tuple[int, int]:
        """T(in + out) numbers, T²(in + out) multiplications."""
        places, width = self.a.shape[1], self.a.shape[2] + self.d.shape[2]
        return places * width * self.a.element_size(), places**2 * width


@dataclass
class Rows(Part):
    """Rows of a table that were looked up: ⟨gᵢ, gⱼ⟩ has terms only where both looked up the same row.

    Attributes:
        example: ``(n,)``: whose entry it is.
        row: ``(n,)``: which row of the table; each (example, row) once.
        d: ``(n, width)``.
        count: How many examples.
    """

    example: Tensor
    row: Tensor
    d: Tensor
    count: int

    def dense(self) -> Tensor:
        """Form them."""
        found = self.d.new_zeros(self.count, *self.shape)
        found[self.example, self.row] = self.d
        return found.flatten(1)

    def dot(self, other: Part) -> Tensor:
        """Go through the rows that both have."""
        if not isinstance(other, Rows):
            return super().dot(other)
        found = torch.zeros(self.count, other.count, dtype=torch.float64, device=self.d.device)
        theirs = other.by_row()
        for row, (example, d) in self.by_row().items():
            if row in theirs:
                across, b = theirs[row]
                found[example[:, None], across] += (d @ b.T).double()  # each example once: nothing is lost
        return found

    def by_row(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Return (examples, gradients) by row of the table."""
        order = torch.argsort(self.row, stable=True)
        rows, counts = torch.unique_consecutive(self.row[order], return_counts=True)
        sizes = counts.tolist()
        pieces = zip(torch.split(self.example[order], sizes), torch.split(self.d[order], sizes), strict=True)
        return dict(zip(rows.tolist(), pieces, strict=True))

    def join(self, others: Sequence[Part]) -> Part:
        """Lay them one after the other."""
        parts = [part for part in (self, *others) if isinstance(part, Rows)]
        if len(parts) <= len(others):
            return super().join(others)
        offsets = torch.tensor([0, *(part.count for part in parts)]).cumsum(0).tolist()
        moved = [part.example + offset for part, offset in zip(parts, offsets, strict=False)]
        return Rows(self.shape, torch.cat(moved), torch.cat([part.row for part in parts]),
                    torch.cat([part.d for part in parts]), offsets[-1])  # fmt: skip

    def size(self) -> tuple[int, int]:
        """T·width numbers; about as many multiplications, some of them met by nobody."""
        each = -(-self.d.numel() // max(self.count, 1))
        return each * self.d.element_size(), each


def parts_of(uses: Sequence[Use], size: int) -> dict[str, Part]:
    """Return the gradients of ``size`` examples by parameter name, from the uses of one batch."""
    found: dict[str, list[Use]] = {}
    for use in uses:
        found.setdefault(use.name, []).append(use)
    return {name: _part(same, size) for name, same in found.items()}


def _part(uses: list[Use], size: int) -> Part:
    shape = uses[0].shape
    if all(isinstance(use, Lookup) for use in uses):
        return _rows([use for use in uses if isinstance(use, Lookup)], size)
    pairs = _pairs(uses)
    if pairs is not None:
        return pairs
    return Dense(shape, sum((use.flat() for use in uses[1:]), uses[0].flat()))


def _pairs(uses: list[Use]) -> Pairs | None:
    """Return factors where multiplying them is cheaper than forming the matrix."""
    found = []
    for use in uses:
        if isinstance(use, Outer) and use.rows is None:
            a, d = use.factors()
            found.append((d, a) if use.turned else (a, d))
        elif isinstance(use, Convolved) and use.settings["groups"] == 1 and len(uses) == 1:
            places = use.came_back.flatten(2).shape[2]
            if places**2 * (use.shape.numel() // use.shape[0] + use.shape[0]) >= use.shape.numel():
                return None  # before its patches are taken out
            a, d = use.factors()
            found.append((a[:, 0], d[:, 0]))
        else:
            return None
    a, d = (torch.cat([pair[side] for pair in found], 1) for side in (0, 1))
    if a.shape[1] ** 2 * (a.shape[2] + d.shape[2]) >= uses[0].shape.numel():
        return None
    return Pairs(uses[0].shape, a, d)


def _rows(uses: list[Lookup], size: int) -> Rows:
    """Sum what came back to one row from one example; leave out what is zero (padding)."""
    shape = uses[0].shape
    examples, rows, ds = [], [], []
    for use in uses:
        index, d = use.factors()
        own = torch.arange(size, device=index.device)[:, None].expand_as(index)
        there = d.abs().amax(2) > 0
        examples.append(own[there])
        rows.append(index[there])
        ds.append(d[there])
    key = torch.cat(examples) * shape[0] + torch.cat(rows)
    distinct, place = torch.unique(key, return_inverse=True)
    d = torch.cat(ds)
    summed = d.new_zeros(len(distinct), shape[1]).index_add_(0, place, d)
    return Rows(shape, distinct // shape[0], distinct % shape[0], summed, size)


def products(one: dict[str, Part], other: dict[str, Part], rows: int, columns: int) -> Tensor:
    """Return ``(rows, columns)`` inner products of whole gradients, float64 on the CPU."""
    found = torch.zeros(rows, columns, dtype=torch.float64)
    for name, part in one.items():
        if name in other:
            found += part.dot(other[name]).cpu()
    return found


def joined(blocks: Sequence[tuple[int, dict[str, Part]]]) -> dict[str, Part]:
    """Return the parts of several batches, each ``(examples, parts)``, as those of one."""
    names = dict.fromkeys(name for _, parts in blocks for name in parts)
    found = {}
    for name in names:
        known = next(parts[name] for _, parts in blocks if name in parts)
        same = [parts.get(name) or _nothing(known, size) for size, parts in blocks]
        found[name] = same[0].join(same[1:])
    return found


def _nothing(like: Part, size: int) -> Part:
    """Return gradients that are zero, for a batch in which the parameter was not reached."""
    if isinstance(like, Rows):
        none = like.row.new_empty(0)
        return Rows(like.shape, none, none, like.d.new_empty(0, like.d.shape[1]), size)
    if isinstance(like, Pairs):
        return Pairs(like.shape, *(side.new_zeros(size, 1, side.shape[2]) for side in (like.a, like.d)))
    return Dense(like.shape, like.dense().new_zeros(size, like.shape.numel()))
