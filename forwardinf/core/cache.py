"""The folder where baselines, fits and tunings are kept between calls: optional in every way, and bounded.

What is kept only saves time. Where the folder cannot be made or written, or its disk is full, calls go on without it and say so
once. What was used least lately goes first where it has grown beyond its limit.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path

from forwardinf.core.errors import SettingError

log = logging.getLogger(__name__)

KINDS = ("baselines", "fits", "trunks", "tuning")
LIMIT_GIB = 20.0  # $FORWARDINF_CACHE_LIMIT says otherwise
IN_USE = 3600.0  # seconds since a file was touched in which nothing removes it

_OPTIONAL: set[Path] = set()
_TOLD: set[Path] = set()
_BOUNDED: set[Path] = set()


def usable(folder: Path | None) -> Path | None:
    """Return the folder where it can be written, else None (and say why, once). It is brought under its limit once a process.

    Raises:
        SettingError: ``$FORWARDINF_CACHE_LIMIT`` is no number.
    """
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        _tell(folder, error)
        return None
    _OPTIONAL.add(folder)
    if folder not in _BOUNDED:
        _BOUNDED.add(folder)
        prune(folder, limit())
    return folder


def forgiven(path: Path, error: Exception) -> bool:
    """Return whether a file that could not be written is one of a cache, which can be done without; say so once."""
    folder = next((folder for folder in _OPTIONAL if path.is_relative_to(folder)), None)
    if folder is not None:
        _tell(folder, error)
    return folder is not None


def _tell(folder: Path, error: Exception) -> None:
    if folder not in _TOLD:
        _TOLD.add(folder)
        log.warning("nothing is kept between calls: %s (%s). Say cache_dir=, or $FORWARDINF_CACHE.", folder, error)


def limit() -> int:
    """Return how many bytes the folder may hold."""
    asked = os.environ.get("FORWARDINF_CACHE_LIMIT")
    try:
        gib = LIMIT_GIB if asked is None else float(asked)
        return int(gib * 2**30)
    except (ValueError, OverflowError) as error:
        raise SettingError("FORWARDINF_CACHE_LIMIT", expected="a number of GiB", got=repr(asked)) from error


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Return (files, bytes) of each kind of thing that is kept."""
    found = {}
    for kind in KINDS:
        files = _files(folder / kind)
        found[kind] = len(files), sum(size for _, size, _ in files)
    return found


def prune(folder: Path, most: int) -> tuple[int, int]:
    """Remove what was used least lately until no more than ``most`` bytes are left; return (files, bytes) removed.

    Files used within the last hour stay, and so does everything that is not ours.
    """
    files = [entry for kind in KINDS for entry in _files(folder / kind)]
    size, removed, freed = sum(size for _, size, _ in files), 0, 0
    for used, nbytes, path in sorted(files):
        if size - freed <= most or time.time() - used < IN_USE:
            break
        try:
            path.unlink()
        except OSError:  # another process's, or gone already
            continue
        removed, freed = removed + 1, freed + nbytes
    return removed, freed


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """Return (last used, bytes, path) of the files below a folder; links are not followed."""
    found = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base) / name
            try:
                facts = path.lstat()
            except OSError:
                continue
            found.append((max(facts.st_mtime, facts.st_atime), facts.st_size, path))
    return found
