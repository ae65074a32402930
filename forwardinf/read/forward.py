"""The forward engine, reference for all others: any model, any loss, any perturbation; one forward per example."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from forwardinf.core.errors import ModelError
from forwardinf.core.feed import Feed
from forwardinf.read.memory import out_of_memory, release


class ForwardEngine:
    """Reads losses under whatever weights the model holds. Halves the batch where memory runs out.

    Args:
        feed: Model and training data.
        batch_size: Examples at a time, to begin with.
        halved: Told the new batch size each time it is halved.
    """

    def __init__(self, feed: Feed, batch_size: int, halved: Callable[[int], None] = lambda size: None) -> None:
        """Keep what is read and how."""
        self.feed, self.batch_size, self.halved = feed, batch_size, halved
        self.forwards = 0

    def losses(self, rows: Sequence[int], advance: Callable[[int], None] = lambda done: None) -> Tensor:
        """Return the loss of every unit in these rows, float64 on the CPU; nothing else is kept in memory.

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
                found = self.feed.losses(rows, self.batch_size, count)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise ModelError("reading", expected="room for one example", got="out of memory",
                                     do="Use a device with more memory.") from error  # fmt: skip
            else:
                self.forwards += len(rows)
                self.feed.examples.unchanged(rows)
                return found
            advance(-done)
            release()
            self.batch_size = max(1, self.batch_size // 2)
            self.halved(self.batch_size)
