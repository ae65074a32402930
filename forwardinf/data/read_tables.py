"""Rows of Parquet, JSON lines and CSV, one file or a folder of them, as one Arrow table."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from forwardinf.core.bounds import check_depth, check_parquet, read_whole
from forwardinf.core.errors import DataError, FileError, choose
from forwardinf.data.endings import CSV, SPLITS, TABLES, choose_split, folders_in
from forwardinf.data.read_csv import read_csv


def tables_in(path: Path) -> list[Path]:
    """Return the files of rows in a folder, sorted, without hidden ones.

    A lone .json is more often settings than rows, and a .csv beside other files of rows or beside folders is a list of them.
    """
    files = sorted(file for file in path.glob("[!.]*") if file.is_file())
    rows = [file for file in files if file.name.lower().endswith(TABLES[:3])]
    return rows or ([] if folders_in(path) else [file for file in files if file.name.lower().endswith(CSV)])


def read_tables(source: str, given: dict[str, Any]) -> pa.Table:
    """Read one file, or the files of a split in a folder, as one table."""
    path, found = Path(source), dict[str, list[Path]]()
    files = [path] if path.is_file() else tables_in(path)
    for file in files if path.is_dir() else ():
        if (part := re.split(r"[-_.]", file.name)[0].lower()) in SPLITS:
            found.setdefault(part, []).append(file)
    for folder in folders_in(path) if path.is_dir() else ():
        if folder.name in SPLITS:
            found.setdefault(folder.name, []).extend(tables_in(folder))
    chosen = choose_split(source, given.get("split"), sorted(name for name, inside in found.items() if inside))
    files = found[chosen] if chosen else files
    wanted = None if "tokenizer" in given else given.get("columns")
    tables = [_read(file, wanted) for file in files]
    if len({frozenset(table.column_names) for table in tables}) > 1:
        raise DataError(source, expected="files with the same columns", got=", ".join(file.name for file in files),
                        do="Name one file.")  # fmt: skip
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise DataError(source, expected="files with the same columns", got=str(error)) from error
    if table.num_rows == 0:
        raise DataError(source, expected="at least one row", got="none")
    return table if wanted is None else _selected(source, table, wanted)


def _selected(source: str, table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    for name in wanted:
        if name not in table.column_names:
            raise choose(f"{source}: column", name, table.column_names)
    return table.select(list(wanted))


def _read(path: Path, columns: Sequence[str] | None) -> pa.Table:
    name = path.name.lower()
    if name.endswith(CSV):
        return read_csv(path)
    return _read_parquet(path, columns) if name.endswith(".parquet") else _read_json(path)


def _read_parquet(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        check_parquet(path)
        known = pq.read_schema(path, memory_map=True).names
        wanted = None if columns is None or set(columns) - set(known) else list(columns)
        table = pq.read_table(path, columns=wanted, memory_map=True, partitioning=None)
    except (OSError, MemoryError, pa.ArrowException) as error:
        raise FileError(str(path), expected="a Parquet file", got=f"a damaged one ({error})") from error
    for name, values in zip(table.column_names, table.columns, strict=True):
        try:
            values.validate(full=True)
        except pa.ArrowException as error:
            raise DataError(f"{path}, column {name!r}", expected="values of its type", got=str(error)) from error
    return table


def _read_json(path: Path) -> pa.Table:
    try:
        content = read_whole(path)
    except (OSError, pa.ArrowException) as error:
        raise FileError(str(path), expected="a file of JSON lines", got=f"a damaged one ({error})") from error
    check_depth(content, str(path))
    try:
        if content.lstrip()[:1] == b"[":  # one JSON array instead of lines
            content = b"\n".join(json.dumps(row).encode() for row in json.loads(content))
        if not content.strip():
            return pa.table({})
        block = pa_json.ReadOptions(block_size=min(len(content) + 1, 2**31 - 1))
        table = pa_json.read_json(pa.BufferReader(content), read_options=block)
        schema = pa.schema([field.with_type(_without_dates(field.type)) for field in table.schema])
        if schema != table.schema:  # Arrow turned text that looks like dates into times: read it as the text it is
            parse = pa_json.ParseOptions(explicit_schema=schema)
            table = pa_json.read_json(pa.BufferReader(content), read_options=block, parse_options=parse)
        table.validate(full=True)
    except (pa.ArrowException, ValueError, RecursionError) as error:
        _check_lines(path, content)
        raise DataError(str(path), expected="columns of one type each", got=str(error),
                        do="Arrow counts rows from 0. Make the values alike.") from error  # fmt: skip
    return table


def _check_lines(path: Path, content: bytes) -> None:
    """Name the first line that is not an object of text, numbers and such; half a surrogate pair is no text."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
            if not isinstance(row, dict):
                raise ValueError("not an object {...}")
            json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as wrong:
            raise DataError(f"{path}, line {number}", expected="one JSON object a line", got=f"{wrong}") from wrong


def _without_dates(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dates(field.type)) for field in kind])
    return kind
