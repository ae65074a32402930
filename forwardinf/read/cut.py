"""The forward pass cut in two: a trunk that no perturbation reaches, and the rest, which begins at one module's inputs.

The rest is run by the model's own code. Modules of the trunk are called as ever, but answer at once with numbers that are not
(NaN, in the right shape), and the module where the rest begins is fed what it was fed before. Whatever else would depend on
the trunk shows as NaN: the cut is refused, by name, before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from forwardinf.core.errors import Error, ModelError
from forwardinf.gradients.recording import Parameters
from forwardinf.tasks.feed import Feed

SAME = {torch.float64: 1e-10}  # losses of the two ways, relative; other dtypes:
SINGLE = 1e-5
MOVED = 0.01  # how far the parameters are moved to try a cut, relative


@dataclass(frozen=True)
class Cut:
    """Where a model's forward is cut.

    Attributes:
        name: The module at whose inputs the rest begins.
        trunk: The modules that need not run, and how often each is called before it in one forward.
        inputs: Which of the module's tensors (in the order of its arguments) come from the trunk.
        solid: Dummies must be memory of their own: something writes to them in place.
    """

    name: str
    trunk: Mapping[str, int]
    inputs: tuple[int, ...] = ()
    solid: bool = False


@dataclass
class Kept:
    """What is kept of one batch: for each call of the model, the inputs of the rest, and what the trunk's outputs look like."""

    inputs: list[list[Tensor]] = field(default_factory=list)
    shapes: list[list[Any]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """How much it is."""
        return sum(tensor.nbytes for call in self.inputs for tensor in call)


class _Stop(Exception):
    """The rest begins here, and it is not wanted."""


@dataclass(frozen=True)
class _Call:
    """One call of one module, and the call that it was part of."""

    name: str
    parent: int | None


def find_cut(feed: Feed, parameters: Parameters, rows: Sequence[int], at: str = "") -> Cut:
    """Return where the rest begins, tried on a few rows with other parameters in it.

    Args:
        feed: Model, task and training data.
        parameters: Those that move.
        rows: Some rows that fit into memory together.
        at: The name of a cut that was found before: only it is tried.

    Raises:
        ModelError: There is no such place; says which parameter or module is in the way.
    """
    calls = _traced(feed, rows)
    place, refused = _begins(feed.model, parameters, calls), list[ModelError]()
    while (
        around := calls[place].parent
    ) is not None:  # what goes around a layer may stay inside the block that it is in
        try:
            if at in ("", calls[place].name):
                return _tried(feed, _before(calls, place), parameters, rows)
        except ModelError as error:
            refused.append(error)
        place = around
    if not refused:
        raise ModelError("engine='trunk'", expected=f"module {at!r}, where an earlier plan cut", got="a forward without it",
                         do="Start over with overwrite=True.")  # fmt: skip
    raise refused[0]


def _tried(feed: Feed, cut: Cut, parameters: Parameters, rows: Sequence[int]) -> Cut:
    """Return the cut, its inputs found, where both ways give the same losses."""
    for solid in (False, True):
        try:
            found = Cut(cut.name, cut.trunk, _from_trunk(feed, cut, rows, solid), solid)
            _try(feed, found, parameters, rows)
            return found
        except RuntimeError as error:  # in-place functions need memory of their own
            if solid:
                raise _refused(cut, f"a forward that raises {type(error).__name__}: {error}") from error
    raise AssertionError("unreachable")


def _refused(cut: Cut, got: str) -> ModelError:
    return ModelError(
        f"engine='trunk', module {cut.name!r}", expected="all that follows to see what is before by its inputs alone",
        got=got, do="Move the parameters of later layers only, or read with engine='forward'.",
    )  # fmt: skip


def capture(feed: Feed, cut: Cut, rows: Sequence[int]) -> tuple[Tensor, Kept]:
    """Return (losses, what is kept) of one batch: a whole forward."""
    kept = Kept()
    with _recording(feed.model, cut, kept):
        losses = feed.losses(rows, len(rows))
    return losses, kept


def rest(feed: Feed, cut: Cut, rows: Sequence[int], kept: Kept) -> Tensor:
    """Return the losses of one batch, by the rest of the forward alone."""
    with _replaying(feed.model, cut, kept):
        return feed.losses(rows, len(rows))


# -- finding it ----------------------------------------------------------------------------------------------------------


def _traced(feed: Feed, rows: Sequence[int]) -> list[_Call]:
    """Return every module call of the first forward of a few rows, in order of their beginnings."""
    names = {module: name for name, module in feed.model.named_modules()}
    calls: list[_Call] = []
    open_now: list[int] = []

    def enter(module: nn.Module, given: Any) -> None:
        if module in names:
            calls.append(_Call(names[module], open_now[-1] if open_now else None))
            open_now.append(len(calls) - 1)

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        if module in names:
            open_now.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        feed.losses(rows, len(rows))
    finally:
        for handle in handles:
            handle.remove()
    if not calls or calls[0].name:
        raise ModelError("engine='trunk'", expected="a task that calls the model itself", got="one that calls its parts",
                         do="Read with engine='forward'.")  # fmt: skip
    ends = [place for place, call in enumerate(calls) if call.parent is None]
    return calls[: ends[1]] if len(ends) > 1 else calls


def _begins(model: nn.Module, parameters: Parameters, calls: list[_Call]) -> int:
    """Return the first call that a moving parameter takes part in."""
    modules = dict(model.named_modules(remove_duplicate=False))
    canonical = {module: name for name, module in model.named_modules()}
    called = {call.name for call in calls}
    moving = {id(parameter): name for name, parameter in parameters.items()}
    homes: dict[str, str] = {}
    for path, module in modules.items():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in moving:
                home = path
                while home and canonical[modules[home]] not in called:  # used by a module around it
                    home = home.rpartition(".")[0]
                homes.setdefault(canonical[modules[home]], moving[id(parameter)])
    place = next(place for place, call in enumerate(calls) if call.name in homes)
    name = calls[place].name
    if not name:
        raise ModelError(f"engine='trunk', parameter {homes['']}", expected="a parameter of a module that the forward calls",
                         got="one that the model itself uses", do="Read with engine='forward'.")  # fmt: skip
    return place


def _before(calls: list[_Call], place: int) -> Cut:
    """Return the cut at this call: what is done before it, in its own caller or around that, is the trunk."""
    around, parent = set[int](), calls[place].parent
    while parent is not None:
        around.add(parent)
        parent = calls[parent].parent
    trunk: dict[str, int] = {}
    for at, call in enumerate(calls[:place]):
        if call.parent in around and at not in around:
            trunk[call.name] = trunk.get(call.name, 0) + 1
    if not trunk:
        raise ModelError(f"engine='trunk', module {calls[place].name!r}", expected="layers that run before what moves",
                         got="none", do="Move the last layers only (Perturbation(parameters=...)).")  # fmt: skip
    return Cut(calls[place].name, trunk)


def _from_trunk(feed: Feed, cut: Cut, rows: Sequence[int], solid: bool) -> tuple[int, ...]:
    """Return which of the inputs of the rest change when the trunk answers NaN."""
    every = Cut(cut.name, cut.trunk, (), solid)
    kept, seen = Kept(), list[list[Tensor]]()
    with _recording(feed.model, every, kept, seen):
        feed.losses(rows, len(rows))
    poisoned: list[list[Tensor]] = []
    try:
        with _replaying(feed.model, every, kept, poisoned):
            feed.losses(rows, len(rows))
    except _Stop:
        pass
    except (Error, ArithmeticError, LookupError, ValueError, TypeError) as error:  # what came before sees NaN
        raise _refused(cut, f"a forward that raises {type(error).__name__} before it: {error}") from error
    if not poisoned or len(poisoned[0]) != len(seen[0]):
        raise _refused(cut, "a forward that takes another way")
    pairs = zip(seen[0], poisoned[0], strict=True)
    found = tuple(place for place, (one, other) in enumerate(pairs) if not torch.equal(one, other))
    if not found:
        raise ModelError(f"engine='trunk', module {cut.name!r}", expected="inputs that come from the layers before it",
                         got="none", do="Read with engine='forward'.")  # fmt: skip
    return found


def _try(feed: Feed, cut: Cut, parameters: Parameters, rows: Sequence[int]) -> None:
    """Compare the two ways, with other parameters than those that the trunk was read under."""
    _, kept = capture(feed, cut, rows)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for parameter in parameters.values():
                size = float(parameter.double().square().mean().sqrt()) or 1.0
                draw = torch.Generator().manual_seed(0)
                parameter.add_((MOVED * size * torch.randn(parameter.shape, generator=draw)).to(parameter))
        want = feed.losses(rows, len(rows))
        try:
            found = rest(feed, cut, rows, kept)
        except Exception as error:
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise
            found = torch.full_like(want, math.nan)
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                parameters[name].copy_(tensor)
    tolerance = max(SAME.get(parameter.dtype, SINGLE) for parameter in parameters.values())
    if not bool(((found - want).abs() <= tolerance * (1 + want.abs())).all()):
        raise _refused(cut, "a forward that goes around it (a connection that skips it, weights that both sides use)")


# -- running it ----------------------------------------------------------------------------------------------------------


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block the module answers by this function."""
    had = "forward" in vars(module)
    before = module.forward
    try:
        module.forward = forward
        yield
    finally:
        if had:
            module.forward = before
        else:
            del module.forward


class _Counts:
    """How often each module was called since the model was."""

    def __init__(self) -> None:
        self.model, self.inside = -1, False
        self.of: dict[str, int] = {}

    def next(self, name: str) -> int:
        self.of[name] = self.of.get(name, 0) + 1
        return self.of[name]


@contextmanager
def _patched(
    model: nn.Module, cut: Cut, begin: Callable[[int], None],
    trunk: Callable[[Callable[..., Any], int, Any, Any], Any], first: Callable[[Callable[..., Any], int, Any, Any], Any],
) -> Iterator[None]:  # fmt: skip
    """Within the block calls of the trunk go through ``trunk``, the first of each forward at the cut through ``first``."""
    counts = _Counts()

    def watched_model(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            counts.model += 1
            counts.of = {}
            begin(counts.model)
            return forward(*args, **given)

        return call

    def watched(name: str, forward: Callable[..., Any], most: int, through: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            if counts.inside or counts.next(name) > most:  # part of another call of the trunk, or later than the cut
                return forward(*args, **given)
            counts.inside = name != cut.name
            try:
                return through(forward, counts.model, args, given)
            finally:
                counts.inside = False

        return call

    with ExitStack() as stack:
        stack.enter_context(_instead(model, watched_model(model.forward)))
        for name, most in cut.trunk.items():
            module = model.get_submodule(name)
            stack.enter_context(_instead(module, watched(name, module.forward, most, trunk)))
        module = model.get_submodule(cut.name)
        stack.enter_context(_instead(module, watched(cut.name, module.forward, 1, first)))
        yield


def _recording(model: nn.Module, cut: Cut, kept: Kept, seen: list[list[Tensor]] | None = None) -> Any:
    def begin(number: int) -> None:
        kept.inputs.append([])
        kept.shapes.append([])

    def trunk(forward: Callable[..., Any], number: int, args: Any, given: Any) -> Any:
        output = forward(*args, **given)
        kept.shapes[number].append(_shapes(output))
        return output

    def first(forward: Callable[..., Any], number: int, args: Any, given: Any) -> Any:
        tensors = _tensors((args, given))
        kept.inputs[number] = [tensors[place].detach().clone() for place in cut.inputs]  # some layers write over them
        if seen is not None:
            seen.append([tensor.detach().clone() for tensor in tensors])
        return forward(*args, **given)

    return _patched(model, cut, begin, trunk, first)


def _replaying(model: nn.Module, cut: Cut, kept: Kept, poisoned: list[list[Tensor]] | None = None) -> Any:
    place = next(model.parameters()).device
    left: list[Any] = []

    def begin(number: int) -> None:
        left[:] = kept.shapes[number]

    def trunk(forward: Callable[..., Any], number: int, args: Any, given: Any) -> Any:
        return _dummy(left.pop(0), place, cut.solid)

    def first(forward: Callable[..., Any], number: int, args: Any, given: Any) -> Any:
        if poisoned is not None:
            poisoned.append([tensor.detach().clone() for tensor in _tensors((args, given))])
            raise _Stop
        fresh = dict(zip(cut.inputs, kept.inputs[number], strict=True))
        args, given = _replaced((args, given), fresh, [0])
        return forward(*args, **given)

    return _patched(model, cut, begin, trunk, first)


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a nesting, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in _tensors(part)]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple | list) else []


def _replaced(value: Any, fresh: Mapping[int, Tensor], at: list[int]) -> Any:
    """Return the nesting with some of its tensors replaced, by their places in :func:`_tensors`."""
    if isinstance(value, Tensor):
        at[0] += 1
        return fresh.get(at[0] - 1, value)
    if isinstance(value, Mapping):
        return {name: _replaced(part, fresh, at) for name, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_replaced(part, fresh, at) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _shapes(value: Any) -> Any:
    """Return what an output looks like, in plain types."""
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        if type(value) is not dict:
            raise ModelError("engine='trunk'", expected="layers that give tensors, tuples or dicts of them",
                             got=type(value).__name__, do="Read with engine='forward'.")  # fmt: skip
        return {"dict": {name: _shapes(part) for name, part in value.items()}}
    if isinstance(value, tuple | list):
        return {"tuple": [_shapes(part) for part in value]}
    return {"value": value if isinstance(value, bool | int | float | str) else None}


def _dummy(shape: Any, device: torch.device, solid: bool) -> Any:
    """Return such an output without content: NaN, or zeros where numbers are whole."""
    if "shape" in shape:
        dtype: torch.dtype = getattr(torch, shape["dtype"])
        fill: Any = math.nan if dtype.is_floating_point or dtype.is_complex else 0
        one = torch.full((), fill, dtype=dtype, device=device)
        return one.expand(shape["shape"]).clone() if solid else one.expand(shape["shape"])
    if "dict" in shape:
        return {name: _dummy(part, device, solid) for name, part in shape["dict"].items()}
    if "tuple" in shape:
        return tuple(_dummy(part, device, solid) for part in shape["tuple"])
    return shape["value"]
