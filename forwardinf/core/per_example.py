"""Each training example's gradient: one at a time (slow, obvious, any model), or as the uses of a watched forward.

:func:`factored` is complete for every model: what a watched forward does not know how to take apart, and documents
packed several to a row, come as gradients formed one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from forwardinf.core.examples import Batch
from forwardinf.core.feed import Ask, Feed, one_each
from forwardinf.core.uses import Direct, Use
from forwardinf.core.watch import watched

Tensors = dict[str, Tensor]
Ints = Sequence[int]


def per_example_gradients(
    feed: Feed, rows: Sequence[int], parameters: Mapping[str, nn.Parameter], ask: Ask | None = None
) -> Iterator[tuple[Tensors, float]]:
    """Yield each unit's (gradient of its training loss, or of what else is asked, by parameter name; loss), in order.

    Cost: a forward and a backward of one example each, about 3 F for all and slower by the loss of batching. Memory: one
    gradient at a time.
    """
    examples = feed.examples
    found: list[tuple[Tensors, float]] = []

    def differentiate(model: nn.Module, batch: Batch) -> Tensor:
        losses = (ask or feed.task.loss)(model, batch)
        values = one_each(losses, len(losses) if losses.ndim else 1, "one example")
        for place in range(len(losses)):
            grads = torch.autograd.grad(losses[place], list(parameters.values()), allow_unused=True,
                                        retain_graph=place + 1 < len(losses))  # fmt: skip
            pairs = zip(parameters, grads, strict=True)
            found.append(({name: grad for name, grad in pairs if grad is not None}, float(values[place])))
        return values

    with _wanting(parameters.values()), torch.enable_grad():
        for row in rows:
            found.clear()
            for _ in feed.each(differentiate, [row], 1):
                pass
            if len(found) != len(examples.units_of([row])):
                one_each(torch.zeros(len(found)), len(examples.units_of([row])), f"row {row}")
            yield from found


def factored(
    feed: Feed, rows: Ints, parameters: Mapping[str, nn.Parameter], batch_size: int, ask: Ask | None = None
) -> Iterator[tuple[Ints, Tensor, list[Use]]]:
    """Yield (units, losses, uses) of each batch: the gradients of every unit by every parameter, none missing.

    Args:
        feed: Model, task and examples.
        rows: Which, in order.
        parameters: Those whose gradients are wanted, by name.
        batch_size: Rows at a time.
        ask: What is differentiated, ``(model, batch) -> (B,)``; default the training loss.

    Yields:
        ``units``: positions in the scores, in order; ``losses (B,)`` float64; ``uses``: a parameter's gradient is the sum
        of its uses' :meth:`~forwardinf.core.uses.Use.gradient`; one without uses has gradient zero.

    Cost: one forward and one activation-only backward; parameters used in a way that is not known are read one example
    at a time besides (a warning of cost, not of correctness).
    """
    chosen = dict(parameters)
    if feed.examples.units != len(feed.examples):
        for start in range(0, len(rows), batch_size):
            piece = rows[start : start + batch_size]
            units = feed.examples.units_of(piece).tolist()
            losses, uses = _one_by_one(feed, piece, chosen, ask)
            yield units, losses, uses
        return
    for piece, losses, uses, strange in watched(feed, rows, chosen, batch_size, ask):
        if strange:
            missing = _one_by_one(feed, piece, {name: chosen[name] for name in strange}, ask)[1]
            uses = [use for use in uses if use.name not in strange] + missing
        yield piece, losses, uses


def _one_by_one(
    feed: Feed, rows: Ints, parameters: dict[str, nn.Parameter], ask: Ask | None
) -> tuple[Tensor, list[Use]]:
    """Return the rows' losses, and their gradients as uses of the simplest kind."""
    losses: list[float] = []
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for unit, (gradient, loss) in enumerate(per_example_gradients(feed, rows, parameters, ask)):
        losses.append(loss)
        for name, tensor in gradient.items():
            parts.setdefault(name, []).append((unit, tensor))
    uses: list[Use] = []
    for name, found in parts.items():
        whole = found[0][1].new_zeros(len(losses), *parameters[name].shape)
        for unit, tensor in found:
            whole[unit] = tensor
        use = Direct(name, parameters[name].shape, 0, lambda formed: formed)
        use.back = whole
        uses.append(use)
    return torch.tensor(losses, dtype=torch.float64), uses


@contextmanager
def _wanting(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    before = {parameter: parameter.requires_grad for parameter in parameters}
    try:
        for parameter in before:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, was in before.items():
            parameter.requires_grad_(was)
