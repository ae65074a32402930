"""Every direction by name, and what makes it."""

from __future__ import annotations

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
    """Return the direction that the setting names, fitted on the training data where it needs that."""
    return MAKERS[fitting.perturbation.direction](fitting)
