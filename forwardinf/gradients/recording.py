"""Record a forward pass: which functions used which parameters, how examples lay in what came out, and what came back there.

The forward is seen at the level of torch's functions, not of modules: tied weights, functional layers, adapters and fused
attention are all uses of a parameter by a function. What a recording looked like, its :class:`Structure`, is what tells whether
gradients taken from it have been checked (``recorder.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from forwardinf.core.errors import ModelError
from forwardinf.core.memory import out_of_memory
from forwardinf.gradients.layer_uses import Use
from forwardinf.gradients.layouts import Layout, by_size

Parameters = Mapping[str, nn.Parameter]
Names = tuple[str | None, ...]

# How many numbers come out depends on what the numbers are: which example a row belongs to cannot be told by counting.
BY_CONTENT = (
    *(torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere, torch.masked_select, Tensor.masked_select),
    *(
        torch.unique,
        Tensor.unique,
        torch.unique_consecutive,
        Tensor.unique_consecutive,
        torch.bincount,
        Tensor.bincount,
    ),
    *(Tensor.item, Tensor.tolist, Tensor.__int__, Tensor.__index__),
)
# What gives one tensor of one parameter and nothing else: gradients are pulled back through it by autograd.
OF_ONE = (
    *(Tensor.view, Tensor.reshape, torch.reshape, Tensor.unsqueeze, torch.unsqueeze, Tensor.squeeze, torch.squeeze),
    *(Tensor.flatten, torch.flatten, Tensor.permute, torch.permute, Tensor.transpose, torch.transpose),
    *(Tensor.t, torch.t, Tensor.T.__get__, Tensor.mT.__get__),  # type: ignore[attr-defined]
    *(Tensor.float, Tensor.double, Tensor.to, Tensor.type_as, Tensor.contiguous, Tensor.clone),
    *(Tensor.exp, torch.exp, Tensor.tanh, torch.tanh, Tensor.sigmoid, torch.sigmoid, F.softplus),
    *(Tensor.neg, torch.neg, Tensor.__neg__, Tensor.abs, torch.abs, Tensor.square, Tensor.sqrt, Tensor.__pow__),
    *(Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul, Tensor.div, Tensor.__truediv__, torch.div),
    *(Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, torch.sub),
    *(Tensor.clamp, torch.clamp, Tensor.softmax, torch.softmax, F.softmax),
)
LEND_A_DTYPE = (Tensor.to, Tensor.type_as)  # a second tensor among their arguments
REPEATS = (torch.repeat_interleave, Tensor.repeat_interleave)


def called(func: Any) -> str:
    """Return a function's name, for people."""
    return str(getattr(func, "__name__", func))


class Unfamiliar(Exception):
    """The forward does something that has not been checked; what, for people."""


@dataclass(frozen=True)
class Call:
    """One use of parameters: the function, their names, how examples lay in its output."""

    function: str
    names: Names
    layout: Layout


@dataclass(frozen=True)
class Structure:
    """What a recording looked like, sizes apart. Gradients of recordings of one structure are right together or wrong together.

    Attributes:
        calls: In the order of the forward.
        edges: How often each parameter is used in the graph that autograd has built, whoever used it: a use that was not
            recorded, and a gradient taken inside the loss, show here.
        unknown: Parameters used by a function that is not known here, with its name.
    """

    calls: tuple[Call, ...]
    edges: tuple[int, ...]
    unknown: frozenset[tuple[str, str]]


Guide = Callable[[Sequence[Call], str, Names, Sequence[int], int, bool], Layout]


def _without_examples(function: str, names: Names) -> str:
    told = next(name for name in names if name is not None)
    return f"parameter {told} is used by {function}() on something without an axis of examples"


def one_example(*_: object) -> Layout:
    """Lay out a batch of one: all there is belongs to it."""
    return Layout("one")


class Sizes:
    """Lays out a batch whose number of examples divides no other size.

    Args:
        spread: Repeat the rows of a table that all examples share for each of them, as if they had been looked up for each;
            else they are left as they are, and stand for the table.

    Attributes:
        shared: What has no axis of examples, for people.
    """

    def __init__(self, *, spread: bool) -> None:
        """Nothing has been seen."""
        self.spread, self.shared = spread, ""

    def __call__(
        self, calls: Sequence[Call], function: str, names: Names, leading: Sequence[int], size: int, may_share: bool
    ) -> Layout:
        """Return the layout of the next call.

        Raises:
            Unfamiliar: There are no examples in what was put out.
        """
        found = by_size(leading, size)
        if found is None:
            self.shared = self.shared or _without_examples(function, names)
            if not may_share:
                raise Unfamiliar(self.shared)
            return Layout("spread" if self.spread else "shared")
        return found


class Known:
    """Lays out batches as checked ones were: by the place of a call in the forward, never by sizes.

    Args:
        structures: Those that were checked.
    """

    def __init__(self, structures: Collection[Structure]) -> None:
        """Begin at the first call."""
        self.structures = list(structures)
        self._left = self.structures

    def __call__(
        self, calls: Sequence[Call], function: str, names: Names, leading: Sequence[int], size: int, may_share: bool
    ) -> Layout:
        """Return the layout of the next call.

        Raises:
            Unfamiliar: No checked batch went on so, or none with these sizes.
        """
        at, going = len(calls), []
        for known in self._left:
            here = known.calls[at : at + 1]
            if here and (here[0].function, here[0].names) == (function, names) and here[0].layout.fits(leading, size):
                going.append(known)
        self._left = [known for known in going if known.calls[at] == going[0].calls[at]]
        if not self._left:
            raise Unfamiliar(f"{function}() was not seen there, or with other sizes, when the model was checked")
        return self._left[0].calls[at].layout


class Recording(TorchFunctionMode):
    """Within the block, every use of ``parameters`` is recorded.

    Args:
        parameters: Those that count, by name; they must want gradients.
        size: How many examples the batch holds.
        guide: Says how examples lie in the output of each call.
        handlers: What is to be noted of each function that is known (``functions.py``).
        batch: What the model is fed.

    Attributes:
        calls: See :class:`Structure`.
        unknown_uses: Parameters used by a function that is not known here, with that function's name.
        by_content: The function whose result had a size that depends on a tensor's content; empty: there was none.
        element_size: Of the narrowest output in bytes: a forward may compute in less than the parameters are kept in.
        batch: What the model was fed.
        found: Its structure, once the forward is done.
    """

    found: Structure

    def __init__(
        self,
        parameters: Parameters,
        size: int,
        guide: Guide,
        handlers: Mapping[Any, Callable[..., Any]],
        batch: Any = None,
    ) -> None:
        """Start with nothing recorded."""
        super().__init__()
        self.batch, self.handlers = batch, handlers
        self.parameters, self.size, self.guide = parameters, size, guide
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.calls: list[Call] = []
        self.unknown_uses: dict[str, str] = {}
        self.by_content, self.element_size = "", 8
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._turned: dict[int, str] = {}
        self._derived: dict[int, tuple[Tensor, str]] = {}
        self._held: list[Tensor] = []  # so that no other tensor takes the id of one that is looked up by it
        self._noted: list[tuple[GradientEdge, Layout, list[Use]]] = []

    # -- the forward ---------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in BY_CONTENT or _counted(func, args, given):
            self.by_content = getattr(func, "__name__", str(func))
        if not any(map(self.involves, (*args, *given.values()))):
            return func(*args, **given)
        handler = self.handlers.get(func)
        if handler is not None:
            return handler(self, func, args, given)
        return self.derived(func, args, given)

    @property
    def number(self) -> int:
        """The number of the call that is being recorded."""
        return len(self.calls)

    def involves(self, value: Any) -> bool:
        """Return whether a value is a parameter that counts, made of one, or holds one."""
        if isinstance(value, Tensor):
            return id(value) in self._names or id(value) in self._turned or id(value) in self._derived
        if isinstance(value, list | tuple):
            return any(map(self.involves, value))
        return isinstance(value, dict) and any(map(self.involves, value.values()))

    def parameter(self, value: Any) -> str | None:
        """Return the name of a parameter that counts, or None."""
        return self._names.get(id(value)) if isinstance(value, Tensor) else None

    def matrix(self, value: Any) -> tuple[str | None, bool]:
        """Return (the name of a parameter or None, whether ``value`` is its transpose)."""
        name = self.parameter(value)
        return (self._turned.get(id(value)), True) if name is None else (name, False)

    def made_of(self, value: Any) -> str | None:
        """Return the name of the one parameter that a tensor is made of alone, or None."""
        return self._derived[id(value)][1] if id(value) in self._derived else None

    def source(self, value: Any) -> str | None:
        """Return the name of the parameter that a tensor is, or is made of alone, or None."""
        return self.parameter(value) or self.made_of(value)

    def derived(self, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """Call a function of one parameter and nothing else: what comes out stands for it. Other functions are not known."""
        tensors = list(tensors_in((args, given)))
        if func in LEND_A_DTYPE:
            del tensors[1:]
        source = self.source(tensors[0])
        if len(tensors) > 1 or source is None or func not in OF_ONE:
            return self.unknown(func, args, given)
        found = func(*args, **given)
        if _transposed(found, tensors[0]) and self.parameter(tensors[0]):
            self._turned[id(found)] = source
            self._held.append(found)
            return found
        return self.made(found, source)

    def made(self, tensor: Tensor, source: str) -> Tensor:
        """Note that a tensor is made of one parameter alone; return it."""
        self._derived[id(tensor)] = tensor, source
        return tensor

    def unknown(self, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """Call a function that uses parameters in a way that is not known."""
        return self._told(func, args, given, func(*args, **given))

    def _told(self, func: Any, args: Any, given: dict[str, Any], found: Any) -> Any:
        """Note whom a function has used, if anything can come back through what it gave or wrote."""
        if func is Tensor.__setitem__ or any(tensor.requires_grad for tensor in tensors_in(found)):
            for tensor in tensors_in((args, given)):
                name = self.parameter(tensor) or self._turned.get(id(tensor)) or self.made_of(tensor)
                if name is not None:
                    self.unknown_uses[name] = called(func)
        return found

    def puller(self, value: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what takes gradients ``(B, …)`` of a tensor made of a parameter back to the parameter's own."""
        name = self.made_of(value)
        if name is None:
            return lambda gradients: gradients
        source = self.parameters[name]

        def pull(gradients: Tensor) -> Tensor:
            back = [torch.autograd.grad(value, source, one, retain_graph=True)[0] for one in gradients]
            return torch.stack(back)

        return pull

    def layout(self, func: Any, names: Names, leading: Sequence[int], *, may_share: bool = False) -> Layout:
        """Return how examples lie along these leading axes of a call's output, and number the call.

        ``may_share``: The handler knows what to do where there are no examples.

        Raises:
            Unfamiliar: It cannot be told.
        """
        found = self.guide(self.calls, called(func), names, leading, self.size, may_share)
        self.calls.append(Call(called(func), names, found))
        return found

    def spread(self, tensor: Tensor, axes: int) -> Tensor:
        """Return a tensor without examples once for each of them; a first axis of one is taken for theirs."""
        return tensor.expand(self.size, *(tensor.shape[1:] if axes > 1 and len(tensor) == 1 else tensor.shape))

    def output(self, tensor: Tensor, layout: Layout, uses: list[Use]) -> Tensor:
        """Note the uses of a call whose output this is; return it."""
        self.element_size = min(self.element_size, tensor.element_size())
        if tensor.requires_grad:
            self._noted.append((get_gradient_edge(tensor), layout, uses))
        return tensor

    # -- the backward --------------------------------------------------------------------------------------------------

    def structure(self, ends: Sequence[Tensor]) -> Structure:
        """Return what the recording looked like; ``ends`` is what the forward ended in."""
        edges = _edges(ends, self.parameters)
        return Structure(tuple(self.calls), edges, frozenset(self.unknown_uses.items()))

    def back(
        self, value: Tensor, also: Parameters | None = None, *, keep: bool = False
    ) -> tuple[list[Use], dict[str, Tensor]]:
        """Return (the uses with what came back to them, whole gradients of ``also``), from one sum of losses.

        Args:
            value: What is differentiated: one number.
            also: Parameters whose gradients autograd forms.
            keep: Whether the graph is needed again.

        Raises:
            ModelError: Autograd cannot go back through the forward.
        """
        also = also or {}
        wanted: Any = [edge for edge, _, _ in self._noted] + list(also.values())
        if not value.requires_grad or not wanted:
            return [], {}
        try:
            keep = keep or bool(
                self._derived
            )  # gradients are still to be pulled back through what is made of parameters
            found: Sequence[Tensor | None] = torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=keep)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise ModelError(
                "gradients of single examples",
                expected="a loss that autograd can differentiate",
                got=str(error),
                do="Look at what the model's forward writes in place, and at autograd functions of its own.",
            ) from error
        uses: list[Use] = []
        for d, (_, layout, noted) in zip(found, self._noted, strict=False):
            if d is None or not d.numel():  # nothing came back, or nobody was there (an expert without a token)
                continue
            for use in noted:
                own = replace(use)  # a row of several documents comes back once for each of them
                own.take(d, layout, self.size)
                uses.append(own)
        whole = {
            name: dense(gradient)
            for name, gradient in zip(also, found[len(self._noted) :], strict=True)
            if gradient is not None
        }
        return uses, whole


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as plain numbers (that of a sparse table lists rows)."""
    return gradient.to_dense() if gradient.layout != torch.strided else gradient


def _edges(ends: Sequence[Tensor], parameters: Parameters) -> tuple[int, ...]:
    """Return how many paths of the graph end in each parameter."""
    counts = {id(parameter): 0 for parameter in parameters.values()}
    seen = {end.grad_fn for end in ends if end.grad_fn is not None}
    todo = list(seen)
    while todo:
        node: Any = todo.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            variable = getattr(following, "variable", None)
            if variable is not None:
                if id(variable) in counts:
                    counts[id(variable)] += 1
            elif following not in seen:
                seen.add(following)
                todo.append(following)
    return tuple(counts.values())


def _counted(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    """Return whether a function picks as many entries as a tensor says: by a mask, by repeats, where something is true."""
    if func is torch.where:
        return len(args) + len(given) == 1
    if func in REPEATS:
        return any(isinstance(value, Tensor) for value in (*args[1:2], given.get("repeats")))
    if func is Tensor.__getitem__:
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors_in(args[1:]))
    return False


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, inside containers too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


def _transposed(found: Tensor, of: Tensor) -> bool:
    """Return whether a tensor is a matrix the other way round."""
    return (
        of.ndim == found.ndim == 2
        and found.data_ptr() == of.data_ptr()
        and found.shape == of.shape[::-1]
        and found.stride() == of.stride()[::-1]
    )
