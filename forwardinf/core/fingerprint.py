"""Short digests (BLAKE3) of content: tensors, models, examples, code. Equal content, equal digest; nothing else counts."""

from __future__ import annotations

import copyreg
import functools
import inspect
import json
import logging
import sys
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

from forwardinf import __version__

LIBRARIES = {
    "torch",
    "forwardinf",
    "transformers",
    "diffusers",
    "peft",
    "numpy",
    *sys.stdlib_module_names,
}  # told by name
PROVENANCE = {"name_or_path", "transformers_version", "architectures", "model_type", "dtype", "torch_dtype",
              "generation_config"}  # fmt: skip  # how a model generates is no part of what a forward gives
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Unknowable(TypeError):
    """An object whose content cannot be told; says which."""


class _Hasher:
    """BLAKE3 that remembers functions and classes: they refer to one another, and each is to be told once."""

    def __init__(self) -> None:
        self._hash = blake3()
        self.update, self.digest = self._hash.update, self._hash.digest
        self._met: dict[int, int] = {}

    def again(self, value: object) -> bool:
        """Return whether ``value`` was met before; add a reference to it if so."""
        if id(value) in self._met:
            self._hash.update(f"met:{self._met[id(value)]};".encode())
            return True
        self._met[id(value)] = len(self._met)
        return False


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
    hasher = _Hasher()
    try:
        _feed(hasher, value, ())
    except RecursionError as error:
        raise Unknowable("something nested too deeply") from error
    return hasher.digest(16)


def code_digest(value: Any, version: object = None) -> str | None:
    """Return the digest of a task or function, or None where it cannot be taken (its readings are then not reused).

    A function is its bytecode, constants, defaults, closure, and the globals it names (also inside nested functions); an
    object its class, the code and constants of that class and its bases where they are not ours or torch's, and its
    attributes. ``version`` is mixed in, and this library's own: another one may read differently.
    """
    try:
        return digest(value, version, __version__)
    except Unknowable:
        return None


def model_digest(model: nn.Module) -> str:
    """Return the digest of a model: its structure, the code and attributes of its modules, every parameter and buffer.

    Attributes count because a forward may use them: two models that differ in a ``self.scale``, or in the number of
    heads, have the same weights. Those whose content cannot be told count by their type.
    Cost: one pass over the weights, about 1 GiB/s. Training flags and ``requires_grad`` do not count.
    """
    return _model_digest(model, ())


def _model_digest(model: nn.Module, inside: tuple[int, ...]) -> str:
    hasher = _Hasher()
    _feed(hasher, repr(model), ())
    modules = dict(model.named_modules())
    for module in modules.values():
        hasher.again(module)  # so that one that refers to another (its parent, say) ends there
    for name, module in modules.items():
        _feed(hasher, name, ())
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        hooks = [
            getattr(hook, "__code__", type(hook)) for hook in hooks
        ]  # what one has collected is no part of the model
        own = {key: value for key, value in _attributes(module).items() if key not in OF_EVERY_MODULE}
        for part in (type(module), *hooks, *sorted(own.items(), key=lambda pair: pair[0])):
            try:
                _feed(hasher, part, inside)
            except (Unknowable, RecursionError):
                value = part[1] if isinstance(part, tuple) else part
                _feed(hasher, f"{type(value).__module__}.{type(value).__qualname__}", ())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _feed(hasher, name, ())
        _feed_tensor(hasher, tensor)
    return hasher.digest(16).hex()


def _feed(hasher: _Hasher, value: Any, inside: tuple[int, ...]) -> None:
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


def _feed_nested(hasher: _Hasher, value: Any, inside: tuple[int, ...]) -> None:
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
        if not hasher.again(value):
            hasher.update(_model_digest(value, inside).encode())
    elif isinstance(value, torch.dtype | torch.device):
        hasher.update(str(value).encode())
    elif isinstance(value, Image.Image):
        hasher.update(f"image:{value.mode}:{value.size}:".encode())
        hasher.update(value.tobytes())
    else:
        _feed_code_or_object(hasher, value, inside)


def _feed_code_or_object(hasher: _Hasher, value: Any, inside: tuple[int, ...]) -> None:
    if isinstance(value, types.MethodType):
        _feed(hasher, [value.__func__, value.__self__], inside)
    elif isinstance(value, types.FunctionType):
        _feed_function(hasher, value, inside)
    elif isinstance(value, types.CodeType):
        _feed(hasher, _code(value), inside)
    elif isinstance(value, functools.partial):
        _feed(hasher, ["partial", value.func, value.args, value.keywords], inside)
    elif isinstance(value, types.BuiltinFunctionType | types.ModuleType):
        _feed(hasher, f"{getattr(value, '__module__', '')}.{value.__name__}", inside)
    elif isinstance(value, logging.Logger):
        _feed(hasher, ["logger", value.name], inside)
    elif inspect.isclass(value):
        _feed_class(hasher, value, inside)
    elif type(value).__module__.partition(".")[0] == "tokenizers" and hasattr(value, "to_str"):
        told = json.loads(value.to_str())  # truncation and padding are left over from the last call
        _feed(hasher, {name: part for name, part in told.items() if name not in ("truncation", "padding")}, inside)
    elif hasattr(value, "__dict__") and not _native(type(value)):
        _feed_class(hasher, type(value), inside)
        _feed(hasher, _attributes(value), inside)
        slots = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if name[:2] != "__"}
        _feed(hasher, {name: getattr(value, name) for name in slots if hasattr(value, name)}, inside)
    else:
        _feed_pickled(hasher, value, inside)


def _attributes(value: Any) -> dict[str, Any]:
    """Return an object's attributes, but for what a Hugging Face model or config notes about where it came from.

    One loaded from a folder equals the one that was saved there.
    """
    hugging = type(value).__module__.partition(".")[0] in ("transformers", "diffusers")
    if not hugging or not (isinstance(value, nn.Module) or hasattr(value, "model_type")):
        return dict(vars(value))
    private = {name for name in vars(value) if name.startswith("_") and "attn" not in name}
    return {name: part for name, part in vars(value).items() if name not in PROVENANCE | private}


def _native(kind: type) -> bool:
    """Return whether part of an object's content is held in C, out of sight."""
    return any(not base.__flags__ & (1 << 9) for base in kind.__mro__ if base is not object)


def _feed_pickled(hasher: _Hasher, value: Any, inside: tuple[int, ...]) -> None:
    """Add what a pickle would hold (dates, decimals, patterns, generators, objects with slots)."""
    unknown = Unknowable(f"an object of type {type(value).__module__}.{type(value).__qualname__}")
    if isinstance(value, types.GeneratorType | types.FrameType | types.TracebackType):
        raise unknown
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        found = reduce(value) if reduce is not None else value.__reduce_ex__(2)
    except Exception as error:
        raise unknown from error
    if isinstance(found, str):
        _feed(hasher, found, inside)
        return
    _feed_class(hasher, type(value), inside)
    rest = [None if part is None else list(part) for part in found[3:5]]
    _feed(hasher, [[part for part in found[1] if part is not type(value)], *found[2:3], *rest], inside)


def _feed_function(hasher: _Hasher, value: types.FunctionType, inside: tuple[int, ...]) -> None:
    """Add a function: what it does, and what it gets from outside."""
    if hasher.again(value):
        return
    hasher.update(b"function:")
    _feed(hasher, [_code(value.__code__), value.__defaults__, value.__kwdefaults__], inside)
    _feed(hasher, [_inside(cell) for cell in value.__closure__ or ()], inside)
    if _from_library(value):
        _feed(hasher, f"{value.__module__}.{value.__qualname__}", inside)
        return
    names = _names(value.__code__)
    used = {name: value.__globals__[name] for name in sorted(names) if name in value.__globals__}
    _feed(hasher, used, inside)  # a constant at module level changes what the function does


def _inside(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled in yet
        return None


def _names(code: types.CodeType) -> set[str]:
    """Return the names that a code object and those nested in it (comprehensions, lambdas) look up."""
    return set(code.co_names).union(*(_names(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def _from_library(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in LIBRARIES


def _feed_class(hasher: _Hasher, kind: type, inside: tuple[int, ...]) -> None:
    """Add a class by name; by its methods and constants too, those of its bases included, where it is no library's."""
    hasher.update(f"class:{kind.__module__}.{kind.__qualname__}:".encode())
    if _from_library(kind) or hasher.again(kind):
        return
    for base in kind.__bases__:
        _feed_class(hasher, base, inside)
    for name, member in sorted(vars(kind).items()):
        plain = getattr(member, "__func__", member)
        if isinstance(plain, property):
            plain = [part for part in (plain.fget, plain.fset) if part is not None]
        constant = isinstance(plain, int | float | complex | str | bytes | tuple | list | dict | Tensor | np.ndarray)
        if isinstance(plain, types.FunctionType) or (constant and name[:2] != "__"):
            hasher.update(name.encode())
            _feed(hasher, plain, inside)


def _code(code: types.CodeType) -> list[Any]:
    """Return what a code object does: bytecode, names and constants, without file names or line numbers."""
    constants = [_code(const) if isinstance(const, types.CodeType) else const for const in code.co_consts]
    return [code.co_code, list(code.co_names), list(code.co_varnames), constants]


def _feed_tensor(hasher: _Hasher, tensor: Tensor) -> None:
    if tensor.is_meta or tensor.is_nested:
        raise Unknowable(f"a {'meta' if tensor.is_meta else 'nested'} tensor")
    if tensor.is_quantized or tensor.layout != torch.strided:
        hasher.update(f"{tensor.dtype}:{tensor.layout}:".encode())
        tensor = tensor.dequantize() if tensor.is_quantized else tensor.to_dense()
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
    hasher.update(f"tensor:{plain.dtype}:{tuple(plain.shape)}:".encode())
    flat = plain.flatten()
    if flat.stride(0) != 1:  # none or one element, of an expanded tensor or an empty array
        flat = torch.empty_like(flat, memory_format=torch.contiguous_format).copy_(flat).as_strided(flat.shape, (1,))
    hasher.update(flat.view(torch.uint8).numpy().data)


def _feed_array(hasher: _Hasher, array: np.ndarray[Any, Any]) -> None:
    if array.dtype == object:
        _feed(hasher, array.tolist(), ())
        return
    hasher.update(f"array:{array.dtype.str}:{array.shape}:".encode())
    hasher.update(np.ascontiguousarray(array).tobytes())


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {name: (kept, now)} for every name whose values differ."""
    names: Sequence[str] = [*kept, *(name for name in now if name not in kept)]
    return {name: (kept.get(name), now.get(name)) for name in names if kept.get(name) != now.get(name)}
