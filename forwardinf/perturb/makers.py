"""Every direction by name, and what makes it."""

from __future__ import annotations

from forwardinf.perturb.conjugate import cg
from forwardinf.perturb.diagonal import diagonal
from forwardinf.perturb.direction import Direction, Fitting, Maker, plain, sign
from forwardinf.perturb.gfim import gfim
from forwardinf.perturb.hold import Holding
from forwardinf.perturb.kronecker import ekfac, kfac

MAKERS: dict[str, Maker] = {
    "plain": lambda fitting: plain,
    "sign": lambda fitting: sign,
    "diagonal": diagonal,
    "kfac": kfac,
    "ekfac": ekfac,
    "gfim": gfim,
    "cg": cg,
    "hold": Holding,
}

# Forward passes over the training set that the direction of one query takes: two passes with gradients when it is checked,
# one more when it is pushed. What is fitted once for all is not in it.
PASSES_OF_A_QUERY = {"hold": 8}


def make_direction(fitting: Fitting) -> Direction:
    """Return the direction that the setting names, fitted on the training data where it needs that."""
    return MAKERS[fitting.perturbation.direction](fitting)
