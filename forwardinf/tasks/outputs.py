"""What a model is fed, and what it puts out: the keywords that its forward takes, and the one tensor that is meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from forwardinf.core.errors import TaskError

# Where a part is: an attribute or key, a position, a function; None: as by default.
Take = str | int | Callable[[Any], Any] | None
ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
SAMPLE = 8  # rows, and places of each, that are looked at to tell probabilities from logits
# Functions that leave values as they are, as autograd names them.
VIEWS = re.compile("((Uns|S)queeze|(Unsafe)?View|ReshapeAlias|Select|Slice|Transpose|Permute|ToCopy|Clone)Backward")


# Wrappers and keywords


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``, DataParallel, DistributedDataParallel and PEFT."""
    while True:
        known: Any = model
        if hasattr(known, "_orig_mod"):
            model = known._orig_mod
        elif isinstance(known, nn.DataParallel | DistributedDataParallel):
            model = known.module
        elif hasattr(known, "get_base_model"):
            model = known.get_base_model()
        else:
            return model


def innermost(model: nn.Module) -> nn.Module:
    """Return the module that the arguments are for: inside wrappers whose forward is only ``*args, **kwargs`` too.

    Such a wrapper is followed where one module alone inside it has parameters.
    """
    while True:
        model = unwrapped(model)
        if isinstance(model, torch.jit.ScriptModule) or not _takes_anything(type(model).forward):
            return model
        inside = [child for child in model.children() if next(child.parameters(), None) is not None]
        if len(inside) != 1:
            return model
        model = inside[0]


def keywords_of(model: nn.Module) -> frozenset[str] | None:
    """Return the keywords that this module's forward takes, or None where it takes any."""
    if isinstance(model, torch.jit.ScriptModule):
        return frozenset(argument.name for argument in cast("Any", model).forward.schema.arguments)
    return accepted(type(model).forward)


@lru_cache(maxsize=64)
def _takes_anything(forward: Callable[..., Any]) -> bool:
    """Return whether a forward is ``*args, **kwargs`` and no more."""
    try:
        return all(parameter.kind in ANY for parameter in _parameters(forward))
    except (TypeError, ValueError):  # it does not tell
        return False


@lru_cache(maxsize=64)
def accepted(forward: Callable[..., Any]) -> frozenset[str] | None:
    """Return the keywords a forward takes, or None where it takes any, or does not tell."""
    try:
        parameters = _parameters(forward)
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters) and len(parameters) <= 2:
        return None
    return frozenset(parameter.name for parameter in parameters)


def _parameters(forward: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(forward).parameters.values())[1:]  # but for self


def run(model: nn.Module, inputs: Any) -> Any:
    """Call the model: a mapping by those of its names that the forward takes, a tuple or list by position.

    A wrapper that takes any keyword is handed all of them; where the model inside takes some only, those.
    """
    inner = innermost(model)
    asked = {"return_dict": True} if _gives_tuples(inner) else {}
    if not isinstance(inputs, Mapping):
        return model(*inputs, **asked) if isinstance(inputs, tuple | list) else model(inputs, **asked)
    inputs, taken = readable(inner, inputs), keywords_of(unwrapped(model))
    if taken is not None:
        return model(**_only(inputs, taken), **asked)
    try:
        return model(**inputs, **asked)
    except TypeError as error:
        taken = keywords_of(inner)
        if "unexpected keyword argument" not in str(error) or taken is None or taken >= set(inputs):
            raise
    return model(**_only(inputs, taken), **asked)


def _only(inputs: Mapping[str, Any], taken: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name in taken}


def _gives_tuples(model: nn.Module) -> bool:
    """Return whether this is a model of transformers whose config asks for tuples, which do not say what is what."""
    hugging = any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)
    return hugging and getattr(getattr(model, "config", None), "return_dict", True) is False


def readable(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs that a model can read: a row masked whole shows one token, and what is masked is the model's own padding.

    A row masked whole would give NaN, or what depends on the length of the batch; and models that tell their padding by its
    id look for their own.
    """
    found = dict(inputs)
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] == 0:
        return found
    token = _pad_token(model)
    if token is not None and isinstance(ids, Tensor) and ids.shape == mask.shape:
        found["input_ids"] = ids.masked_fill(mask == 0, token)
    shown = torch.where((mask != 0).any(1), mask[:, 0], torch.ones_like(mask[:, 0]))
    return found | {"attention_mask": torch.cat([shown[:, None], mask[:, 1:]], 1)}


def _pad_token(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(config, "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else None


# The tensor that is meant


def output_of(
    model: nn.Module, inputs: Any, where: Take = None, *, name: str = "logits", setting: str = "logits="
) -> Tensor:
    """Run the model on inputs and return the tensor that counts.

    Args:
        model: Any module.
        inputs: A tensor, a tuple or list (by position), or a mapping (by name).
        where: Where the tensor is in the output, if not the default.
        name: The attribute or key it is under by default.
        setting: What a user sets to say where.

    Raises:
        TaskError: The output is not a tensor and does not say which of its parts is meant.
    """
    return tensor_of(run(model, inputs), where, name=name, setting=setting)


def tensor_of(output: Any, where: Take = None, *, name: str = "logits", setting: str = "logits=") -> Tensor:
    """Return the tensor that counts in a model's output: see :func:`output_of`.

    By default the output itself, its part ``name``, or the one tensor that an unnamed tuple or list holds.
    """
    found = _default_output(output, name) if where is None else take(output, where, "model output")
    if isinstance(found, Tensor):
        return found
    do = f"Say which is meant with {setting}" if setting else "Wrap the model so that it returns that tensor alone."
    if setting and isinstance(output, tuple | list) and len(output) > 1:
        do += f" (a position, like {setting}{len(output) - 1}), or return it alone."
    elif setting:
        do += " (an attribute, key, position or function), or return it alone."
    expected = f"a tensor or .{name}" if where is None else f"a tensor at {where!r}"
    raise TaskError("model output", expected=expected, got=_told(output if where is None else found), do=do)


def _default_output(output: Any, name: str) -> Any:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get(name)
    if hasattr(output, name):
        return getattr(output, name)
    unnamed = type(output) in (tuple, list) or (isinstance(output, tuple) and len(output) == 1)
    tensors = _tensors(output) if unnamed else []
    return tensors[0] if len(tensors) == 1 and any(part is tensors[0] for part in output) else None


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _told(output: Any) -> str:
    """Return what an output is, to a person."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    if isinstance(output, Mapping):
        inside = ", ".join(f"{name}: {_told(part)}" for name, part in output.items())
        return f"{type(output).__name__} ({inside})"
    if isinstance(output, tuple | list):
        return f"{type(output).__name__} ({', '.join(map(_told, output))})"
    return type(output).__name__


def take(value: Any, where: Take, what: str) -> Any:
    """Return the part of a batch or an output that ``where`` names."""
    if callable(where):
        return where(value)
    try:
        if isinstance(value, Tensor):  # a position in it would be one example
            raise TypeError
        if isinstance(where, str) and not isinstance(value, Mapping):
            return getattr(value, where)
        return value[where]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise TaskError(what, expected=f"{where!r} in it", got=f"{type(value).__name__} without it") from error


# Probabilities in place of logits


def refuse_probabilities(output: Tensor, where: str, *, each: bool = False) -> None:
    """Refuse what has certainly been through a softmax (``each``: a sigmoid) already.

    Either autograd says so, or rows without a negative number all sum to 1: so many that chance is out of the question.
    Log-probabilities are logits as good as any.

    Args:
        output: ``(B, …, C)``.
        where: The task.
        each: Every number is an answer of its own, yes or no.
    """
    softened = _made_by(output) == ("SigmoidBackward0" if each else "SoftmaxBackward0")
    if not softened and (each or not _sum_to_one(output)):
        return
    kind, undo = ("sigmoid", "p.logit()") if each else ("softmax", "p.log()")
    raise TaskError(
        where,
        expected="logits",
        got=f"probabilities: the model ends in a {kind}",
        do=f"Say logits=lambda p: {undo}, or logits=lambda p: p if the loss was trained on them as they are.",
    )


def _made_by(output: Tensor) -> str:
    """Return the name of the function that made the values of a tensor; none where no gradient is kept."""
    last = output.grad_fn
    while last is not None and VIEWS.match(last.name()) and last.next_functions[0][0]:
        last = last.next_functions[0][0]
    return "" if last is None else last.name()


@torch.no_grad()
def _sum_to_one(output: Tensor) -> bool:
    """Return whether rows of this tensor sum to 1, and so many that it cannot be chance."""
    if output.ndim < 2 or output.shape[-1] < 2 or not output.is_floating_point() or output.numel() == 0:
        return False
    room = max(1e-5, 2 * torch.finfo(output.dtype).eps)
    for size in (1, SAMPLE):  # one row is enough for nearly every batch of logits
        rows = output.detach()[(slice(size),) * (output.ndim - 1)].reshape(-1, output.shape[-1]).double()
        if not bool(((rows >= 0).all(1) & ((rows.sum(1) - 1).abs() <= room)).all()):
            return False
    between = rows[((rows > 0) & (rows < 1)).any(1)]  # a row of 0s and a 1 may well be a table's
    several = len({tuple(row) for row in between.tolist()})
    return bool(room**several < 1e-9)
