"""The loss in two halves: what the model puts out, and what the loss makes of it. Curvature needs them apart.

The Gauss–Newton matrix of a loss is Jᵀ H J, J the Jacobian of the model's output and H the Hessian of the loss at that
output. Gradients under labels drawn from the model's own prediction have it as their second moment (the true Fisher).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.data import noise
from forwardinf.data.padding import NOT_COUNTED

PLACES_AT_ONCE = 1024  # probabilities of this many places at a time


@dataclass(frozen=True)
class Prediction:
    """What the model puts out for a batch, and what follows from it.

    Attributes:
        output: ``(B, …)``, differentiable.
        loss: Output to training loss, ``(B,)``: the task's own loss is ``loss(output)``.
        drawn: (output, which draw) to the loss ``(B,)`` under labels drawn from the output, keyed by the example: the
            second moment of its gradient, on average over draws, is the Gauss–Newton matrix of ``loss``. Scaled so
            where the loss is not a likelihood as it stands (a mean over outputs, class weights).
    """

    output: Tensor
    loss: Callable[[Tensor], Tensor]
    drawn: Callable[[Tensor, int], Tensor]


def classes(logits: Tensor, counted: Tensor, draw: int) -> Tensor:
    """Return class numbers drawn from ``softmax(logits)``, ``(B, …, C), (B, …) → (B, …)``; −100 where not counted."""
    found = torch.full(counted.shape, NOT_COUNTED, dtype=torch.int64, device=logits.device)
    given = noise.uniform(counted.reshape(len(counted), -1).sum(1).tolist(), draw=draw)
    if not given:
        return found
    levels, rows = torch.cat(given).to(logits.device), logits.detach()[counted]
    parts = [found.new_empty(0)]
    for start in range(0, len(rows), PLACES_AT_ONCE):
        heights = rows[start : start + PLACES_AT_ONCE].double().softmax(-1).cumsum(-1)
        level = levels[start : start + PLACES_AT_ONCE, None] * heights[:, -1:]
        parts.append(torch.searchsorted(heights, level, right=True).squeeze(1).clamp_max_(logits.shape[-1] - 1))
    found[counted] = torch.cat(parts)
    return found


def coins(logits: Tensor, draw: int) -> Tensor:
    """Return 0s and 1s drawn from ``sigmoid(logits)``, float64, same shape ``(B, …)``."""
    each = logits[0].numel() if len(logits) else 0
    levels = torch.stack(noise.uniform([each] * len(logits), draw=draw)).view(logits.shape).to(logits.device)
    return (levels < logits.detach().double().sigmoid()).double()


def normals(output: Tensor, draw: int) -> Tensor:
    """Return standard-normal numbers, float64, same shape ``(B, …)``."""
    return noise.normal(tuple(output.shape[1:]), size=len(output), draw=draw).double().to(output.device)
