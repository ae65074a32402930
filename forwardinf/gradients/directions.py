"""A block of query directions, laid out for products with many gradients at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MOST_RANKS = 8  # beyond this a direction's factors cost more than they save
ROUNDING = 16  # roundings of the dtype that may be left of a matrix when its factors are taken away


class Directions:
    """The directions of several queries: one matrix ``(queries, elements)`` for each parameter.

    Kept in float32 (float64 for a float64 model), ``queries × parameters × 4`` bytes.

    Args:
        shapes: Of the parameters that move, by name.
        count: How many queries.
        dtype: What products are taken in.
        device: Where.
    """

    def __init__(
        self, shapes: Mapping[str, torch.Size], count: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        """Start with zeros: a parameter that a query does not touch has no direction."""
        self.count, self.dtype, self.shapes = count, dtype, dict(shapes)
        self.tables = {name: torch.zeros(count, shape.numel(), dtype=dtype, device=device)
                       for name, shape in shapes.items()}  # fmt: skip
        self._factors: dict[str, tuple[Tensor, Tensor] | None] = {}

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        """Memory that the block takes."""
        return sum(table.nbytes for table in self.tables.values())

    def put(self, place: int, direction: Mapping[str, Tensor]) -> None:
        """Take one query's direction."""
        for name, tensor in direction.items():
            self.tables[name][place] = tensor.detach().reshape(-1).to(self.dtype)
        self._factors.clear()

    def less(self, other: Directions, divisor: float) -> Directions:
        """Return this block, made (itself − other) / divisor in place."""
        for name, table in self.tables.items():
            table.sub_(other.tables[name]).div_(divisor)
        self._factors.clear()
        return self

    def of(self, place: int) -> dict[str, Tensor]:
        """Return one query's direction, a copy."""
        return {name: table[place].view(self.shapes[name]).clone() for name, table in self.tables.items()}

    def table(self, name: str) -> Tensor:
        """Return ``(queries, elements)``."""
        return self.tables[name]

    def norms(self) -> Tensor:
        """Return each direction's Euclidean norm, ``(queries,)`` float64 on the CPU."""
        squares = torch.zeros(self.count, dtype=torch.float64)
        for table in self.tables.values():
            for place in range(self.count):  # one row at a time: no float64 copy of a whole table
                squares[place] += table[place].double().square().sum().cpu()
        return squares.sqrt()

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return ``(w (queries, ranks, out), v (queries, ranks, in))`` whose Σ w vᵀ is the table, or None.

        A query of one example gives a linear layer that saw one vector a gradient of rank one; so does a Kronecker-factored
        direction made from it. Found by taking rows away (adaptive cross approximation), exact to rounding or not at all.
        """
        if name not in self._factors:
            self._factors[name] = _low_rank(self.tables[name], self.shapes[name])
        return self._factors[name]


def _low_rank(table: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
    if len(shape) != 2 or min(shape) < 4 * MOST_RANKS:
        return None
    found: list[tuple[list[Tensor], list[Tensor]]] = []
    for row in table:
        parts = _crosses(row.view(shape))
        if parts is None:  # one that is not low is enough: the others would share its pass
            return None
        found.append(parts)
    ranks = max(1, max(len(left) for left, _ in found))
    w, v = table.new_zeros(len(table), ranks, shape[0]), table.new_zeros(len(table), ranks, shape[1])
    for place, (left, right) in enumerate(found):
        for rank, (one, other) in enumerate(zip(left, right, strict=True)):
            w[place, rank], v[place, rank] = one, other
    return w, v


def _crosses(matrix: Tensor) -> tuple[list[Tensor], list[Tensor]] | None:
    """Return the matrix as a few outer products, or None. The row with the largest rest gives the next one."""
    size = float(matrix.norm())
    limit = ROUNDING * torch.finfo(matrix.dtype).eps * size
    left: list[Tensor] = []
    right: list[Tensor] = []
    rest = matrix
    for _ in range(MOST_RANKS + 1):
        rows = rest.norm(dim=1)
        if float(rows.norm()) <= limit:
            return left, right
        if len(left) == MOST_RANKS:
            return None
        across = rest[int(rows.argmax())]
        across = across / across.norm()
        down = rest @ across
        left.append(down)
        right.append(across)
        rest = rest - torch.outer(down, across)
    return None
