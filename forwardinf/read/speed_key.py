"""Models of the same form read at the same speed: the name under which what was measured of one is found for another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forwardinf.core import machine
from forwardinf.core.fingerprint import code_digest, digest
from forwardinf.tasks.feed import Feed

MANY = 1024  # rows from which on their number does not matter


def same_speed(feed: Feed, rows: int, *others: Any) -> str:
    """Return a digest of what the speed of a reading depends on: the model's form, not its weights, and the examples' shapes.

    Args:
        feed: Model, task and data.
        rows: How many will be read.
        others: What else it depends on.
    """
    sample = feed.examples[0] if len(feed.examples) else None
    return digest(form(feed.model), code_digest(feed.task), _shape(sample), min(rows, MANY), str(feed.device),
                  torch.get_num_threads(), torch.__version__, machine.describe()["processor"], *others)  # fmt: skip


def form(model: nn.Module) -> list[str]:
    """Return a model's modules with their settings, and its tensors' shapes and dtypes."""
    modules = [f"{name} {type(module).__qualname__} {module.extra_repr()}" for name, module in model.named_modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        *modules,
        *(f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in tensors),
    ]


def _shape(example: Any) -> Any:
    if isinstance(example, Tensor | np.ndarray):
        return [list(example.shape), str(example.dtype)]
    if isinstance(example, Mapping):
        return {str(name): _shape(value) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return [len(example), *map(_shape, example[:2])]
    return type(example).__name__
