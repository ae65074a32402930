"""Out of memory: recognise it, and go on with half the batch."""

from __future__ import annotations

import gc

import torch

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
