"""Join what single examples brought into the uses of a batch, so that what comes after has batches to work with.

Examples that were read alone may differ in length and in which parameters they used: factors are filled up with zeros, to which
nothing has come back, so that they add nothing anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from forwardinf.gradients.layer_uses import Bag, Convolved, Direct, Formed, Lookup, Outer, Use, formed

MOST = 64  # examples of one batch
ROOM = 2**27  # bytes of gradients and factors in one batch

Slot = tuple[object, ...]


class Joined:
    """Collects single examples until there are enough of them."""

    def __init__(self) -> None:
        """Start with none."""
        self._start_over()

    def _start_over(self) -> None:
        self.units: list[int] = []
        self.losses: list[float] = []
        self.slots: dict[Slot, list[tuple[int, Use]]] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self.units)

    @property
    def full(self) -> bool:
        """Whether they should be taken."""
        return len(self.units) >= MOST or self.nbytes >= ROOM

    def add(self, unit: int, loss: float, uses: Sequence[Use]) -> None:
        """Take one example's uses, each of a batch of one."""
        counts: dict[Slot, int] = {}
        for use in uses:
            kind = _kind(use)
            counts[kind] = counts.get(kind, 0) + 1
            kept = use if not isinstance(use, Direct) else formed(use.name, use.gradient(), use.call, _why(use))
            self.slots.setdefault((*kind, counts[kind]), []).append((len(self.units), kept))
            self.nbytes += sum(tensor.nbytes for tensor in vars(kept).values() if isinstance(tensor, Tensor))
        self.units.append(unit)
        self.losses.append(loss)

    def taken(self) -> tuple[list[int], Tensor, list[Use]]:
        """Return (units, losses, uses) of those collected, and start over."""
        found = [
            _join([use for _, use in there], [at for at, _ in there], len(self.units)) for there in self.slots.values()
        ]
        batch = self.units, torch.tensor(self.losses, dtype=torch.float64), found
        self._start_over()
        return batch


def _why(use: Use) -> str:
    return use.why if isinstance(use, Formed) else ""


def _kind(use: Use) -> Slot:
    """Return what two uses must share to be of one kind: the parameter, and how it was used."""
    if isinstance(use, Outer):
        return use.name, Outer, use.turned, None if use.rows is None else (use.rows.start, use.rows.stop)
    if isinstance(use, Convolved):
        return use.name, Convolved, *(str(value) for value in use.settings.values())
    if isinstance(use, Lookup):
        return use.name, type(use), use.skipped, use.weight
    return use.name, Direct


def _join(uses: Sequence[Use], places: Sequence[int], size: int) -> Use:
    """Return uses of single examples, which stand at ``places`` of a batch, as one."""
    first = uses[0]
    if isinstance(first, Direct):
        return formed(first.name, _stacked([use.came_back for use in uses], places, size), first.call, _why(first))
    if isinstance(first, Lookup) and not isinstance(first, Bag):
        backs = [use.came_back.reshape(1, -1, first.shape[1]) for use in uses]
    else:
        backs = [use.came_back for use in uses]
    name = "index" if isinstance(first, Lookup) else "entered"
    found: Use = replace(first, **{name: _stacked([getattr(use, name) for use in uses], places, size)})  # type: ignore[arg-type]
    found.back = _stacked(backs, places, size)
    return found


def _stacked(tensors: Sequence[Tensor], places: Sequence[int], size: int) -> Tensor:
    """Return tensors ``(1, …)`` as rows of one, filled up with zeros to the largest; rows between them are zero."""
    shape = [max(lengths) for lengths in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    if len(tensors) == size and all(list(tensor.shape[1:]) == shape for tensor in tensors):
        return torch.cat(list(tensors))
    found = tensors[0].new_zeros(size, *shape)
    for place, tensor in zip(places, tensors, strict=True):
        missing = [side for axis in reversed(range(len(shape))) for side in (0, shape[axis] - tensor.shape[axis + 1])]
        found[place] = F.pad(tensor[0], missing)
    return found
