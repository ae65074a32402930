"""Per-example gradients, one example at a time: slow and obvious. The reference that fast engines are tested against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from forwardinf.core.examples import Batch
from forwardinf.core.feed import Feed, one_each

Tensors = dict[str, Tensor]


def per_example_gradients(
    feed: Feed, rows: Sequence[int], parameters: dict[str, nn.Parameter]
) -> Iterator[tuple[Tensors, float]]:
    """Yield each unit's (gradient of its training loss by parameter name, loss), in order.

    Cost: a forward and a backward of one example each, about 3 F for all and slower by the loss of batching. Memory: one
    gradient at a time.
    """
    examples = feed.examples
    found: list[tuple[Tensors, float]] = []

    def ask(model: nn.Module, batch: Batch) -> Tensor:
        losses = feed.task.loss(model, batch)
        values = one_each(losses, len(losses) if losses.ndim else 1, "one example")
        for place in range(len(losses)):
            grads = torch.autograd.grad(losses[place], list(parameters.values()), allow_unused=True,
                                        retain_graph=place + 1 < len(losses))  # fmt: skip
            pairs = zip(parameters, grads, strict=True)
            found.append(({name: grad for name, grad in pairs if grad is not None}, float(values[place])))
        return values

    with torch.enable_grad():
        for row in rows:
            found.clear()
            for _ in feed.each(ask, [row], 1):
                pass
            if len(found) != len(examples.units_of([row])):
                one_each(torch.zeros(len(found)), len(examples.units_of([row])), f"row {row}")
            yield from found
