"""Files that are whole or absent: written beside, flushed, moved into place; refused when they are not ours."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from forwardinf.core.cache import forgiven
from forwardinf.core.errors import FileError
from forwardinf.core.paths import as_path, is_special


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a temporary file's path in the same folder; move it to ``path`` when the block ends well.

    Readers see the old file or the new one, never half of one, even after a power cut. On any error (a full disk, an
    interrupt) the temporary file is removed and ``path`` is what it was.
    """
    as_path("file", path)
    if is_special(path):
        raise FileError(str(path), expected="the name of a file", got="a device, a pipe or a socket",
                        do="It would be replaced: choose another name.")  # fmt: skip
    try:
        part = _part_of(path)
    except FileError as error:
        if not forgiven(path, error):
            raise
        with tempfile.TemporaryDirectory() as nowhere:  # a cache can be done without: what is written is dropped
            yield Path(nowhere) / path.name
        return
    try:
        yield part
        part.chmod(0o666 & ~_umask())
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        if not forgiven(path, error):
            raise FileError(
                str(path), expected="room to write", got=str(error), do="Free space, then resume."
            ) from error
    finally:
        part.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    """Return a new, empty file beside a path; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise FileError(
            str(path.parent), expected="a folder that can be written", got=str(error), do="Choose another folder."
        ) from error
    os.close(handle)
    return Path(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, whole or not at all."""
    with written(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, format: str, *, what: str) -> dict[str, Any]:
    """Read a JSON file of ours; refuse a missing, damaged, foreign or newer one.

    Args:
        path: The file.
        format: Its format and newest known version, like ``"forwardinf.run/1"``.
        what: What the file is to a person, for the error.
    """
    if not path.is_file():
        raise FileError(str(path.parent), expected=what, got=f"no {path.name}", do="Check the path.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise FileError(
            str(path), expected=what, got=f"a damaged file ({error})", do="Start over with overwrite=True."
        ) from error
    check_format(path, content.get("format") if isinstance(content, dict) else None, format, what=what)
    return cast("dict[str, Any]", content)


def check_format(path: Path, got: object, known: str, *, what: str) -> None:
    """Raise FileError unless ``got`` is format ``known`` or an older version of it."""
    family, _, version = known.partition("/")
    kept_family, _, kept_version = str(got).partition("/")
    if kept_family != family or not kept_version.isdecimal():
        raise FileError(str(path), expected=f"{what} ({known})", got=f"format {got!r}", do="It is not ours.")
    if int(kept_version) > int(version):
        raise FileError(
            str(path), expected=f"{known} or older", got=str(got), do="It was written by a newer forwardinf: upgrade."
        )


def write_table(path: Path, columns: dict[str, Any], format: str) -> None:
    """Write columns as Parquet with its format in the schema. Equal columns give equal bytes under equal versions."""
    table = pa.table(columns)
    with written(path) as part:
        pq.write_table(
            table.replace_schema_metadata({"format": format}), part, compression="zstd", write_statistics=True
        )


def read_table(path: Path, format: str, *, what: str) -> pa.Table:
    """Read a Parquet file of ours; refuse a damaged, truncated, foreign or newer one."""
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise FileError(
            str(path), expected=what, got=f"a damaged file ({type(error).__name__})",
            do="Delete this file and resume: only its part is read again.",
        ) from error  # fmt: skip
    check_format(path, (table.schema.metadata or {}).get(b"format", b"").decode(), format, what=what)
    return table


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written (our own ``.part`` files only)."""
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)
    for scratch in folder.glob(".new-*"):
        shutil.rmtree(scratch, ignore_errors=True)


def once(path: Path, make: Callable[[Path], object]) -> bool:
    """Create ``path`` exclusively: True if this call made it, False if it was there (two processes cannot both win)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as scratch:
            ready = Path(scratch) / path.name
            make(ready)
            try:
                os.link(ready, path)
            except FileExistsError:
                return False
    except OSError as error:
        raise FileError(
            str(path.parent), expected="a folder that can be written", got=str(error), do="Choose another folder."
        ) from error
    return True
