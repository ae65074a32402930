"""Every direction by name, and what makes it."""

from __future__ import annotations

from forwardinf.core.errors import SettingError
from forwardinf.perturb.diagonal import diagonal
from forwardinf.perturb.direction import Direction, Fitting, Maker, plain, sign
from forwardinf.perturb.hold import hold
from forwardinf.perturb.kronecker import ekfac, kfac

MAKERS: dict[str, Maker] = {
    "plain": lambda fitting: plain,
    "sign": lambda fitting: sign,
    "diagonal": diagonal,
    "kfac": kfac,
    "ekfac": ekfac,
    "hold": hold,
}


def make_direction(fitting: Fitting) -> Direction:
    """Return the direction that the setting names, fitted on the training data where it needs that.

    Raises:
        SettingError: The name is known, the direction is not in this version.
    """
    name = fitting.perturbation.direction
    if name not in MAKERS:
        raise SettingError(
            "Perturbation(direction=)", expected=f"one that this version has: {', '.join(map(repr, MAKERS))}",
            got=repr(name), do="'ekfac' and 'hold' are the directions with curvature.",
        )  # fmt: skip
    return MAKERS[name](fitting)
