"""How strongly each example acts on its own loss: from the factors of whole batches, or one example at a time.

The second is slow and obvious: the reference for the first, and what is left for directions and models it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from forwardinf.core.progress import Advance
from forwardinf.gradients.layer_uses import Use
from forwardinf.gradients.per_example import factored
from forwardinf.gradients.per_example import per_example_gradients as per_example_gradients
from forwardinf.gradients.recording import Parameters
from forwardinf.read.engine import Halving, silent
from forwardinf.tasks.feed import Feed

Tensors = dict[str, Tensor]
Own = Callable[[Sequence[Use], int], Tensor]
CHUNK = 4096  # rows that are read anew where memory runs out


class OwnEngine(Halving):
    """Reads gᵢᵀ P gᵢ of whole batches in one forward and one activation-only backward.

    Args:
        feed: Model and training data; one unit a row.
        parameters: Those that count.
        own: Takes the products from the uses of a batch and its size, ``(B,)`` float64 on the CPU.
        batch_size: Examples at a time, to begin with.
        halved: Told the new batch size each time it is halved.
    """

    def __init__(
        self, feed: Feed, parameters: Parameters, own: Own, batch_size: int, halved: Callable[[int], None] = silent
    ) -> None:
        """Keep what is read and how."""
        super().__init__(feed, batch_size, halved)
        self.parameters, self.own = parameters, own

    def read(self, rows: Sequence[int], advance: Advance = silent) -> tuple[Tensor, Tensor]:
        """Return (gᵢᵀ P gᵢ, losses), ``(units,)`` float64 each.

        Cost: a forward, a backward through activations, and the products. Memory: a batch's activations and their gradients.
        """
        found = []
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            found.append(self.whole(lambda count, at=chunk: self.values(at, self.batch_size, count), chunk, advance))  # type: ignore[misc]
            self.forwards += len(chunk)
        both = torch.cat(found, 1)
        return both[0], both[1]

    def values(self, rows: Sequence[int], size: int, advance: Advance = silent) -> Tensor:
        """Return the same as ``(2, units)`` at a given batch size; memory that runs out is the caller's."""
        found = []
        for units, losses, uses in factored(self.feed, rows, self.parameters, size):
            found.append(torch.stack([self.own(uses, len(units)), losses]))
            advance(len(units))
        return torch.cat(found, 1)


def self_products(
    feed: Feed,
    rows: Sequence[int],
    parameters: dict[str, nn.Parameter],
    direction: Callable[[Tensors], Tensors],
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Return (gᵢᵀ P gᵢ, losses), ``(units,)`` float64 each, one example at a time."""
    values, losses = [], []
    for gradient, loss in per_example_gradients(feed, rows, parameters):
        moved = direction({name: tensor.clone() for name, tensor in gradient.items()})
        values.append(sum(float((tensor.double() * moved[name].double()).sum()) for name, tensor in gradient.items()))
        losses.append(loss)
        advance(1)
    return torch.tensor(values, dtype=torch.float64), torch.tensor(losses, dtype=torch.float64)
