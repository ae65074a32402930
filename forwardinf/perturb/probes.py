"""Shared random directions u_m, the same for every query, with E[u uᵀ] = I: responses to them are a gradient sketch.

With R[i, m] = gᵢᵀu_m, RRᵀ/M estimates the Gram matrix of the gradients without bias. R can be filled by forward passes
alone (perturb along :meth:`Probes.direction`, read, divide by the length) or from one gradient pass
(:meth:`Probes.responses`): the same numbers. Directions are made from a seed where they are needed, never all stored.

The structured kind makes M = 4,096 responses cost a few forwards. Signs times rows of a Hadamard matrix: a large matrix
gets rank one (a row for its inputs times a row for its outputs, so that factors meet factors: tensor sketches, Pham &
Pagh 2013), everything else one signed row that wraps around (fast Johnson–Lindenstrauss, Ailon & Chazelle 2006). Within a
block of probes the rows are orthogonal, which leaves it less variance than independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forwardinf.core.errors import choose
from forwardinf.data.noise import seed_of
from forwardinf.gradients.layer_uses import Convolved, Lookup, Outer, Use
from forwardinf.gradients.per_example import factored
from forwardinf.perturb.direction import Tensors
from forwardinf.tasks.feed import Feed

KINDS = ("structured", "gaussian")
WIDEST = 4096  # probes of one block: a power of four, so that its transform is two small matrix products
FLAT_MATRIX, FLAT_KERNEL = 2**15, 2**18  # up to this many entries a matrix (a kernel) is cheaper formed than factored
ENTRIES = 2**22  # numbers in the largest intermediate
KEPT = 2**28  # bytes of dense directions that are kept between batches


class Probes:
    """M shared random directions over ``parameters``.

    Args:
        parameters: Those that move, by name.
        count: M.
        seed: Another seed, other directions.
        kind: ``"structured"``; or ``"gaussian"``, independent normal entries: the reference, for small models.
        tables: Names of embedding tables, whose gradients are sparse; see :func:`tables_of`.
        width: Probes of one block, a power of two; default by M. With a width of its own, more probes leave the first as
            they are.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        count: int,
        *,
        seed: int = 0,
        kind: str = "structured",
        tables: Collection[str] = (),
        width: int | None = None,
    ) -> None:
        """Draw nothing yet."""
        if kind not in KINDS:
            raise choose("Probes(kind=)", kind, KINDS)
        self.parameters, self.count, self.seed, self.kind = dict(parameters), count, seed, kind
        self.width = width or min(WIDEST, 2 ** math.ceil(math.log2(max(count, 2))))
        self.outer = {name for name, p in self.parameters.items() if name not in tables and _large(p.shape)}
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def direction(self, m: int) -> Tensors:
        """Return u_m, float32 or wider, by parameter name. Cost: P numbers."""
        found = {}
        for name, parameter in self.parameters.items():
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            if self.kind == "gaussian":
                u = torch.randn(parameter.shape, generator=self._draw(name, m))
            else:
                u = self._row(name, parameter.shape, *divmod(m, self.width))
            found[name] = u.to(parameter.device, dtype)
        return found

    def responses(self, uses: Sequence[Use], size: int) -> Tensor:
        """Return gᵢᵀu_m of ``size`` examples, ``(B, M)``, from the uses of a recorded batch; on their device."""
        if self.kind == "gaussian":
            return self._dense(uses, size)
        blocks = [self._block(uses, size, block) for block in range(-(-self.count // self.width))]
        return torch.cat(blocks, 1)[:, : self.count]

    # -- structured ------------------------------------------------------------------------------------------------------

    def _row(self, name: str, shape: torch.Size, block: int, row: int) -> Tensor:
        """Return one structured direction of one parameter."""
        if name not in self.outer:
            places = (torch.arange(shape.numel()) + self._shift(name, block)) % self.width
            return (self._signs(name, block, "all", shape.numel()) * hadamard_row(row, self.width)[places]).view(shape)
        out, inside = shape[0], shape.numel() // shape[0]
        other = int(self._shuffle(name, block)[row])
        left = self._signs(name, block, "out", out) * hadamard_row(other, self.width)[torch.arange(out) % self.width]
        right = (
            self._signs(name, block, "in", inside) * hadamard_row(row, self.width)[torch.arange(inside) % self.width]
        )
        return torch.outer(left, right).view(shape)

    def _block(self, uses: Sequence[Use], size: int, block: int) -> Tensor:
        """Return the responses to one block of probes, ``(B, width)``."""
        like = next((use.came_back for use in uses), torch.empty(0))
        folded = torch.zeros(size, self.width, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
        found = torch.zeros_like(folded)
        for use in uses:
            if use.name in self.outer:
                found += self._factored(use, block)
            else:
                self._fold(use, block, folded)
        return found + hadamard(folded, self.width)

    def _fold(self, use: Use, block: int, folded: Tensor) -> None:
        """Add a gradient, signed, entry i at place (i + shift) modulo the width."""
        shift, count = self._shift(use.name, block), use.shape.numel()
        signs = self._signs(use.name, block, "all", count).to(folded.device)
        if isinstance(use, Lookup):
            index, d = use.factors()
            entry = index[..., None] * use.shape[1] + torch.arange(use.shape[1], device=index.device)
            folded.scatter_add_(
                1, ((entry + shift) % self.width).flatten(1), (d * signs[entry]).to(folded.dtype).flatten(1)
            )
            return
        signed = use.flat().to(folded.dtype) * signs
        signed = F.pad(signed, (shift, -(count + shift) % self.width))
        folded += signed.view(len(signed), -1, self.width).sum(1)

    def _factored(self, use: Use, block: int) -> Tensor:
        """Return the responses of a large matrix, ``(B, width)``: Σₜ (p_outᵀ dₜ)(aₜᵀ p_in)."""
        out, inside, at = use.shape[0], use.shape.numel() // use.shape[0], use.came_back.device
        order = self._shuffle(use.name, block).to(at)
        out_signs = self._signs(use.name, block, "out", out).to(at)
        in_signs = self._signs(use.name, block, "in", inside).to(at)

        def into(a: Tensor) -> Tensor:
            return hadamard(fold(a * in_signs, self.width), self.width)

        if isinstance(use, Lookup):  # d of a row is a unit vector: its transform is a column
            row, d = use.factors()

            def met(a: Tensor, row: Tensor) -> Tensor:
                return into(a) * columns(row % self.width, self.width)[..., order] * out_signs[row][..., None]

            return self._summed(met, d, row)
        factors = _factors(use)
        if factors is not None and factors[0].shape[1] <= out:

            def both(a: Tensor, d: Tensor) -> Tensor:
                return into(a) * hadamard(fold(d * out_signs, self.width), self.width)[..., order]

            return self._summed(both, *factors)
        left = columns(torch.arange(out, device=at) % self.width, self.width)[:, order] * out_signs[:, None]
        return self._summed(lambda g: into(g) * left, use.gradient().reshape(-1, out, inside))

    def _summed(self, met: Callable[..., Tensor], *factors: Tensor) -> Tensor:
        """Return ``met(…) (b, T, width)`` summed over T, a few examples at a time."""
        step = max(1, ENTRIES // (self.width * max(1, factors[0].shape[1])))
        pieces = zip(*(torch.split(factor, step) for factor in factors), strict=True)
        return torch.cat([met(*piece).sum(1) for piece in pieces])

    # -- gaussian --------------------------------------------------------------------------------------------------------

    def _dense(self, uses: Sequence[Use], size: int) -> Tensor:
        like = next((use.came_back for use in uses), torch.empty(0))
        found = torch.zeros(size, self.count, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
        for use in uses:
            gradient = use.flat().to(found.dtype)
            step = max(1, KEPT // (4 * gradient.shape[1]))
            for start in range(0, self.count, step):
                stop = min(start + step, self.count)
                found[:, start:stop] += gradient @ self._drawn(use.name, start, stop).to(gradient).T
        return found

    def _drawn(self, name: str, start: int, stop: int) -> Tensor:
        key = ("normal", name, start, stop)
        if key in self._kept:
            return self._kept[key]
        shape = self.parameters[name].shape
        rows = torch.stack([torch.randn(shape, generator=self._draw(name, m)).flatten() for m in range(start, stop)])
        if rows.nbytes + sum(kept.nbytes for kept in self._kept.values()) <= KEPT:
            self._kept[key] = rows
        return rows

    # -- what is drawn ---------------------------------------------------------------------------------------------------

    def _draw(self, *what: object) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of("probes", self.kind, self.seed, *what))

    def _signs(self, name: str, block: int, side: str, count: int) -> Tensor:
        """Return random signs, one byte each, kept: P bytes a block in all."""
        return self._once(
            ("signs", name, block, side),
            lambda: torch.randint(0, 2, (count,), dtype=torch.int8, generator=self._draw(name, block, side)) * 2 - 1,
        )

    def _shuffle(self, name: str, block: int) -> Tensor:
        """Return the order in which the rows of the outputs meet those of the inputs."""
        return self._once(
            ("order", name, block), lambda: torch.randperm(self.width, generator=self._draw(name, block, "order"))
        )

    def _shift(self, name: str, block: int) -> int:
        return int(seed_of("shift", self.seed, name, block) % self.width)

    def _once(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def tables_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """Return the names of embedding tables that nothing else uses (a table tied to an output layer is a matrix)."""
    users: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(module)
    return {
        name
        for name, parameter in parameters.items()
        if users.get(parameter) and all(isinstance(user, nn.Embedding | nn.EmbeddingBag) for user in users[parameter])
    }


def probe_responses(
    feed: Feed,
    rows: Sequence[int],
    probes: Probes,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Return R, the training examples' responses, ``(units, M)`` float32 on the CPU.

    Cost: one forward, one activation-only backward, and the projections (M = 4,096 on a CNN of 0.6 M parameters: about
    as much again).
    """
    found = []
    for units, _, uses in factored(feed, rows, probes.parameters, batch_size):
        found.append(probes.responses(uses, len(units)).float().cpu())
        advance(len(units))
    return torch.cat(found)


# -- transforms ----------------------------------------------------------------------------------------------------------


@cache
def matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the Hadamard matrix of a power of two, entries ±1, row m at place k: (−1)^popcount(m & k)."""
    found = torch.ones(1, 1, dtype=dtype, device=device)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found


def hadamard(x: Tensor, width: int) -> Tensor:
    """Return the Hadamard transform of the last axis ``(…, n) → (…, width)``, n ≤ width, as if padded with zeros.

    Two small matrix products: width·√width multiplications, fewer where n is small.

    Example:
        >>> hadamard(torch.tensor([1.0, 2.0]), 4)
        tensor([ 3., -1.,  3., -1.])
    """
    across = 2 ** ((width.bit_length() - 1) // 2)
    down, used = width // across, -(-x.shape[-1] // across)
    x = torch.unflatten(F.pad(x, (0, used * across - x.shape[-1])), -1, (used, across))
    x = x @ matrix(across, x.dtype, x.device)
    if used == 1:  # the other factor's first column is all ones
        return x.expand(*x.shape[:-2], down, across).flatten(-2)
    return (matrix(down, x.dtype, x.device)[:, :used] @ x).flatten(-2)


def hadamard_row(m: int, width: int) -> Tensor:
    """Return row m, ±1, one byte each."""
    return columns(torch.tensor([m]), width)[0]


def columns(index: Tensor, width: int) -> Tensor:
    """Return rows (or columns: the matrix is symmetric) ``index`` of the Hadamard matrix, ``(…, width)``, ±1."""
    split = 2 ** ((width.bit_length() - 1) // 2)
    high = matrix(width // split, torch.int8, index.device)[index // split]
    low = matrix(split, torch.int8, index.device)[index % split]
    return (high[..., :, None] * low[..., None, :]).flatten(-2)


def fold(x: Tensor, width: int) -> Tensor:
    """Add up what is ``width`` apart in the last axis; shorter axes stay as they are."""
    if x.shape[-1] <= width:
        return x
    return torch.unflatten(F.pad(x, (0, -x.shape[-1] % width)), -1, (-1, width)).sum(-2)


def _large(shape: torch.Size) -> bool:
    return len(shape) > 1 and shape.numel() > (FLAT_MATRIX if len(shape) == 2 else FLAT_KERNEL)


def _factors(use: Use) -> tuple[Tensor, Tensor] | None:
    """Return (a, d) ``(B, T, in), (B, T, out)`` of a whole matrix, or None where only the formed gradient will do."""
    if isinstance(use, Outer) and use.rows is None:
        a, d = use.factors()
        return (d, a) if use.turned else (a, d)
    if isinstance(use, Convolved) and use.settings["groups"] == 1:
        places = use.came_back.flatten(2).shape[2]
        if places <= use.shape[0]:
            a, d = use.factors()
            return a[:, 0], d[:, 0]
    return None
