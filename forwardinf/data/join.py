"""Examples joined into a batch, or an error that says which of them cannot be joined, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch.utils.data import default_collate

from forwardinf.core.errors import DataError, Error
from forwardinf.data.forms import MEMORY

Collate = Callable[[list[Any]], Any]
Joins = TypeVar("Joins", bound=Callable[..., Any])
MARK = "joins_by_column"


def by_column(collate: Joins) -> Joins:
    """Mark a collate as one that joins column by column, as torch's own does."""
    setattr(collate, MARK, True)
    return collate


def is_plain(collate: Collate | None) -> bool:
    """Return whether a collate is torch's own, or marked as one that joins as it does."""
    return collate in (None, default_collate) or getattr(collate, MARK, False)


def join(collate: Collate, examples: list[Any], name: str, rows: Sequence[int] | None) -> Any:
    """Return ``collate(examples)``.

    Raises:
        DataError: The collate does not take them; names the first row that it does not take alone, and its column, or, where
            it takes each alone, the columns that differ between rows.
    """
    try:
        return collate(examples)
    except (Error, *MEMORY):
        raise
    except Exception as error:
        raise _explained(collate, examples, name, rows or range(len(examples)), error) from error


def _explained(collate: Collate, examples: list[Any], name: str, rows: Sequence[int], error: Exception) -> DataError:
    where, what = f"{name}: joining {len(examples)} examples into a batch", error
    for row, example in zip(rows, examples, strict=True):
        if (alone := _refusal(collate, [example])) is not None:
            where, what = f"{name}: joining row {row} into a batch", alone
            examples = [example]
            break
    return DataError(
        where, expected="a collate that fits these examples",
        got=f"{type(what).__name__}: {what}{_column_at_fault(collate, examples) if is_plain(collate) else ''}",
        do="Pass collate_fn=, or a task with its own collate.",
    )  # fmt: skip


def _column_at_fault(collate: Collate, examples: list[Any]) -> str:
    if not all(isinstance(example, Mapping) for example in examples):
        return ""
    for column in examples[0]:
        if not all(column in example for example in examples):
            return f" (column {column!r} is not in every row)"
        values = [example[column] for example in examples]
        if any(value is None for value in values):
            return f" (column {column!r}: a missing value)"
        if _refusal(collate, [{column: value} for value in values]) is not None:
            return f" (column {column!r} holds {type(values[0]).__name__}{_sizes(values)})"
    return ""


def _sizes(values: list[Any]) -> str:
    found = {str(tuple(getattr(value, "shape", ())) or len(value)) for value in values if hasattr(value, "__len__")}
    return f" of sizes {', '.join(sorted(found)[:4])}" if len(found) > 1 else ""


def _refusal(collate: Collate, examples: list[Any]) -> Exception | None:
    try:
        collate(examples)
    except Exception as error:
        return error
    return None
