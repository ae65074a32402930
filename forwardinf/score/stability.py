"""How likely it is that a member of the top k would be there again, given how uncertain the scores are."""

from __future__ import annotations

from typing import Any

import numpy as np

from forwardinf.score.top import Ints, order

Array = np.ndarray[Any, np.dtype[Any]]

DRAWS = 1000  # the estimate's own standard error is at most .016
WORK = 2**26  # numbers drawn for a query at most, but never fewer than
FEWEST = 100  # draws
BLOCK = 2**22  # numbers held at a time
FAR = 6.0  # standard errors: what lies further off changes no probability by more than 1e-8


def stability(values: Array, uncertainty: Array, k: int, *, best: bool = True, seed: int = 0) -> Array:
    """Return the probability that each of the top k stays in the top k, in the order of the top k.

    Every score is taken as normal around its value with its uncertainty as standard deviation, independently of the
    others, and drawn anew (up to 1,000 times, the same draws for the same seed); the probability is the share of draws in
    which the member is among the k best. Only examples that could reach the top k at all are drawn. Errors shared by all
    examples would not change the order, so independence errs towards too low a probability.

    Args:
        values: ``(N,)`` scores of one query; NaN: not read, never in the top k.
        uncertainty: ``(N,)`` standard errors, of the same unit.
        k: How many are at the top.
        best: The k best, or (False) the k lowest.
        seed: Of the draws.

    Returns:
        ``(min(k, examples read),)`` float64 in [0, 1].

    Example:
        >>> stability(np.array([3.0, 1.0, 0.0]), np.array([0.1, 0.1, 0.1]), 1).tolist()
        [1.0]
        >>> round(float(stability(np.array([1.0, 1.0]), np.array([1.0, 1.0]), 1)[0]), 1)
        0.5
    """
    top: Ints = order(values.astype(np.float32), np.arange(len(values)), best=best)[:k]
    there = np.flatnonzero(~np.isnan(values))
    if len(there) <= k:
        return np.ones(len(top))
    mean = values[there].astype(np.float64) * (1 if best else -1)
    error = np.nan_to_num(uncertainty[there].astype(np.float64), nan=0.0)
    sure = np.partition(mean - FAR * error, len(mean) - k)[-k]  # k examples are above this, as good as always
    reach = mean + FAR * error >= sure
    settled = (
        mean - FAR * error > np.partition(mean + FAR * error, len(mean) - k - 1)[-k - 1]
    )  # above all but k − 1, always
    found = np.zeros(len(values))
    found[there[settled]] = 1.0
    open_, places = reach & ~settled, k - int(settled.sum())
    if places > 0 and open_.any():
        found[there[open_]] = _drawn(mean[open_], error[open_], places, seed)
    return found[top]


def _drawn(mean: Array, error: Array, k: int, seed: int) -> Array:
    """Return each example's share of draws among the k best."""
    if len(mean) <= k:
        return np.ones(len(mean))
    draw = np.random.default_rng(seed)
    count = int(np.clip(WORK // len(mean), FEWEST, DRAWS))
    inside, done = np.zeros(len(mean)), 0
    while done < count:
        rows = min(max(BLOCK // len(mean), 1), count - done)
        seen = mean + error * draw.standard_normal((rows, len(mean)))
        chosen = np.argpartition(seen, len(mean) - k, axis=1)[:, -k:]
        inside += np.bincount(chosen.ravel(), minlength=len(mean))
        done += rows
    return inside / count
