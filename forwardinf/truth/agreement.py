"""How well two tables of numbers agree, row by row (a row is a query), and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from forwardinf.core.errors import DataError, SettingError

Array = np.ndarray[Any, np.dtype[Any]]

DRAWS = 2000  # bootstrap resamples; the interval's own error is then about a fiftieth of its width
DRAWN_AT_ONCE = 4_000_000


def pearson(one: Any, other: Any) -> Array:
    """Return each row's Pearson correlation, ``(Q,)`` float64; NaN where a row is constant or holds a NaN.

    Args:
        one: ``(Q, M)``.
        other: ``(Q, M)``.

    Example:
        >>> pearson([[1, 2, 3], [1, 2, 3]], [[2, 4, 6], [3, 2, 1]]).round(6)
        array([ 1., -1.])
    """
    one, other = _alike(one, other)
    one, other = _centred(one), _centred(other)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (one * other).sum(1) / np.sqrt((one * one).sum(1) * (other * other).sum(1))
    return np.asarray(np.clip(found, -1.0, 1.0))


def spearman(one: Any, other: Any) -> Array:
    """Return each row's Spearman rank correlation, ties averaged; NaN where a row is constant or holds a NaN.

    Args:
        one: ``(Q, M)``.
        other: ``(Q, M)``.

    Example:
        >>> spearman([[1, 2, 3]], [[1, 10, 100]])
        array([1.])
    """
    one, other = _alike(one, other)
    return pearson(ranks(one), ranks(other))


def top_overlap(one: Any, other: Any, k: int) -> Array:
    """Return the share of each row's k largest that both tables name, ``(Q,)``; ties go by position. By chance: k / M.

    Args:
        one: ``(Q, M)``.
        other: ``(Q, M)``.
        k: How many.

    Example:
        >>> top_overlap([[3, 2, 1, 0]], [[3, 0, 2, 1]], 2)
        array([0.5])
    """
    one, other = _alike(one, other)
    if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= one.shape[1]:
        raise SettingError("top_overlap(k=)", expected=f"a whole number from 1 to {one.shape[1]}", got=repr(k))
    chosen = np.zeros((2, *one.shape), dtype=bool)
    for table, marks in zip((one, other), chosen, strict=True):
        np.put_along_axis(marks, np.argsort(-table, axis=1, kind="stable")[:, :k], True, axis=1)
    found = chosen.all(0).sum(1) / k
    found[np.isnan(one).any(1) | np.isnan(other).any(1)] = np.nan
    return np.asarray(found)


def ranks(table: Any) -> Array:
    """Return each row's ranks from 1, ties averaged; a row with a NaN is all NaN.

    Example:
        >>> ranks([[10.0, 30.0, 10.0]])
        array([[1.5, 3. , 1.5]])
    """
    table = np.asarray(table, dtype=np.float64)
    rows, size = table.shape
    order = np.argsort(table, axis=1, kind="stable")
    sorted_rows = np.take_along_axis(table, order, axis=1)
    # Where a run of equal values starts; all runs of all rows are numbered in one go.
    starts = np.ones((rows, size), dtype=bool)
    starts[:, 1:] = sorted_rows[:, 1:] != sorted_rows[:, :-1]
    run = np.cumsum(starts.ravel()) - 1
    lengths = np.bincount(run) if run.size else np.empty(0)
    first = np.flatnonzero(starts.ravel()) % max(size, 1)
    middle = first + (lengths + 1) / 2
    found = np.empty_like(table)
    np.put_along_axis(found, order, middle[run].reshape(rows, size), axis=1)
    found[np.isnan(table).any(1)] = np.nan
    return np.asarray(found)


@dataclass(frozen=True)
class Interval:
    """A mean over queries with its bootstrap interval.

    Attributes:
        mean: Over the queries that have a value.
        low: Lower end.
        high: Upper end.
        count: How many queries have a value.
    """

    mean: float
    low: float
    high: float
    count: int


def mean_interval(values: Any, ci: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean over queries and its percentile bootstrap interval (Efron & Tibshirani 1993, §13).

    Queries are drawn again with replacement; the training runs behind them are not, so the interval says how the mean
    would move with other queries, not with another bank.

    Args:
        values: ``(Q,)``; NaN are left out.
        ci: Coverage.
        seed: Of the resampling.

    Example:
        >>> found = mean_interval([0.1, 0.2, 0.3, 0.4])
        >>> found.low <= found.mean <= found.high
        True
    """
    return _interval((np.asarray(values, dtype=np.float64),), lambda means: means[0], ci, seed)


def difference(one: Any, other: Any, ci: float = 0.95, seed: int = 0) -> Interval:
    """Return mean(one) − mean(other) with a paired interval: the same queries are drawn for both.

    Args:
        one: ``(Q,)`` values of one method.
        other: ``(Q,)`` values of another, on the same queries.
        ci: Coverage.
        seed: Of the resampling.
    """
    return _interval(_pair(one, other), lambda means: means[0] - means[1], ci, seed)


def ratio(one: Any, other: Any, ci: float = 0.95, seed: int = 0) -> Interval:
    """Return mean(one) / mean(other) with a paired interval. Meaningful where the second mean is well above 0.

    Args:
        one: ``(Q,)`` values of one method.
        other: ``(Q,)`` values of another, on the same queries.
        ci: Coverage.
        seed: Of the resampling.
    """
    return _interval(_pair(one, other), lambda means: means[0] / means[1], ci, seed)


def _pair(one: Any, other: Any) -> tuple[Array, Array]:
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.shape != other.shape:
        raise DataError("paired comparison", expected=f"{one.shape} values for both", got=str(other.shape))
    return one, other


def _interval(rows: tuple[Array, ...], of: Any, ci: float, seed: int) -> Interval:
    if isinstance(ci, bool) or not isinstance(ci, float) or not 0 < ci < 1:
        raise SettingError("ci", expected="a coverage between 0 and 1, like 0.95", got=repr(ci))
    if any(row.ndim != 1 for row in rows):
        raise DataError("values", expected="one number for each query", got=f"shape {rows[0].shape}")
    there = ~np.isnan(np.stack(rows)).any(0)
    kept = [row[there] for row in rows]
    count = int(there.sum())
    if count == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    draw = np.random.default_rng(seed)
    means: list[list[Array]] = [[] for _ in kept]
    at_once = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, DRAWS, at_once):
        chosen = draw.integers(0, count, (min(at_once, DRAWS - start), count))
        for row, found in zip(kept, means, strict=True):
            found.append(row[chosen].mean(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = of([np.concatenate(found) for found in means])
        low, high = np.quantile(spread, [(1 - ci) / 2, (1 + ci) / 2])
        return Interval(float(of([row.mean() for row in kept])), float(low), float(high), count)


def _alike(one: Any, other: Any) -> tuple[Array, Array]:
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.ndim != 2 or one.shape != other.shape:
        raise DataError("agreement", expected="two tables of one shape (queries, entries)",
                        got=f"{one.shape} and {other.shape}")  # fmt: skip
    return one, other


def _centred(table: Array) -> Array:
    """Return rows with mean 0; a constant row exactly 0, so that its correlation is NaN and not rounding noise."""
    centred = table - table.mean(1, keepdims=True)
    centred[(table == table[:, :1]).all(1)] = 0.0
    return np.asarray(centred)
