"""The same model as it was at other moments of its training, one after the other; given back as it is now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from forwardinf.models.weights import load_state


@contextmanager
def at_checkpoint(model: nn.Module, checkpoint: Any) -> Iterator[None]:
    """Within the block the model holds a checkpoint's values (None: its own); afterwards its own, bit for bit."""
    if checkpoint is None:
        yield
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    try:
        load_state(model, checkpoint)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(kept[name])


def each_checkpoint(model: nn.Module, checkpoints: Sequence[Any] | None) -> Iterator[None]:
    """Yield once with the model as it is, and once at each checkpoint."""
    for checkpoint in (None, *(checkpoints or ())):
        with at_checkpoint(model, checkpoint):
            yield
