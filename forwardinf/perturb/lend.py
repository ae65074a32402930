"""Lend the moved model and take it back bit for bit: contents are exchanged in place, never recomputed (law 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forwardinf.core import machine
from forwardinf.core.errors import ModelError
from forwardinf.perturb.direction import Tensors

LARGE = 16 * 2**20  # bytes of moving parameters from which freed memory is worth returning


@dataclass
class Push:
    """One query's perturbation, ready to be lent.

    Attributes:
        sides: θ′ of the tensors that move: the side asked for, and with ``two_sided`` the other one. One copy of the
            moved parameters each; while lent, the copy holds the originals.
        step: The factor on the direction (‖Δθ‖ over the direction's norm).
        length: ‖Δθ‖/‖θ‖ reached.
        share_moved: Share of the weights with a direction that came out different after rounding to their dtype.
    """

    sides: tuple[Tensors, ...]
    step: float
    length: float
    share_moved: float


def tensors_of(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the model's parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@contextmanager
def lend(live: Mapping[str, Tensor], moved: Tensors) -> Iterator[None]:
    """Put ``moved`` in place of a model's tensors for the length of a ``with`` block.

    Args:
        live: The model's tensors. They are written in place, so that ties, optimisers and compiled graphs hold.
        moved: New contents by name. Afterwards the mapping holds them again: it can be lent any number of times.

    Raises:
        ModelError: A name is unknown, or a shape differs (copying would broadcast it without a word).
    """
    _fits(live, moved)
    kept: Tensors = {}
    try:
        with torch.no_grad():
            for name in moved:
                kept[name] = live[name].detach().clone()  # safe before anything is written
                live[name].copy_(moved[name])
                moved[name] = kept[name]  # one copy in all: the moved values live in the model now
        if sum(original.nbytes for original in kept.values()) > LARGE:
            machine.give_back_freed()  # gradients and masters are free now: reading should not carry them along
        yield
    finally:
        with torch.no_grad():
            for name in list(kept):
                moved[name] = live[name].detach().clone()
                live[name].copy_(kept[name])
                del kept[name]  # so that giving back takes no second copy either


def _fits(live: Mapping[str, Tensor], moved: Tensors) -> None:
    for name, tensor in moved.items():
        if name not in live:
            raise ModelError(f"parameter {name}", expected="a tensor of the model", got="no such name")
        if tensor.shape != live[name].shape or tensor.dtype != live[name].dtype:
            raise ModelError(f"parameter {name}", expected=f"{live[name].dtype} {tuple(live[name].shape)}",
                             got=f"{tensor.dtype} {tuple(tensor.shape)}")  # fmt: skip
