"""Each training example's gradient: by autograd one at a time (slow, obvious, any model), or as the factors of whole batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from forwardinf.data.examples import Batch
from forwardinf.gradients.layer_uses import Use
from forwardinf.gradients.recorder import Recorder, only_these
from forwardinf.gradients.recording import dense
from forwardinf.tasks.feed import Ask, Asks, Feed, one_each

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
            grads: Sequence[Tensor | None] = [None] * len(parameters)
            if losses.requires_grad:  # else none of these parameters has anything to do with it
                grads = torch.autograd.grad(losses[place], list(parameters.values()), allow_unused=True,
                                            retain_graph=place + 1 < len(losses))  # fmt: skip
            pairs = zip(parameters, grads, strict=True)
            found.append(({name: dense(grad) for name, grad in pairs if grad is not None}, float(values[place])))
        return values

    with only_these(feed.model, parameters), torch.enable_grad():
        for row in rows:
            found.clear()
            for _ in feed.each(differentiate, [row], 1):
                pass
            if len(found) != len(examples.units_of([row])):
                one_each(torch.zeros(len(found)), len(examples.units_of([row])), f"row {row}")
            yield from found


def factored(
    feed: Feed, rows: Ints, parameters: Mapping[str, nn.Parameter], batch_size: int, ask: Ask | None = None
) -> Generator[tuple[Ints, Tensor, list[Use]], None, None]:
    """Yield (units, losses, uses) of each batch: the gradients of every unit by every parameter, none missing.

    Args:
        feed: Model, task and examples.
        rows: Which, in order.
        parameters: Those whose gradients are wanted, by name.
        batch_size: Rows at a time.
        ask: What is differentiated, ``(model, batch) -> (B,)``; default the training loss.

    Yields:
        ``units``: positions in the scores, in order; ``losses (B,)`` float64; ``uses``: a parameter's gradient is the sum
        of its uses' :meth:`~forwardinf.gradients.layer_uses.Use.gradient`; one without uses has gradient zero.

    Cost: one forward and one activation-only backward; where the model cannot be taken apart in batches (``recorder.py``), one
    example at a time.

    Raises:
        NoiseError: An example's loss depends on the others in its batch.
        ModelError: Autograd has no gradient of the loss.
    """
    for units, columns, heads in recorder_of(feed, parameters).batches(feed, rows, parameters, batch_size, ask):
        yield units, columns[0], heads[0]


def factored_each(
    feed: Feed, rows: Ints, parameters: Mapping[str, nn.Parameter], batch_size: int, asks: Asks
) -> Generator[tuple[Ints, list[Tensor], list[list[Use]]], None, None]:
    """Yield (units, what was asked, uses) of each batch as :func:`factored` does, a list of one for each thing asked.

    Cost: one forward in all, and one activation-only backward for each. What the uses keep of the forward is shared.
    """
    return recorder_of(feed, parameters).batches(feed, rows, parameters, batch_size, asks)


def recorder_of(feed: Feed, parameters: Mapping[str, nn.Parameter]) -> Recorder:
    """Return what is known of these parameters' gradients; every reading of a feed, and of what was made from it, shares it."""
    found: Recorder = feed.recorders.setdefault(tuple(parameters), Recorder())
    return found
