"""How surprising the best match of a query is: a null distribution of best matches, p-values, and a false-discovery rate.

The null is what the best match of a *clean* query (one known not to be in the training set) scores. Below its largest fifth
the p-value is the share of clean queries that score at least as high; above, where a finite number of clean queries cannot
tell, an exponential tail is fitted to what lies beyond. The statistic is made for that: it adds up minus logarithms of
nearest-neighbour distances, whose tail is exponential (distances to neighbours follow a power law).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TAIL = 0.2  # share of the clean values that the tail is fitted to
LEAST_CLEAN = 20
LEAST_QUERIES = 50  # fewer queries cannot be their own null
MIDDLE, SHOULDER = 0.5, 0.85  # where a test set that may hold leaks is taken to be clean


@dataclass(frozen=True)
class Null:
    """The distribution of best matches of clean queries.

    Attributes:
        source: ``"clean"`` or ``"test set"``.
        body: Sorted values below the tail and above, as many as there were.
        start: Where the tail begins.
        share: How much lies beyond it.
        scale: Its mean excess.
    """

    source: str
    body: Array
    start: float
    share: float
    scale: float

    def p_value(self, values: Any) -> Array:
        """Return the chance that a clean query's best match scores at least this much."""
        given = np.asarray(values, dtype=np.float64)
        beyond = self.share * np.exp(-np.maximum(given - self.start, 0.0) / self.scale)
        above = len(self.body) - np.searchsorted(self.body, given, side="left")
        return np.where(given > self.start, beyond, np.maximum((1 + above) / (1 + len(self.body)), self.share))

    def value_at(self, p: float) -> float:
        """Return the score that a clean query's best match reaches with chance ``p`` at most, ``p`` within the tail."""
        return self.start + self.scale * max(0.0, math.log(self.share / p))


def from_clean(values: Any) -> Null:
    """Return the null of best matches of queries known to be clean."""
    body = np.sort(np.asarray(values, dtype=np.float64))
    start = float(np.quantile(body, 1 - TAIL))
    beyond = body[body > start]
    excess = float((beyond - start).mean()) if len(beyond) else 0.0
    return Null("clean", body, start, (1 + len(beyond)) / (1 + len(body)), max(excess, _smallest(body)))


def from_test_set(values: Any) -> Null:
    """Return the null that the middle of a test set itself tells, as long as fewer than 15 % of it are leaks.

    The tail's scale is read between the median and the 85 % point, which leaks above do not reach.
    """
    body = np.sort(np.asarray(values, dtype=np.float64))
    middle, start = (float(np.quantile(body, q)) for q in (MIDDLE, SHOULDER))
    scale = (start - middle) / math.log((1 - MIDDLE) / (1 - SHOULDER))
    return Null("test set", body[body <= start], start, 1 - SHOULDER, max(scale, _smallest(body)))


def benjamini_hochberg(p_values: Any, q: float) -> npt.NDArray[np.bool_]:
    """Return which hypotheses are rejected at false-discovery rate ``q`` (Benjamini & Hochberg 1995).

    Example:
        >>> benjamini_hochberg([0.01, 0.04, 0.5], 0.1).tolist()
        [True, True, False]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    below = np.flatnonzero(p[order] <= q * np.arange(1, len(p) + 1) / max(len(p), 1))
    rejected = np.zeros(len(p), dtype=bool)
    if len(below):
        rejected[order[: below[-1] + 1]] = True
    return rejected


def _smallest(body: Array) -> float:
    return max(1e-6, 1e-6 * float(np.abs(body).max(initial=0.0)))
