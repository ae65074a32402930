"""Files that unfold to more than they can honestly hold are refused before they fill the memory.

The stated limit: what a compressed file unfolds to is at most :data:`MOST_TIMES` its size, or :data:`ALWAYS` bytes, whichever is
more. JSON nests at most :data:`MOST_DEPTH` deep: readers below us recurse, and crash.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from forwardinf.core.errors import FileError

MOST_TIMES = 200  # text compresses 3 to 20 times, images of one colour 100 times
ALWAYS = 2**28
MOST_DEPTH = 64
CHUNK = 2**24
STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')


def most_of(path: Path) -> int:
    """Return how many bytes a compressed file may unfold to."""
    return max(ALWAYS, MOST_TIMES * path.stat().st_size)


def too_much(path: Path, what: str) -> FileError:
    """Return the error for a file that unfolds to too much."""
    return FileError(str(path), expected=f"a file that unfolds to at most {MOST_TIMES} times its size, or {ALWAYS >> 20} MiB",
                     got=what, do="Where that is right, unpack it yourself, or write it without compression.")  # fmt: skip


def read_whole(path: Path) -> bytes:
    """Return the bytes of a file, unpacked where its name ends in ``.gz``.

    Raises:
        FileError: It unfolds to too much.
        OSError: It cannot be read, or is damaged.
    """
    if not path.name.lower().endswith(".gz"):
        return path.read_bytes()
    most, pieces, size = most_of(path), list[bytes](), 0
    with pa.input_stream(str(path), compression="gzip") as stream:
        while piece := stream.read(CHUNK):
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise too_much(path, f"more than {size >> 20} MiB from {path.stat().st_size:,} bytes")
    return b"".join(pieces)


def check_arrays(path: Path) -> None:
    """Refuse an ``.npz`` whose arrays are larger than the file can hold, by its directory or by an array's own header."""
    most, total = most_of(path), 0
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            total += part.file_size
            if total > most:
                raise too_much(path, f"{total >> 20} MiB of arrays")
            if not part.filename.endswith(".npy"):
                continue
            with archive.open(part) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
                    version
                )
                if read is None:
                    continue
                shape, _, dtype = read(file)
            count = 1
            for side in shape:
                count *= int(side)
            if not dtype.hasobject and (min(shape, default=0) < 0 or count * dtype.itemsize > part.file_size):
                raise FileError(str(path), expected="arrays of the size that their headers say",
                                got=f"{part.filename}: {part.file_size:,} bytes for {shape}")  # fmt: skip


def check_archive(path: Path) -> None:
    """Refuse a zip archive, as torch writes weights, whose directory says that it unfolds to more than the file can hold."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        total = sum(part.file_size for part in archive.infolist())
    if total > most_of(path):
        raise too_much(path, f"{total >> 20} MiB in {path.stat().st_size:,} bytes")


def check_parquet(path: Path) -> None:
    """Refuse a Parquet file whose own directory says that its rows need more than it can hold, or whose texts do.

    Texts of a dictionary are stored once and named by every row that has them, so what they unfold to is counted; columns that
    could be too large are read twice.
    """
    facts, most = pq.read_metadata(path, memory_map=True), most_of(path)
    rows, columns = facts.num_rows, facts.num_columns
    stored = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
    if stored > most or rows * max(columns, 1) > most or min(rows, stored) < 0:
        raise too_much(path, f"{rows:,} rows, {stored >> 20} MiB")
    worst = dict[str, int]()
    for group in range(facts.num_row_groups):
        for column in map(facts.row_group(group).column, range(columns)):
            if column.physical_type == "BYTE_ARRAY" and column.dictionary_page_offset is not None:
                at_worst = column.num_values * column.total_uncompressed_size
                worst[column.path_in_schema] = worst.get(column.path_in_schema, 0) + at_worst
    names = [name for name, size in worst.items() if size > most]
    with pq.ParquetFile(path, memory_map=True, read_dictionary=names) as file:
        total = 0
        for name in names:
            for batch in file.iter_batches(columns=[name]):
                total += sum(map(_unfolded, batch.columns))
                if total > most:
                    raise too_much(path, f"more than {total >> 20} MiB of texts, most of them the same")


def _unfolded(values: pa.Array) -> int:
    """Return how many bytes the texts of an array need once none is stored for several."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0
    if pa.types.is_map(kind):
        return _unfolded(values.keys) + _unfolded(values.items)
    if pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = values.flatten()
        return sum(map(_unfolded, inner)) if isinstance(inner, list) else _unfolded(inner)
    return int(values.nbytes)


def check_depth(content: bytes, where: str) -> None:
    """Refuse JSON lines that nest too deep for those who read them."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.count(b"[") + line.count(b"{") <= MOST_DEPTH:
            continue
        marks = np.frombuffer(re.sub(rb"[^\[\]{}]", b"", STRINGS.sub(b"", line)), np.uint8)
        steps = np.where((marks == ord("[")) | (marks == ord("{")), 1, -1)
        if len(steps) and int(steps.cumsum().max()) > MOST_DEPTH:
            raise FileError(
                f"{where}, line {number}", expected=f"values nested at most {MOST_DEPTH} deep", got="deeper ones"
            )
