"""Which engine reads: the faster one among those that mean the same, measured on this model and data.

Only linear scores can be read by more than one engine: a difference at a short length, or the exact rate. A finite length is
never replaced by a rate, nor the other way round.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from forwardinf.core import machine
from forwardinf.core.errors import ModelError, SettingError
from forwardinf.gradients.directions import Directions
from forwardinf.gradients.per_example import recorder_of
from forwardinf.gradients.products import product_dtype
from forwardinf.gradients.recorder import Recorder
from forwardinf.gradients.recording import Parameters
from forwardinf.read.cut import capture, find_cut, rest
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.plan import Plan, factored_plan
from forwardinf.read.tune import tune
from forwardinf.tasks.feed import Feed

ALONE = 8  # rows that are joined to a batch where gradients are taken one example at a time
ROOM = 2 * 2**30  # bytes of query directions held at once, at most
SHARE_OF_FREE = 0.25  # and at most this share of the memory that is free
FEW = 2  # readings up to which no pass with gradients can pay: it costs about 3 F
WORTH = 0.9  # exact scores are better ones, but a forward needs less memory: a pass must be this much faster


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the choice depends on beside the model and the data.

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


def choose_engine(
    asked: Asked,
    plan: Plan,
    feed: Feed,
    parameters: Parameters,
    rows: Sequence[int],
    fill: Callable[[Directions], None],
) -> tuple[Plan, str]:
    """Return (the plan with its engine settled, a note for people or nothing).

    Args:
        asked: What was asked for.
        plan: Of the forward engine.
        feed: Model and training data.
        parameters: Those that move.
        rows: All that will be read.
        fill: Puts typical directions into a block, for measuring.

    Raises:
        SettingError: ``"factored"`` was asked for a finite length.
        ModelError: ``"trunk"`` was asked for a model that cannot be cut, or ``"factored"`` where there is not enough memory.
    """
    if asked.engine == "forward":
        return replace(plan, why="asked for"), ""
    if asked.engine == "trunk":
        return _trunk(asked, plan, feed, parameters, rows)
    if not (asked.linear and asked.signed):
        if asked.engine == "factored":
            raise SettingError("engine='factored'", expected="length='linear': exact rates", got="a finite length",
                               do="Read it with engine='forward', or ask for linear scores.")  # fmt: skip
        return replace(plan, why="a finite length is read by forward passes only"), ""
    if asked.engine == "auto" and plan.passes <= FEW and not plan.direction_seconds:
        return replace(plan, why=f"{plan.passes} readings: a pass with gradients costs more"), ""
    recorder = recorder_of(feed, parameters)
    recorder.meet(feed, parameters)
    try:
        exact = _measured(asked, plan, feed, parameters, rows, recorder, fill)
    except ModelError:
        if asked.engine == "factored":
            raise
        return replace(plan, why="not enough memory for a pass with gradients"), ""
    passes = f"{exact.passes} exact pass{'es' if exact.passes > 1 else ''} for {plan.passes} readings"
    if asked.engine == "factored":
        return replace(exact, why=f"asked for: {passes}"), recorder.told()
    if asked.whitened:  # a direction of its own takes each query two passes with gradients, and then it is read
        return replace(exact, why=f"{passes}, whitened"), recorder.told()
    if exact.considered["factored"] < WORTH * plan.considered["forward"]:
        return replace(exact, why=f"{passes}, exact and faster"), recorder.told()
    return replace(plan, considered=exact.considered, why="forward passes are faster here"), ""


def _trunk(asked: Asked, plan: Plan, feed: Feed, parameters: Parameters, rows: Sequence[int]) -> tuple[Plan, str]:
    """Return the plan with the forward cut in two: what a query reads is measured on a batch."""
    if not asked.signed:
        raise SettingError("engine='trunk'", expected="a clean perturbation", got="preset('as_published')",
                           do="Read with engine='forward'.")  # fmt: skip
    placed, few = replace(feed, channels_last=plan.channels_last), rows[: plan.batch_size]
    cut = find_cut(placed, parameters, few)
    _, kept = capture(placed, cut, few)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        rest(placed, cut, few, kept)
        times.append((time.perf_counter() - began) / len(few))
    nbytes = kept.nbytes * len(feed.examples) // len(few)
    each = statistics.median(times)
    found = replace(plan, engine="trunk", cut=cut.name, trunk_bytes=nbytes, rest_seconds_per_row=each, why="asked for")
    found = replace(found, considered=plan.considered | {"trunk": round(found.seconds["reading"], 4)})
    return found, f"trunk: what enters {cut.name!r} is kept on disk, about {nbytes / 2**20:.1f} MiB"


def query_block(parameters: Parameters, queries: int, device: torch.device) -> int:
    """Return how many queries' directions are held at once."""
    each = sum(parameter.numel() for parameter in parameters.values()) * product_dtype(parameters).itemsize
    free = machine.free_bytes(device)
    room = min(ROOM, SHARE_OF_FREE * free) if free else ROOM
    most = max(1, min(queries, int(room // max(each, 1))))
    return math.ceil(queries / math.ceil(queries / most))  # blocks of equal size


def _measured(
    asked: Asked, plan: Plan, feed: Feed, parameters: Parameters, rows: Sequence[int], recorder: Recorder,
    fill: Callable[[Directions], None],
) -> Plan:  # fmt: skip
    """Time passes with a full block of directions."""
    block = query_block(parameters, plan.queries, feed.device)
    engine = FactoredEngine(feed, parameters, 1)
    directions = engine.directions(block)
    fill(directions)

    def work(trial: Feed, piece: Sequence[int], size: int) -> None:
        engine.feed = trial
        engine.scores(directions, piece, size)

    path = None if asked.kept is None else asked.kept.with_suffix(f".pass-{block}.json")
    alone = recorder.reason or feed.examples.units != len(feed.examples)  # one at a time, whatever the batch
    reading = len(rows) * math.ceil(plan.queries / block)
    tuning = tune(feed, rows, asked.batch_size or (ALONE if alone else None), reading, path, work)
    return factored_plan(plan, tuning, rows=len(rows), block=block, shard_rows=asked.shard_rows, error=recorder.error,
                         direction_bytes=directions.nbytes, whitened=asked.whitened)  # fmt: skip
