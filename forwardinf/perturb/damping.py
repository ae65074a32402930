"""How much λ is added to the curvature: one rule for every direction that inverts one.

λ = c × the mean diagonal of the curvature over all parameters that move, the same λ for all of them: a damping per layer
would re-weight layers against one another. The c that make scores agree with retraining are far above those used for
optimisation (PERF 4c): the curvature is a mean over few and unlike examples, and the query is moved far along it.
"""

from __future__ import annotations

from forwardinf.core.errors import ModelError

AUTO = {"diagonal": 3.0, "kfac": 30.0, "ekfac": 30.0, "gfim": 30.0, "cg": 30.0}


def damping(direction: str, asked: float | str, mean: float) -> float:
    """Return λ.

    Args:
        direction: The direction's name.
        asked: The setting: c, or ``"auto"``.
        mean: Mean of the curvature's diagonal over all parameters that move.

    Raises:
        ModelError: The curvature is zero or not finite.

    Example:
        >>> damping("ekfac", 10, 0.5)
        5.0
    """
    if not 0 < mean < float("inf"):
        raise ModelError(
            f"curvature for direction={direction!r}", expected="a mean diagonal above 0", got=f"{mean:g}",
            do="No training example has a gradient: use direction='plain', or fisher='true' if the model fits them all.",
        )  # fmt: skip
    return float(AUTO[direction] if asked == "auto" else asked) * mean
