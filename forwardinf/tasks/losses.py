"""Per-example losses, in float64 from the model's logits on: a change of 1e-6 nats must survive the subtraction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_AT_ONCE = {"cpu": 2**18}  # in float64: what stays in a CPU's cache is half as dear
ELSEWHERE = 2**27  # a GPU wants few launches: 1 GiB


def cross_entropy(logits: Tensor, labels: Tensor, *, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Return −log p(label): ``(B, C), (B,) → (B,)`` float64, in nats.

    A label of −100 counts nothing. ``weight (C,)`` scales an example by its class, as torch's unreduced loss does.
    """
    scale = None if weight is None else weight.to(logits.device, torch.float64)
    return F.cross_entropy(logits.double(), labels, weight=scale, reduction="none", label_smoothing=smoothing)


def binary_cross_entropy(logits: Tensor, labels: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Return the loss of independent yes/no answers, same shape as ``logits``, float64, in nats.

    ``weight`` scales the yes answers, as ``pos_weight`` does.
    """
    scale = None if weight is None else weight.to(logits.device, torch.float64)
    return F.binary_cross_entropy_with_logits(logits.double(), labels.double(), pos_weight=scale, reduction="none")


def yes_weight(labels: Tensor, weight: Tensor | None) -> Tensor:
    """Return what each answer's curvature is multiplied by where yes weighs ``weight``; labels float64 of 0 to 1."""
    return torch.ones_like(labels) if weight is None else 1 + labels * (weight.to(labels.device, torch.float64) - 1)


def token_losses(logits: Tensor, labels: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Return each token's (or pixel's) loss: ``(B, …, C), (B, …) → (B, …)`` float64, in nats; 0 where the label is −100.

    ``weight (C,)`` as in :func:`cross_entropy`.
    """
    return _token_by_token(partial(cross_entropy, weight=weight), logits, labels)


def token_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each token's margin log p/(1−p), as :func:`token_losses` does its loss; 0 where the label is −100."""

    def counted(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.where(labels != -100, margin(logits, labels.clamp_min(0)), 0.0)

    return _token_by_token(counted, logits, labels)


def _token_by_token(of: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``of`` every token, so many at a time as may stand in float64 at once.

    Split in one go: the backward of a slice would write zeros for all the others.
    """
    if labels.numel() == 0:
        return labels.double()
    size = max(1, LOGITS_AT_ONCE.get(logits.device.type, ELSEWHERE) // max(logits.shape[-1], 1))
    pieces = zip(torch.split(logits.flatten(0, -2), size), torch.split(labels.flatten(), size), strict=True)
    return torch.cat([of(*piece) for piece in pieces]).view(labels.shape)


def margin_of(loss: Tensor) -> Tensor:
    """Return log p/(1−p) where the loss is −log p; 0 where the loss is exactly 0 (not counted)."""
    counted = loss > 0
    safe = torch.where(counted, loss, torch.ones_like(loss))
    return torch.where(counted, -safe - torch.log(-torch.expm1(-safe)), torch.zeros_like(loss))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log p/(1−p) of the label: ``(B, C), (B,) → (B,)`` float64. Does not vanish as p goes to 1."""
    wide = logits.double()
    own = wide.gather(1, labels[:, None]).squeeze(1)
    others = wide.scatter(1, labels[:, None], float("-inf"))
    return own - others.logsumexp(1)
