"""What functions and classes add to a digest: what they do, and what they get from outside."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
from torch import Tensor

from forwardinf.core.hasher import Hasher, Inside, Unknowable

LIBRARIES = {"torch", "forwardinf", "transformers", "diffusers", "peft", "numpy", *sys.stdlib_module_names}  # by name


def feed_function(hasher: Hasher, value: types.FunctionType, inside: Inside) -> None:
    """Add a function: its code, defaults, closure, and the globals that it names."""
    if hasher.again(value):
        return
    hasher.update(b"function:")
    hasher.feed([code(value.__code__), value.__defaults__, value.__kwdefaults__], inside)
    hasher.feed([_inside(cell) for cell in value.__closure__ or ()], inside)
    if _from_library(value):
        hasher.feed(f"{value.__module__}.{value.__qualname__}", inside)
        return
    names = _names(value.__code__)
    used = {name: value.__globals__[name] for name in sorted(names) if name in value.__globals__}
    hasher.feed(used, inside)  # a constant at module level changes what the function does


def _inside(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled in yet
        return None


def _names(value: types.CodeType) -> set[str]:
    """Return the names that a code object and those nested in it (comprehensions, lambdas) look up."""
    return set(value.co_names).union(*(_names(const) for const in value.co_consts if isinstance(const, types.CodeType)))


def _from_library(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in LIBRARIES


def feed_class(hasher: Hasher, kind: type, inside: Inside) -> None:
    """Add a class by name; by its methods and constants too, those of its bases included, where it is no library's.

    Where the hasher keeps ``kinds``, as for rows, that is told once for all of them, and a class whose code cannot be told
    counts by its name: what a row holds is what matters.
    """
    hasher.update(f"class:{kind.__module__}.{kind.__qualname__}:".encode())
    if _from_library(kind):
        return
    if hasher.kinds is None:
        _feed_members(hasher, kind, inside)
        return
    if kind not in hasher.kinds:
        own = hasher.alone()
        try:
            _feed_members(own, kind, ())
            hasher.kinds[kind] = own.digest()
        except (Unknowable, RecursionError):
            hasher.kinds[kind] = b"untold"
    hasher.update(hasher.kinds[kind])


def _feed_members(hasher: Hasher, kind: type, inside: Inside) -> None:
    if hasher.again(kind):
        return
    for base in kind.__bases__:
        feed_class(hasher, base, inside)
    for name, member in sorted(vars(kind).items()):
        plain = getattr(member, "__func__", member)
        if isinstance(plain, property):
            plain = [part for part in (plain.fget, plain.fset) if part is not None]
        constant = isinstance(plain, int | float | complex | str | bytes | tuple | list | dict | Tensor | np.ndarray)
        if isinstance(plain, types.FunctionType) or (constant and name[:2] != "__"):
            hasher.update(name.encode())
            hasher.feed(plain, inside)


def code(value: types.CodeType) -> list[Any]:
    """Return what a code object does: bytecode, names and constants, without file names or line numbers."""
    constants = [code(const) if isinstance(const, types.CodeType) else const for const in value.co_consts]
    return [value.co_code, list(value.co_names), list(value.co_varnames), constants]
