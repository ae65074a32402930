"""What a run takes beside its readings, from a few examples: the queries themselves, and the fit of their direction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from forwardinf.core.feed import Feed
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.gradient import query_gradient, row_gradients
from forwardinf.perturb.makers import make_direction
from forwardinf.perturb.push import rows_together
from forwardinf.perturb.select import Parameters

UNFITTED = ("plain", "sign", "cg")  # cg solves for each query
SAMPLE = 64  # examples of the smaller of two fits that are timed
FORWARDS_OF_A_RISE = 10  # bisection: forwards of the query alone


def query_seconds(
    asking: Feed, rows: Sequence[int], parameters: Parameters, batch_size: int, *, exact: bool, rise: bool
) -> float:
    """Return the expected seconds of one query's gradient, length and own rise, from the first query.

    What its direction takes beside the gradient is in the plan's ``directions`` where that reads the training set.

    Args:
        asking: The queries.
        rows: The first query's.
        parameters: Those that move.
        batch_size: Examples at a time.
        exact: Whether no push is made, and gradients are taken many at a time.
        rise: Whether a length is searched for.
    """
    count = rows_together(parameters, batch_size)
    if exact and len(rows) == 1:
        around = range(min(count, len(asking.examples)))
        return _second_time(lambda: row_gradients(asking, around, parameters, batch_size)) / len(around)
    gradient = _second_time(lambda: query_gradient(asking, rows, parameters, batch_size))
    forward = _second_time(lambda: asking.measures(rows, batch_size))
    return gradient + (0 if exact else FORWARDS_OF_A_RISE + 3 if rise else 3) * forward


def fit_seconds(fitting: Fitting) -> float:
    """Return the expected seconds of a fit that is not kept yet, from two small ones: a start, and so much an example.

    ``hold``'s inner products grow with N², which so few examples do not show: beyond a few thousand it is a lower bound.
    """
    rule, size = fitting.perturbation, len(fitting.train.examples)
    if rule.direction in UNFITTED or size < 4:
        return 0.0
    all_of_them = size if rule.fit_examples == "auto" else min(size, int(rule.fit_examples))
    few = min(SAMPLE, size // 2)

    def fit(count: int) -> float:
        small = replace(
            fitting, perturbation=replace(rule, fit_examples=count), key=None, cache=None, progress=False, notes=[]
        )
        return _second_time(lambda: make_direction(small))

    less, more = fit(few), fit(2 * few)
    each = max(more - less, 0.0) / few
    return max(less - each * few, 0.0) + each * all_of_them


def _second_time(work: Callable[[], object]) -> float:
    """Return the seconds of the second of two calls: the first one warms up."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
