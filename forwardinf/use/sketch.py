"""Gradient sketches for the uses that search a whole training set: short rows whose products stand for gradients' own.

One gradient pass with random projections on both sides of every weight gives a few thousand numbers for each example. Their
Gram matrix tells how the training examples answer one another, and whitening by it is the linear score preconditioned by
the empirical Fisher: G P g = N (K + λN)⁻¹ G g. Unit gradients whitened are the default of the uses: of all linear scores
they found most of what was to be found (docs/trace.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forwardinf.core.errors import SettingError
from forwardinf.core.fingerprint import digest
from forwardinf.core.progress import Advance
from forwardinf.data.examples import Batch
from forwardinf.data.noise import seed_of
from forwardinf.gradients.layer_uses import Convolved, Lookup, Outer, Use
from forwardinf.gradients.per_example import factored
from forwardinf.perturb.metric import Sides
from forwardinf.read.whitened import along
from forwardinf.tasks.feed import Feed
from forwardinf.use.responses import unit
from forwardinf.use.whitening import Kept, Whitening

Ask = Callable[[nn.Module, Batch], Tensor]
SIDE = 16  # numbers that each side of a weight is projected to
NARROWER = (8, 4)  # only where memory= leaves no more
WIDER = (64, 32)  # where there is room: what one sketch does not see is noise in every score
ROOM = 2**29  # bytes of all rows; comparing them takes a few times that
DAMPING = 5.0  # λN as a multiple of mean‖gᵢ‖²: what serves few rows as well as many (dev/LOG.md)
HOW = ("unit-whitened", "whitened", "cosine", "dot")
CONVOLVE = {1: F.conv1d, 2: F.conv2d}


def silent(done: int) -> None:
    """Tell nobody."""


@dataclass
class Sketcher:
    """Projects per-example gradients to short rows; the same seed gives the same projections, for any model state.

    A weight ``(out, in)`` becomes a block of ``side × side`` numbers, a vector ``4 × side``; what is that small already is
    kept as it is. Products of rows are unbiased for products of gradients.

    Attributes:
        parameters: Whose gradients count.
        side: See above. Memory: ``side² × weights`` numbers for each example.
        seed: Of the projections.
        metric: What gradients are taken through first (:mod:`forwardinf.perturb.metric`); None: they are as they are.
    """

    parameters: Mapping[str, nn.Parameter]
    side: int = SIDE
    seed: int = 0
    metric: InitVar[Mapping[str, Sides] | None] = None
    _sides: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def __post_init__(self, metric: Mapping[str, Sides] | None) -> None:
        """Draw the projections, through the metric."""
        self.places: dict[str, slice] = {}
        at = 0
        for name, parameter in self.parameters.items():
            flat = parameter.reshape(len(parameter), -1) if parameter.ndim > 1 else parameter.reshape(-1, 1)
            (tall, wide), (rows, columns) = flat.shape, _block(parameter, self.side)
            one = self._projection(f"{name}/0", tall, rows, parameter)
            other = self._projection(f"{name}/1", wide, columns, parameter) if parameter.ndim > 1 else None
            taken = Sides() if metric is None else metric.get(name, Sides())
            first = taken.right if other is None else taken.left  # a vector is the right side of its one row
            one = taken.scale * (one if first is None else first.times(one))
            self._sides[name] = one, other if other is None or taken.right is None else taken.right.times(other)
            size = rows * columns
            self.places[name] = slice(at, at + size)
            at += size
        self.width = at

    def _projection(self, name: str, size: int, to: int, like: nn.Parameter) -> Tensor:
        """Return ``(size, min(size, to))``: Gaussian with rows of mean square 1, or the identity where it is small."""
        if size <= to:
            return torch.eye(size, device=like.device)
        draw = torch.Generator().manual_seed(seed_of(self.seed, name))
        found: Tensor = torch.randn(size, to, generator=draw) / to**0.5
        return found.to(like.device)

    def rows(
        self, feed: Feed, rows: Sequence[int], batch_size: int, ask: Ask | None = None, advance: Advance = silent
    ) -> Tensor:
        """Return each row's sketched gradient of ``ask`` (default: the training loss), ``(rows, width)`` float32.

        Cost: one forward, one activation-only backward and the projections: about 3 F.
        """
        found = torch.zeros(len(rows), self.width)
        at = 0
        for piece, _, uses in factored(feed, rows, self.parameters, batch_size, ask):
            block = torch.zeros(len(piece), self.width, device=feed.device)
            for use in uses:
                block[:, self.places[use.name]] += self._of(use).flatten(1)
            found[at : at + len(piece)] = block.cpu()
            at += len(piece)
            advance(len(piece))
        return found

    def _of(self, use: Use) -> Tensor:
        """Return one use's gradient, projected: ``(B, side, side)`` or ``(B, 4 side)``."""
        one, other = self._sides[use.name]
        if other is None:
            return use.gradient().float().flatten(1) @ one
        if isinstance(use, Outer):
            a, d = (factor.float() for factor in use.factors())
            if use.turned:
                return torch.einsum("bti,bto->bio", a @ one, d @ other)
            one = one if use.rows is None else one[use.rows]
            return torch.einsum("bto,bti->boi", d @ one, a @ other)
        if isinstance(use, Lookup):
            index, back = use.factors()
            index, back = index.reshape(len(index), -1), back.float().reshape(len(back), -1, back.shape[-1])
            return torch.einsum("bto,bti->boi", one[index], back @ other)
        if isinstance(use, Convolved) and use.settings["groups"] == 1:
            # patches times a matrix are a convolution: they need not be formed
            kernel = other.T.reshape(-1, *use.shape[1:])
            seen = CONVOLVE[len(use.shape) - 2](use.entered.float(), kernel, **use.settings).flatten(2)
            back = torch.einsum("bot,os->bst", use.came_back.float().flatten(2), one)
            return torch.einsum("bot,bit->boi", back, seen)
        whole = use.gradient().float()
        return torch.einsum("bxy,xo,yi->boi", whole.reshape(len(whole), len(one), -1), one, other)


def _block(parameter: nn.Parameter, side: int) -> tuple[int, int]:
    """Return how many numbers each side of a parameter is kept as: a vector has one side, four times as long."""
    if parameter.ndim < 2:
        return min(parameter.numel(), 4 * side), 1
    return min(len(parameter), side), min(parameter[0].numel(), side)


def width_of(parameters: Mapping[str, nn.Parameter], side: int) -> int:
    """Return how many numbers a sketch of this side has."""
    return sum(math.prod(_block(parameter, side)) for parameter in parameters.values())


def bytes_of(rows: int, width: int) -> int:
    """Return the memory that so many sketches take while they are compared, whitened: they, and they at length one; the
    smaller of GᵀG and GGᵀ, damped, and its factor.
    """  # noqa: D205
    return 8 * rows * width + 24 * min(rows, width) ** 2


def side_of(
    where: str, parameters: Mapping[str, nn.Parameter], rows: int, side: int | None = None, memory: int | None = None
) -> int:
    """Return the side of so many rows' sketches.

    Args:
        where: The use, for errors.
        parameters: Whose gradients are sketched.
        rows: How many there will be.
        side: The side that is asked for; None: the widest at which the rows alone take 512 MiB, 16 where none does.
        memory: Bytes that comparing them may take (:func:`bytes_of`): the widest side that keeps to it, or an error.

    Example:
        >>> small = dict(nn.Linear(100, 100).named_parameters())
        >>> [side_of("trace", small, rows) for rows in (2000, 10**6)], side_of("trace", small, 2000, memory=2**24)
        ([64, 16], 16)
    """
    for name, value in (("side", side), ("memory", memory)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SettingError(f"{where}({name}=)", expected="a whole number ≥ 1", got=repr(value))
    if memory is None:
        if side is not None:
            return side
        fits = [wide for wide in WIDER if 4 * rows * width_of(parameters, wide) <= ROOM]
        return fits[0] if fits else SIDE
    tried = (*WIDER, SIDE, *NARROWER) if side is None else (side,)
    for one in tried:
        if bytes_of(rows, width_of(parameters, one)) <= memory:
            return one
    least = bytes_of(rows, width_of(parameters, tried[-1]))
    raise SettingError(f"{where}(memory=)", expected=f"at least {least:,} bytes for {rows:,} examples at side={tried[-1]}",
                       got=f"{memory:,}", do="Allow more, or sketch fewer: candidates=.")  # fmt: skip


def place_of(cache: Path | None, *made_from: object) -> Path | None:
    """Return the folder where rows that were made from this are kept, or None where they must not be."""
    if cache is None or any(part is None for part in made_from):
        return None
    return cache / "sketches" / digest(*made_from)


def side_by_side(pairs: Sequence[tuple[Tensor, Tensor]], how: str) -> tuple[Tensor, Tensor]:
    """Return several readings' (training, query) sketches as one: products of rows are then means over the readings.

    Each reading counts alike: at length one row by row where ``how`` compares unit gradients, else in the training rows' mean.

    Example:
        >>> train, queries = torch.eye(2), torch.ones(1, 2)
        >>> side_by_side([(train, queries), (9 * train, 9 * queries)], "dot")[1].tolist()
        [[0.7071067690849304, 0.7071067690849304, 0.7071067690849304, 0.7071067690849304]]
    """
    if len(pairs) == 1:
        return pairs[0]
    if how in ("cosine", "unit-whitened"):
        pairs = [(unit(train), unit(queries)) for train, queries in pairs]
    else:
        lengths = [train.square().sum(1).mean().sqrt() for train, _ in pairs]
        pairs = [(train / length, queries / length) for (train, queries), length in zip(pairs, lengths, strict=True)]
    train, queries = (torch.cat(side, 1) for side in zip(*pairs, strict=True))
    return train / len(pairs) ** 0.5, queries / len(pairs) ** 0.5


def check_damping(where: str, damping: float | None) -> None:
    """Refuse a damping that does not damp."""
    if damping is not None and not 0 < damping < math.inf:
        raise SettingError(where, expected="a number above 0", got=repr(damping))


class Compared(NamedTuple):
    """What came of comparing gradients, float64.

    Attributes:
        scores: ``(Q, N)``.
        own: ``(Q,)``: each query's score with itself.
        whitening: What whitened; None where nothing did.
    """

    scores: Tensor
    own: Tensor
    whitening: Whitening | None = None


def compared(
    train: Tensor,
    queries: Tensor,
    how: str,
    damping: float | None = None,
    fit: Tensor | None = None,
    kept: Kept | None = None,
) -> Compared:
    """Return scores, each query's score with itself, and what whitened them.

    Args:
        train: ``(N, M)`` sketched training gradients.
        queries: ``(Q, M)`` sketched query gradients.
        how: ``"dot"``: gᵢᵀg_q. ``"cosine"``: of unit gradients. ``"whitened"``: gᵢᵀ(GᵀG + λN)⁻¹g_q. ``"unit-whitened"``:
            the same with unit gradients everywhere.
        damping: λN as a multiple of mean‖gᵢ‖²; None: :data:`DAMPING`.
        fit: ``(N', M)``: the rows G that whiten; default ``train``.
        kept: Where the products and the factor of G are kept.

    Example:
        >>> train = torch.eye(3)[:, :2]
        >>> compared(train, train[:1], "dot")[0].tolist()
        [[1.0, 0.0, 0.0]]
    """
    if how in ("cosine", "unit-whitened"):
        train, queries, fit = unit(train), unit(queries), None if fit is None else unit(fit)
    asked = queries.double()
    if how in ("dot", "cosine"):
        return Compared(along(train, asked), asked.square().sum(1))
    whitening = Whitening(
        train if fit is None else fit, DAMPING if damping is None else damping, None if kept is None else kept.of(how)
    )
    solved = whitening.solve(asked)
    return Compared(along(train, solved), (solved * asked).sum(1), whitening)
