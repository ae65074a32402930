"""Rows of token ids joined into a batch, padded: what is missing, or of another length than its ids, is said."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from forwardinf.core.errors import TaskError

log = logging.getLogger(__name__)

Batch = Any
NOT_COUNTED = -100  # a label that no loss counts, as torch's cross-entropy has it
HOW = "Pass mappings: {'input_ids': …, 'attention_mask': …, 'labels': …}, labels −100 where they are not counted."
SHIFTED = " Of pairs (x, y), y one token on, {'input_ids': [*x, y[-1]]}."
OF_TOKENS = ("attention_mask", "token_type_ids", "position_ids")  # one for each of the input_ids


def pad(
    examples: Sequence[Any], *, token: int, side: str = "right", counted: str = "labels", aligned: bool = False
) -> Batch:
    """Join rows of token ids, or mappings of them, padded to the longest and to one token at least.

    ``input_ids`` are filled with ``token`` and masked out; labels with −100; other sequences with 0; single numbers
    become a column; text and other metadata are left out. A mapping without ``attention_mask`` gets one.

    Args:
        examples: The rows.
        token: What ids are filled with.
        side: On which side.
        counted: The column of labels.
        aligned: Labels stand one at each of the ``input_ids``.

    Raises:
        TaskError: Rows without token ids, of different columns, or whose columns are not of one length.
    """
    rows = [as_row(example) for example in examples]
    _check(rows, counted, (*OF_TOKENS, counted) if aligned else OF_TOKENS)
    batch: dict[str, Any] = {}
    for name in rows[0]:
        values = [_tensor(row[name]) for row in rows]
        tensors = [value for value in values if value is not None]
        if len(tensors) < len(rows):
            continue
        kind = reduce(torch.promote_types, [value.dtype for value in tensors if value.numel()] or [torch.int64])
        tensors = [value.to(kind) for value in tensors]
        if tensors[0].ndim == 0:
            batch[name] = torch.stack(tensors)
        else:
            fill = token if name.endswith("input_ids") else NOT_COUNTED if name == counted else 0
            joined = pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side)
            batch[name] = joined if joined.shape[1] else joined.new_full((len(rows), 1, *joined.shape[2:]), fill)
    if "attention_mask" not in batch:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        inside = torch.arange(batch["input_ids"].shape[1])[None] < lengths[:, None]
        batch["attention_mask"] = (inside if side == "right" else inside.flip(1)).long()
    return batch


def as_row(example: Any) -> Mapping[str, Any]:
    """Return a row of token ids as a mapping of them."""
    if isinstance(example, Mapping):
        return example
    if isinstance(example, str | bytes):
        raise TaskError("text example", expected="token ids", got="text", do="Tokenise the data first.")
    if isinstance(example, tuple | list) and len(example) and _length(example[0]) is not None:
        if len(example) > 1:
            refuse_tuple("text example", example)
        return {"input_ids": example[0]}
    return {"input_ids": example}


def _length(value: Any) -> int | None:
    """Return how many a sequence holds; None for one number."""
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, Sequence) else None


def refuse_tuple(where: str, batch: Any, shifted: str = "") -> None:
    """Refuse a tuple or list of several columns: which is which is not said."""
    raise TaskError(
        where,
        expected="token ids, or a mapping that says what is what",
        got=f"a {type(batch).__name__} of {len(batch)}",
        do=HOW + shifted,
    )


def _check(rows: Sequence[Mapping[str, Any]], counted: str, of_tokens: Sequence[str]) -> None:
    """Refuse rows that differ in their columns, and columns that are not as long as their row's ids."""
    first = rows[0]
    if "input_ids" not in first:
        raise TaskError(
            "text example",
            expected="'input_ids'",
            got=f"keys {sorted(map(str, first))}",
            do="Tokenise the data first, with the model's tokenizer.",
        )
    for place, row in enumerate(rows):
        where = f"text example {place} of {len(rows)}"
        missing = [name for name in first if name not in row]
        if missing:
            raise TaskError(where, expected=f"{missing[0]!r}, which others have", got=f"keys {sorted(map(str, row))}")
        if counted in row and row[counted] is None:
            raise TaskError(f"{where}: {counted}", expected="labels in every row, or in none", got="None")
        size = _length(row["input_ids"])
        if size is None:
            raise TaskError(
                where,
                expected="a sequence of token ids",
                got=type(row["input_ids"]).__name__,
                do="If this is one example, put it in a list.",
            )
        for name in of_tokens:
            if row.get(name) is not None and _length(row[name]) != size:
                raise TaskError(
                    f"{where}: {name}",
                    expected=f"one for each of its {size} tokens",
                    got=str(_length(row[name]) or "one number"),
                    do="Labels of words: at their first token; -100 at the others.",
                )


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if (
        isinstance(value, str | bytes)
        or value is None
        or (isinstance(value, Sequence) and value and isinstance(value[0], str))
    ):
        return None
    return torch.as_tensor(value)


@cache
def say_uncounted(where: str) -> None:
    """Say, once, that rows were read in which nothing is counted."""
    log.warning("%s: rows in which no token is counted have loss 0 and score 0 (their count is 0)", where)
