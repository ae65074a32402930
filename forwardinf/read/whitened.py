"""Linear scores under ``hold`` of all queries, from one plain reading: whitened by how the training examples respond.

With S = G g_q the plain scores and K = GGᵀ, G P g_q = N (K + λN)⁻¹ S (``gradients/ridge.py``): what reading along the direction
would give, without a backward pass over the training set for each query. Tempered gradients g̃ᵢ = gᵢ/‖gᵢ‖^β stand in K
and S for the plain ones; what comes out here is gᵢᵀP g_q all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.progress import Advance
from forwardinf.gradients.per_example import Tensors, per_example_gradients
from forwardinf.gradients.recording import Parameters
from forwardinf.gradients.ridge import PIECE, Ridge
from forwardinf.read.factored import FactoredEngine
from forwardinf.tasks.feed import Feed


@dataclass(frozen=True)
class Whitened:
    """Linear scores and what belongs to them, float64.

    Attributes:
        values: ``(Q, N)``: gᵢᵀP g_q.
        rise: ``(Q,)``: g_qᵀP g_q.
        cross: ``(Q, rows)``: ℓ′ᵀP g_q of each query row's own loss gradient ℓ′.
    """

    values: Tensor
    rise: Tensor
    cross: Tensor


def read_whitened(
    train: FactoredEngine,
    queries: FactoredEngine,
    ridge: Ridge,
    gradient: Callable[[int], Tensors],
    weights: Tensor,
    block: int,
    advance: Advance,
) -> Whitened:
    """Return the scores of queries.

    Args:
        train: Reads the training examples.
        queries: Reads the queries' own rows.
        ridge: (K + λN)⁻¹ of all training examples.
        gradient: The gradient of what query q is asked.
        weights: ``(Q,)``: where queries are asked their losses, what the loss gradient is multiplied by.
        block: How many queries' gradients are held at once.
        advance: Told of training rows read.

    Cost: a forward and an activation-only backward over the training set for each block of queries (twice where queries are
    not single rows asked their own loss), and N² multiplications a query. Memory: three ``(Q, N)`` float64 tables.
    """
    count = len(weights)
    rows, asked_rows = range(len(train.feed.examples)), range(len(queries.feed.examples))
    plain, between, squares = [], [], []
    task = queries.feed.task
    same = count == len(asked_rows) and task.asks_loss and not task.asks
    for start in range(0, count, block):
        places = range(start, min(start + block, count))
        directions = train.directions(len(places))
        for at, query in enumerate(places):
            own = gradient(query)
            squares.append(sum(float(tensor.double().square().sum()) for tensor in own.values()))
            directions.put(at, own)
        plain.append(train.read(directions, rows, advance))
        between.append(queries.read(directions, asked_rows))
    scores, crossed = torch.cat(plain) * ridge.inverse, torch.cat(between)
    losses = scores / weights[:, None] if same else _losses(train, queries, block, advance) * ridge.inverse
    solved = ridge.solve(scores)
    rise = (torch.tensor(squares, dtype=torch.float64) - (scores * solved).sum(1)) / ridge.damping
    return Whitened(ridge.scores(solved), rise, (crossed - solved @ losses.T) / ridge.damping)


def sketched(
    ridge: Ridge, responses: Tensor, asked: Sequence[Tensor], own: Sequence[Tensor], advance: Advance
) -> Whitened:
    """Return the scores of queries from responses to shared probes: nothing is read any more.

    Plain scores are taken from the same sketch as K: with exact ones, what the sketch does not see would be divided by λ.

    Args:
        ridge: (K + λN)⁻¹ of the sketch K ≈ RRᵀ.
        responses: R, ``(N, M)``.
        asked: Each query's responses, ``(M,)``: of the gradient of what it is asked.
        own: Each query row's, of its own loss gradient.
        advance: Told of training rows done.
    """
    table, rows = torch.stack(list(asked)), torch.stack(list(own))
    scores, losses = (along(responses, of) * ridge.inverse for of in (table, rows))
    solved = ridge.solve(scores)
    advance(len(responses))
    rise = (table.square().sum(1) - (scores * solved).sum(1)) / ridge.damping
    return Whitened(ridge.scores(solved), rise, (table @ rows.T - solved @ losses.T) / ridge.damping)


def along(responses: Tensor, asked: Tensor) -> Tensor:
    """Return ``asked Rᵀ``, ``(Q, N)`` float64, widening a few rows of R at a time: it may be larger than memory."""
    return torch.cat([asked.double() @ piece.double().T for piece in torch.split(responses, PIECE)], 1)


def _losses(train: FactoredEngine, queries: FactoredEngine, block: int, advance: Advance) -> Tensor:
    """Return gᵢᵀℓ′ of every query row's own loss gradient, ``(rows, N)``."""
    found, asked_rows = [], range(len(queries.feed.examples))
    for start in range(0, len(asked_rows), block):
        places = asked_rows[start : start + block]
        directions = train.directions(len(places))
        for at, row in enumerate(places):
            if row not in queries.feed.skipped:
                directions.put(at, loss_gradient(queries.feed, row, queries.parameters))
        found.append(train.read(directions, range(len(train.feed.examples)), advance))
    return torch.cat(found)


def loss_gradient(queries: Feed, row: int, parameters: Parameters) -> Tensors:
    """Return the gradient of a query row's own training loss."""
    return next(per_example_gradients(queries, [row], parameters))[0]
