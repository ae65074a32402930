"""Paths as they are given: refused by name where no system can hold them, or where they cannot be looked at."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from forwardinf.core.errors import FileError, SettingError


def as_path(where: str, given: Any) -> Path:
    """Return what was given as a path, ``~`` filled in. Nothing need be there.

    Args:
        where: The argument, for errors.
        given: Text or a path.

    Raises:
        SettingError: Neither text nor a path (bytes are neither), or empty.
        FileError: It holds a NUL, is too long, goes round in links, or leads through a folder that is closed to us.

    Example:
        >>> as_path("output_dir", "runs/digits").name
        'digits'
    """
    if not isinstance(given, str | os.PathLike) or isinstance(raw := os.fspath(given), bytes) or not raw:
        got = "nothing" if given == "" else repr(given)[:80]
        raise SettingError(where, expected="a path, as text or pathlib.Path", got=got)
    shown = raw if len(raw) <= 80 else f"{raw[:77]}…"
    try:
        path = Path(raw).expanduser()
        os.stat(path)  # noqa: PTH116  (Path.exists swallows link loops)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:  # no home folder is a RuntimeError
        told = error.strerror if isinstance(error, OSError) else str(error)
        raise FileError(f"{where} {shown!r}", expected="a path that can be looked at", got=str(told)) from error
    return path


def is_special(path: Path) -> bool:
    """Return whether a device, a pipe or a socket is at this path: what must not be replaced by a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def refuse_links_out(folder: Path) -> None:
    """Refuse a folder of ours in which a link leads out of it: it was made by somebody, and reading or clearing would follow it.

    Raises:
        FileError: Names the link and where it leads.
    """
    inside = folder.resolve()
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(base) / name
            if not path.is_symlink():
                continue
            try:
                meant = path.resolve()
            except (OSError, RuntimeError):
                meant = Path(os.readlink(path))  # noqa: PTH115
            if not meant.is_relative_to(inside):
                raise FileError(str(path), expected="files of this folder", got=f"a link to {meant}",
                                do="Put the file itself there, or remove the link.")  # fmt: skip
