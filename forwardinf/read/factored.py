"""The factored engine: exact linear scores gᵢᵀu of many queries in one forward and one activation-only backward.

The mirror seen from the training side: an example's gradient is a sum of outer products of what went into each layer and
what came back to it, so its products with any number of directions u = P g_q cost little more than the forward and the
backward that bring those factors. Nothing is moved and nothing is approximated; a finite length has no such form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from torch import Tensor

from forwardinf.core.progress import Advance
from forwardinf.gradients.directions import Directions
from forwardinf.gradients.per_example import factored
from forwardinf.gradients.products import Products, product_dtype
from forwardinf.gradients.recording import Parameters
from forwardinf.read.engine import Halving, silent
from forwardinf.tasks.feed import Feed


class FactoredEngine(Halving):
    """Reads exact linear scores of any model; batch by batch where its gradients can be told apart (``gradients/recorder.py``).

    Args:
        feed: Model and training data.
        parameters: Those that move.
        batch_size: Examples at a time, to begin with.
        halved: Told the new batch size each time it is halved.

    Memory: the directions (queries × parameters × 4 bytes), a batch's activations and their gradients, a buffer of 64 MiB.
    """

    def __init__(
        self, feed: Feed, parameters: Parameters, batch_size: int, halved: Callable[[int], None] = silent
    ) -> None:
        """Keep what is read and how."""
        super().__init__(feed, batch_size, halved)
        self.parameters = parameters
        self.products = Products(product_dtype(parameters), feed.device)
        self.losses = torch.empty(0, dtype=torch.float64)

    def directions(self, count: int) -> Directions:
        """Return an empty block for so many queries."""
        shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        return Directions(shapes, count, self.products.dtype, self.feed.device)

    def read(self, perturbations: Directions, rows: Sequence[int], advance: Advance = silent) -> Tensor:
        """Return gᵢᵀu, ``(queries, units)`` float64 on the CPU; the losses themselves are left in ``losses``.

        Cost: one forward, one activation-only backward, and the products.
        """
        found = self.whole(lambda count: self.scores(perturbations, rows, self.batch_size, count), rows, advance)
        self.forwards += len(rows)
        return found

    def scores(self, directions: Directions, rows: Sequence[int], size: int, advance: Advance = silent) -> Tensor:
        """Return the same at a given batch size; memory that runs out is the caller's."""
        scores = torch.zeros(len(directions), len(self.feed.examples.units_of(rows)), dtype=torch.float64)
        losses, at = [], 0
        with closing(factored(self.feed, rows, self.parameters, size)) as batches:
            for piece, values, uses in batches:
                total = torch.zeros(len(piece), len(directions), dtype=torch.float64, device=self.feed.device)
                while uses:  # what a use holds is free as soon as it is done
                    total += self.products.of(uses.pop(), directions)
                scores[:, at : at + len(piece)] = total.T.cpu()
                losses.append(values)
                at += len(piece)
                advance(len(piece))
        self.losses = torch.cat(losses) if losses else torch.empty(0, dtype=torch.float64)
        return scores
