"""Which training examples stand out as a query's copies: several views, each a cosine, made comparable.

A view is a vector for every example: the responses of its unit gradient, the same whitened by how the training examples
respond to one another, its input, an early feature, the last hidden feature. In each view t = −log(1 − cosine) is minus the
logarithm of a squared distance. Nearest neighbours follow a power law in distance, so that the largest t are exponential:
z = (t − start) / scale says by how many mean excesses a training example stands out among neighbours, in any view. The scale
is the training examples' own: how far each one's nearest neighbour stands beyond its 20th. The start lies halfway between
where neighbours begin for the training examples at large and for this query (its t₍₂₀₎): a query in a crowd needs a closer
match than a lonely one, and its own twenty neighbours are few to tell that from (docs/leaks.md). The score of a pair adds up
the z of its views, the weakest left out where there are more than two: a copy that was cropped, recoloured or relabelled is
lost to one view, not to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.progress import Advance
from forwardinf.use.responses import unit

NEIGHBOURS = 20  # that a query's background is read from
CLOSEST = 1e-6  # 1 − cosine that float32 readings of equal examples may differ by
FLATTEST = 0.05  # scale of t below which neighbours count as equally far
RIDGE = 0.1  # of the whitening, in the unit of a unit gradient's square (PERF: unit gradients, (UUᵀ + .1 I)⁻¹)
BLOCK = 2**24  # cosines at a time
SAMPLE = 512  # training examples that the background is read from
STANDS_OUT = math.log(NEIGHBOURS / 0.01)  # z that one of twenty exponentials exceeds once in a hundred queries

Views = dict[str, Tensor]


@dataclass(frozen=True)
class Matches:
    """What :func:`matches` returns, ``(Q, K)`` each: the best candidates of every query, strongest first.

    Attributes:
        rows: Their rows among those compared.
        score: The combined score.
        z: By view: how far each stands out.
        cosine: By view.
    """

    rows: Tensor
    score: Tensor
    z: Views
    cosine: Views


def whitening(train: Tensor, ridge: float = RIDGE) -> Callable[[Tensor], Tensor]:
    """Return what whitens rows by unit responses U ``(N, M)``: u ↦ u W with W Wᵀ = (UᵀU + ridge I)⁻¹.

    A product of whitened rows is uᵢᵀ(UᵀU + ridge)⁻¹u_q, which row i of (UUᵀ + ridge)⁻¹U u_q equals.
    Cost: a factor of the smaller of N×N and M×M, float64.
    """
    rows = train.double()
    if len(rows) >= rows.shape[1]:
        inner = rows.T @ rows
        inner.diagonal().add_(ridge)
        root = torch.linalg.cholesky(inner)
        inverse: Tensor = torch.linalg.solve_triangular(root, torch.eye(len(inner), dtype=inner.dtype), upper=False)
        whole = inverse.T.float()
        return lambda u: u @ whole
    values, left = torch.linalg.eigh(rows @ rows.T)
    kept = values > 1e-10 * values[-1].clamp_min(1e-300)
    right = (rows.T @ left[:, kept] / values[kept].sqrt()).float()
    gain = ((values[kept] + ridge).rsqrt() - ridge**-0.5).float()
    return lambda u: u * ridge**-0.5 + ((u @ right) * gain) @ right.T


def as_views(features: Mapping[str, Tensor], responses: Tensor, whiten: Callable[[Tensor], Tensor]) -> Views:
    """Return the views of some examples as unit rows."""
    own = unit(responses)
    found = {"response": own, "whitened": unit(whiten(own))}
    return {**found, **{name: unit(values) for name, values in features.items()}}


COUNTED = ("whitened", "input", "early", "last")  # the plain response is told, and its whitened form counted


def closeness(cosine: Tensor) -> Tensor:
    """Return t = −log(1 − cosine)."""
    return -(1 - cosine).clamp_min(0).add(CLOSEST).log()


@dataclass(frozen=True)
class Background:
    """Where neighbours begin, and the mean of their excess, in one view, over the training examples."""

    start: float
    scale: float

    def z(self, t: Tensor) -> Tensor:
        """Return how far ``t (B, N)`` stands out, with each query's own start as one half of it."""
        own = t.topk(min(NEIGHBOURS, t.shape[1]), 1).values[:, -1:]
        return (t - (self.start + own) / 2) / self.scale


def background(rows: Tensor) -> Background:
    """Return the background of one view from unit rows ``(N, d)``: of at most 512 of them, spread evenly, among all.

    The median over rows of how far the nearest stands beyond the 20th, divided by what it is for a unit exponential: rows that
    have copies in the training set do not move it.
    """
    size = len(rows)
    count = min(NEIGHBOURS, size - 1)
    if count < 2:
        return Background(0.0, 1.0)
    sample = torch.arange(0, size, -(-size // min(SAMPLE, max(1, BLOCK // size))))
    t = closeness(rows[sample] @ rows.T)
    t[torch.arange(len(sample)), sample] = -math.inf
    best = t.topk(count, 1).values
    excess = float((best[:, 0] - best[:, -1]).median()) / -math.log(1 - 0.5 ** (1 / (count - 1)))
    return Background(float(best[:, -1].median()), max(excess, FLATTEST))


def combined(z: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over the counted views, the weakest left out where there are more than two."""
    counted = torch.stack([z[name] for name in COUNTED if name in z])
    return counted.topk(counted_views(z), 0).values.sum(0)


def counted_views(z: Mapping[str, object]) -> int:
    """Return how many views add up."""
    count = sum(name in z for name in COUNTED)
    return count - 1 if count > 2 else count


def matches(
    queries: Views,
    train: Views,
    k: int,
    *,
    also: list[list[int]] | None = None,
    only: list[list[int]] | None = None,
    advance: Advance = lambda done: None,
) -> Matches:
    """Return each query's k best training examples.

    Args:
        queries: Unit rows by view, ``(Q, d)``.
        train: The same views of the training examples, ``(N, d)``.
        k: How many.
        also: For each query, rows that are candidates whatever the views say.
        only: For each query, the only candidates.
        advance: Told of queries done.

    Cost: (Q + 512)·N·Σd multiplications. Memory: 64 MiB of cosines at a time and view.
    """
    names = [name for name in queries if name in train]
    size = len(train[names[0]])
    usual = {name: background(train[name]) for name in names}
    parts = []
    for part in _blocks(queries, train, usual, size, k, also, only):
        parts.append(part)
        advance(len(part.rows))
    return Matches(
        torch.cat([part.rows for part in parts]), torch.cat([part.score for part in parts]),
        {name: torch.cat([part.z[name] for part in parts]) for name in names},
        {name: torch.cat([part.cosine[name] for part in parts]) for name in names},
    )  # fmt: skip


def _blocks(
    queries: Views, train: Views, usual: Mapping[str, Background], size: int, k: int, also: list[list[int]] | None,
    only: list[list[int]] | None,
) -> Iterator[Matches]:  # fmt: skip
    total, step = len(queries[next(iter(usual))]), max(1, BLOCK // size)
    for start in range(0, total, step):
        rows = slice(start, min(start + step, total))
        z, cosine = {}, {}
        for name, around in usual.items():
            cosine[name] = queries[name][rows] @ train[name].T
            z[name] = around.z(closeness(cosine[name]))
        score = combined(z)
        for extra, wanted in ((also, False), (only, True)):
            if extra is not None:
                mark = torch.zeros_like(score, dtype=torch.bool)
                for place, listed in enumerate(extra[rows]):
                    mark[place, torch.tensor(listed, dtype=torch.int64)] = True
                score = (
                    score.masked_fill(~mark, -math.inf)
                    if wanted
                    else torch.where(mark, score.clamp_min(0) + 1e6, score)
                )
        best = score.topk(min(k, size), 1)
        own = combined({name: values.gather(1, best.indices) for name, values in z.items()})
        own = own.masked_fill(best.values == -math.inf, -math.inf)
        yield Matches(best.indices, own, {name: values.gather(1, best.indices) for name, values in z.items()},
                      {name: values.gather(1, best.indices) for name, values in cosine.items()})  # fmt: skip
