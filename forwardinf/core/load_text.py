"""Texts of a table as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset, Subset

from forwardinf.core.errors import DataError, FileError, SettingError, choose
from forwardinf.core.load_code import import_extra


class TokenizedText(Dataset[dict[str, Any]]):
    """Texts as rows of token ids, tokenised when they are asked for, without padding.

    Each row is a dict of ``input_ids`` and ``attention_mask`` (lists), ``labels`` where the data has a column ``labels``
    or ``label``, and the columns named in ``keep``. A text without a token is a row without ids. ``source`` is for errors.
    """

    def __init__(
        self, data: Any, text: str, tokenizer: Any, max_length: int | None, keep: Sequence[str] = (), source: str = ""
    ) -> None:
        names = list(data.column_names)
        for name in (text, *keep):
            if name not in names:
                raise choose("column", name, names)
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(str(tokenizer))
        if max_length is not None and max_length < 1:
            raise SettingError("max_length", expected="1 or more", got=repr(max_length))
        self._texts, self._tokenizer, self._max_length = _values(data, text), tokenizer, max_length
        before = f"{source}, " if source else ""
        self._where = f"{before}column {text!r}"
        label = next((name for name in ("labels", "label") if name in names), None)
        self._others = {name: _values(data, name) for name in keep}
        if label is not None:
            self._others["labels"] = _values(data, label)
        for row, value in enumerate(self._others.get("labels", ())):
            if value is None or isinstance(value, str):
                raise DataError(f"{before}column {label!r}, row {row}", expected="the number of its class", got=repr(value),
                                do="Write the numbers the model was trained with.")  # fmt: skip
        for row, value in enumerate(self._texts):
            if not isinstance(value, str):
                raise DataError(f"{self._where}, row {row}", expected="text", got=repr(value)[:80])

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> dict[str, Any]:
        cut = {"truncation": True, "max_length": self._max_length} if self._max_length is not None else {}
        try:
            tokens = self._tokenizer(self._texts[row], **cut)
        except (TypeError, ValueError, OverflowError) as error:  # half a surrogate pair, say
            raise DataError(
                f"{self._where}, row {row}", expected="text that the tokenizer takes", got=f"{type(error).__name__}: {error}",
                do="Mend that text, or leave the row out.",
            ) from error  # fmt: skip
        found = {name: list(tokens[name]) for name in ("input_ids", "attention_mask") if name in tokens}
        return found | {name: values[row] for name, values in self._others.items()}

    def select(self, rows: Sequence[int]) -> Subset[dict[str, Any]]:
        """Return these rows, in this order."""
        return Subset(self, list(rows))


def _values(data: Any, name: str) -> list[Any]:
    column = data[name]
    return list(column.to_pylist() if isinstance(column, pa.ChunkedArray) else column)


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a folder or hub id; no code of its own is run."""
    transformers = import_extra("transformers", extra="hf", need=f"the tokenizer {source}")
    try:
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileError(f"tokenizer {source}", expected="a folder or hub id of a tokenizer", got=str(error)) from error
