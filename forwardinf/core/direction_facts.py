"""What is known of each direction by its name, before torch is loaded: settings are checked against it.

The entries are made in ``perturb/registry.py``, which the front door loads first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from forwardinf.core.registry import Registry

PRESETS: dict[str, dict[str, Any]] = {
    "linear": {"direction": "gfim", "reading": "auto"},
    "finite": {"direction": "hold", "reading": "auto", "rise": 0.5, "two_sided": True},
    "unlearning": {"direction": "diagonal", "fisher": "draws", "damping": 0.01, "length": 0.01},
    "as_published": {"lr": 5e-3, "behaviour": "as_published"},
}


@dataclass(frozen=True)
class Facts:
    """What is known of a direction; see :func:`forwardinf.perturb.registry.add_direction`.

    Attributes:
        maker: Makes it from what it is fitted on, or ``"module:name"`` of what does.
        costs: What a fit costs, in multiplications, or ``"module:name"`` of that; None: a pass with gradients.
        fitted: Whether something is learnt from the training data: ``"once"``, ``"for each query"`` or ``"never"``.
        takes: Settings that apply to this direction and not to others: ``"temper"``, ``"draws"``.
        damping: λ of ``damping="auto"``, a multiple of the curvature's mean diagonal; None: it has a rule of its own, or none.
        low_rank: Whether it leaves a query's gradient of as few ranks as it was, so that reading along it is cheaper.
        examples: Whether it lives in example space: its directions take readings of the training set, many queries
            together, and exact scores are plain ones, whitened afterwards.
        passes: Forward passes over the training set that the directions of queries take, or ``"module:name"`` of what
            counts them: ``passes(queries, together, steps)``; None: none.
    """

    maker: Callable[..., Any] | str
    costs: Any = None
    fitted: Literal["once", "for each query", "never"] = "once"
    takes: tuple[str, ...] = ()
    damping: float | None = None
    low_rank: bool = False
    examples: bool = False
    passes: Callable[[int, int, int], int] | str | None = None


DIRECTIONS: Registry[Facts] = Registry("direction", reserved=tuple(PRESETS))


def taking(setting: str) -> str:
    """Return the directions that a setting applies to, in words, for errors."""
    return " or ".join(f"direction={name!r}" for name, facts in DIRECTIONS.items() if setting in facts.takes)
