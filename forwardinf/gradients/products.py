"""Products of every example's gradient with a block of directions, and sums of gradients with a block of weights, layer by layer.

A gradient is a sum of outer products of what entered a layer and what came back to it (``gradients/layer_uses.py``), so that its
product with a direction V can be taken without it, or through it:

- *direct*: Σₜ dₜ·(V aₜ), where a layer saw one vector, or there is one query;
- *low*: Σₜ Σᵣ (dₜ·wᵣ)(aₜ·vᵣ), where the directions themselves are few outer products;
- *formed*: the gradients of a few examples are formed into one buffer that stays in place (fresh memory costs more than the
  arithmetic), then one matrix product with all directions.

The choice depends on shapes alone, so that a resumed run makes the same one. Weighted sums Σᵢ wᵢgᵢ are the same contraction
turned round: an example that saw one vector is scaled and multiplied, other gradients are formed first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forwardinf.gradients.directions import Directions
from forwardinf.gradients.kernels import by_patches, form_kernels, pieces
from forwardinf.gradients.layer_uses import Convolved, Lookup, Outer, Use

TOUCH = 10  # what writing and reading one number costs, in multiplications of a matrix product
PATCHES = 2.5  # what cutting patches costs, beside their product
BUFFER = 16 * 2**20  # elements of the buffer in which gradients are formed (64 MiB in float32)


class Products:
    """Takes products; holds the buffer.

    Args:
        dtype: What they are taken in.
        device: Where.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        """Start without a buffer; it grows to what is needed, at most 64 MiB or one example's gradient."""
        self.dtype, self.device = dtype, device
        self._buffer = torch.empty(0, dtype=dtype, device=device)
        self._cut: tuple[Tensor, int, Tensor] | None = None  # what entered a call, its number, and its patches

    def room(self, rows: int, columns: int) -> Tensor:
        """Return ``(rows, columns)`` of the buffer, contents undefined."""
        if self._buffer.numel() < rows * columns:
            self._buffer = torch.empty(rows * columns, dtype=self.dtype, device=self.device)
        return self._buffer[: rows * columns].view(rows, columns)

    @property
    def nbytes(self) -> int:
        """Memory of the buffer."""
        return self._buffer.nbytes

    def of(self, use: Use, directions: Directions) -> Tensor:
        """Return each example's product through this use with each direction, ``(B, queries)``."""
        if isinstance(use, Outer):
            return self._outer(use, directions)
        if isinstance(use, Convolved):
            return self._convolved(use, directions)
        if isinstance(use, Lookup):
            return self._lookup(use, directions)
        return use.flat().to(self.dtype) @ directions.table(use.name).T

    def add(self, use: Use, weights: Tensor, total: Directions) -> None:
        """Add Σᵢ wᵢgᵢ through this use to each direction of ``total``; ``weights (B, queries)``."""
        own, table = weights.to(self.dtype), total.table(use.name)
        if isinstance(use, Outer):
            self._add_outer(use, own, table)
        elif isinstance(use, Convolved):
            for piece, formed in self._kernels(use):
                table.addmm_(own[piece].T, formed)
        elif isinstance(use, Lookup):
            index, d = use.factors()
            for row, scale in zip(table.view(-1, *use.shape), own.T, strict=True):
                row.index_add_(0, index.reshape(-1), (d.to(self.dtype) * scale[:, None, None]).reshape(-1, d.shape[-1]))
        else:
            table.addmm_(own.T, use.flat().to(self.dtype))

    def formed(self, use: Use) -> Tensor:
        """Return each example's gradient through this use, ``(B, size)``; it lasts until the next one is formed.

        Of one call whose output several things came back to, one after the other, patches are cut once.
        """
        if not isinstance(use, Convolved):
            return use.flat().detach().to(self.dtype)
        room = self.room(len(use.entered), use.shape.numel())
        form_kernels(use, slice(None), room, self._patches(use) if by_patches(use, room) else None)
        return room

    def _patches(self, use: Convolved) -> Tensor:
        known = self._cut is not None and self._cut[0] is use.entered and self._cut[1] == use.call
        if self._cut is None or not known:
            self._cut = use.entered, use.call, use.patches()
        return self._cut[2]

    # -- matrices ----------------------------------------------------------------------------------------------------

    def _outer(self, use: Outer, directions: Directions) -> Tensor:
        a, d = self._sides(use)
        table = directions.table(use.name).view(directions.count, *use.matrix)
        if use.rows is not None:
            table = table[:, use.rows]
        factors = None if use.rows is not None else directions.factors(use.name)
        way = outer_way(
            a.shape[1], a.shape[2], d.shape[2], directions.count, 0 if factors is None else factors[0].shape[1]
        )
        if way == "low" and factors is not None:
            return self._low(a, d, *factors)
        if way == "direct":
            return self._direct(a, d, table)
        return self._formed(d, a, table.reshape(directions.count, -1))

    def _sides(self, use: Outer) -> tuple[Tensor, Tensor]:
        """Return (a, d) of Σₜ dₜaₜᵀ as the parameter lies: the two changed over where it is (in, out)."""
        a, d = (factor.to(self.dtype) for factor in use.factors())
        return (d, a) if use.turned else (a, d)

    def _add_outer(self, use: Outer, weights: Tensor, table: Tensor) -> None:
        a, d = self._sides(use)
        whole = table.view(-1, *use.matrix)
        part = whole if use.rows is None else whole[:, use.rows]
        if a.shape[1] == 1:
            for row, scale in zip(part, weights.T, strict=True):
                row.addmm_((d[:, 0] * scale[:, None]).T, a[:, 0])
            return
        for piece, formed in self._matrices(d, a):
            part += (weights[piece].T @ formed).view(part.shape)

    def _low(self, a: Tensor, d: Tensor, w: Tensor, v: Tensor) -> Tensor:
        """``(B, T, in)``, ``(B, T, out)`` with Σᵣ wᵣ vᵣᵀ: Σₜ Σᵣ (d·w)(a·v)."""
        count, ranks = w.shape[:2]
        found = []
        for piece in pieces(len(a), a.shape[1] * count * ranks):
            both = (a[piece] @ v.flatten(0, 1).T) * (d[piece] @ w.flatten(0, 1).T)
            found.append(both.sum(1).view(-1, count, ranks).sum(2))
        return torch.cat(found)

    def _direct(self, a: Tensor, d: Tensor, table: Tensor) -> Tensor:
        """Contract the longer side first: what stands between is the shorter one for each query."""
        if a.shape[2] < d.shape[2]:
            a, d, table = d, a, table.transpose(1, 2)
        count, short, long = table.shape
        flat = table.reshape(count * short, long)
        found = []
        for piece in pieces(len(a), a.shape[1] * count * short):
            between = (a[piece] @ flat.T).view(-1, a.shape[1], count, short)
            found.append(torch.einsum("btqs,bts->bq", between, d[piece]))
        return torch.cat(found)

    def _formed(self, d: Tensor, a: Tensor, table: Tensor) -> Tensor:
        """``(B, T, out)``, ``(B, T, in)``: form Σₜ dₜaₜᵀ of some examples, then all directions at once."""
        return torch.cat([formed @ table.T for _, formed in self._matrices(d, a)])

    def _matrices(self, d: Tensor, a: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (examples, their Σₜ dₜaₜᵀ as rows), in the buffer."""
        size = d.shape[2] * a.shape[2]
        for piece in pieces(len(a), size, BUFFER):
            room = self.room(len(a[piece]), size)
            torch.bmm(d[piece].transpose(1, 2), a[piece], out=room.view(-1, d.shape[2], a.shape[2]))
            yield piece, room

    # -- convolutions ------------------------------------------------------------------------------------------------

    def _convolved(self, use: Convolved, directions: Directions) -> Tensor:
        table = directions.table(use.name)
        places = use.came_back.shape[2:].numel()
        if convolved_way(places, use.shape, use.settings["groups"], directions.count) == "direct":
            return self._convolve(use, table)
        return torch.cat([formed @ table.T for _, formed in self._kernels(use)])

    def _kernels(self, use: Convolved) -> Iterator[tuple[slice, Tensor]]:
        """Yield (examples, the kernel's gradients as rows), in the buffer."""
        size = use.shape.numel()
        for piece in pieces(len(use.entered), size, BUFFER):
            room = self.room(len(use.entered[piece]), size)
            form_kernels(use, piece, room)
            yield piece, room

    def _convolve(self, use: Convolved, table: Tensor) -> Tensor:
        """Convolve what entered with the directions as kernels; the product with what came back is the score."""
        x, d, count = use.entered, use.came_back, len(table)
        kernels = table.view(count * use.shape[0], *use.shape[1:])
        convolve = F.conv1d if len(use.shape) == 3 else F.conv2d
        found = []
        for piece in pieces(len(x), d[0].numel() * count):
            between = convolve(x[piece].to(self.dtype), kernels, **use.settings)
            back = d[piece].to(self.dtype).reshape(len(d[piece]), -1)
            found.append(torch.einsum("bqs,bs->bq", between.reshape(len(back), count, -1), back))
        return torch.cat(found)

    # -- tables ------------------------------------------------------------------------------------------------------

    def _lookup(self, use: Lookup, directions: Directions) -> Tensor:
        index, d = use.factors()
        table = directions.table(use.name).view(directions.count, *use.shape)
        found = []
        for piece in pieces(len(index), d[0].numel() * directions.count):
            rows = table.index_select(1, index[piece].reshape(-1)).view(directions.count, len(index[piece]), -1)
            found.append(torch.einsum("qbs,bs->bq", rows, d[piece].to(self.dtype).reshape(len(index[piece]), -1)))
        return torch.cat(found)


def product_dtype(parameters: Mapping[str, nn.Parameter]) -> torch.dtype:
    """Return what products are taken in: float64 for a float64 model, else float32."""
    wide = any(parameter.dtype == torch.float64 for parameter in parameters.values())
    return torch.float64 if wide else torch.float32


def outer_way(places: int, inside: int, outside: int, count: int, ranks: int) -> str:
    """Return ``"direct"``, ``"low"`` or ``"formed"``: the fewest operations for each example.

    Args:
        places: How many vectors the layer saw of an example.
        inside: Their width.
        outside: The width at the output.
        count: Queries.
        ranks: Outer products in each direction; 0: unknown or many.
    """
    size = inside * outside
    costs = {
        "formed": places * size + TOUCH * size + count * size,
        "direct": places * count * (size + TOUCH * min(inside, outside)),
    }
    if ranks:
        costs["low"] = places * count * ranks * (inside + outside + TOUCH)
    return min(costs, key=lambda way: costs[way])


def convolved_way(places: int, shape: torch.Size, groups: int, count: int) -> str:
    """Return ``"direct"`` (a convolution for each query) or ``"formed"``."""
    size = shape.numel()
    formed = PATCHES * places * size + TOUCH * size + count * size
    direct = places * count * (size + TOUCH * shape[0])
    return "direct" if groups == 1 and direct < formed else "formed"
