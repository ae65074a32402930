"""The one gate for code named by a word, ``module:name``; and the packages that an extra brings.

What is code is decided by the form of the word alone, before anything looks at the disk: no file, however it is called, turns
code into data or data into code. Who may import, and from where, is set around the call (:func:`code_from`): a configuration
that somebody gave you imports nothing, the command line also finds modules in the current folder, Python what ``sys.path`` has.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from forwardinf.core.errors import DataError, MissingExtra, SettingError, choose
from forwardinf.data.endings import TABLES

CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
FILES = (".npz", *TABLES)  # data.npz:test is a file and its split
REFUSED = "Code of your own: a function or class that gives it, in a module of yours."

From = Literal["nowhere", "path", "here"]
Kind = Literal["model", "task", "data", "training function", "batch"]

_FROM: ContextVar[From] = ContextVar("forwardinf_code_from", default="path")


def is_code(spec: str) -> bool:
    """Return whether a word is ``module:name``: by its form, whatever lies on the disk.

    Example:
        >>> is_code("nets:Small"), is_code("data.npz:test"), is_code("./folder:test"), is_code("owner/name")
        (True, False, False, False)
    """
    return CODE.fullmatch(spec) is not None and not spec.partition(":")[0].lower().endswith(FILES)


@contextmanager
def code_from(source: From) -> Iterator[None]:
    """Within the block code is imported from nowhere, from ``sys.path``, or from the current folder too (after ``sys.path``)."""
    token = _FROM.set(source)
    try:
        yield
    finally:
        _FROM.reset(token)


def import_name(spec: str, kind: Kind) -> Any:
    """Import ``module:name``, which gives a model, a task or data, or is a function that does.

    Args:
        spec: The word.
        kind: What it must give. A class must be of that kind; a function that says it returns something else is refused.

    Raises:
        SettingError: Code may not be imported here, or it belongs to Python itself, or there is no such module or name, or it
            cannot give what is asked. Errors inside the module are its own and pass through.
    """
    if _FROM.get() == "nowhere":
        raise SettingError(spec, expected="words that need no code", got="module:name",
                           do="Look at that code, then say --allow-code.")  # fmt: skip
    module_name, _, name = spec.partition(":")
    _refuse_pythons(spec, module_name)
    found = _module(spec, module_name)
    if getattr(found, "__file__", None) is None and not hasattr(found, name.partition(".")[0]):
        raise _none(spec, "a folder without Python code")
    for part in name.split("."):
        if part.startswith("__") or not hasattr(found, part):
            raise choose(f"{spec}: name", part, [known for known in dir(found) if not known.startswith("_")])
        found = getattr(found, part)
        if isinstance(found, ModuleType):
            _refuse_pythons(spec, found.__name__)
    _check_kind(spec, found, kind)
    return found


def _refuse_pythons(spec: str, module: str) -> None:
    """Refuse modules of the standard library: none gives a model, a task or data, and some run commands."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top.startswith("__"):
        raise SettingError(spec, expected="a module of yours or of a package", got=f"{top!r}, a module of Python itself",
                           do=f"{REFUSED} Rename it if it is called {top!r}.")  # fmt: skip


def _module(spec: str, name: str) -> Any:
    if _FROM.get() == "here":
        _look_here(spec, name.partition(".")[0])
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise _none(spec, f"no module {error.name!r}") from error


def _none(spec: str, got: str) -> SettingError:
    folder = Path(spec.partition(":")[0]).is_dir()
    do = (
        f"For the folder, write ./{spec}"
        if folder
        else "Words like this are code: the module must be on Python's path."
    )
    return SettingError(spec, expected="a module that can be imported", got=got, do=do)


def _look_here(spec: str, top: str) -> None:
    """Put the current folder last on the import path: no file in it can stand in for a package that anything else imports."""
    here = Path.cwd()
    if any(Path(entry or ".").resolve() == here.resolve() for entry in sys.path if isinstance(entry, str)):
        return
    own = importlib.machinery.PathFinder.find_spec(top, [str(here)])
    known = None if top in sys.modules else importlib.util.find_spec(top)
    if own is not None and known is not None and own.origin and known.origin and own.origin != known.origin:
        raise SettingError(spec, expected="one module of this name", got=f"{own.origin} and {known.origin}",
                           do="Rename the one in the current folder.")  # fmt: skip
    sys.path.append(str(here))


def _check_kind(spec: str, found: Any, kind: Kind) -> None:
    """Refuse what can be told, before it is called, to give something else."""
    from torch import nn  # not at the top: --help is instant, and what imports code loads torch anyway

    if callable(found):
        _refuse_pythons(spec, _home(found))
    if isinstance(found, type):
        fits = {
            "model": issubclass(found, nn.Module),
            "task": hasattr(found, "losses"),
            "data": hasattr(found, "__getitem__") or hasattr(found, "__iter__"),
            "training function": False,
            "batch": False,
        }[kind]
        if not fits:
            raise SettingError(spec, expected=f"a function or class that gives a {kind}", got=f"the class {found.__name__}",
                               do=REFUSED)  # fmt: skip
    elif callable(found) and not isinstance(found, nn.Module):
        said = getattr(inspect.unwrap(found), "__annotations__", {}).get("return", Any)
        said = getattr(said, "__name__", "None" if said is None else str(said))
        if said in ("None", "int", "str", "bytes", "bool", "float", "NoneType"):
            raise SettingError(
                spec, expected=f"a function that gives a {kind}", got=f"one that gives {said}", do=REFUSED
            )


def _home(found: Any) -> str:
    """Return the module that a callable really comes from, out of partials and methods."""
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(found)
    if inspect.ismethod(found):
        found = found.__func__
    owner = getattr(found, "__module__", None)
    if owner is None and (of := getattr(found, "__self__", None)) is not None:  # a method of something built in
        owner = getattr(of if isinstance(of, type) else type(of), "__module__", None)
    return str(owner or "")


def import_extra(package: str, *, extra: str, need: str) -> Any:
    """Import an optional dependency, or raise MissingExtra saying what needs it and which extra brings it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, extra=extra, need=need) from error


def read_function(source: str, given: dict[str, Any]) -> Any:
    """Return what the function gives, called with the settings that were given."""
    function = import_name(source, "data")
    if not callable(function):
        raise SettingError(source, expected="a function", got=type(function).__name__)
    takes = inspect.signature(function).parameters
    for name in given if not any(each.kind is each.VAR_KEYWORD for each in takes.values()) else ():
        if name not in takes:
            raise choose(f"{source}: option", name, takes)
    data = function(**given)
    if data is None:
        raise DataError(source, expected="data", got="None", do="Return it from the function.")
    return data
