"""What a fit costs, counted in multiplications before it runs: how many examples it may read, and how long it will take.

It is counted and not timed, so that the same call fits on the same examples on every machine, however busy that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from forwardinf.gradients.compare import spread
from forwardinf.gradients.layer_uses import Direct, Lookup, Use
from forwardinf.gradients.parts import Part, sorted_uses
from forwardinf.gradients.per_example import factored
from forwardinf.gradients.recording import Parameters
from forwardinf.gradients.squares import places_of
from forwardinf.tasks.feed import Feed

PASSES = 8  # forward passes over the training set that a fit may cost where nothing else is asked for
LEAST = 2 * 10**11  # multiplications that it may cost whatever that is: about ten seconds on two cores
FEWEST = 64  # examples that it reads in any case
PASS = 4  # drawn labels, the forward, and the backward through activations: in forwards
SAMPLE = 4  # examples that are counted

Work = Callable[[Part, Sequence[Use]], float]


@dataclass(frozen=True)
class Budget:
    """Multiplications of one example, on average over a few.

    Attributes:
        forward: Of one forward through the layers that count.
        fit: Of what the fit does with it, its forward and backward included.
        once: Of what is done once, whatever the number of examples.
    """

    forward: float
    fit: float
    once: float

    def examples(self, size: int) -> int:
        """Return how many of ``size`` examples a fit may read."""
        if self.fit <= 0:
            return size
        most = max(PASSES * size * self.forward, LEAST) / self.fit
        return min(size, max(FEWEST, int(most)))

    def forwards(self, examples: int) -> float:
        """Return what a fit on so many examples costs, in forwards of one example."""
        return (self.fit * examples + self.once) / self.forward if self.forward > 0 else float(PASS * examples)


def count(feed: Feed, parameters: Parameters, work: Work, once: Work) -> Budget:
    """Return what a fit costs, from the factors of a few examples. Cost: a forward and backward of four.

    Args:
        feed: Model and training data.
        parameters: Those that are fitted.
        work: Multiplications that a part's uses in a batch take.
        once: Multiplications that a part takes once.
    """
    rows = spread(range(len(feed.examples)), SAMPLE)
    forward, own, fixed, seen = 0.0, 0.0, dict[str, float](), 0
    with closing(factored(feed, rows, parameters, len(rows))) as batches:
        for units, _, uses in batches:
            seen += len(units)
            known, _ = sorted_uses(uses)
            for key, (part, members) in known.items():
                forward += len(units) * sum(multiplied(use) for use in members)
                own += work(part, members)
                fixed[key] = once(part, members)
    return Budget(forward / seen, PASS * forward / seen + own / seen, sum(fixed.values()))


def multiplied(use: Use) -> float:
    """Return the multiplications of one example's forward through a use."""
    return 0.0 if isinstance(use, Direct | Lookup) else float(places_of(use) * use.shape.numel())
