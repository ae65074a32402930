"""Everything forwardinf raises on purpose.

Error:
├── SettingError      a setting is unknown, out of range, or does not apply            (ValueError)
│   └── UnknownId     no query or training example has this id; guesses which was meant (KeyError too)
├── DataError         the data cannot be read, has changed, or has bad ids             (ValueError)
├── ModelError        the model is in a state that cannot be measured                  (ValueError)
├── TaskError         the task broke its contract: not one finite number per example   (ValueError)
├── QueryError        a query has no usable gradient                                   (ValueError)
├── NoiseError        two readings of the same examples differ                         (RuntimeError)
├── FileError         a file is not ours, damaged, of a newer format, or not safe      (ValueError)
│   └── RunMismatch   the folder belongs to another run; says what differs
└── MissingExtra      an optional dependency is not installed                          (ImportError)

Each says where it happened, what was expected, what came, and what to do: those four are attributes too.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class Error(Exception):
    """Base class: ``except forwardinf.Error`` catches what we meant to raise, and nothing else.

    Args:
        where: The argument, file, batch or query in question.
        expected: What would have been right.
        got: What came instead.
        do: What to change.
    """

    def __init__(self, where: str, *, expected: str = "", got: str = "", do: str = "") -> None:
        self.where, self.expected, self.got, self.do = where, expected, got, do
        told = [f"expected {expected}" if expected else "", f"got {got}" if got else ""]
        message = f"{where}: {', '.join(filter(None, told))}." if any(told) else f"{where}."
        super().__init__(f"{message} {do}" if do else message)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive a pickle (data loader workers, process pools) with its four parts."""
        return (_rebuild, (type(self), self.where, self.expected, self.got, self.do))


def _rebuild(kind: type[Error], where: str, expected: str, got: str, do: str) -> Error:
    return kind(where, expected=expected, got=got, do=do)


class SettingError(Error, ValueError):
    """A setting is unknown, out of range, or does not apply here."""


class UnknownId(SettingError, KeyError):
    """No query, question or training example has this id."""

    __str__ = Exception.__str__  # a KeyError would show its message in quotation marks


class DataError(Error, ValueError):
    """The data cannot be read, has changed since the baseline, or has bad ids."""


class ModelError(Error, ValueError):
    """The model is in a state that cannot be measured, or was not given back as it was."""


class TaskError(Error, ValueError):
    """The task returned something other than one finite number per example."""


class QueryError(Error, ValueError):
    """A query has no usable gradient: zero, or not finite."""


class NoiseError(Error, RuntimeError):
    """Two readings of the same examples under the same weights differ."""


class FileError(Error, ValueError):
    """A file is not ours, damaged, of a newer format, or would need unpickling."""


class RunMismatch(FileError):
    """The folder holds another run. ``differs`` maps each name to (kept, now)."""

    def __init__(self, where: str, *, differs: dict[str, tuple[object, object]], do: str) -> None:
        self.differs = differs
        lines = "; ".join(f"{name}: kept {kept!r}, now {now!r}" for name, (kept, now) in differs.items())
        super().__init__(where, expected="the run that this folder belongs to", got=f"another one ({lines})", do=do)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_mismatch, (self.where, self.differs, self.do))


def _rebuild_mismatch(where: str, differs: dict[str, tuple[object, object]], do: str) -> RunMismatch:
    return RunMismatch(where, differs=differs, do=do)


class MissingExtra(Error, ImportError):
    """An optional dependency is not installed; says which extra brings it."""

    def __init__(self, package: str, *, extra: str, need: str) -> None:
        self.package, self.extra, self.need = package, extra, need
        super().__init__(need, expected=f"the package {package!r}", got="none", do=f"pip install 'forwardinf[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_missing, (self.package, self.extra, self.need))


def _rebuild_missing(package: str, extra: str, need: str) -> MissingExtra:
    return MissingExtra(package, extra=extra, need=need)


def choose(where: str, got: str, known: Iterable[str]) -> SettingError:
    """Return (not raise) the error for a name that is not among ``known``, with a guess at what was meant."""
    names = list(known)
    near = get_close_matches(got, names, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    return SettingError(where, expected=f"one of {', '.join(map(repr, names))}", got=repr(got), do=hint)
