"""Every direction by name, and what makes it. A new one is a file with its maker, and one entry: :func:`add_direction`.

Built-in makers are named and loaded when they are first asked for; the front door loads this file before anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forwardinf.core.direction_facts import DIRECTIONS as DIRECTIONS
from forwardinf.core.direction_facts import Facts
from forwardinf.core.registry import brought

if TYPE_CHECKING:
    from forwardinf.perturb.direction import Direction, Fitting, Maker
    from forwardinf.perturb.fits import Costs


def add_direction(name: str, maker: Maker | str, costs: Costs | str | None = None, **facts: Any) -> None:
    """Enter a direction under a name, by which :class:`forwardinf.Perturbation` takes it from then on.

    What a run folder holds is known by the direction's name, so a maker that means something else needs another name.

    Args:
        name: Small letters, digits, ``-`` and ``_``.
        maker: ``maker(fitting)`` gives the direction: a function from a query's gradient, tensors by parameter name, to the
            vector along which the model moves, of the same shapes. ``"module:name"``: it lies there.
        costs: What a fit costs in multiplications (:class:`forwardinf.perturb.fits.Costs`); None: a pass with gradients.
        **facts: What else is known of it; see :class:`forwardinf.core.direction_facts.Facts`.

    Raises:
        SettingError: The name is taken, also by a preset, or is none.
    """
    DIRECTIONS.add(name, Facts(maker, costs, **facts))


def make_direction(fitting: Fitting) -> Direction:
    """Return the direction that the setting names, fitted on the training data where it needs that."""
    made: Direction = brought(DIRECTIONS[fitting.perturbation.direction].maker)(fitting)
    return made


def passes_of(direction: str, queries: int, together: int, steps: int = 1) -> int:
    """Return the forward passes over the training set that the directions of queries take; what is fitted once is not in it.

    Args:
        direction: Its name.
        queries: How many.
        together: How many are made, and kept, at once.
        steps: Of a walk: after the first each takes a direction of its own.
    """
    facts = DIRECTIONS.get(direction)
    return 0 if facts is None or facts.passes is None else int(brought(facts.passes)(queries, together, steps))


add_direction("plain", "forwardinf.perturb.direction:make_plain", fitted="never", low_rank=True)
add_direction("sign", "forwardinf.perturb.direction:make_sign", fitted="never", low_rank=True)
add_direction("diagonal", "forwardinf.perturb.diagonal:diagonal", damping=0.01, takes=("draws",))
add_direction(
    "kfac", "forwardinf.perturb.kronecker:kfac", "forwardinf.perturb.kronecker:COSTS", damping=0.03, low_rank=True
)
add_direction("ekfac", "forwardinf.perturb.kronecker:ekfac", "forwardinf.perturb.kronecker:COSTS", damping=0.03)
add_direction("gfim", "forwardinf.perturb.gfim:gfim", "forwardinf.perturb.gfim:COSTS", damping=0.03)
add_direction("cg", "forwardinf.perturb.conjugate:cg", damping=30.0, fitted="for each query")
add_direction("hold", "forwardinf.perturb.hold:Holding", takes=("temper",), low_rank=True, examples=True,
              passes="forwardinf.perturb.hold:passes")  # fmt: skip
