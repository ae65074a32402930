"""Short digests (BLAKE3) of content: tensors, models, examples, code. Equal content, equal digest; nothing else counts."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from PIL import Image
from torch import Tensor, nn


class Unknowable(TypeError):
    """An object whose content cannot be told; says which."""


def digest(*parts: Any) -> str:
    """Return 32 hex digits for any nesting of numbers, text, arrays, tensors, models, settings and functions.

    Raises:
        Unknowable: Some part holds an object whose content cannot be told (an open file, a C extension object).

    Example:
        >>> digest({"a": 1, "b": [2.0]}) == digest({"b": [2.0], "a": 1})
        True
    """
    return row_digest(parts).hex()


def row_digest(value: Any) -> bytes:
    """Return the 16 bytes behind :func:`digest`."""
    hasher = blake3()
    _feed(hasher, value, ())
    return hasher.digest(16)


def code_digest(value: Any, version: object = None) -> str | None:
    """Return the digest of a task or function, or None where it cannot be taken (its readings are then not reused).

    A function is its bytecode, constants, defaults and closure; an object its class, the code of its class where that
    is not ours or torch's, and its attributes. ``version`` is mixed in.
    """
    try:
        return digest(value, version)
    except Unknowable:
        return None


def model_digest(model: nn.Module) -> str:
    """Return the digest of a model: its structure, the code of its own forwards, every parameter and buffer.

    Cost: one pass over the weights, about 1 GiB/s. Training flags and ``requires_grad`` do not count.
    """
    hasher = blake3()
    _feed(hasher, repr(model), ())
    for kind in sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__):
        _feed_class(hasher, kind, ())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _feed(hasher, name, ())
        _feed_tensor(hasher, tensor)
    return hasher.digest(16).hex()


def _feed(hasher: blake3, value: Any, inside: tuple[int, ...]) -> None:
    """Add one value, behind a mark of its kind, so that ``["ab"]`` and ``["a", "b"]`` differ."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | range | slice | PurePath):
        body = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        hasher.update(f"{type(value).__name__}:{len(body)}:".encode())
        hasher.update(body)
    elif isinstance(value, Tensor):
        _feed_tensor(hasher, value)
    elif isinstance(value, np.ndarray | np.generic):
        _feed_array(hasher, np.asarray(value))
    elif id(value) in inside:
        hasher.update(b"cycle;")
    else:
        _feed_nested(hasher, value, (*inside, id(value)))


def _feed_nested(hasher: blake3, value: Any, inside: tuple[int, ...]) -> None:
    if isinstance(value, Mapping):
        hasher.update(f"map:{len(value)}:".encode())
        for key in sorted(value, key=repr):
            _feed(hasher, key, inside)
            _feed(hasher, value[key], inside)
    elif isinstance(value, AbstractSet):
        _feed(hasher, sorted(value, key=repr), inside)
    elif isinstance(value, list | tuple):
        hasher.update(f"list:{len(value)}:".encode())
        for item in value:
            _feed(hasher, item, inside)
    elif isinstance(value, nn.Module):
        hasher.update(model_digest(value).encode())
    elif isinstance(value, torch.dtype | torch.device):
        hasher.update(str(value).encode())
    elif isinstance(value, Image.Image):
        hasher.update(f"image:{value.mode}:{value.size}:".encode())
        hasher.update(value.tobytes())
    else:
        _feed_code_or_object(hasher, value, inside)


def _feed_code_or_object(hasher: blake3, value: Any, inside: tuple[int, ...]) -> None:
    if isinstance(value, types.MethodType):
        _feed(hasher, [value.__func__, value.__self__], inside)
    elif isinstance(value, types.FunctionType):
        hasher.update(b"function:")
        _feed(hasher, [_code(value.__code__), value.__defaults__, value.__kwdefaults__], inside)
        _feed(hasher, [cell.cell_contents for cell in value.__closure__ or ()], inside)
        used = {name: value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__}
        _feed(hasher, used, inside)  # a constant at module level changes what the function does
    elif isinstance(value, types.CodeType):
        _feed(hasher, _code(value), inside)
    elif isinstance(value, functools.partial):
        _feed(hasher, ["partial", value.func, value.args, value.keywords], inside)
    elif isinstance(value, types.BuiltinFunctionType | types.ModuleType):
        _feed(hasher, f"{getattr(value, '__module__', '')}.{value.__name__}", inside)
    elif inspect.isclass(value):
        _feed_class(hasher, value, inside)
    elif dataclasses.is_dataclass(value):
        _feed_class(hasher, type(value), inside)
        _feed(hasher, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, inside)
    elif hasattr(value, "__dict__"):
        _feed_class(hasher, type(value), inside)
        _feed(hasher, vars(value), inside)
    else:
        raise Unknowable(f"an object of type {type(value).__module__}.{type(value).__qualname__}")


def _feed_class(hasher: blake3, kind: type, inside: tuple[int, ...]) -> None:
    """Add a class by name; by the code of its methods too where it is neither torch's nor another library's."""
    hasher.update(f"class:{kind.__module__}.{kind.__qualname__}:".encode())
    if kind.__module__.partition(".")[0] in {"torch", "forwardinf", "transformers", "diffusers", "peft", "builtins"}:
        return
    for name, member in sorted(vars(kind).items()):
        plain = getattr(member, "__func__", member)
        if isinstance(plain, types.FunctionType):
            hasher.update(name.encode())
            _feed(hasher, _code(plain.__code__), inside)


def _code(code: types.CodeType) -> list[Any]:
    """Return what a code object does: bytecode, names and constants, without file names or line numbers."""
    constants = [_code(const) if isinstance(const, types.CodeType) else const for const in code.co_consts]
    return [code.co_code, list(code.co_names), list(code.co_varnames), constants]


def _feed_tensor(hasher: blake3, tensor: Tensor) -> None:
    if tensor.is_sparse or tensor.is_quantized or tensor.is_meta:
        raise Unknowable(f"a {'meta' if tensor.is_meta else 'sparse or quantised'} tensor")
    plain = tensor.detach().contiguous().cpu()
    hasher.update(f"tensor:{plain.dtype}:{tuple(plain.shape)}:".encode())
    hasher.update(plain.flatten().view(torch.uint8).numpy().data)


def _feed_array(hasher: blake3, array: np.ndarray[Any, Any]) -> None:
    if array.dtype == object:
        _feed(hasher, array.tolist(), ())
        return
    hasher.update(f"array:{array.dtype.str}:{array.shape}:".encode())
    hasher.update(np.ascontiguousarray(array).tobytes())


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {name: (kept, now)} for every name whose values differ."""
    names: Sequence[str] = [*kept, *(name for name in now if name not in kept)]
    return {name: (kept.get(name), now.get(name)) for name in names if kept.get(name) != now.get(name)}
