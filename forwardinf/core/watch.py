"""Watch a forward pass: which functions used which parameters, and what came back to them.

The forward is watched at the level of torch's functions, not of modules: tied weights, functional layers, adapters and
fused attention are all uses of a parameter by a function. A use that is not known here is named, and the reading goes
to an engine that needs no factors.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forwardinf.core.examples import Batch
from forwardinf.core.feed import Feed
from forwardinf.core.functions import HANDLERS, called
from forwardinf.core.task import batch_size as size_of
from forwardinf.core.uses import Convolved, Direct, Lookup, Use

Parameters = Mapping[str, nn.Parameter]


class Watch(TorchFunctionMode):
    """Within the block, every use of ``parameters`` is recorded.

    Args:
        parameters: Those that count, by name; they must not want gradients themselves.
        size: How many examples the batch holds.

    Attributes:
        uses: In the order of the forward.
        strange: Parameters used by a function that is not known here, with that function's name.
        unclear: Examples could not be told from positions: read the batch in other sizes.
    """

    def __init__(self, parameters: Parameters, size: int) -> None:
        """Start with nothing recorded."""
        super().__init__()
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.size = size
        self.uses: list[Use] = []
        self.strange: dict[str, str] = {}
        self.calls = 0
        self.unclear = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        hit = [self.names[id(a)] for a in (*args, *given.values()) if isinstance(a, Tensor) and id(a) in self.names]
        if not hit:
            nested = [a for a in args if isinstance(a, list | tuple) and any(id(b) in self.names for b in a)]
            if nested:  # recurrent layers hand over a list of flat weights
                self.strange.update({self.names[id(b)]: called(func) for a in nested for b in a if id(b) in self.names})
            return func(*args, **given)
        handler = HANDLERS.get(func)
        if handler is not None:
            self.calls += 1
            return handler(self, func, args, given)
        found = func(*args, **given)
        if isinstance(found, Tensor) and found.is_floating_point():
            self.strange.update(dict.fromkeys(hit, called(func)))
        return found

    def name_of(self, value: Any) -> str | None:
        """Return the name of a parameter that counts, or None."""
        return self.names.get(id(value)) if isinstance(value, Tensor) else None

    def output(self, tensor: Tensor, *uses: Use | None, axis: int = 0) -> Tensor:
        """Note these uses of one call; return its output, made to take a gradient back and to hand it to them.

        Args:
            tensor: What the function returned, examples along ``axis``.
            uses: The parameters it used (None: one that does not count).
            axis: 1 where sequences come first.
        """
        if not tensor.requires_grad:
            tensor = tensor + torch.zeros((), dtype=tensor.dtype, device=tensor.device, requires_grad=True)
        noted = [use for use in uses if use is not None]
        self.uses += noted

        def hand(back: Tensor) -> None:
            for use in noted:
                use.back = self.by_example(back.transpose(0, axis), use)

        tensor.register_hook(hand)  # type: ignore[no-untyped-call]
        return tensor

    def by_example(self, tensor: Tensor, use: Use | None = None) -> Tensor:
        """Return a tensor with examples first: flat ``(B·T, …)`` becomes ``(B, T, …)``; matrices get a T of one."""
        if isinstance(use, Direct | Convolved | Lookup):
            return self.split(tensor)
        whole = self.split(tensor)
        return whole.reshape(self.size, -1, whole.shape[-1])

    def split(self, tensor: Tensor) -> Tensor:
        """Return a tensor whose first axis is the examples, undoing a flattening of examples and places."""
        if len(tensor) == self.size or self.size == 0 or len(tensor) % self.size:
            return tensor
        return tensor.reshape(self.size, len(tensor) // self.size, *tensor.shape[1:])

    def shared(self, index: Tensor) -> bool:
        """Return whether an index is one of positions, the same for every example."""
        if index.ndim == 0:
            return True
        counting = index.ndim == 1 and torch.equal(index, torch.arange(len(index), device=index.device))
        if counting and len(index) == self.size > 1:
            self.unclear = True  # as many positions as examples, or one class number for each?
        return counting or (len(index) != self.size and (len(index) == 1 or len(index) % self.size > 0))

    def spread(self, tensor: Tensor) -> Tensor:
        """Return an output that has no examples of its own (a table of positions) once for each example."""
        if tensor.ndim > 1 and len(tensor) == 1:
            return tensor.expand(self.size, *tensor.shape[1:])
        return tensor.expand(self.size, *tensor.shape)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no parameter wants a gradient: the backward goes through activations only."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, was in before.items():
            parameter.requires_grad_(was)


def watched(
    feed: Feed,
    rows: Sequence[int],
    parameters: Parameters,
    batch_size: int,
    ask: Callable[[nn.Module, Batch], Tensor] | None = None,
) -> Generator[tuple[Sequence[int], Tensor, list[Use], dict[str, str]], None, None]:
    """Yield (rows, losses, uses, strange) of each batch: one forward, one activation-only backward.

    Args:
        feed: Model, task and examples.
        rows: Which, in order.
        parameters: Those whose gradients are wanted, by name (tied ones once).
        batch_size: Examples at a time. Memory: their activations and the gradients at layer outputs.
        ask: What is differentiated, ``(model, batch) -> (B,)``; default the training loss. Summed over the batch, so
            that each example's rows of a gradient are its own.

    Yields:
        ``losses (B,)`` float64 on the CPU; ``uses`` with their gradients (a use that no gradient reached is left out);
        ``strange``: parameters used in a way that is not known, with the function's name: their gradients are missing.
    """
    watches: list[Watch] = []

    def watch(model: nn.Module, batch: Batch) -> Tensor:
        watches[:] = [Watch(parameters, size_of(batch))]
        with torch.enable_grad(), watches[0]:
            values = (ask or feed.task.loss)(model, batch)
        if values.requires_grad and not watches[0].unclear:
            values.sum().backward()  # type: ignore[no-untyped-call]
        return values.detach()

    todo = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)][::-1]
    with _frozen(feed.model):
        while todo:
            piece = todo.pop()
            (values,) = feed.each(watch, piece, len(piece))
            found = watches[0]
            if found.unclear:
                todo += [piece[-1:], piece[:-1]]
                continue
            losses = feed.checked(values, piece, len(piece))
            uses = [use for use in found.uses if use.back is not None]
            found.uses.clear()  # a use may refer to its watch: together they would wait for the garbage collector
            yield piece, losses, uses, found.strange
