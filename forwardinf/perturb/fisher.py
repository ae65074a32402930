"""Whose gradients the curvature is made of: labels drawn from the model's own prediction, or the training labels.

With drawn labels (the true Fisher) the second moment of gradients is the Gauss–Newton matrix on average; with training
labels (the empirical Fisher) it vanishes where the model fits them (Kunstner et al. 2019, arXiv:1905.12558).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from forwardinf.data.examples import Batch
from forwardinf.perturb.direction import Fitting
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.prediction import Prediction
from forwardinf.tasks.task import Task, prediction_of


class Drawn(Task):
    """A task under labels that the model itself draws, the same for an example however it is batched."""

    keyed = True

    def __init__(self, task: Task, draw: int) -> None:
        """Take the task, and which of its draws."""
        self.task, self.draw, self.unit = task, draw, task.unit

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each example's loss under drawn labels, ``(B,)``; one forward."""
        found = prediction_of(self.task, model, batch)
        assert found is not None
        return found.drawn(found.output, self.draw)


def fisher_feed(fitting: Fitting) -> tuple[Feed, str, list[str]]:
    """Return (the training data under the labels asked for, ``"true"`` or ``"empirical"``, notes).

    A task that does not say how to draw labels is fitted on its training labels, and a note says so. Rows that pack
    several documents are one example here: their gradients are summed before they are squared.
    """
    task, notes = fitting.train.task.whole(), []
    feed = replace(fitting.train, task=task)
    if fitting.train.task.packed:
        feed = replace(feed, examples=feed.examples.one_each())
        notes.append("curvature is fitted on whole rows: documents packed into one row are not told apart")
    if fitting.perturbation.fisher == "empirical":
        return feed, "empirical", notes
    if not draws_labels(feed):
        kind = type(getattr(task, "function", None) or task).__name__
        notes.append(f"empirical Fisher: {kind} does not say how labels are drawn from its prediction")
        return feed, "empirical", notes
    return replace(feed, task=Drawn(task, fitting.perturbation.seed)), "true", notes


@torch.no_grad()
def draws_labels(feed: Feed) -> bool:
    """Return whether the task knows its loss in two halves: one forward of one example."""
    found: list[Prediction | None] = []

    def ask(model: nn.Module, batch: Batch) -> Tensor:
        found.append(prediction_of(feed.task, model, batch))
        return torch.zeros(1)

    for _ in feed.each(ask, [0], 1):
        pass
    return found[0] is not None
