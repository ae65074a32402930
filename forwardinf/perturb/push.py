"""From a query to a push: its gradient, its direction, its length; checked for all queries before any reading."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from forwardinf.core.errors import Error, QueryError
from forwardinf.core.memory import out_of_memory
from forwardinf.core.settings import rise_target
from forwardinf.data.examples import Batch
from forwardinf.gradients.directions import Directions
from forwardinf.perturb.as_published import published_push
from forwardinf.perturb.direction import Direction, Fitting, Tensors, dot, norm
from forwardinf.perturb.gradient import RowGradients, query_gradient, row_gradients
from forwardinf.perturb.hold import Holding
from forwardinf.perturb.length import CAP, find_rise
from forwardinf.perturb.norms import Ruler
from forwardinf.perturb.parameters import Parameters
from forwardinf.perturb.registry import make_direction
from forwardinf.perturb.replay import replay
from forwardinf.perturb.steps import linear_length, walk
from forwardinf.perturb.swap import Push, lend, tensors_of
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.root import root, slope

STRAIGHT = 0.01  # a linear push is short enough when the query's own rise is its exact rate to this
OFF = 0.1  # beyond this, even when shortened, losses move otherwise than their gradients say
OFF_RATE = "off its rate"
SHORTEN, TRIES = 0.1**0.5, 6
TOGETHER, GRADIENTS = 32, 2**28  # query rows whose gradients are taken in one pass, and the bytes they may take
DIRECTIONS = 2**27  # bytes of the directions that are made together; their gradients and sums take as much again each
SHORT = 1e-2  # narrow weights start here, and nothing shorter survives their rounding

Take = Callable[[tuple[int, ...], Tensors], None]


@dataclass(frozen=True)
class Query:
    """What is known of a query before the training set is read: enough to push again, byte for byte.

    Attributes:
        rows: Its rows in the query data (several for a group).
        grad_norm: Norm of its gradient, 0 where there is none.
        size: What the length rule found: a relative length, or with ``lr`` the raw step.
        length: ‖Δθ‖/‖θ‖ reached.
        step: The factor on the direction.
        rise: How far its own measurement moved (per unit step where linear), positive.
        baseline: Its own measured loss before (a group's mean).
        status: ``ok``, ``capped``, ``unreachable``, ``resampled``, or why it is skipped.
        usable: Whether it can be read.
        share_moved: Share of the weights that moved after rounding.
        direction_norm: Norm of its direction (exact scores only: nothing moves, length is 0 and there is no step).
    """

    rows: tuple[int, ...]
    grad_norm: float
    baseline: float
    size: float = math.nan
    length: float = math.nan
    step: float = math.nan
    rise: float = math.nan
    status: str = "ok"
    usable: bool = True
    share_moved: float = math.nan
    direction_norm: float = math.nan


class Pusher:
    """Makes pushes. Holds no more than one at a time, and the directions that were made together.

    Args:
        queries: The queries.
        fitting: The settings, the parameters that move, and what the direction is fitted on; of the same model.
        exact: Scores will be products with the directions themselves: no push is made, rises are exact rates.
        together: With ``exact``: how many examples a forward and a backward may have at a time.
        members: The rows of every query, where those of several may be pushed together.
    """

    def __init__(
        self, queries: Feed, fitting: Fitting, *, exact: bool = False, together: int = 1,
        members: Sequence[Sequence[int]] = (),
    ) -> None:  # fmt: skip
        """Nothing is fitted yet."""
        self.members = [tuple(rows) for rows in members]
        self.places = {rows: place for place, rows in enumerate(self.members)}
        self.exact, self.together = exact, together
        self.rooted = fitting.perturbation.reading == "root" and queries.task.asks_loss
        self.queries, self.perturbation, self.batch_size = queries, fitting.perturbation, fitting.batch_size
        self.parameters, self.train = fitting.parameters, fitting.train
        self.live = tensors_of(queries.model)
        self.ruler = Ruler(queries.model, self.parameters)
        self.fitting, self.fit_seconds = fitting, 0.0
        self._last: tuple[tuple[int, ...], Push] | None = None
        self._rows: RowGradients | None = None
        self._block: tuple[int, Directions, list[bool]] | None = None

    @cached_property
    def direction(self) -> Direction:
        """P, fitted when it is first needed: not for showing a plan, nor before a query has been found usable."""
        began = time.perf_counter()
        made = make_direction(self.fitting)
        self.fit_seconds = time.perf_counter() - began
        return made

    @property
    def whitened(self) -> Holding | None:
        """What linear scores are whitened with, where that stands for reading along each query's direction."""
        if (
            not isinstance(self.direction, Holding)
            or self.perturbation.kind != "linear"
            or not self.direction.held.whole
        ):
            return None
        # a sketch has no direction worth reading along; K itself may be read either way
        return self.direction if self.exact or self.direction.held.gram is None else None

    def gradient(self, query: Query) -> Tensors:
        """Return the gradient of what a query is asked."""
        return self._gradient(query.rows)

    def check(self, rows: Sequence[int], name: object, *, skip: bool, take: Take | None = None) -> Query:
        """Return what has to be known of a query: gradient usable, length found, own rise measured.

        ``take`` is given the direction of an exact score, which is made here anyway.

        Raises:
            QueryError: The gradient is zero or not finite, and ``skip`` is False.
        """
        gradient = self._gradient(rows)
        known = self._around(rows)
        baseline = -self._measured(rows) if known is None else float(known.away[rows[0] - known.rows.start])
        size = norm(gradient)
        query = Query(tuple(rows), size, baseline)
        vanished = size == 0 and self.perturbation.signed  # as_published resamples a saturated query
        if vanished or not math.isfinite(size) or not math.isfinite(baseline):
            trouble = "zero gradient" if vanished else "gradient or loss not finite"
            if not skip:
                raise QueryError(
                    f"query {name!r}", expected="a finite gradient that is not zero", got=f"{trouble} (loss {baseline:g})",
                    do=_why_none(baseline) if vanished else "Look at the model's output for it, or on_bad_query='skip'.",
                )  # fmt: skip
            return replace(query, status=trouble, usable=False)
        if self.exact or self.whitened is not None:
            return self._rate(query, gradient, take)
        first = self._first(query.rows, gradient)
        found = self._pushed(self._sized(query, first), first)
        if self.perturbation.kind == "linear" and found.size < SHORT:
            # the exact rate; a direction may have been made in place, so that the gradient is asked for again
            rate = size**2 if first is gradient else dot(self._gradient(rows), first)
            found = self._straightened(found, first, rate)
        return found

    def _pushed(self, query: Query, first: Tensors) -> Query:
        """Push a query whose size is settled, and measure what that does to itself."""
        self._last = None
        push = self.push(query, first)
        return replace(
            query, length=push.length, step=push.step, share_moved=push.share_moved, rise=self._rise(query, push)
        )

    def _straightened(self, query: Query, first: Tensors, rate: float) -> Query:
        """Shorten a linear push until the query's own rise is the exact ``rate`` to 1 %, or rounding takes over.

        The query's own loss is what its push bends most, and its rate is known from the gradient: a free judge of whether
        the length stands for a derivative. Costs a push and a forward of the query for each try, most often none.
        """
        off = abs(query.rise / rate - 1)
        for _ in range(TRIES):
            if off <= STRAIGHT:
                break
            shorter = self._pushed(replace(query, size=query.size * SHORTEN), first)
            again = abs(shorter.rise / rate - 1)
            if not again < off:
                self._last = None  # the push that was tried is not the one that is kept
                break
            query, off = shorter, again
        return query if off <= OFF else replace(query, status=OFF_RATE)

    def push(self, query: Query, first: Tensors | None = None) -> Push:
        """Return the push of a checked query. The same query gives the same bits; the last one is kept.

        ``first`` is its direction, where that is at hand.
        """
        if self._last is not None and self._last[0] == query.rows:
            return self._last[1]
        self._last = None
        if not self.perturbation.signed:
            push, _ = self._published(query)
        elif self.perturbation.replay is not None:
            push = self._replayed(query, self.perturbation.replay)
        else:
            sides = (1, -1) if self.perturbation.both_sides else (1,) if self.perturbation.toward == "ascent" else (-1,)
            first = self._first(query.rows) if first is None else first
            ways = [self._walk(query, first, query.size, side) for side in sides]
            push = Push(tuple(way[0] for way in ways), *ways[0][1:])
        self._last = query.rows, push
        return push

    def along(self, query: Query) -> Tensors:
        """Return the direction of a checked query. The same query gives the same bits."""
        return self._first(query.rows)

    def _rate(self, query: Query, gradient: Tensors, take: Take | None) -> Query:
        """Return what an exact score needs: the query's own rate g_qᵀP g_q, and how long its direction is."""
        if self.whitened is not None:  # its rise comes with its scores; ‖P g_q‖ ≤ ‖g_q‖/λ
            return replace(query, length=0.0, direction_norm=query.grad_norm / self.whitened.ridge.damping)
        own = {name: tensor.clone() for name, tensor in gradient.items()}  # a direction may work in place
        first = self._first(query.rows, own)
        rise = sum(float((tensor.double() * first[name].double()).sum())
                   for name, tensor in gradient.items() if name in first)  # fmt: skip
        if take is not None:
            take(query.rows, first)
        return replace(query, length=0.0, rise=rise, direction_norm=norm(first))

    def _sized(self, query: Query, first: Tensors) -> Query:
        """Apply the length rule."""
        rule = self.perturbation
        if not rule.signed:
            return replace(query, size=float(rule.lr or 0), status=self._published(query)[1])
        if rule.lr is not None:
            return replace(query, size=rule.lr)
        if rule.length == "linear":
            return replace(query, size=linear_length(self.parameters))
        if rule.length is not None:
            return replace(query, size=float(rule.length))
        assert rule.rise is not None
        target = rise_target(rule.rise, query.baseline)
        if not isinstance(rule.rise, str):
            target *= self._terms(query.rows)
        if target <= 0:
            raise QueryError("rise", expected="a measurement that can rise by a share of its loss", got=f"{query.baseline:g}",
                             do="Give rise as a number.")  # fmt: skip

        def measure(length: float) -> float:
            moved = self._walk(query, first, length, 1)[0]
            with lend(self.live, moved):
                return -self._measured(query.rows) - query.baseline

        short = linear_length(self.parameters)
        slope = measure(short) / short
        size, status = find_rise(measure, target, target / slope if slope > 0 else CAP / 8)
        return replace(query, size=size, status=status)

    def _terms(self, rows: Sequence[int]) -> float:
        """Return the mean number of counted tokens (1 for other tasks): a rise is asked for per token."""
        return float(self.queries.counts(rows, self.batch_size).double().clamp_min(1).mean())

    def _gradient(self, rows: Sequence[int]) -> Tensors:
        known = self._around(rows)
        if known is not None:
            return known.of(rows[0])
        return query_gradient(self.queries, rows, self.parameters, self.batch_size, rooted=self.rooted)

    def _around(self, rows: Sequence[int]) -> RowGradients | None:
        """Return the gradients of the rows around a single one, where the model can be taken apart.

        Which rows go together depends on their numbers alone: a resumed run finds the same bits.
        """
        count = rows_together(self.parameters, self.together)
        if not self.exact or len(rows) != 1 or count == 1:
            return None
        if self._rows is None or rows[0] not in self._rows.rows:
            start = rows[0] // count * count
            self._rows = None  # its memory is needed for the next ones
            around = range(start, min(start + count, len(self.queries.examples)))
            self._rows = row_gradients(self.queries, around, self.parameters, self.together, rooted=self.rooted)
        return self._rows

    def forget(self) -> None:
        """Give back the memory of what need not be made again: of gradients, and of directions where no push follows."""
        self._rows = None
        if self.exact:
            self._block = None

    def _first(self, rows: tuple[int, ...], gradient: Tensors | None = None) -> Tensors:
        """Return the direction of a query where the model is: with those of the queries around it, where that is cheaper.

        Which queries go together depends on their places alone: a resumed run finds the same bits. ``gradient``: the query's,
        where that is at hand.
        """
        count, place = min(len(self.members), directions_together(self.parameters)), self.places.get(rows)
        if count < 2 or place is None or not isinstance(self.direction, Holding):
            return self._direction(rows) if gradient is None else self.direction(gradient)
        start = place // count * count
        if self._block is None or self._block[0] != start:
            self._block = None  # its memory is needed for the next one
            gradients = [self._gradient_or_none(one) for one in self.members[start : start + count]]
            self._block = start, self.direction.together(gradients), [bool(one) for one in gradients]
        _, directions, there = self._block
        return directions.of(place - start) if there[place - start] else self._direction(rows)

    def _gradient_or_none(self, rows: tuple[int, ...]) -> Tensors:
        """Return a query's gradient; nothing where it has none: that is said where the query itself is checked."""
        try:
            return self._gradient(rows)
        except (Error, RuntimeError) as error:
            if out_of_memory(error):
                raise
            return {}

    def _direction(self, rows: Sequence[int]) -> Tensors:
        return self.direction(self._gradient(rows))

    def _walk(self, query: Query, first: Tensors, size: float, side: int) -> tuple[Tensors, float, float, float]:
        return walk(self.ruler, self.perturbation, first, lambda: self._direction(query.rows), size, side)

    def _replayed(self, query: Query, steps: int) -> Push:
        return replay(self.train, self.queries, query.rows, self.ruler, steps=steps, lr=query.size, seed=self.perturbation.seed,
                      batch_size=self.batch_size)  # fmt: skip

    def _rise(self, query: Query, push: Push) -> float:
        """Measure the query's own rise exactly as scores are measured: one-sided, or half the two-sided difference."""
        read, before = self._reading(query)
        away = []
        for moved in push.sides:
            with lend(self.live, moved):
                away.append(read(-self.queries.measures(query.rows, self.batch_size)))
        if len(away) == 2:
            rise = (away[0] - away[1]) / 2
        else:
            rise = away[0] - before if self.perturbation.toward == "ascent" else before - away[0]
        return rise / push.step if self.perturbation.kind == "linear" else rise

    def _reading(self, query: Query) -> tuple[Callable[[Tensor], float], float]:
        """Return (what becomes of the measurements of its rows: their mean, or that of their roots; the same before)."""
        if not self.rooted:
            return lambda away: float(away.mean()), query.baseline
        start = -self.queries.measures(query.rows, self.batch_size)
        steep = slope(start)  # a rate sees the root by its slope where the model is
        finite = self.perturbation.kind == "finite"

        def read(away: Tensor) -> float:
            return float((root(away) if finite else away * steep).mean())

        return read, read(start)

    def _measured(self, rows: Sequence[int]) -> float:
        return float(self.queries.measures(rows, self.batch_size).mean())

    def _published(self, query: Query) -> tuple[Push, str]:
        found: list[tuple[Tensors, str]] = []

        def ask(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
            found.append(
                published_push(model, self.queries.task, batch, self.parameters, self.perturbation, query.rows)
            )
            return torch.zeros(1)

        for _ in self.queries.each(ask, query.rows, 1):
            pass
        if len(found) != 1:
            raise QueryError("preset('as_published')", expected="single queries", got=f"a group of {len(found)}")
        moved, status = found[0]
        change = {name: moved[name] - self.live[name].detach() for name in moved if name in self.parameters}
        return Push((moved,), float(self.perturbation.lr or 0), self.ruler.relative(change), 1.0), status


def _why_none(loss: float) -> str:
    """Return what a query without a gradient may want."""
    if abs(loss) < 1e-6:
        return "A query fitted perfectly has none: ask its margin (query='margin'), or on_bad_query='skip'."
    return ("Its loss does not depend on the parameters that move: it is detached from them, they are not used for it, or it is "
            "flat there (dead units, clipping). Move others (parameters=), or on_bad_query='skip'.")  # fmt: skip


def directions_together(parameters: Parameters) -> int:
    """Return how many queries' directions are made, and kept, at once."""
    return _fitting(parameters, TOGETHER, DIRECTIONS)


def rows_together(parameters: Parameters, batch_size: int) -> int:
    """Return how many query rows' gradients are taken in one pass."""
    return _fitting(parameters, min(TOGETHER, batch_size), GRADIENTS)


def _fitting(parameters: Parameters, most: int, room: int) -> int:
    """Return how many gradients, float32 or wider, fit into so many bytes: one at least, ``most`` at most."""
    size = sum(int(parameter.numel()) * max(parameter.element_size(), 4) for parameter in parameters.values())
    return max(1, min(most, room // max(size, 1)))
