"""Data in each of its forms, as rows read by position: columns in memory, Arrow tables, map-style datasets.

Each form has ``size``, ``fetch(rows, seed)`` (the examples at these positions; ``seed(row)`` is called before a row that may
draw at random) and ``column(name)`` (one value for each row, or None where only the rows themselves can tell).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from forwardinf.core.errors import DataError, Error
from forwardinf.data.frames import as_array, as_table, check_values, is_column, numbers

Seed = Callable[[int], None]
ACCEPTED = "a dataset, tensors, a list of rows, a table, a data frame or a DataLoader"
TABULAR = ("arrow", "pandas", "polars")  # formats of `datasets` that give a table where rows are asked for
MEMORY = (MemoryError, torch.OutOfMemoryError)  # halving the batch may help: not the data's fault


class Form(Protocol):
    """What every form of data can do."""

    size: int

    def fetch(self, rows: Sequence[int], seed: Seed) -> list[Any]:
        """Return the examples at these positions."""

    def column(self, name: str) -> list[Any] | None:
        """Return one value for each row; None if only reading the rows can tell.

        Raises:
            KeyError: There is no such column; its argument is the list of those that there are.
        """


class Columns:
    """Tensors whose first dimension counts the examples: one, a tuple or a mapping. Batches are slices."""

    def __init__(self, columns: Any, size: int, shielded: bool = False) -> None:
        """Hold the tensors; ``shielded`` ones lie in read-only memory, so that batches are copies."""
        self.columns, self.size, self._shielded = columns, size, shielded

    def batch(self, rows: Any) -> Any:
        """Return these rows of each column: a slice, or positions."""
        return _each(lambda column: column[rows].clone() if self._shielded else column[rows], self.columns)

    def whole(self, rows: Any) -> Any:
        """Return the same, only to be read."""
        return _each(lambda column: column[rows], self.columns)

    def fetch(self, rows: Sequence[int], seed: Seed) -> list[Any]:
        """Return the examples at these positions."""
        return [self.batch(row) for row in rows]

    def column(self, name: str) -> list[Any] | None:
        """Return a named column's values."""
        if not isinstance(self.columns, Mapping):
            return None
        if name not in self.columns:
            raise KeyError(list(self.columns))
        return list(self.columns[name].tolist())


class Table:
    """An Arrow table: rows are mappings of plain values."""

    def __init__(self, table: pa.Table, name: str) -> None:
        """Hold the table."""
        self.table, self.size, self._name = table, table.num_rows, name

    def fetch(self, rows: Sequence[int], seed: Seed) -> list[Any]:
        """Return the examples at these positions."""
        return _fetched(lambda some: self.table.take(some).to_pylist(), rows, self._name)

    def column(self, name: str) -> list[Any] | None:
        """Return a column's values."""
        if name not in self.table.column_names:
            raise KeyError(self.table.column_names)
        return list(self.table[name].to_pylist())


class Records:
    """A `datasets.Dataset` whose rows come from Arrow as they are, many at a time."""

    def __init__(self, data: Any, name: str) -> None:
        """Hold the dataset."""
        self.data, self.size, self._name = data, len(data), name

    def fetch(self, rows: Sequence[int], seed: Seed) -> list[Any]:
        """Return the examples at these positions."""
        return _fetched(self.data.__getitems__, rows, self._name)

    def column(self, name: str) -> list[Any] | None:
        """Return a column's values, as they are stored."""
        if name not in self.data.column_names:
            raise KeyError(list(self.data.column_names))
        return list(self.data.select_columns([name]).with_format("arrow")[:][name].to_pylist())


class Rows:
    """Anything with ``__len__`` and ``__getitem__``: read one by one, each under its own seed."""

    def __init__(self, data: Any, name: str) -> None:
        """Hold the data."""
        self.data, self._name = data, name
        try:
            self.size = len(data)
        except Exception as error:
            raise DataError(name, expected="a dataset with a length", got=f"{type(error).__name__}: {error}") from error

    def fetch(self, rows: Sequence[int], seed: Seed) -> list[Any]:
        """Return the examples at these positions."""
        found = []
        for row in rows:
            seed(row)
            found.append(self._one(row))
        return found

    def _one(self, row: int) -> Any:
        try:
            example = self.data[row]
        except (Error, *MEMORY):
            raise
        except Exception as error:
            raise _unreadable(self._name, row, error, f", as its length is {self.size}") from error
        if example is None:
            raise DataError(f"{self._name}, row {row}", expected="an example", got="None",
                            do="Leave such rows out: every example is read many times, and has a score.")  # fmt: skip
        return example

    def column(self, name: str) -> list[Any] | None:
        """Return a column of the dataset below a transform; None where it has none of that name."""
        if name not in getattr(self.data, "column_names", ()) or not hasattr(self.data, "with_format"):
            return None
        return Records(self.data.with_format(None), self._name).column(name)


def form_of(data: Any, name: str, *, joined: bool) -> Columns | Table | Records | Rows:
    """Return data in its form. ``joined``: a collate of its own joins the rows, so that they may hold anything.

    Raises:
        DataError: Columns of unequal length, a stream, or something else altogether.
    """
    _refuse_streams(data, name)
    if isinstance(data, np.ndarray | Tensor) or (is_column(data) and not hasattr(data, "columns")):
        column, shielded = _column(data, name)
        return Columns(column, len(column), shielded)
    if isinstance(data, tuple) or (isinstance(data, Mapping) and not hasattr(data, "column_names")):
        return _columns(data, name)
    table = as_table(data, name)
    if table is not None:
        found = None if joined else numbers(table)
        if found is not None:
            return Columns(found, table.num_rows)
        if not joined:
            check_values(table, name)
        return Table(table, name)
    if isinstance(data, Mapping):
        raise DataError(name, expected="one dataset", got=f"a {type(data).__name__} of {', '.join(map(repr, data))}",
                        do=f"Choose one, like data[{next(iter(data), 'train')!r}].")  # fmt: skip
    if isinstance(data, str | bytes | Path):
        raise DataError(name, expected=ACCEPTED, got=f"{type(data).__name__} {str(data)[:80]!r}",
                        do="To read a file, write fi.load_data(...).")  # fmt: skip
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        lazy = hasattr(data, "collect")
        raise DataError(name, expected=ACCEPTED, got=type(data).__name__,
                        do="Call .collect() first." if lazy else "A dataset needs __len__ and __getitem__.")  # fmt: skip
    kind = getattr(data, "format", None)
    if hasattr(data, "column_names") and hasattr(data, "__getitems__") and isinstance(kind, Mapping):
        if kind["type"] in TABULAR:
            data = data.with_format(None, columns=kind["columns"], output_all_columns=kind["output_all_columns"])
        if kind["type"] != "custom":  # that is a transform, which may draw
            return Records(data, name)
    return Rows(data, name)


def _columns(data: Any, name: str) -> Columns:
    pairs = list(data.items()) if isinstance(data, Mapping) else list(enumerate(data))
    alone = "If this is one example, put it in a list: [test[0]]."
    if not pairs or not all(is_column(column) for _, column in pairs):
        kinds = ", ".join(type(column).__name__ for _, column in pairs)
        raise DataError(name, expected="columns: tensors or arrays with equal first dimensions",
                        got=f"a {type(data).__name__} of ({kinds})", do=alone)  # fmt: skip
    lengths = {key: len(column) for key, column in pairs}
    if len(set(lengths.values())) > 1:
        raise DataError(name, expected="columns with equal first dimensions", got=f"lengths {list(lengths.values())}",
                        do=alone)  # fmt: skip
    read = {key: _column(column, f"{name}, column {key}") for key, column in pairs}
    columns = {key: column for key, (column, _) in read.items()}
    shielded = any(read_only for _, read_only in read.values())
    size = next(iter(lengths.values()))
    return Columns(columns if isinstance(data, Mapping) else tuple(columns.values()), size, shielded)


def _column(column: Any, name: str) -> tuple[Tensor, bool]:
    """Return a column as a tensor, and whether its memory must not be written to (a file mapped for reading)."""
    column, shielded = as_array(column, name), False
    if isinstance(column, np.ndarray):
        if column.dtype.kind not in "biuf":
            complex_too = "A model that takes complex numbers: pass torch.from_numpy(...)."
            raise DataError(name, expected="numbers", got=f"an array of {column.dtype}",
                            do=complex_too if column.dtype.kind == "c" else "Encode it first.")  # fmt: skip
        kind = column.dtype.newbyteorder("=")
        if kind.itemsize > 8 and kind.kind == "f":
            kind = np.dtype(np.float64)
        if min(column.strides, default=0) < 0:
            column = column.copy()
        column = column.astype(kind, copy=False)
        shielded = not column.flags.writeable
        with warnings.catch_warnings():  # batches of read-only memory are copies
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            column = torch.from_numpy(column)
    if column.layout != torch.strided or column.is_nested:
        got = "a nested tensor" if column.is_nested else str(column.layout)
        raise DataError(name, expected="dense tensors", got=got, do="Call .to_dense() first, or pass a list of rows.")
    if column.is_meta:
        raise DataError(name, expected="data", got="the meta device")
    if column.ndim == 0:
        raise DataError(name, expected="a first dimension that counts examples", got="a single number")
    return column.detach(), shielded


def _each(take: Callable[[Tensor], Tensor], columns: Any) -> Any:
    if isinstance(columns, Tensor):
        return take(columns)
    if isinstance(columns, tuple):
        return tuple(map(take, columns))
    return {name: take(column) for name, column in columns.items()}


def _fetched(read: Callable[[list[int]], list[Any]], rows: Sequence[int], name: str) -> list[Any]:
    """Return ``read(rows)``; where that fails, at a picture that cannot be decoded, say, name the row."""
    try:
        return list(read(list(rows)))
    except MEMORY:
        raise
    except Exception as error:
        if len(rows) == 1:
            raise _unreadable(name, rows[0], error) from error
    return [example for row in rows for example in _fetched(read, [row], name)]


def _unreadable(name: str, row: int, error: Exception, why: str = "") -> DataError:
    return DataError(f"{name}, row {row}", expected=f"an example{why}", got=f"{type(error).__name__}: {error}",
                     do="Mend the dataset, or leave such rows out.")  # fmt: skip


def _refuse_streams(data: Any, name: str) -> None:
    streams = isinstance(data, IterableDataset) or type(data).__name__ == "IterableDataset"
    if streams or (hasattr(data, "__iter__") and not hasattr(data, "__getitem__")):
        raise DataError(
            name, expected="examples that can be read by position, twice", got=f"{type(data).__name__}, which only iterates",
            do="Pass a map-style dataset or list(...): every perturbation reads the same rows again.",
        )  # fmt: skip
