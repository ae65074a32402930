"""How examples respond to shared probes of the weights: a sketch of each one's gradient, of the loss or of the logits.

A probe is a sparse vector of signs: every coordinate of the weights belongs to one of M probes, drawn by chance with its
sign (a count sketch, Charikar, Chen & Farach-Colton 2002). An example's response to probe m, the rate at which its loss
moves when the weights move along it, is the signed sum of its gradient over the probe's coordinates. Forward passes along
the probes would measure the same numbers; here one gradient pass fills in all of them. Inner products of responses estimate
inner products of gradients, with a relative error of about 1/√M; with M at least the number of weights they are exact.

Everything else in the uses goes through :func:`responses`: another sketch takes its place here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forwardinf.core.progress import Advance
from forwardinf.data.examples import Batch
from forwardinf.gradients.layer_uses import Use
from forwardinf.gradients.per_example import factored_each
from forwardinf.gradients.products import Products
from forwardinf.tasks.feed import Asks, Feed

Ask = Callable[[nn.Module, Batch], Tensor]
Parameters = Mapping[str, nn.Parameter]
HELD = 2**22  # numbers that a batch's gradients may take: more, and they leave the cache
MOST_AT_ONCE = 64


@dataclass(frozen=True)
class Responses:
    """What :func:`responses` returns.

    Attributes:
        values: ``(N, M)`` float32: the response of each example to each probe.
        square: ``(N,)`` float64: the exact ‖gᵢ‖² (of the loss: the plain self-influence).
        asked: ``(N,)`` float64: what was differentiated (the losses).
    """

    values: Tensor
    square: Tensor
    asked: Tensor

    @property
    def unit(self) -> Tensor:
        """The responses of unit gradients, ``(N, M)``; an example without a gradient has none."""
        return unit(self.values)


class Probes:
    """M shared probes of some parameters, the same for every example and call with the same seed.

    Args:
        parameters: Those that the probes move.
        count: M; at least as many as there are weights: every weight its own probe.
        seed: Of the draw.
    """

    def __init__(self, parameters: Parameters, count: int, seed: int = 0) -> None:
        """Draw them."""
        total = sum(parameter.numel() for parameter in parameters.values())
        self.count = min(count, total)
        self._of: dict[str, tuple[Tensor, Tensor | None]] = {}
        draw, start = torch.Generator().manual_seed(seed), 0
        for name, parameter in parameters.items():
            size, device = parameter.numel(), parameter.device
            if self.count == total:
                self._of[name] = torch.arange(start, start + size, device=device), None
            else:
                slot = torch.randint(self.count, (size,), generator=draw)
                sign = torch.randint(2, (size,), generator=draw, dtype=torch.int8) * 2 - 1
                self._of[name] = slot.to(device), sign.to(device=device, dtype=parameter.dtype)
            start += size

    def add(self, into: Tensor, name: str, gradient: Tensor) -> None:
        """Add one parameter's share ``(B, size)`` of the responses to ``into (B, M)``."""
        slot, sign = self._of[name]
        into.index_add_(1, slot, gradient if sign is None else gradient * sign)


def responses(
    feed: Feed, parameters: Parameters, probes: Probes, *, ask: Ask | None = None, rows: Sequence[int] | None = None,
    advance: Advance = lambda done: None,
) -> Responses:  # fmt: skip
    """Return every row's responses to the probes.

    Args:
        feed: Model (in eval mode), task and examples, one example a row.
        parameters: Those that count.
        probes: Drawn for the same parameters.
        ask: What is differentiated, ``(model, batch) -> (B,)``; default the training loss.
        rows: Which; default all.
        advance: Told of examples done.

    Cost: one forward, one activation-only backward and the gradients' formation, about 4 F. Memory: a batch's gradients
    (at most 16 MiB, or one example's), and the result.
    """
    one = Asks(lambda model, batch: [(ask or feed.task.loss)(model, batch)])
    return responses_each(feed, parameters, one, [probes], rows=rows, advance=advance)[0]


def responses_each(
    feed: Feed, parameters: Parameters, asks: Asks, probes: Sequence[Probes | None], *, rows: Sequence[int] | None = None,
    advance: Advance = lambda done: None,
) -> list[Responses]:  # fmt: skip
    """Return every row's responses to several things asked of one forward, each by probes of its own; see :func:`responses`.

    Args:
        feed: As in :func:`responses`.
        parameters: As in :func:`responses`.
        asks: What is differentiated.
        probes: One for each; None: of that the square alone is wanted.
        rows: As in :func:`responses`.
        advance: As in :func:`responses`.

    Cost: one forward, and for each thing asked an activation-only backward and the gradients' formation, about 3 F.
    """
    wanted = range(len(feed.examples)) if rows is None else rows
    counts = [0 if each is None else each.count for each in probes]
    found = [Responses(torch.zeros(len(wanted), count), torch.zeros(len(wanted), dtype=torch.float64),
                       torch.zeros(len(wanted), dtype=torch.float64)) for count in counts]  # fmt: skip
    size = max(1, min(MOST_AT_ONCE, HELD // max(sum(parameter.numel() for parameter in parameters.values()), 1)))
    products, at = Products(torch.float32, feed.device), 0
    for units, columns, heads in factored_each(feed, wanted, parameters, size, asks):
        here = slice(at, at + len(units))
        blocks = [torch.zeros(len(units), count, device=feed.device) for count in counts]
        squares = [torch.zeros(len(units), dtype=torch.float64, device=feed.device) for _ in heads]
        for head, name, gradient in _gradients(products, heads):
            squares[head] += torch.linalg.vector_norm(gradient, dim=1).double().square()
            sketch = probes[head]
            if sketch is not None:
                sketch.add(blocks[head], name, gradient)
        for one, block, square, column in zip(found, blocks, squares, columns, strict=True):
            one.values[here], one.square[here], one.asked[here] = block.cpu(), square.cpu(), column
        at += len(units)
        advance(len(units))
    return found


def _gradients(products: Products, heads: Sequence[Sequence[Use]]) -> Iterator[tuple[int, str, Tensor]]:
    """Yield (which thing asked, parameter, its gradient by example ``(B, size)`` float32), one parameter after the other.

    The memory is written over by the next one.
    """
    of: dict[str, dict[int, list[Use]]] = {}
    for head, uses in enumerate(heads):
        for use in uses:
            of.setdefault(use.name, {}).setdefault(head, []).append(use)
    for name, each in of.items():
        for head, own in each.items():
            whole = products.formed(own[0])
            if len(own) > 1:  # the first one may lie where the next is formed
                whole = whole.clone()
                for use in own[1:]:
                    whole += products.formed(use)
            yield head, name, whole


def unit(values: Tensor) -> Tensor:
    """Return rows of length one; a row of zeros stays."""
    length: Tensor = values.norm(dim=1, keepdim=True)
    return values / length.clamp_min(torch.finfo(values.dtype).tiny)


def probe_count(examples: int, budget: float, most: int = 4096, least: int = 256) -> int:
    """Return how many probes ``examples`` rows of responses may have within ``budget`` numbers: a power of two."""
    count = most
    while count > least and count * examples > budget:
        count //= 2
    return count
