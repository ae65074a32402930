"""Many detectors, one score: weights from how far they agree, without a label that is known to be right.

If detectors of wrong labels err independently of one another, the correlations of their ranks have one factor, and each
one's loading says how good it is (Ahsen, Vogel & Stolovitzky 2019 for ranks; Parisi et al. 2014 for votes). The best
weighting under one factor is Bartlett's: w/(1 − w²). A detector that a model has spoilt by learning the wrong labels
(its loss after memorisation, its last layer) agrees with few others, and fades by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

STEPS = 300
NEAREST_ONE = 0.98  # no detector is trusted beyond this loading


def ranks(values: Any) -> Array:
    """Return ranks in (0, 1), ties sharing theirs; NaN counts as the lowest."""
    given = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-np.inf)
    _, place, count = np.unique(given, return_inverse=True, return_counts=True)
    before = np.cumsum(count) - count
    return np.asarray((before[place] + (count[place] - 1) / 2 + 0.5) / len(given), dtype=np.float64)


def loadings(detectors: Array) -> Array:
    """Return each detector's loading on the one factor they share, ``(D,)`` in [0, .98], from ranks ``(D, N)``.

    Least squares on the correlations between different detectors, one loading at a time. With fewer than three there is
    nothing to tell them apart by: all get the same.
    """
    count = len(detectors)
    varied = detectors.std(1) > 0
    if varied.sum() < 3:
        return np.where(varied, 0.5, 0.0)
    correlation = np.zeros((count, count))
    correlation[np.ix_(varied, varied)] = np.corrcoef(detectors[varied])
    found = np.where(varied, 0.5, 0.0)
    for _ in range(STEPS):
        for one in np.flatnonzero(varied):
            others = [other for other in range(count) if other != one]
            power = float(found[others] @ found[others])
            found[one] = np.clip(correlation[one, others] @ found[others] / max(power, 1e-12), 0.0, NEAREST_ONE)
    return found


def weights(detectors: Array) -> Array:
    """Return the weights of the detectors' ranks ``(D, N)``, ``(D,)``, adding up to 1.

    Example:
        >>> a = ranks([0.1, 0.2, 0.9, 0.8, 0.3])
        >>> weights(np.stack([a, a, a[::-1]])).round(1).tolist()
        [0.5, 0.5, 0.0]
    """
    loading = loadings(detectors)
    found = loading / (1 - loading**2)
    total = found.sum()
    return found / total if total > 0 else np.full(len(found), 1 / len(found))
