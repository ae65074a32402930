"""What the model makes of the queries: which of them it gets wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forwardinf.core.errors import TaskError
from forwardinf.data.examples import Batch
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.task import Classification


@torch.no_grad()
def misclassified(feed: Feed, batch_size: int) -> list[int]:
    """Return the rows whose predicted class is not their label, in order.

    Raises:
        TaskError: The task has no classes to compare.
    """
    task = feed.task
    if not isinstance(task, Classification):
        raise TaskError("misclassified", expected="a classification task", got=type(task).__name__)

    def wrong(model: nn.Module, batch: Batch) -> Tensor:
        label: Tensor = task.split(batch)[1]
        return task.logits(model, batch).argmax(1) != label.view(-1).to(torch.int64)

    rows: Sequence[int] = range(len(feed.examples))
    found = torch.cat([value.cpu() for value in feed.each(wrong, rows, batch_size)])
    return [int(row) for row in found.nonzero().flatten()]
