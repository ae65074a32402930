"""Which words of a document react: its tokens' losses, before and after the model is pushed off the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forwardinf.perturb.push import Pusher
from forwardinf.perturb.swap import lend
from forwardinf.tasks.feed import Feed


def token_changes(
    pusher: Pusher, rows: Sequence[int], name: object, train: Feed, documents: Sequence[int]
) -> list[Tensor]:
    """Return, for each document, how far each of its tokens' losses moved, ``(T,)`` in nats; 0 where not counted.

    Positive: the token became less likely as the model unlearned the answer. Measured as scores are: one-sided, or half the
    difference between the two sides.

    Args:
        pusher: Of the questions.
        rows: The question's rows.
        name: The question, for errors.
        train: The documents.
        documents: Which of them: rows of ``train``.

    Cost: one push (the question's gradient and a few forwards of it), and one or two forwards of each document.
    """
    query = pusher.check(rows, name, skip=False)
    before = _losses(train, documents)
    after = []
    for moved in pusher.push(query).sides:
        with lend(pusher.live, moved):
            after.append(_losses(train, documents))
    if len(after) == 2:
        return [(up - down) / 2 for up, down in zip(*after, strict=True)]
    side = 1 if pusher.perturbation.toward == "ascent" else -1
    return [side * (moved - own) for moved, own in zip(after[0], before, strict=True)]


def _losses(train: Feed, documents: Sequence[int]) -> list[Tensor]:
    """Return each document's token losses, one row at a time: no padding between the tokens and their places."""
    task: Any = train.task
    with torch.no_grad():
        return [values[0].double().cpu() for values in train.each(task.token_losses, documents, 1)]
