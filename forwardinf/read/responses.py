"""Two ways to fill an index of responses, gᵢᵀu_m: differences of losses, or projections of per-example gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from forwardinf.core.progress import Advance
from forwardinf.gradients.layer_uses import Use
from forwardinf.gradients.per_example import factored
from forwardinf.gradients.recording import Parameters
from forwardinf.read.engine import silent
from forwardinf.tasks.feed import Feed

Lent = Callable[[], AbstractContextManager[None]]


def by_differences(
    ask: Callable[[], Tensor], sides: Callable[[int], tuple[Sequence[Lent], float]], probes: Sequence[int],
    before: Tensor | None = None, advance: Advance = silent,
) -> Tensor:  # fmt: skip
    """Return the rates at which what is asked changes along these probes, ``(examples, …, probes)`` float64.

    Args:
        ask: Reads every example under whatever weights the model holds, ``(examples, …)`` float64.
        sides: A probe's ways to move the model (there and back, or one way only) and the length of a step.
        probes: Which.
        before: What is asked of the model unmoved, for probes that move one way.
        advance: Told of probes done.
    """
    found = []
    for m in probes:
        lent, step = sides(m)
        read = []
        for way in lent:
            with way():
                read.append(ask())
        other = read[1] if len(read) > 1 else before
        assert other is not None
        found.append((read[0] - other) / (step * len(read)))
        advance(1)
    return torch.stack(found, -1)


def by_projection(
    feed: Feed, rows: Sequence[int], parameters: Parameters, respond: Callable[[Sequence[Use], int], Tensor],
    batch_size: int, advance: Advance = silent,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Yield (responses ``(B, M)`` float32, losses ``(B,)`` float64) of batches of rows, in order, from their gradients.

    Cost: one forward, one activation-only backward, and the projections.
    """
    for units, losses, uses in factored(feed, rows, parameters, batch_size):
        yield respond(uses, len(units)).float().cpu(), losses
        advance(len(units))
