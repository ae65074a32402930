"""A BLAKE3 hash that remembers what it has been told, so that whatever refers to itself or to one another ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blake3 import blake3

MOST_PARTS = 2**24  # values in one digest: more are an object that reaches half the program, not an example

Inside = tuple[int, ...]  # the ids of the values around this one, from the outermost in
Feed = Callable[["Hasher", Any, Inside], None]


class Unknowable(TypeError):
    """An object whose content cannot be told; says which."""


class Hasher:
    """Takes bytes by ``update`` and values by ``feed``.

    Functions and classes refer to one another, and each is told once (:meth:`again`). Objects of a class are told by a
    digest of their own, taken once however many ways lead to them, so that copies and one object twice read the same.

    Attributes:
        kinds: The digest of each class met, kept between hashers; None where classes are told in place.
    """

    def __init__(self, tell: Feed, kinds: dict[type, bytes] | None = None) -> None:
        """Start with nothing told; ``tell`` knows how to take a value apart."""
        self._start(tell, kinds)
        self._met: dict[int, int] = {}
        self._objects: dict[int, tuple[object, bytes]] = {}
        self._parts = [0]

    def _start(self, tell: Feed, kinds: dict[type, bytes] | None) -> None:
        self._tell, self.kinds, self._hash = tell, kinds, blake3()
        self.update, self._digest = self._hash.update, self._hash.digest

    def alone(self) -> Hasher:
        """Return a hasher that has been told nothing, and tells classes in place."""
        return Hasher(self._tell)

    def digest(self) -> bytes:
        """Return the 16 bytes of all that was told."""
        return self._digest(16)

    def feed(self, value: Any, inside: Inside) -> None:
        """Add a value of any kind."""
        self._parts[0] += 1
        if self._parts[0] > MOST_PARTS:
            raise Unknowable(f"something of more than {MOST_PARTS:,} parts")
        self._tell(self, value, inside)

    def again(self, value: object) -> bool:
        """Return whether ``value`` was met before; add a reference to it if so."""
        if id(value) in self._met:
            self.update(f"met:{self._met[id(value)]};".encode())
            return True
        self._met[id(value)] = len(self._met)
        return False

    def once(self, value: object, tell: Callable[[Hasher], None]) -> None:
        """Add the digest of what ``tell`` tells of ``value``, taken the first time only."""
        if id(value) not in self._objects:
            inner = Hasher.__new__(Hasher)
            inner._start(self._tell, self.kinds)
            inner._met, inner._objects, inner._parts = self._met, self._objects, self._parts
            tell(inner)
            self._objects[id(value)] = value, inner.digest()  # the value too: while it is held its id is its own
        self.update(b"object:" + self._objects[id(value)][1])
