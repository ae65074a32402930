"""What every reading engine is: perturbations and rows in, losses or scores out; half the batch where memory runs out.

========  =============================  ==========================================================
engine    a perturbation is              it gives
========  =============================  ==========================================================
forward   a way to lend the moved model  losses, for any perturbation, length and model (the reference)
factored  a direction                    exact linear scores, for many at once
trunk     a way to lend the moved model  losses, where only the last layers move
========  =============================  ==========================================================

``registry.py`` has them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from forwardinf.core.errors import ModelError
from forwardinf.core.memory import out_of_memory, release
from forwardinf.core.progress import Advance
from forwardinf.tasks.feed import Feed


def silent(done: int) -> None:
    """Take progress, and show none."""


class Engine(Protocol):
    """Reads the training set under perturbations."""

    forwards: int

    def read(self, perturbations: Any, rows: Sequence[int], advance: Advance = silent) -> Tensor:
        """Return a row for each perturbation and a column for each unit of ``rows``: float64 on the CPU."""
        ...


class Halving:
    """What engines share: a batch size that is halved where memory runs out, and data that must not change meanwhile.

    Args:
        feed: Model and training data.
        batch_size: Examples at a time, to begin with.
        halved: Told the new batch size each time it is halved.
    """

    def __init__(self, feed: Feed, batch_size: int, halved: Callable[[int], None] = silent) -> None:
        """Keep what is read and how."""
        self.feed, self.batch_size, self.halved = feed, batch_size, halved
        self.forwards = 0

    def whole(self, work: Callable[[Advance], Tensor], rows: Sequence[int], advance: Advance) -> Tensor:
        """Return ``work(advance)``, done anew with half the batch where memory runs out.

        Raises:
            ModelError: Not even one example fits into memory.
            DataError: The rows are not what they were at the first reading; nothing of them is returned.
        """
        while True:
            done = 0

            def count(more: int) -> None:
                nonlocal done
                done += more
                advance(more)

            try:
                found = work(count)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise ModelError("reading", expected="room for one example", got="out of memory",
                                     do="Use a device with more memory.") from error  # fmt: skip
            else:
                self.feed.examples.unchanged(rows)
                return found
            advance(-done)
            release()
            self.batch_size = max(1, self.batch_size // 2)
            self.halved(self.batch_size)
