"""Every reading engine by name: what opens it, and how a reading by it is planned. A new one is a file and one entry.

docs/extending.md has a complete example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from forwardinf.core.registry import Registry
from forwardinf.read.asked import Asked, Ground, Reading
from forwardinf.read.engine import Engine
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.passes import plan_factored
from forwardinf.read.plan import Plan
from forwardinf.read.trunk import open_trunk, plan_trunk

Opens = Callable[[Reading], Engine]
Plans = Callable[[Asked, Plan, Ground], tuple[Plan, str]]


@dataclass(frozen=True)
class EngineKind:
    """What is known of an engine; see :func:`add_engine`.

    Attributes:
        opens: Opens it for one unit of work.
        plans: Plans a reading where it is asked for by name.
        exact: Whether it reads directions and gives exact scores, not losses under moved models.
    """

    opens: Opens
    plans: Plans
    exact: bool = False


ENGINES: Registry[EngineKind] = Registry("engine", reserved=("auto", "probes"))


def as_it_is(asked: Asked, plan: Plan, ground: Ground) -> tuple[Plan, str]:
    """Return (the forward engine's plan under the name that was asked for, no note)."""
    return replace(plan, engine=asked.engine, why="asked for"), ""


def add_engine(name: str, opens: Opens, plans: Plans = as_it_is, *, exact: bool = False) -> None:
    """Enter an engine under a name, which ``engine=`` takes from then on. ``"auto"`` never takes an added one.

    Args:
        name: Small letters, digits, ``-`` and ``_``.
        opens: ``opens(reading)`` gives the engine for one unit of work: an object with ``forwards`` (a count) and
            ``read(perturbations, rows, advance)``, which returns a row for each perturbation and a column for each example,
            float64 on the CPU. A perturbation is a function that lends the moved model for the time of a ``with`` block;
            what is read are losses.
        plans: ``plans(asked, plan, ground)`` gives (the plan with this engine, a note for people or nothing) from that of the
            forward engine; by default that plan itself.
        exact: Perturbations are a block of directions instead, and what is read are exact linear scores gᵢᵀu; the engine
            leaves the losses of the rows in ``losses``. Its plan says how many examples a pass has (``pass_batch_size``).

    Raises:
        SettingError: The name is taken, or is none.
    """
    ENGINES.add(name, EngineKind(opens, plans, exact))


def open_engine(reading: Reading) -> Engine:
    """Return the engine that the plan names, for one unit of work."""
    return ENGINES[reading.plan.engine].opens(reading)


def _forward(reading: Reading) -> Engine:
    return ForwardEngine(reading.feed, reading.batch_size, reading.halved)


def _factored(reading: Reading) -> Engine:
    return FactoredEngine(reading.feed, reading.parameters, reading.batch_size, reading.halved)


add_engine("forward", _forward)
add_engine("factored", _factored, plan_factored, exact=True)
add_engine("trunk", open_trunk, plan_trunk)
