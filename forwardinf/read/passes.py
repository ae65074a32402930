"""How a reading by passes with gradients is planned: a pass with a full block of directions is timed on a few batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from forwardinf.core import machine
from forwardinf.core.errors import SettingError
from forwardinf.gradients.per_example import recorder_of
from forwardinf.gradients.products import product_dtype
from forwardinf.gradients.recording import Parameters
from forwardinf.read.asked import Asked, Ground
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.plan import Plan, factored_plan
from forwardinf.read.tune import tune
from forwardinf.tasks.feed import Feed

ALONE = 8  # rows that are joined to a batch where gradients are taken one example at a time
ROOM = 2 * 2**30  # bytes of query directions held at once, at most
SHARE_OF_FREE = 0.25  # and at most this share of the memory that is free


def plan_factored(asked: Asked, plan: Plan, ground: Ground) -> tuple[Plan, str]:
    """Return (the plan with the factored engine, a note for people or nothing).

    Raises:
        SettingError: The scores are not exact rates.
        ModelError: There is not enough memory.
    """
    if not (asked.linear and asked.signed):
        raise SettingError("engine='factored'", expected="length='linear': exact rates", got="a finite length",
                           do="Read it with engine='forward', or ask for linear scores.")  # fmt: skip
    exact, note = measure(asked, plan, ground)
    return replace(exact, why=f"asked for: {in_passes(exact, plan)}"), note


def in_passes(exact: Plan, plan: Plan) -> str:
    """Say how many passes stand for how many readings."""
    return f"{exact.passes} exact pass{'es' if exact.passes > 1 else ''} for {plan.passes} readings"


def measure(asked: Asked, plan: Plan, ground: Ground) -> tuple[Plan, str]:
    """Return (the plan with the factored engine, timed with a full block of directions; a note for people or nothing).

    Raises:
        ModelError: There is not enough memory.
    """
    feed, parameters, rows = ground.feed, ground.parameters, ground.rows
    recorder = recorder_of(feed, parameters)
    recorder.meet(feed, parameters)
    block = query_block(parameters, plan.queries, feed.device)
    engine = FactoredEngine(feed, parameters, 1)
    directions = engine.directions(block)
    ground.fill(directions)

    def work(trial: Feed, piece: Sequence[int], size: int) -> None:
        engine.feed = trial
        engine.scores(directions, piece, size)

    path = None if asked.kept is None else asked.kept.with_suffix(f".pass-{block}.json")
    alone = recorder.reason or feed.examples.units != len(feed.examples)  # one at a time, whatever the batch
    reading = len(rows) * math.ceil(plan.queries / block)
    tuning = tune(feed, rows, asked.batch_size or (ALONE if alone else None), reading, path, work)
    found = factored_plan(plan, tuning, rows=len(rows), block=block, shard_rows=asked.shard_rows, error=recorder.error,
                          direction_bytes=directions.nbytes, whitened=asked.whitened)  # fmt: skip
    return found, recorder.told()


def query_block(parameters: Parameters, queries: int, device: torch.device) -> int:
    """Return how many queries' directions are held at once."""
    each = sum(parameter.numel() for parameter in parameters.values()) * product_dtype(parameters).itemsize
    free = machine.free_bytes(device)
    room = min(ROOM, SHARE_OF_FREE * free) if free else ROOM
    most = max(1, min(queries, int(room // max(each, 1))))
    return math.ceil(queries / math.ceil(queries / most))  # blocks of equal size
