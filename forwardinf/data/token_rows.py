"""Rows of token ids with the text they were made from: tokenised once, kept as flat arrays, handed out without padding."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

log = logging.getLogger(__name__)

Ints = np.ndarray[Any, np.dtype[np.int64]]


class TokenRows(Dataset[Any]):
    """Texts as rows of token ids.

    Each row is a dict of ``input_ids``, ``attention_mask`` and, where they were given, ``labels`` (lists, or one number);
    the columns that were carried along; and ``text``, for people. Memory: four bytes a token, and the texts.

    Args:
        tokens: Token sequences by name, one for each row.
        texts: What a person is shown of each row; None: nothing but the ids.
        others: Further columns, by name.
        notes: What a person should know; logged here, and repeated beside results.
        tokenizer: What made the ids, and turns them into text again.
    """

    def __init__(
        self,
        tokens: Mapping[str, Sequence[Sequence[int]]],
        texts: Sequence[str] | None,
        others: Mapping[str, Sequence[Any]],
        notes: Sequence[str] = (),
        tokenizer: Any = None,
    ) -> None:
        """Keep what is given."""
        self.notes, self.tokenizer = list(notes), tokenizer
        for note in self.notes:
            log.warning(note)
        self._tokens = {name: _Ragged(rows) for name, rows in tokens.items()}
        self._others = ({} if texts is None else {"text": texts}) | dict(others)
        self._at = list(range(len(tokens["input_ids"])))

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, row: int | str) -> Any:
        """Return a row, or the column of a name."""
        if isinstance(row, str):
            return [one[row] for one in self]
        at = self._at[row]
        found: dict[str, Any] = {name: column.row(at).tolist() for name, column in self._tokens.items()}
        found["attention_mask"] = [1] * len(found["input_ids"])
        return found | {name: column[at] for name, column in self._others.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))

    @property
    def column_names(self) -> list[str]:
        """The names that every row has."""
        return list(dict.fromkeys([*self._tokens, "attention_mask", *self._others]))

    def select(self, rows: Sequence[int]) -> TokenRows:
        """Return these rows, in this order."""
        chosen = copy.copy(self)
        chosen.notes, chosen._at = list(self.notes), [self._at[row] for row in rows]
        return chosen

    def lengths(self, name: str) -> Ints:
        """Return how many tokens each row has under a name, ``(N,)``; 0 where there is no such sequence."""
        return self._tokens[name].lengths[self._at] if name in self._tokens else np.zeros(len(self), np.int64)

    def largest(self, name: str) -> Ints:
        """Return each row's largest token id under a name, ``(N,)``; −1 where it has none."""
        if name not in self._tokens:
            return np.full(len(self), -1)
        return np.asarray([self._tokens[name].row(at).max(initial=-1) for at in self._at], dtype=np.int64)


class _Ragged:
    """Rows of whole numbers, each of its own length, in one array."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths: Ints = np.asarray([len(row) for row in rows], dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        self._flat = np.fromiter((token for row in rows for token in row), np.int32, int(self.lengths.sum()))

    def row(self, at: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Return one row."""
        return self._flat[self._ends[at] - self.lengths[at] : self._ends[at]]
