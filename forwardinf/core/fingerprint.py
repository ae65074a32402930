"""Short digests (BLAKE3) of content: tensors, models, examples, code. Equal content, equal digest; nothing else counts."""

from __future__ import annotations

import copyreg
import functools
import inspect
import json
import logging
import secrets
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from forwardinf import __version__
from forwardinf.core.fingerprint_code import code, feed_class, feed_function
from forwardinf.core.fingerprint_tensors import PLAIN, feed_tensor
from forwardinf.core.hasher import Hasher, Inside, Unknowable

PROVENANCE = {"name_or_path", "transformers_version", "architectures", "model_type", "dtype", "torch_dtype",
              "generation_config"}  # fmt: skip  # how a model generates is no part of what a forward gives
OF_EVERY_MODULE = frozenset(vars(nn.Module()))

log = logging.getLogger(__name__)


def digest(*parts: Any) -> str:
    """Return 32 hex digits for any nesting of numbers, text, arrays, tensors, models, settings and functions.

    Raises:
        Unknowable: Some part holds an object whose content cannot be told (an open file, a C extension object).

    Example:
        >>> digest({"a": 1, "b": [2.0]}) == digest({"b": [2.0], "a": 1})
        True
    """
    return _told(Hasher(_feed), parts).hex()


def row_digest(value: Any, kinds: dict[type, bytes] | None = None) -> bytes:
    """Return 16 bytes for the content of an example: as :func:`digest`, but for objects of a class.

    What counts of an object is its class and its attributes, slots included; what ``functools.cached_property`` has left in
    it does not. ``kinds`` keeps the digests of classes: their code is told once for all rows that are given the same.
    """
    return _told(Hasher(_feed, {} if kinds is None else kinds), value)


def _told(hasher: Hasher, value: Any) -> bytes:
    try:
        hasher.feed(value, ())
    except RecursionError as error:
        raise Unknowable("something nested too deeply") from error
    return hasher.digest()


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
    heads, have the same weights. Those whose content cannot be told count by their type. A parameter or buffer that cannot be
    told (:func:`untold`) makes every digest another one, so that nothing kept of the model is ever used again.
    Cost: one pass over the weights, about 1 GiB/s. Training flags and ``requires_grad`` do not count.
    """
    return _model_digest(model, ())


def untold(model: nn.Module) -> list[str]:
    """Return the names of parameters and buffers whose values can be had in no way, like those of an opaque tensor class."""
    return [name for name, tensor in _tensors(model) if type(tensor) not in PLAIN and not _can_be_told(tensor)]


def notes_on(model: nn.Module) -> list[str]:
    """Return what a person should know about how well a model can be told from another."""
    return [
        f"{name} cannot be told from another: nothing kept of this model is used again" for name in untold(model)[:1]
    ]


def _can_be_told(tensor: Tensor) -> bool:
    try:
        feed_tensor(Hasher(_feed), tensor, ())
    except Unknowable:
        return False
    return True


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _model_digest(model: nn.Module, inside: Inside) -> str:
    hasher = Hasher(_feed)
    hasher.feed(repr(model), ())
    modules = dict(model.named_modules())
    for module in modules.values():
        hasher.again(module)  # so that one that refers to another (its parent, say) ends there
    for name, module in modules.items():
        hasher.feed(name, ())
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        hooks = [
            getattr(hook, "__code__", type(hook)) for hook in hooks
        ]  # what one has collected is no part of the model
        own = {key: value for key, value in _attributes(module).items() if key not in OF_EVERY_MODULE}
        for part in (type(module), *hooks, *sorted(own.items(), key=lambda pair: pair[0])):
            try:
                hasher.feed(part, inside)
            except (Unknowable, RecursionError):
                value = part[1] if isinstance(part, tuple) else part
                hasher.feed(f"{type(value).__module__}.{type(value).__qualname__}", ())
    for name, tensor in _tensors(model):
        hasher.feed(name, ())
        try:
            feed_tensor(hasher, tensor, ())
        except Unknowable as error:
            log.warning("%s is %s: nothing kept of this model is used again", name, error)
            hasher.update(secrets.token_bytes(16))
    return hasher.digest().hex()


def _feed(hasher: Hasher, value: Any, inside: Inside) -> None:
    """Add one value, behind a mark of its kind, so that ``["ab"]`` and ``["a", "b"]`` differ."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | range | slice | PurePath):
        body = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        hasher.update(f"{type(value).__name__}:{len(body)}:".encode())
        hasher.update(body)
    elif isinstance(value, Tensor):
        feed_tensor(hasher, value, inside)
    elif isinstance(value, np.ndarray | np.generic):
        _feed_array(hasher, np.asarray(value))
    elif id(value) in inside:
        hasher.update(f"cycle of {len(inside) - inside.index(id(value))};".encode())
    else:
        _feed_nested(hasher, value, (*inside, id(value)))


def _feed_nested(hasher: Hasher, value: Any, inside: Inside) -> None:
    if isinstance(value, Mapping):
        hasher.update(f"map:{len(value)}:".encode())
        for key in sorted(value, key=repr):
            hasher.feed(key, inside)
            hasher.feed(value[key], inside)
    elif isinstance(value, AbstractSet):
        hasher.feed(sorted(value, key=repr), inside)
    elif isinstance(value, list | tuple):
        hasher.update(f"list:{len(value)}:".encode())
        for item in value:
            hasher.feed(item, inside)
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
        return
    if isinstance(value, dict | list | tuple | AbstractSet) and getattr(value, "__dict__", None):
        hasher.feed(_attributes(value), inside)  # a class of one's own that holds more than its items


def _feed_code_or_object(hasher: Hasher, value: Any, inside: Inside) -> None:
    if isinstance(value, types.MethodType):
        hasher.feed([value.__func__, value.__self__], inside)
    elif isinstance(value, types.FunctionType):
        feed_function(hasher, value, inside)
    elif isinstance(value, types.CodeType):
        hasher.feed(code(value), inside)
    elif isinstance(value, functools.partial):
        hasher.feed(["partial", value.func, value.args, value.keywords], inside)
    elif isinstance(value, types.BuiltinFunctionType | types.ModuleType):
        hasher.feed(f"{getattr(value, '__module__', '')}.{value.__name__}", inside)
    elif isinstance(value, logging.Logger):
        hasher.feed(["logger", value.name], inside)
    elif inspect.isclass(value):
        feed_class(hasher, value, inside)
    elif isinstance(value, weakref.ref):
        hasher.feed(["reference", value()], inside)
    elif type(value).__module__.partition(".")[0] == "tokenizers" and hasattr(value, "to_str"):
        told = json.loads(value.to_str())  # truncation and padding are left over from the last call
        hasher.feed({name: part for name, part in told.items() if name not in ("truncation", "padding")}, inside)
    elif hasattr(value, "__dict__") and not _native(type(value)):
        hasher.once(value, lambda own: _feed_object(own, value, inside))
    else:
        _feed_pickled(hasher, value, inside)


def _feed_object(hasher: Hasher, value: Any, inside: Inside) -> None:
    feed_class(hasher, type(value), inside)
    hasher.feed(_attributes(value), inside)
    slots = [(kind, name) for kind in type(value).__mro__ for name in _slots(kind)]
    names = [f"_{kind.__name__.lstrip('_')}{name}" if _private(name) else name for kind, name in slots]
    hasher.feed({name: getattr(value, name) for name in names if hasattr(value, name)}, inside)


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [name for name in ([slots] if isinstance(slots, str) else slots) if name not in ("__dict__", "__weakref__")]


def _private(name: str) -> bool:
    """Return whether a name in a class's body is kept under another: ``__x`` as ``_Class__x``."""
    return name[:2] == "__" and name[-2:] != "__"


def _attributes(value: Any) -> dict[str, Any]:
    """Return an object's attributes, but for what a Hugging Face model or config notes about where it came from.

    One loaded from a folder equals the one that was saved there. Nor does what a cached property has left count.
    """
    hugging = type(value).__module__.partition(".")[0] in ("transformers", "diffusers")
    if not hugging or not (isinstance(value, nn.Module) or hasattr(value, "model_type")):
        return {name: part for name, part in vars(value).items() if not _cached(type(value), name)}
    private = {name for name in vars(value) if name.startswith("_") and "attn" not in name}
    return {name: part for name, part in vars(value).items() if name not in PROVENANCE | private}


def _cached(kind: type, name: str) -> bool:
    """Return whether an attribute is what a ``functools.cached_property`` has left: it follows from the others."""
    return isinstance(inspect.getattr_static(kind, name, None), functools.cached_property)


def _native(kind: type) -> bool:
    """Return whether part of an object's content is held in C, out of sight."""
    return any(not base.__flags__ & (1 << 9) for base in kind.__mro__ if base is not object)


def _feed_pickled(hasher: Hasher, value: Any, inside: Inside) -> None:
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
        hasher.feed(found, inside)
        return
    feed_class(hasher, type(value), inside)
    rest = [None if part is None else list(part) for part in found[3:5]]
    hasher.feed([[part for part in found[1] if part is not type(value)], *found[2:3], *rest], inside)


def _feed_array(hasher: Hasher, array: np.ndarray[Any, Any]) -> None:
    if array.dtype == object:
        hasher.feed(array.tolist(), ())
        return
    hasher.update(f"array:{array.dtype.str}:{array.shape}:".encode())
    hasher.update(np.ascontiguousarray(array).tobytes())


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {name: (kept, now)} for every name whose values differ."""
    names: Sequence[str] = [*kept, *(name for name in now if name not in kept)]
    return {name: (kept.get(name), now.get(name)) for name in names if kept.get(name) != now.get(name)}
