"""What a run takes beside its readings, from a few examples: the queries themselves, and the fit of their direction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from forwardinf.core.registry import brought
from forwardinf.perturb.budget import PASS
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.fits import budgeted, sampled_rows
from forwardinf.perturb.gradient import query_gradient, row_gradients
from forwardinf.perturb.hold import exact_examples
from forwardinf.perturb.parameters import Parameters
from forwardinf.perturb.push import rows_together
from forwardinf.perturb.registry import DIRECTIONS, make_direction
from forwardinf.tasks.feed import Feed

SAMPLE = 256  # examples of the smaller of two fits of hold that are timed
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
        return _second_time(lambda: row_gradients(asking, around, parameters, batch_size), asking.device) / len(around)
    gradient = _second_time(lambda: query_gradient(asking, rows, parameters, batch_size), asking.device)
    forward = _second_time(lambda: asking.measures(rows, batch_size), asking.device)
    return gradient + (0 if exact else FORWARDS_OF_A_RISE + 3 if rise else 3) * forward


def fit_seconds(fitting: Fitting, seconds_per_row: float) -> float:
    """Return the expected seconds of a fit that is not kept yet: its multiplications, at the rate of a plain forward.

    In example space (``hold``) it is so much an example and so much a pair, from two small fits; that leaves out the factor of a
    large K (N³/3) and the sketch that stands for it where K is not affordable: a lower bound there.

    Args:
        fitting: What the direction learns from.
        seconds_per_row: Of a plain forward, measured.
    """
    rule = fitting.perturbation
    facts = DIRECTIONS[rule.direction]
    if facts.fitted != "once":
        return 0.0
    if facts.examples:
        return _examples_seconds(fitting)
    costs, rows = brought(facts.costs), len(sampled_rows(fitting))
    if costs is None:
        return PASS * rows * seconds_per_row
    affordable, budget = budgeted(fitting, costs)
    return budget.forwards(affordable if rule.fit_examples == "auto" else rows) * seconds_per_row


def _examples_seconds(fitting: Fitting) -> float:
    rule, rows = fitting.perturbation, len(sampled_rows(fitting))
    few = min(SAMPLE, rows // 2)
    if few < 2:
        return 0.0

    def fit(count: int) -> float:
        small = replace(
            fitting, perturbation=replace(rule, fit_examples=count), key=None, cache=None, progress=False, notes=[]
        )
        return _second_time(lambda: make_direction(small), fitting.train.device)

    less, more = fit(few), fit(2 * few)
    pair = max(more - 2 * less, 0.0) / (2 * few**2)
    each = max(less - pair * few**2, 0.0) / few
    return each * rows + pair * min(rows, exact_examples(fitting, range(rows))) ** 2


def _second_time(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the second of two calls: the first one warms up."""
    for _ in range(2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - began
