"""The forward engine, reference for all others: any model, any loss, any perturbation; one forward per example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from forwardinf.core.progress import Advance
from forwardinf.read.engine import Halving, silent

Lent = Callable[[], AbstractContextManager[None]]  # within the block the model is the moved one


class ForwardEngine(Halving):
    """Reads losses under whatever weights the model holds. Halves the batch where memory runs out."""

    def losses(self, rows: Sequence[int], advance: Advance = silent) -> Tensor:
        """Return the loss of every unit in these rows, float64 on the CPU; nothing else is kept in memory.

        Raises:
            ModelError: Not even one example fits into memory.
            DataError: The rows are not what they were at the first reading; nothing of them is returned.
        """
        found = self.whole(lambda count: self.feed.losses(rows, self.batch_size, count), rows, advance)
        self.forwards += len(rows)
        return found

    def read(self, perturbations: Sequence[Lent], rows: Sequence[int], advance: Advance = silent) -> Tensor:
        """Return the losses under each perturbation, ``(perturbations, units)`` float64 on the CPU.

        Cost: one forward per perturbation and row. Memory: what the perturbations hold (a copy of what moves, each).
        """
        found = []
        for lent in perturbations:
            with lent():
                found.append(self.losses(rows, advance))
        return torch.stack(found)
