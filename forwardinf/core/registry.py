"""Things that go by a name: what is built in and what is added from outside, side by side in one place.

The places: directions (``perturb/registry.py``), engines (``read/registry.py``), tasks of the command line
(``tasks/registry.py``), readers of data (``data/registry.py``) and uses (``use/registry.py``). docs/extending.md shows how to
add one of each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from forwardinf.core.errors import SettingError, choose

Entry = TypeVar("Entry")
NAME = re.compile(r"[a-z][a-z0-9_-]*")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name, in the order in which they came; a name is given once.

    Args:
        what: What is entered, for errors: ``"direction"``.
        reserved: Names that mean something else where one of these is asked for.

    Example:
        >>> colours = Registry("colour")
        >>> colours.add("red", "#f00")
        >>> colours["red"], "blue" in colours
        ('#f00', False)
    """

    def __init__(self, what: str, reserved: tuple[str, ...] = ()) -> None:
        """Nothing is entered yet."""
        self.what, self.reserved = what, reserved
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Enter something under a name.

        Raises:
            SettingError: The name is taken, means something else, or is not of small letters, digits, ``-`` and ``_``.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise SettingError(f"{self.what} {name!r}", expected="a name of small letters, digits, - and _",
                               got=repr(name))  # fmt: skip
        if name in self._entries or name in self.reserved:
            raise SettingError(f"{self.what} {name!r}", expected="a name that is free", got="one that is taken",
                               do="Choose another name, or remove that one first.")  # fmt: skip
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Take an entry away.

        Raises:
            SettingError: There is none of this name; says which was probably meant.
        """
        self.named(name)
        del self._entries[name]

    def named(self, name: str, where: str = "") -> Entry:
        """Return an entry.

        Args:
            name: Its name.
            where: The argument in which it was asked for, for errors.

        Raises:
            SettingError: There is none of this name; says which was probably meant.
        """
        if name not in self:
            raise choose(where or self.what, str(name), self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is an entry of this name; whatever is asked."""
        return isinstance(name, str) and name in self._entries

    def __getitem__(self, name: str) -> Entry:
        """Return an entry, or raise KeyError."""
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order in which they came."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._entries)


def brought(home: Any) -> Any:
    """Return what an entry stands for: itself, or what lies at ``"module:name"``, loaded only now.

    Built-in entries name their homes, so that a name can be looked up without loading torch.

    Example:
        >>> brought("math:tau") == brought(6.283185307179586)
        True
    """
    if not isinstance(home, str):
        return home
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)
