"""Data frames of any library (pandas, polars, Arrow) as Arrow tables, and their columns as arrays."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.interchange
import torch
from torch import Tensor

from forwardinf.core.errors import DataError

FILL = "Fill it, or leave out those rows or that column."


def as_table(data: Any, name: str) -> pa.Table | None:
    """Return a data frame as an Arrow table, an index with a name as a column; None where ``data`` is no frame.

    Raises:
        DataError: Two columns of one name, or a column whose values are not of one type.
    """
    try:
        table = _table(data, name)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise DataError(name, expected="columns of one type each", got=str(error),
                        do="Make the values of that column alike, or pass a list of rows.") from error  # fmt: skip
    if table is not None:
        twice = [column for column, count in Counter(table.column_names).items() if count > 1]
        if twice:
            raise DataError(
                name, expected="one column of each name", got=f"{twice[0]!r} twice", do="Rename one of them."
            )
    return table


def _table(data: Any, name: str) -> pa.Table | None:
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if isinstance(data, pd.DataFrame):
        labels = [label for label in (*data.columns, *data.index.names) if label is not None]
        twice = [label for label, count in Counter(labels).items() if count > 1]
        if twice:
            raise DataError(
                name, expected="one column of each name", got=f"{twice[0]!r} twice", do="Rename one of them."
            )
        if any(label is not None for label in data.index.names):
            data = data.reset_index()
        return pa.Table.from_pandas(data, preserve_index=False).replace_schema_metadata()
    if hasattr(data, "column_names"):  # a `datasets.Dataset` reads itself
        return None
    if hasattr(data, "to_arrow") and hasattr(data, "columns"):
        found = data.to_arrow()
        return found if isinstance(found, pa.Table) else None
    if hasattr(data, "__dataframe__"):
        return pa.interchange.from_dataframe(data)
    return None


def numbers(table: pa.Table) -> dict[str, Tensor] | None:
    """Return a table of whole numbers, fractions and truth values, none of them missing, as tensors; else None.

    Whole numbers become int64, as those of rows do.
    """
    kinds = pa.types
    for column in table.columns:
        known = kinds.is_integer(column.type) or kinds.is_floating(column.type) or kinds.is_boolean(column.type)
        if not known or column.null_count:
            return None
    found = {}
    for column, values in zip(table.column_names, table.columns, strict=True):
        array = values.to_numpy()
        if array.dtype.kind in "iu":
            if array.dtype == np.uint64 and len(array) and int(array.max()) > np.iinfo(np.int64).max:
                return None
            array = array.astype(np.int64)
        found[column] = torch.from_numpy(np.array(array))
    return found


def check_values(table: pa.Table, name: str) -> None:
    """Refuse what rows of a table cannot be joined with: missing values, dates, decimals.

    Raises:
        DataError: Names the column, and the row of a missing value.
    """
    for column, values in zip(table.column_names, table.columns, strict=True):
        where = f"{name}, column {column!r}"
        if values.null_count:
            row = int(np.argmax(values.is_null().to_numpy()))
            raise DataError(f"{where}, row {row}", expected="a value", got="none: it is missing", do=FILL)
        if pa.types.is_temporal(values.type):
            raise DataError(where, expected="numbers or text", got=f"dates or times ({values.type})",
                            do="Make numbers of them (days since a date, say), or leave that column out.")  # fmt: skip
        if pa.types.is_decimal(values.type):
            raise DataError(where, expected="numbers or text", got=str(values.type), do="Make floats of them.")


def as_array(column: Any, name: str) -> Any:
    """Return a series as an array ``(N,)`` and a frame of numbers as ``(N, columns)``; anything else as it is.

    Raises:
        DataError: A value is missing, or a frame's column holds no numbers.
    """
    if isinstance(column, pd.DataFrame):
        kinds = []
        for place, label in enumerate(column.columns):
            _no_gaps(column.iloc[:, place], f"{name}, column {label!r}")
            kinds.append(_number_type(column.iloc[:, place], f"{name}, column {label!r}"))
        return column.to_numpy(dtype=np.result_type(*kinds) if kinds else None)
    if isinstance(column, pd.Series | pd.Index):
        _no_gaps(column, name)
        return column.to_numpy(dtype=_number_type(column, name))
    if isinstance(column, np.ma.MaskedArray):
        if np.ma.is_masked(column):
            raise DataError(name, expected="a value in every place", got="a masked array", do=FILL)
        return column.data
    return column.to_numpy() if hasattr(column, "to_numpy") else column


def is_column(value: Any) -> bool:
    """Return whether a value is a tensor, an array, or a series or frame that can be made one."""
    if isinstance(value, np.ndarray | Tensor):
        return bool(value.ndim > 0)
    return hasattr(value, "to_numpy") and hasattr(value, "__len__")


def _no_gaps(column: Any, name: str) -> None:
    missing = np.asarray(column.isna())
    if missing.any():
        raise DataError(
            f"{name}, row {int(np.argmax(missing))}", expected="a value", got="none: it is missing", do=FILL
        )


def _number_type(column: Any, name: str) -> np.dtype[Any]:
    kind = getattr(column.dtype, "numpy_dtype", column.dtype)  # of Int64, boolean and Arrow-backed columns
    if not isinstance(kind, np.dtype) or kind.kind not in "biuf":
        raise DataError(name, expected="numbers", got=f"a column of {column.dtype}",
                        do="Encode it first (categories: .cat.codes), or leave it out.")  # fmt: skip
    return kind
