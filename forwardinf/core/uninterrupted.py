"""Entering and leaving that no signal cuts short: what was changed is either changed and known, or put back.

Python runs a signal's handler between two instructions of whatever the main thread does, also in the middle of putting weights
back. Within a :class:`Lending` a handler that finds itself inside an entry or an exit waits until that is over; anywhere else it
runs at once. Only handlers written in Python are held (Ctrl-C, alarms, ``SIGTERM`` where somebody handles it): what kills the
process leaves no model to give back.
"""

from __future__ import annotations

import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], Any]
HELD = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
TRIES = 3  # of an action that must happen


class _Signals:
    """The handlers that are held, and what has come meanwhile. Used by the main thread only, as handlers are."""

    def __init__(self) -> None:
        self.kept: dict[int, Handler] = {}
        self.came: list[int] = []
        self.depth = 0
        self.protected: set[CodeType] = set()

    def hold(self) -> None:
        """Take the place of every handler that is written in Python, at the first of nested calls."""
        if not self.depth:
            for number in HELD:
                handler = signal.getsignal(number)
                if callable(handler) and handler != self._handle:
                    self.kept[number] = handler
                    signal.signal(number, self._handle)
        self.depth += 1

    def let_go(self) -> None:
        """Put the handlers back, at the last of nested calls; then run those of what came, which may raise."""
        try:
            for number, handler in self.kept.items() if self.depth == 1 else ():
                if signal.getsignal(number) == self._handle:  # else somebody has put another there meanwhile
                    signal.signal(number, handler)
        finally:
            self.depth -= 1
        came, self.came = self.came, []
        for number in dict.fromkeys(came):
            self.kept[number](number, sys._getframe())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        inside = frame
        while inside is not None:
            if inside.f_code in self.protected:
                self.came.append(number)
                return
            inside = inside.f_back
        self.kept[number](number, frame)


_SIGNALS = _Signals()


class Lending(ABC, Generic[T]):
    """A context manager whose entry and exit no signal cuts short; subclasses say what is taken, and how it is given back."""

    @abstractmethod
    def take(self) -> T:
        """Change what is to be changed, and return what the block gets. Where it raises, :meth:`give_back` is called."""

    @abstractmethod
    def give_back(self, failed: bool) -> None:
        """Put everything back, whatever part of :meth:`take` has happened; raise only when that is done.

        Args:
            failed: The block raises already.
        """

    def __enter__(self) -> T:
        """Take, with signals held."""
        while True:
            self._held = threading.current_thread() is threading.main_thread()
            if self._held:
                _SIGNALS.hold()
            try:
                taken = self.take()
            except BaseException:
                self._leave(failed=True)
                raise
            if not self._held or not _SIGNALS.came:
                return taken
            self._leave(failed=True)  # runs the handler of what came: most raise. Where it does not, begin again

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back, with signals held."""
        self._leave(failed=kind is not None)

    def _leave(self, *, failed: bool) -> None:
        try:
            self.give_back(failed)
        finally:
            if self._held:
                _SIGNALS.let_go()


_SIGNALS.protected |= {Lending.__enter__.__code__, Lending.__exit__.__code__}


def surely(actions: Iterable[Callable[[], object]]) -> None:
    """Do every action, again where it fails, whatever it raises; then raise the first error."""
    first: BaseException | None = None
    for action in actions:
        for _ in range(TRIES):
            try:
                action()
                break
            except (
                BaseException
            ) as error:  # an interrupt, memory that ran out: nothing keeps the others from being done
                first = first or error
    if first is not None:
        raise first
