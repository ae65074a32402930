"""Out of memory: recognise it, go on with half the batch; and do not let a GPU's allocator hold what nobody uses."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def release() -> None:
    """Give back what a failed forward left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


SLACK = 2**30  # bytes that the allocator may hold beyond what is in use, or as much as is in use


def sizes(batch: Any) -> tuple[Any, ...]:
    """Return the shapes of a batch's tensors."""
    if isinstance(batch, Tensor):
        return tuple(batch.shape)
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return tuple(map(sizes, values))


def trim(device: torch.device) -> None:
    """Give a GPU's free blocks back where they are more than what is in use: batches of other sizes cannot use them.

    Call it between batches of different sizes. The allocator keeps blocks by size, so that texts of many lengths reserve the
    sum of what each length took.
    """
    if device.type != "cuda":
        return
    used = torch.cuda.memory_allocated(device)
    if torch.cuda.memory_reserved(device) - used > max(SLACK, used):
        torch.cuda.empty_cache()
