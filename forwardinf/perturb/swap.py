"""Lend the moved model and take it back bit for bit: contents are exchanged in place, never recomputed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from forwardinf.core import machine
from forwardinf.core.errors import ModelError
from forwardinf.core.uninterrupted import Lending, surely
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


def lend(live: Mapping[str, Tensor], moved: Tensors) -> Lend:
    """Put ``moved`` in place of a model's tensors for the length of a ``with`` block; no signal cuts giving them back short.

    Args:
        live: The model's tensors. They are written in place, so that ties, optimisers and compiled graphs hold.
        moved: New contents by name. Afterwards the mapping holds them again: it can be lent any number of times.

    Raises:
        ModelError: A name is unknown, or a shape differs (copying would broadcast it without a word).
    """
    _fits(live, moved)
    return Lend(live, moved)


class Lend(Lending[None]):
    """Contents exchanged; see :func:`lend`."""

    def __init__(self, live: Mapping[str, Tensor], moved: Tensors) -> None:
        """Say what goes where; nothing is exchanged yet."""
        self.live, self.moved = live, moved
        self.kept: Tensors = {}

    def take(self) -> None:
        """Put the moved contents in place."""
        with torch.no_grad():
            for name in self.moved:
                self.kept[name] = self.live[name].detach().clone()  # safe before anything is written
                self.live[name].copy_(self.moved[name])
                self.moved[name] = self.kept[name]  # one copy in all: the moved values live in the model now
        if sum(original.nbytes for original in self.kept.values()) > LARGE:
            machine.give_back_freed()  # gradients and masters are free now: reading should not carry them along

    def give_back(self, failed: bool) -> None:
        """Put the originals back."""
        surely(partial(self._give_back, name) for name in list(self.kept))

    def _give_back(self, name: str) -> None:
        original = self.kept[name]
        with torch.no_grad():
            try:
                if self.moved[name] is original:
                    self.moved[name] = self.live[name].detach().clone()
            finally:  # where there is no room for the moved contents, the original goes back all the same
                self.live[name].copy_(original)
        del self.kept[name]  # so that giving back takes no second copy either


def _fits(live: Mapping[str, Tensor], moved: Tensors) -> None:
    for name, tensor in moved.items():
        if name not in live:
            raise ModelError(f"parameter {name}", expected="a tensor of the model", got="no such name")
        if tensor.shape != live[name].shape or tensor.dtype != live[name].dtype:
            raise ModelError(f"parameter {name}", expected=f"{live[name].dtype} {tuple(live[name].shape)}",
                             got=f"{tensor.dtype} {tuple(tensor.shape)}")  # fmt: skip
