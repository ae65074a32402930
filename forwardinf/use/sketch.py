"""Gradient sketches for the uses that search a whole training set: short rows whose products stand for gradients' own.

One gradient pass with random projections on both sides of every weight gives a few thousand numbers for each example. Their
Gram matrix tells how the training examples answer one another, and whitening by it is the linear score preconditioned by
the empirical Fisher: G P g = N (K + λN)⁻¹ G g. Unit gradients whitened are the default of the uses: of all linear scores
they found most of what was to be found (docs/trace.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forwardinf.core.errors import ModelError, SettingError
from forwardinf.core.examples import Batch
from forwardinf.core.feed import Feed
from forwardinf.core.files import written
from forwardinf.core.fingerprint import digest
from forwardinf.core.noise import seed_of
from forwardinf.core.progress import Advance
from forwardinf.core.uses import Convolved, Lookup, Outer, Use
from forwardinf.core.watch import watched
from forwardinf.perturb.metric import Sides
from forwardinf.read.whitened import along
from forwardinf.use.responses import unit

Ask = Callable[[nn.Module, Batch], Tensor]
SIDE = 16  # numbers that each side of a weight is projected to
WIDER = (64, 32)  # where there is room: what one sketch does not see is noise in every score
ROOM = 2**29  # bytes of all rows; comparing them takes a few times that
DAMPING = 5.0  # λN as a multiple of mean‖gᵢ‖²: what serves few rows as well as many (dev/LOG.md)
HOW = ("unit-whitened", "whitened", "cosine", "dot")
CONVOLVE = {1: F.conv1d, 2: F.conv2d}
AT_ONCE = 4096  # rows whose products are added at a time


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
        strange: Parameters that were used in a way that is not known, with the function: they are missing.
    """

    parameters: Mapping[str, nn.Parameter]
    side: int = SIDE
    seed: int = 0
    metric: InitVar[Mapping[str, Sides] | None] = None
    strange: dict[str, str] = field(default_factory=dict)
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

        Raises:
            ModelError: None of the parameters is used in a way that is known.
        """
        found = torch.zeros(len(rows), self.width)
        at = 0
        for piece, _, uses, strange in watched(feed, rows, self.parameters, batch_size, ask):
            self.strange |= strange
            block = torch.zeros(len(piece), self.width, device=feed.device)
            for use in uses:
                block[:, self.places[use.name]] += self._of(use).flatten(1)
            found[at : at + len(piece)] = block.cpu()
            at += len(piece)
            advance(len(piece))
        if self.strange and len(self.strange) == len(self.parameters):
            name, function = next(iter(self.strange.items()))
            raise ModelError("gradient index", expected="layers whose gradients are known",
                             got=f"{name} used by {function}", do="Pass a perturbation=: it is read forward.")  # fmt: skip
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


def left_out(sketcher: Sketcher) -> str:
    """Return a note on the parameters that have no sketch."""
    name, function = next(iter(sketcher.strange.items()))
    count = len(sketcher.strange)
    return (f"{count} parameter{'s' if count > 1 else ''} left out of the gradients, as what they are used by has no known "
            f"gradients for single examples: {name}, used by {function}")  # fmt: skip


def widest(parameters: Mapping[str, nn.Parameter], rows: int, room: int = ROOM) -> int:
    """Return the widest side at which so many rows' sketches take ``room`` bytes at most, 16 where none does.

    Example:
        >>> [widest(dict(nn.Linear(100, 100).named_parameters()), rows) for rows in (2000, 10**6)]
        [64, 16]
    """
    for side in WIDER:
        if 4 * rows * sum(math.prod(_block(parameter, side)) for parameter in parameters.values()) <= room:
            return side
    return SIDE


def kept_rows(path: Path | None, make: Callable[[], Tensor]) -> Tensor:
    """Return rows from a file of an earlier call, or make them and keep them there."""
    if path is not None and path.is_file():
        with suppress(SafetensorError, KeyError):  # half a file: made again
            kept: Tensor = load_file(path)["rows"]
            return kept
    found = make()
    if path is not None:
        with written(path) as part:
            save_file({"rows": found.contiguous()}, part)
    return found


def place_of(cache: Path | None, *made_from: object) -> Path | None:
    """Return where rows that were made from this are kept, or None where they must not be."""
    if cache is None or any(part is None for part in made_from):
        return None
    return cache / "sketches" / f"{digest(*made_from)}.safetensors"


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


class Whitening:
    """(GᵀG + λN)⁻¹, factored through the smaller of GᵀG and GGᵀ.

    Attributes:
        ridge: λN.
    """

    def __init__(self, fit: Tensor, damping: float) -> None:
        """Factor it; ``fit``: G ``(N, M)``; ``damping``: λN as a multiple of mean‖gᵢ‖²."""
        self.ridge = damping * float(fit.double().square().sum(1).mean())
        rows, width = fit.shape
        self._fit = fit
        self._gram: Tensor | None = None
        if rows >= width:
            inner = torch.zeros(width, width, dtype=torch.float64)
            for piece in torch.split(fit, AT_ONCE):
                inner += (piece.T @ piece).double()
        else:
            self._gram = along(fit, fit.double())
            inner = self._gram.clone()
        inner.diagonal().add_(self.ridge)
        self._root = torch.linalg.cholesky(inner)

    def solve(self, asked: Tensor) -> Tensor:
        """Return ``asked (GᵀG + λN)⁻¹``, ``(Q, M)`` float64."""
        if self._gram is None:
            return torch.cholesky_solve(asked.T, self._root).T
        held = torch.cholesky_solve(along(self._fit, asked).T, self._root)  # a = (K + λN)⁻¹ G g
        return (asked - along(self._fit.T, held.T)) / self.ridge  # push on the query, hold the rest

    def answers(self, rows: Tensor) -> Tensor:
        """Return how some of G's rows answer one another, G(GᵀG + λN)⁻¹Gᵀ = K(K + λN)⁻¹ of these, ``(rows, rows)``."""
        if self._gram is not None:
            return torch.cholesky_solve(self._gram[:, rows], self._root)[rows]
        own = self._fit[rows].double()
        return self.solve(own) @ own.T


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
    train: Tensor, queries: Tensor, how: str, damping: float | None = None, fit: Tensor | None = None
) -> Compared:
    """Return scores, each query's score with itself, and what whitened them.

    Args:
        train: ``(N, M)`` sketched training gradients.
        queries: ``(Q, M)`` sketched query gradients.
        how: ``"dot"``: gᵢᵀg_q. ``"cosine"``: of unit gradients. ``"whitened"``: gᵢᵀ(GᵀG + λN)⁻¹g_q. ``"unit-whitened"``:
            the same with unit gradients everywhere.
        damping: λN as a multiple of mean‖gᵢ‖²; None: :data:`DAMPING`.
        fit: ``(N', M)``: the rows G that whiten; default ``train``.

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
    whitening = Whitening(train if fit is None else fit, DAMPING if damping is None else damping)
    solved = whitening.solve(asked)
    return Compared(along(train, solved), (solved * asked).sum(1), whitening)
