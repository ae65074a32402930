"""How much λ is added to the curvature: one rule for every direction that inverts one.

λ = c × the mean diagonal of the curvature over all parameters that move, the same λ for all of them: a damping per layer
would re-weight layers against one another. The c were chosen by agreement with retraining (docs/faithfulness.md): one for all
banks, where scores change little within a factor of three. For kronfluence's layer-wise eigenvalues they are orders of
magnitude above its default.
"""

from __future__ import annotations

from forwardinf.core.errors import ModelError, SettingError
from forwardinf.core.settings import DIRECTIONS


def damping(direction: str, asked: float | str, mean: float) -> float:
    """Return λ.

    Args:
        direction: The direction's name.
        asked: The setting: c, or ``"auto"``.
        mean: Mean of the curvature's diagonal over all parameters that move.

    Raises:
        ModelError: The curvature is zero or not finite.
        SettingError: The direction has no c of its own, and none is given.

    Example:
        >>> damping("ekfac", 10, 0.5)
        5.0
    """
    if not 0 < mean < float("inf"):
        raise ModelError(
            f"curvature for direction={direction!r}", expected="a mean diagonal above 0", got=f"{mean:g}",
            do="No training example has a gradient: use direction='plain', or fisher='true' if the model fits them all.",
        )  # fmt: skip
    factor = DIRECTIONS[direction].damping if asked == "auto" else asked
    if factor is None:
        raise SettingError("Perturbation(damping=)", expected=f"a number, beside direction={direction!r}", got="'auto'")
    return float(factor) * mean
