"""Fusion of rankings by reciprocal ranks (Cormack, Clarke & Büttcher, SIGIR 2009), with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forwardinf.core.errors import SettingError

Array = np.ndarray[Any, np.dtype[np.float64]]

CONSTANT = 10.0  # ranks well below this count nearly alike (measured: docs/trace.md)
WEIGHT = 1.0  # of BM25, where ours has 1


def ranks(scores: Array) -> Array:
    """Return each entry's rank, 1 for the highest; ties share their mean rank, and what is NaN has none (NaN).

    Example:
        >>> ranks(np.array([3.0, 1.0, 3.0, np.nan])).tolist()
        [1.5, 3.0, 1.5, nan]
    """
    found = np.full(scores.shape, np.nan)
    there = np.isfinite(scores)
    values, place, counts = np.unique(-scores[there], return_inverse=True, return_counts=True)
    if len(values):
        last = counts.cumsum()
        found[there] = ((last - counts + 1 + last) / 2)[place]
    return found


def reciprocal(rankings: Sequence[Array], weights: Sequence[float], constant: float = CONSTANT) -> Array:
    """Return Σ wᵣ / (c + rankᵣ) for every entry, NaN where any ranking has none.

    Args:
        rankings: Scores, higher = better, all of the same entries.
        weights: One for each ranking.
        constant: c.

    Example:
        >>> both = reciprocal([np.array([3.0, 2.0, 1.0]), np.array([1.0, 3.0, 2.0])], [1.0, 1.0])
        >>> int(both.argmax())
        1
    """
    if len(weights) != len(rankings) or any(weight < 0 for weight in weights) or not any(weights):
        raise SettingError("fuse=", expected=f"{len(rankings)} weights ≥ 0, not all 0", got=repr(list(weights)))
    if constant < 0:
        raise SettingError("fuse=", expected="a constant ≥ 0", got=repr(constant))
    return np.asarray(
        sum(weight / (constant + ranks(scores)) for scores, weight in zip(rankings, weights, strict=True))
    )


def as_fusion(fuse: Any) -> tuple[float, float] | None:
    """Return (weight of BM25, constant) from ``None``, ``"bm25"``, a weight, or ``{"bm25": weight, "constant": c}``."""
    if fuse is None:
        return None
    if fuse == "bm25":
        return WEIGHT, CONSTANT
    if isinstance(fuse, int | float) and not isinstance(fuse, bool) and fuse > 0:
        return float(fuse), CONSTANT
    if isinstance(fuse, Mapping) and "bm25" in fuse and set(fuse) <= {"bm25", "constant"}:
        return float(fuse["bm25"]), float(fuse.get("constant", CONSTANT))
    raise SettingError("fuse=", expected="None, 'bm25', the weight of BM25, or {'bm25': weight, 'constant': c}",
                       got=repr(fuse))  # fmt: skip
