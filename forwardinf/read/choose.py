"""Which engine reads: the one that was asked for, or the faster one among those that mean the same, measured on model and data.

Only linear scores can be read by more than one engine: a difference at a short length, or the exact rate. A finite length is
never replaced by a rate, nor the other way round.
"""

from __future__ import annotations

from dataclasses import replace

from forwardinf.core.errors import ModelError
from forwardinf.gradients.per_example import recorder_of
from forwardinf.read.asked import Asked, Ground
from forwardinf.read.passes import in_passes, measure
from forwardinf.read.plan import Plan
from forwardinf.read.registry import ENGINES

FEW = 2  # readings up to which no pass with gradients can pay: it costs about 3 F
WORTH = 0.9  # exact scores are better ones, but a forward needs less memory: a pass must be this much faster


def choose_engine(asked: Asked, plan: Plan, ground: Ground) -> tuple[Plan, str]:
    """Return (the plan with its engine settled, a note for people or nothing).

    Args:
        asked: What was asked for.
        plan: Of the forward engine.
        ground: Model, data, and the directions for measuring.

    Raises:
        SettingError: The engine that was asked for does not read such scores.
        ModelError: It cannot read this model, or not in the memory there is.
    """
    if asked.engine != "auto":
        return ENGINES[asked.engine].plans(asked, plan, ground)
    if not (asked.linear and asked.signed):
        return replace(plan, why="a finite length is read by forward passes only"), ""
    if plan.passes <= FEW and not plan.direction_seconds:
        return replace(plan, why=f"{plan.passes} readings: a pass with gradients costs more"), ""
    recorder_of(ground.feed, ground.parameters).meet(ground.feed, ground.parameters)  # what it refuses, it refuses here
    try:
        exact, note = measure(asked, plan, ground)
    except ModelError:
        return replace(plan, why="not enough memory for a pass with gradients"), ""
    passes = in_passes(exact, plan)
    if asked.whitened:  # a direction of its own takes each query two passes with gradients, and then it is read
        return replace(exact, why=f"{passes}, whitened"), note
    if exact.considered["factored"] < WORTH * plan.considered["forward"]:
        return replace(exact, why=f"{passes}, exact and faster"), note
    return replace(plan, considered=exact.considered, why="forward passes are faster here"), ""
