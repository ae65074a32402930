"""The k best and k worst, ties broken by position, without holding more than is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def order(scores: Floats, places: Ints, *, best: bool) -> Ints:
    """Return the order from best to worst (or worst to best): by score, then by place; NaN left out."""
    there = np.flatnonzero(~np.isnan(scores))
    keys = -scores[there] if best else scores[there]
    return there[np.lexsort((places[there], keys))]


def extremes(scores: Floats, places: Ints, k: int) -> tuple[Floats, Ints]:
    """Return the k highest and k lowest scores with their places, sorted by place; NaN left out. Fewer than 2k: all.

    Example:
        >>> extremes(np.array([5, 1, 3, 4], dtype=np.float32), np.arange(4), 1)
        (array([5., 1.], dtype=float32), array([0, 1]))
    """
    there = np.flatnonzero(~np.isnan(scores))
    scores, places = scores[there], places[there]
    if len(scores) > 2 * k:
        # Only a few stay: find the k-th values first, so that only candidates are sorted.
        high, low = np.partition(scores, len(scores) - k)[-k], np.partition(scores, k - 1)[k - 1]
        there = np.flatnonzero((scores >= high) | (scores <= low))
        scores, places = scores[there], places[there]
    chosen = np.union1d(order(scores, places, best=True)[:k], order(scores, places, best=False)[:k])
    chosen = chosen[np.argsort(places[chosen], kind="stable")]
    return scores[chosen], places[chosen]
