"""What an engine is told: what was asked for, what a plan is made on, what it is opened with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forwardinf.gradients.directions import Directions
from forwardinf.gradients.recording import Parameters
from forwardinf.read.engine import silent
from forwardinf.read.plan import Plan
from forwardinf.tasks.feed import Feed


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the choice of an engine depends on beside the model and the data.

    Attributes:
        engine: ``"auto"``, or the one asked for.
        linear: Whether the scores are rates.
        whitened: Whether exact scores are plain ones, whitened afterwards.
        signed: Whether they have a sign (the published behaviour has none).
        batch_size: As the user asked, or None.
        shard_rows: As the user asked, or None.
        kept: Where this model's measurements are kept: a file name without its ending, or None.
    """

    engine: str
    linear: bool
    whitened: bool = False
    signed: bool = True
    batch_size: int | None = None
    shard_rows: int | None = None
    kept: Path | None = None


@dataclass(frozen=True)
class Ground:
    """What a plan is made on.

    Attributes:
        feed: Model and training data.
        parameters: Those that move.
        rows: All that will be read.
        fill: Puts typical directions into a block, for measuring.
    """

    feed: Feed
    parameters: Parameters
    rows: Sequence[int]
    fill: Callable[[Directions], None]


@dataclass
class Reading:
    """What an engine is opened with, for one unit of work.

    Attributes:
        feed: The model and the rows that are read, laid out as the plan has it.
        of: ``"train"``, or ``"queries"``: the queries' own rows, read as if they were training rows.
        parameters: Those that move.
        plan: How the reading is done.
        batch_size: Examples at a time, to begin with.
        halved: Told the new batch size each time it is halved.
        folder: Where the engine may keep something between calls, or None.
        notes: What a person should know.
        kept: What the engine keeps from one unit of a call to the next; the engine's own, empty at first.
    """

    feed: Feed
    of: str
    parameters: Parameters
    plan: Plan
    batch_size: int
    halved: Callable[[int], None] = silent
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
