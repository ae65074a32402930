"""Per-example gradients, one example at a time: slow and obvious. The reference that fast engines are tested against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from forwardinf.core.examples import Batch
from forwardinf.core.feed import Feed, one_each

Tensors = dict[str, Tensor]


@contextmanager
def _wanted(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within the block exactly ``parameters`` want gradients."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    chosen = set(parameters.values())
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in chosen)
        yield
    finally:
        for parameter, was in before.items():
            parameter.requires_grad_(was)


def per_example_gradients(
    feed: Feed, rows: Sequence[int], parameters: Mapping[str, nn.Parameter]
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

    with _wanted(feed.model, parameters), torch.enable_grad():
        for row in rows:
            found.clear()
            for _ in feed.each(ask, [row], 1):
                pass
            if len(found) != len(examples.units_of([row])):
                one_each(torch.zeros(len(found)), len(examples.units_of([row])), f"row {row}")
            yield from found


def self_products(
    feed: Feed,
    rows: Sequence[int],
    parameters: dict[str, nn.Parameter],
    direction: Callable[[Tensors], Tensors],
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor, float]:
    """Return (gᵢᵀ P gᵢ, losses, seconds), ``(units,)`` float64 each: how strongly each example acts on its own loss."""
    values, losses, began = [], [], time.perf_counter()
    for gradient, loss in per_example_gradients(feed, rows, parameters):
        moved = direction({name: tensor.clone() for name, tensor in gradient.items()})
        values.append(sum(float((tensor.double() * moved[name].double()).sum()) for name, tensor in gradient.items()))
        losses.append(loss)
        advance(1)
    return (
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(losses, dtype=torch.float64),
        time.perf_counter() - began,
    )
