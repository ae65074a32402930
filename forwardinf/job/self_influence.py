"""What each training example does to itself: how self-influence is settled and read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.progress import Advance, Setting, Stages, progress
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Collate, Id
from forwardinf.gradients.per_example import recorder_of
from forwardinf.job.open import open_training
from forwardinf.job.options import Options
from forwardinf.perturb.direction import Direction, Fitting
from forwardinf.perturb.hold import Holding
from forwardinf.perturb.parameters import Parameters
from forwardinf.perturb.registry import DIRECTIONS, make_direction
from forwardinf.perturb.self_influence import Own, own_of
from forwardinf.read.self_influence import OwnEngine, self_products
from forwardinf.read.tune import tune
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.root import slope

PASS = 4  # forwards that a pass with gradients counts for in the progress


@dataclass
class SelfJob:
    """What :func:`prepare_self` settled: how gᵢᵀ P gᵢ of every training example is read.

    Attributes:
        feed: Model and training data.
        parameters: Those that count.
        perturbation: The settings of P.
        direction: P itself.
        own: Takes the products of whole batches, or None: one example at a time.
        batch_size: Examples at a time.
        notes: What a person should know, among it why it is one example at a time.
        clock: Seconds of ``setup_s`` and ``fit_s``.
    """

    feed: Feed
    parameters: Parameters
    perturbation: Perturbation
    direction: Direction
    own: Own | None
    batch_size: int
    notes: list[str]
    clock: dict[str, float]
    progress: Setting = "auto"

    def read(self) -> tuple[Tensor, Tensor]:
        """Return (gᵢᵀ P gᵢ, losses), ``(units,)`` float64; the products as their losses are read."""
        with progress("self-influence", self.feed.examples.units, self.progress) as advance:
            values, losses = self._products(advance)
        factor = slope(losses) if self.perturbation.reading == "root" else torch.ones_like(losses)
        return values * factor.square(), losses

    def _products(self, advance: Advance) -> tuple[Tensor, Tensor]:
        rows = range(len(self.feed.examples))
        if isinstance(self.direction, Holding) and self.direction.held.whole:  # K is there: nothing is left to be read
            return self.direction.ridge.own(), self.feed.losses(rows, self.batch_size, advance)
        if self.own is not None:
            return OwnEngine(self.feed, self.parameters, self.own, self.batch_size, self._halved).read(rows, advance)
        return self_products(self.feed, rows, self.parameters, self.direction, advance)

    def _halved(self, size: int) -> None:
        self.notes.append(f"out of memory: {size} examples at a time from there on")


def prepare_self(
    model: nn.Module,
    train: Any,
    *,
    task: Any,
    perturbation: Perturbation,
    ids: str | Sequence[Id] | None,
    collate_fn: Collate | None,
    options: Options,
    whole: Stages | None = None,
) -> SelfJob:
    """Settle how self-influence is read; see :func:`forwardinf.self_influence`. Call it with the model borrowed.

    ``whole``, the call's progress, is told what is to come.
    """
    began = time.perf_counter()
    training = open_training(
        model, train, task=task, parameters=perturbation.parameters, ids=ids, collate_fn=collate_fn, options=options
    )
    feed, chosen, rows = training.feed, training.parameters, training.feed.examples
    fitted = DIRECTIONS[perturbation.direction].fitted != "never"
    if whole is not None:
        whole.expect("fitting", PASS * len(rows) if fitted else 0)
        whole.expect("self-influence", PASS * len(rows))
    notes = list(rows.notes)
    recorder = recorder_of(feed, chosen)
    recorder.meet(feed, chosen)
    size = 1 if options.batch_size == "auto" else options.batch_size
    if not recorder.reason:
        squares = Own()

        def work(trial: Feed, piece: Sequence[int], size: int) -> None:
            OwnEngine(trial, chosen, squares, size).values(piece, size)

        asked = None if options.batch_size == "auto" else options.batch_size
        tuning = tune(feed, range(len(rows)), asked, len(rows), None, work)
        size, feed = tuning.batch_size, replace(feed, channels_last=tuning.channels_last)
    setup = time.perf_counter()
    key = training.key if fitted else None
    direction = make_direction(
        Fitting(perturbation, feed, chosen, size, key, options.cache, progress=options.progress, notes=notes)
    )
    own = own_of(direction)
    if own is None and not isinstance(direction, Holding):
        notes.append(f"read one example at a time: direction {perturbation.direction!r} does not apply to factors")
    clock = {"setup_s": setup - began, "fit_s": time.perf_counter() - setup}
    return SelfJob(feed, chosen, perturbation, direction, own, size, notes, clock, options.progress)
