"""Code named by one word, ``module:name``, and the packages that an extra brings."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from forwardinf.core.errors import DataError, MissingExtra, SettingError, choose

CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def import_name(spec: str) -> Any:
    """Import ``module:name``, with the current folder on the import path (it stays there, for the module's own imports).

    Raises:
        SettingError: No such module or name. Errors inside the module are its own and pass through.
    """
    module_name, _, name = spec.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise SettingError(spec, expected="a module that can be imported, or an existing path",
                           got=f"no module {error.name!r}", do=f"Looked in {Path.cwd()} too.") from error  # fmt: skip
    for part in name.split("."):
        if not hasattr(found, part):
            raise choose(f"{spec}: name", part, [known for known in dir(found) if not known.startswith("_")])
        found = getattr(found, part)
    return found


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
    function = import_name(source)
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
