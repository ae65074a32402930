"""How far a query pushes: the rise rule, found by bisection on the query alone."""

from __future__ import annotations

import math
from collections.abc import Callable

CAP = 0.3  # ‖Δθ‖/‖θ‖ beyond which the model is no longer the one that was asked about
TOLERANCE = 0.02
TURNS = 40


def find_rise(measure: Callable[[float], float], target: float, first: float) -> tuple[float, str]:
    """Return (relative length, status) at which the query's measured loss has risen by ``target``, to 2 %.

    Args:
        measure: The rise at a relative length: one push and one forward of the query.
        target: The rise asked for, > 0.
        first: A first guess at the length (from the linear rate).

    Returns:
        The status is ``"ok"``, ``"capped"`` (the cap was reached first) or ``"unreachable"`` (no rise even there).

    Example:
        >>> length, status = find_rise(lambda length: 100 * length**2, 1.0, 0.5)
        >>> round(length, 2), status
        (0.1, 'ok')
    """
    low, high = 0.0, min(max(first, 1e-7), CAP)
    got = measure(high)
    while math.isfinite(got) and got < target * (1 - TOLERANCE):
        if high >= CAP:
            return CAP, "capped" if got > 0 else "unreachable"
        low, high = high, min(2 * high, CAP)
        got = measure(high)
    for _ in range(TURNS):
        if abs(got - target) <= TOLERANCE * target:
            return high, "ok"
        middle = (low + high) / 2
        seen = measure(middle)
        if math.isfinite(seen) and seen < target * (1 - TOLERANCE):
            low = middle
        else:
            high, got = middle, seen
    return high, "ok" if abs(got - target) <= TOLERANCE * target else "unreachable"
