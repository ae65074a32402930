"""What every use starts from: the model, its task and the data, opened and checked, ready to be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError, SettingError, TaskError
from forwardinf.core.progress import Advance
from forwardinf.data.examples import Collate, Id
from forwardinf.job.open import open_rows
from forwardinf.job.options import Options, device_of
from forwardinf.perturb.parameters import Parameters, select
from forwardinf.read.forward import ForwardEngine
from forwardinf.tasks.feed import Ask, Feed
from forwardinf.tasks.task import Task, as_task

NONE: Advance = lambda done: None  # noqa: E731


@dataclass(frozen=True)
class Inputs:
    """A model and how to open data for it.

    Attributes:
        model: In eval mode.
        task: What is asked of it.
        parameters: Those whose gradients count.
        options: As given.
        collate: The user's, or None.
    """

    model: nn.Module
    task: Task
    parameters: Parameters
    options: Options
    collate: Collate | None

    def feed(self, data: Any, name: str, ids: str | Sequence[Id] | None = None) -> Feed:
        """Return data in any form, sealed (a row that changes later is an error) and named."""
        rows, _ = open_rows(data, name, self.task, self.collate, self.options, ids)
        if rows.units != len(rows):
            raise TaskError(type(self.task).__name__, expected="one example in each row", got="several documents packed in one",
                            do="Pass the documents one by one.")  # fmt: skip
        return Feed(self.model, self.task, rows, device_of(self.model, self.options.device), seed=self.options.seed)

    @property
    def batch_size(self) -> int:
        """Examples at a time in forward passes."""
        return 128 if self.options.batch_size == "auto" else int(self.options.batch_size)


def open_inputs(
    model: nn.Module, task: Any, options: Options, collate: Collate | None, parameters: str | Sequence[str] | None
) -> Inputs:
    """Check model and task; call it with the model borrowed."""
    device_of(model, options.device)
    patterns = None if parameters is None else tuple([parameters] if isinstance(parameters, str) else parameters)
    return Inputs(model, as_task(task), select(model, patterns), options, collate)


def losses(feed: Feed, batch_size: int, advance: Advance = NONE) -> Tensor:
    """Return the training loss of every row, ``(N,)`` float64; batches that memory cannot hold are halved."""
    return ForwardEngine(feed, batch_size).losses(range(len(feed.examples)), advance)


@torch.no_grad()
def predictions(
    feed: Feed, batch_size: int, advance: Advance = NONE, seen: Callable[[Ask], Ask] = lambda ask: ask
) -> tuple[Tensor, Tensor]:
    """Return (probabilities ``(N, C)`` float64, labels ``(N,)`` int64) of a classifier.

    ``advance`` is told of examples done; ``seen`` may look at what is asked.

    Raises:
        TaskError: The task has no logits or no label, or its logits are not ``(B, C)``.
    """
    task, name = feed.task, feed.examples.name
    if type(task).logits is Task.logits or not hasattr(task, "split"):
        missing = "logits(model, batch)" if type(task).logits is Task.logits else "split(batch)"
        raise TaskError(f"task {type(task).__name__}", expected=f"a classification: {missing}", got="a task without it",
                        do="Use fi.Classification(), or define it: logits(model, batch) -> (B, C) and split(batch) -> "
                        "(inputs, label).")  # fmt: skip
    found, labels = list[Tensor](), list[Tensor]()

    def ask(model: nn.Module, batch: Any) -> Tensor:
        label = task.split(batch)[1]
        logits = task.logits(model, batch)
        if logits.ndim != 2 or not isinstance(label, Tensor) or label.numel() != len(logits):
            got = tuple(label.shape) if isinstance(label, Tensor) else type(label).__name__
            raise TaskError(f"task {type(task).__name__}", expected="logits (B, C) and one class for each example",
                            got=f"logits {tuple(logits.shape)} and labels {got}")  # fmt: skip
        labels.append(label.flatten().cpu())
        advance(len(logits))
        return logits

    rows = range(len(feed.examples))
    found.extend(logits.double().softmax(1).cpu() for logits in feed.each(seen(ask), rows, batch_size))
    probabilities, given = torch.cat(found), torch.cat(labels)
    classes = given.long()
    if (
        not torch.equal(classes.to(given.dtype), given)
        or int(classes.min()) < 0
        or int(classes.max()) >= probabilities.shape[1]
    ):
        bad = int(
            ((classes < 0) | (classes >= probabilities.shape[1]) | (classes.to(given.dtype) != given)).nonzero()[0]
        )
        raise TaskError(f"label of {name}, row {bad}", expected=f"a class from 0 to {probabilities.shape[1] - 1}",
                        got=str(given[bad].item()), do="Leave out rows that are not counted.")  # fmt: skip
    return probabilities, classes


def candidate_positions(candidates: Any, names: Sequence[Id], ids: Sequence[Id], what: str) -> list[list[int]]:
    """Return each query's candidates as training positions, from positions or from ``{query id: training ids}``; not yet checked.

    Args:
        candidates: As given.
        names: The queries' ids.
        ids: The training examples'.
        what: What a query is, to a person.

    Raises:
        DataError: A query has no entry, or an id is none of the training set's.
    """
    if not isinstance(candidates, Mapping):
        return [list(map(int, entry)) for entry in candidates]
    place = {value: position for position, value in enumerate(ids)}
    missing = [name for name in names if name not in candidates]
    if missing:
        raise DataError("candidates", expected=f"an entry for each {what} id", got=f"missing {missing[:3]}")
    strange = [value for name in names for value in candidates[name] if value not in place]
    if strange:
        raise DataError("candidates", expected="training ids", got=repr(strange[0]))
    return [[place[value] for value in candidates[name]] for name in names]


def checked_share(name: str, value: float) -> float:
    """Return a share between 0 and 1, both excluded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise SettingError(name, expected="a number between 0 and 1", got=repr(value))
    return float(value)


def checked_count(name: str, value: int) -> int:
    """Return a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(name, expected="a whole number ≥ 1", got=repr(value))
    return value
