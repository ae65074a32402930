"""Every direction by name, and what makes it."""

from __future__ import annotations

from forwardinf.perturb import gfim as slices
from forwardinf.perturb import kronecker
from forwardinf.perturb.conjugate import cg
from forwardinf.perturb.diagonal import diagonal
from forwardinf.perturb.direction import Direction, Fitting, Maker, plain, sign
from forwardinf.perturb.fits import Costs
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


COSTS: dict[str, Costs] = {"kfac": kronecker.COSTS, "ekfac": kronecker.COSTS, "gfim": slices.COSTS}


def passes_of(direction: str, queries: int, together: int, steps: int = 1) -> int:
    """Return the forward passes over the training set that the directions of queries take; what is fitted once is not in it.

    Args:
        direction: Its name.
        queries: How many.
        together: How many are made, and kept, at once.
        steps: Of a walk: after the first each takes a direction of its own.
    """
    if direction != "hold":
        return 0
    blocks = -(-queries // together)
    # where one block is not all: when they are checked, and when they are pushed for one another and for the training set
    again = 3 if blocks > 1 else 1
    first = 8 * queries if min(together, queries) == 1 else 6 * blocks * again
    return first + 8 * queries * (steps - 1)


def make_direction(fitting: Fitting) -> Direction:
    """Return the direction that the setting names, fitted on the training data where it needs that."""
    return MAKERS[fitting.perturbation.direction](fitting)
