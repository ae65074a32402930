"""How strongly each example acts on its own loss, one example at a time: slow and obvious."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from forwardinf.core.feed import Feed
from forwardinf.core.per_example import per_example_gradients as per_example_gradients

Tensors = dict[str, Tensor]


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
