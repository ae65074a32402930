"""Comma- and tab-separated files as Arrow tables: numbers as numbers, everything else as the text that it is."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from forwardinf.core.bounds import read_whole
from forwardinf.core.errors import DataError, FileError

MOST_COLUMNS = 100_000  # a column of one value costs a kilobyte
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def read_csv(path: Path) -> pa.Table:
    """Read one file whose first line names its columns.

    A column is of whole numbers, fractions or truth values where every value of it is, an empty one or ``NA`` being missing;
    dates stay text. The file is held in memory once more while it is read.

    Raises:
        FileError: It cannot be read or decompressed.
        DataError: No header, two columns of one name, a row of another length, bytes that are no UTF-8: says where.
    """
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    try:
        content = read_whole(path)
    except (OSError, pa.ArrowException) as error:
        raise FileError(str(path), expected="a file of rows", got=f"a damaged one ({error})") from error
    if not content.strip():
        return pa.table({})
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}", expected="text in UTF-8", got=str(error), do="Save it as UTF-8."
        ) from error
    head = content[: 2**24].split(b"\n", 1)[0]
    if head.count(delimiter.encode()) >= MOST_COLUMNS:
        raise DataError(f"{path}, line 1", expected=f"at most {MOST_COLUMNS:,} columns", got="more")
    try:
        table = _parsed(content, delimiter, None)
        plain = {field.name: _as_text(field.type) for field in table.schema}
        if list(plain.values()) != table.schema.types and len(plain) == table.num_columns:
            table = _parsed(content, delimiter, plain)
    except pa.ArrowException as error:
        raise DataError(str(path), expected=f"rows of as many values as the first line has names, between {delimiter!r}",
                        got=str(error), do="Quote values that hold the separator or a line break.") from error  # fmt: skip
    _check_header(path, table, delimiter)
    return table


def _parsed(content: bytes, delimiter: str, types: dict[str, pa.DataType] | None) -> pa.Table:
    block = min(len(content) + 1, 2**31 - 1)  # one block: a column's type follows from all of its values
    return pa_csv.read_csv(
        pa.BufferReader(content),
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=block),  # one thread: errors tell the row
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types=types),
    )


def _as_text(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_temporal(kind) else kind


def _check_header(path: Path, table: pa.Table, delimiter: str) -> None:
    names, where = table.column_names, f"{path}, line 1"
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(where, expected="one column of each name", got=f"{twice[0]!r} twice", do="Rename one of them.")
    if all(NUMBER.fullmatch(name.strip()) for name in names):
        raise DataError(where, expected="the names of the columns", got="numbers", do="Write a first line of names.")
    others = [mark for mark in (";", "\t", ",") if mark != delimiter and mark in names[0]]
    if len(names) == 1 and others:
        raise DataError(where, expected=f"names between {delimiter!r}", got=f"one name that holds {others[0]!r}",
                        do="Tabs are for .tsv, commas for .csv.")  # fmt: skip
