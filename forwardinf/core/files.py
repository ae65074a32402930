"""Files that are whole or absent: written beside, flushed, moved into place; refused when they are not ours."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from forwardinf.core.cache import forgiven
from forwardinf.core.errors import FileError
from forwardinf.core.fingerprint import digest
from forwardinf.core.paths import as_path, is_special

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed or moved anyway
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_LINKS = (
    errno.EPERM,
    errno.EOPNOTSUPP,
    getattr(errno, "ENOTSUP", errno.EOPNOTSUPP),
    errno.ENOSYS,
    errno.EMLINK,
    errno.EINVAL,
)


@contextmanager
def written(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """Yield a temporary file's path in the same folder; move it to ``path`` when the block ends well.

    Readers see the old file or the new one, never half of one, even after a power cut. On any error (a full disk, an
    interrupt) the temporary file is removed and ``path`` is what it was.

    Args:
        path: The file. Its folder is made.
        beside: Another folder of the same disk for the temporary file; it must be there.
    """
    _check_name(path)
    with ExitStack() as stack:
        try:
            _make_room(path)
            part = stack.enter_context(_part(path, beside))
        except (OSError, FileError) as error:
            if not forgiven(path, error):
                raise error if isinstance(error, FileError) else _trouble(path, error) from error
            # a cache can be done without: what is written is dropped
            yield Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
            return
        try:
            yield part
            _settle(part)
            part.replace(path)
            _sync_folder(path.parent)
        except (OSError, SafetensorError) as error:
            if not forgiven(path, error):
                raise _trouble(path, error) from error


def once(path: Path, make: Callable[[Path], object], beside: Path | None = None) -> bool:
    """Create ``path``, whole or not at all: True if this call made it, False if it was there (two cannot both win).

    Args:
        path: The file. Its folder is made.
        make: Writes the file it is given.
        beside: As for :func:`written`.
    """
    _check_name(path)
    _make_room(path)
    try:
        with _part(path, beside) as part:
            make(part)
            _settle(part)
            try:
                _place(part, path)
            except FileExistsError:
                return False
            _sync_folder(path.parent)
    except OSError as error:
        raise _trouble(path, error) from error
    return True


def _check_name(path: Path) -> None:
    as_path("file", path)
    if is_special(path):
        raise FileError(str(path), expected="the name of a file", got="a device, a pipe or a socket",
                        do="It would be replaced: choose another name.")  # fmt: skip


def _make_room(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _trouble(path, error) from error


def _trouble(path: Path, error: Exception) -> FileError:
    if not isinstance(error, OSError) or error.errno in FULL:
        return FileError(str(path), expected="room to write", got=str(error), do="Free space, then resume.")
    return FileError(
        str(path.parent), expected="a folder that can be written", got=str(error), do="Choose another folder."
    )


@contextmanager
def _part(path: Path, beside: Path | None) -> Iterator[Path]:
    """Yield a new file, removed afterwards where it is still there. While it is open it is locked: see :func:`sweep`."""
    handle, name = tempfile.mkstemp(dir=beside or path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        if not _locked(handle):
            os.close(handle)  # where there are no locks, an open file cannot be moved either
            handle = -1
        yield part
    finally:
        try:
            part.unlink(missing_ok=True)
        finally:
            if handle >= 0:
                os.close(handle)


def _settle(part: Path) -> None:
    part.chmod(0o666 & ~_umask())
    with part.open("rb") as file:
        os.fsync(file.fileno())


def _place(part: Path, path: Path) -> None:
    """Give a whole file its name, unless there is one: by a hard link; where a disk has none, by moving it under a lock."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except (AttributeError, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LINKS:
            raise
        handle = os.open(path.parent, os.O_RDONLY) if fcntl else -1
        try:
            if fcntl:
                with suppress(OSError):  # neither links nor locks: equal runs still write equal bytes
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if path.exists():
                    raise FileExistsError(str(path)) from None
            os.rename(part, path)  # noqa: PTH104 - elsewhere it refuses by itself what is there
        finally:
            if handle >= 0:
                os.close(handle)


def _locked(handle: int) -> bool:
    """Return whether this call has locked an open file; a lock ends with its process, however that ends."""
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return bool(fcntl)


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


def write_json(path: Path, content: dict[str, Any], beside: Path | None = None) -> None:
    """Write ``content`` as JSON with a checksum, whole or not at all."""
    with written(path, beside) as part:
        part.write_text(as_json(content), encoding="utf-8")


def as_json(content: dict[str, Any]) -> str:
    """Return ``content`` as JSON for people, with its checksum as the last entry."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    sealed = {**json.loads(text), "checksum": _of_json(json.loads(text))}
    return json.dumps(sealed, indent=2, ensure_ascii=False) + "\n"


def _of_json(content: dict[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True))


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
        raise _damaged(path, what, str(error)) from error
    check_format(path, content.get("format") if isinstance(content, dict) else None, format, what=what)
    if content.pop("checksum", None) not in (None, _of_json(content)):
        raise _damaged(path, what, "its content is not what its checksum says")
    return cast("dict[str, Any]", content)


def _damaged(path: Path, what: str, why: str) -> FileError:
    return FileError(str(path), expected=what, got=f"a damaged file ({why})",
                     do="`forwardinf check` on its folder says what is left; or start over with overwrite=True.")  # fmt: skip


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
    """Write columns as Parquet with format and checksum in the schema. Equal columns give equal bytes under equal versions."""
    with written(path) as part:
        save_table(part, columns, format)


def save_table(part: Path, columns: dict[str, Any], format: str) -> None:
    """Write columns into a file as it is: for one that is moved into place afterwards."""
    table = pa.table(columns)
    sealed = table.replace_schema_metadata({"format": format, "checksum": _of_table(table)})
    pq.write_table(sealed, part, compression="zstd", write_statistics=True)


def read_table(path: Path, format: str, *, what: str, checksum: str | None = None) -> pa.Table:
    """Read a Parquet file of ours; refuse a damaged, truncated, foreign or newer one.

    Args:
        path: The file.
        format: Its format and newest known version.
        what: What the file is to a person, for the error.
        checksum: What its content must be; default: what the file itself says. Cost: one more look at the numbers.
    """
    try:
        table = pq.read_table(path, partitioning=None)
        metadata = table.schema.metadata or {}
        check_format(path, metadata.get(b"format", b"").decode("utf-8", "replace"), format, what=what)
        said = metadata.get(b"checksum", b"").decode()
        if (said or checksum) and _of_table(table) != (checksum or said):
            raise pa.ArrowInvalid("another content")
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            str(path), expected=what, got=f"a damaged file ({type(error).__name__})",
            do="Delete this file and resume: only its part is read again; `forwardinf check` on its folder names all.",
        ) from error  # fmt: skip
    return table


def checksum_of(path: Path) -> str:
    """Return the checksum that a table says it has; its content is not looked at."""
    metadata = pq.read_schema(path).metadata or {}
    return str(metadata.get(b"checksum", b"").decode())


def _of_table(table: pa.Table) -> str:
    """Return the digest of what a table holds, however it is laid out."""
    found: list[Any] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        plain = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        values = column.to_numpy() if plain and not column.null_count else json.dumps(column.to_pylist(), default=str)
        found.append([name, values])
    return digest(found)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written (our own ``.part`` files only; what is being written is locked)."""
    for part in folder.rglob(".*.part"):
        with suppress(OSError):
            handle = os.open(part, os.O_RDWR)
            try:
                if _locked(handle) or not fcntl:
                    part.unlink(missing_ok=True)
            finally:
                os.close(handle)
