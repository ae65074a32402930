"""Text classifiers: one class for each text, given as text or as token ids."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from forwardinf.core.errors import SettingError, TaskError
from forwardinf.data.padding import pad
from forwardinf.tasks.batches import LABELS
from forwardinf.tasks.task import Batch, Classification

log = logging.getLogger(__name__)

SAID: set[tuple[int, tuple[str, ...]]] = set()  # (length, columns) whose texts were said to be cut


class SequenceClassification(Classification):
    """A text classifier. Rows are mappings of ``input_ids`` and ``labels``; or of text, with a tokenizer.

    Texts longer than ``max_length`` (or than the tokenizer says the model reads) are cut, and a warning says how many.

    Args:
        tokenizer: A Hugging Face tokenizer; needed for rows of text, and gives the padding token.
        text: The column(s) of text, for rows of text.
        max_length: Longest text in tokens.
        **settings: As in :class:`Classification`; ``label=`` is the rows' column.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        text: str | tuple[str, ...] = "text",
        max_length: int | None = None,
        **settings: Any,
    ) -> None:
        """Check the settings; see the class."""
        super().__init__(**settings)
        self.tokenizer, self.max_length = tokenizer, max_length
        self.text = (text,) if isinstance(text, str) else tuple(text)
        if not 1 <= len(self.text) <= 2 or not all(isinstance(name, str) for name in self.text):
            raise SettingError("SequenceClassification(text=)", expected="a column's name, or two", got=repr(text))

    def collate(self, examples: list[Any]) -> Batch:
        """Tokenise where rows are text, then pad. Rows without a label are queries asked by what the model predicts."""
        first, rows = examples[0], examples
        if isinstance(first, Mapping):
            if self.tokenizer is None and "input_ids" not in first:
                raise TaskError(
                    "text example",
                    expected="'input_ids'",
                    got=f"keys {sorted(map(str, first))}",
                    do="Tokenise the data first, or give the task a tokenizer.",
                )
            text = self.tokenizer is not None and "input_ids" not in first
            rows = self._tokenised(examples) if text else [self._named(row) for row in examples]
        token, side = getattr(self.tokenizer, "pad_token_id", None), getattr(self.tokenizer, "padding_side", "right")
        batch = pad(rows, token=0 if token is None else token, side=side, counted=self.column)
        if not bool((batch["attention_mask"] != 0).any(1).all()):
            raise TaskError(
                "text", expected="at least one token in each", got="one without any", do="Leave empty texts out."
            )
        return batch

    @property
    def column(self) -> str:
        """Where the label stands in a batch that was joined."""
        return self.label if isinstance(self.label, str) else LABELS[0]

    def run(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the model puts out for this batch."""
        try:
            return super().run(model, batch)
        except ValueError as error:
            if "padding token" not in str(error):
                raise
            raise TaskError(
                "SequenceClassification",
                expected="a model that knows its padding token",
                got=str(error),
                do="Set model.config.pad_token_id to the tokenizer's, or batch_size=1.",
            ) from error

    def _named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row with its label, if it has one, where a batch has it."""
        found = {LABELS[0] if name == "label" and self.label is None else name: value for name, value in row.items()}
        if isinstance(found.get(self.column), str):
            raise TaskError(
                "label",
                expected="a class number",
                got=repr(found[self.column]),
                do="Write the numbers the model was trained with.",
            )
        return found

    def _tokenised(self, examples: list[Any]) -> list[dict[str, Any]]:
        columns = [[self._text(example, name) for example in examples] for name in self.text]
        tokens = self.tokenizer(*columns, truncation=True, max_length=self.max_length)
        names = list(tokens)
        rows = [{name: tokens[name][row] for name in names} for row in range(len(examples))]
        self._say_cut(columns, [len(row["input_ids"]) for row in rows])
        for row, example in zip(rows, examples, strict=True):
            named = self._named(example)
            kept = named if callable(self.label) else [self.column] if self.column in named else []
            row.update({name: named[name] for name in kept if name not in (*self.text, *row)})
        return rows

    def _text(self, example: Any, name: str) -> str:
        if name not in example:
            raise TaskError(
                "text",
                expected=f"a column {name!r}",
                got=f"keys {sorted(map(str, example))}",
                do="Say which with text=.",
            )
        value = example[name]
        if not isinstance(value, str):
            raise TaskError(f"text in {name!r}", expected="text", got=repr(value)[:60], do="Leave such rows out.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise TaskError(
                f"text in {name!r}",
                expected="whole characters",
                got=f"the lone surrogate {value[error.start]!r}",
                do="Clean it: text.encode('utf-8', 'replace').decode().",
            ) from error
        return value

    def _say_cut(self, columns: list[list[str]], lengths: list[int]) -> None:
        """Say, once, how many texts of a batch are longer than what is read of them."""
        limit = int(self.max_length or getattr(self.tokenizer, "model_max_length", 0) or 2**62)
        full = [row for row, length in enumerate(lengths) if length >= limit]
        if not full or (limit, self.text) in SAID:
            return
        whole = self.tokenizer(*[[column[row] for row in full] for column in columns], truncation=False)["input_ids"]
        cut = sum(len(ids) > limit for ids in whole)
        if cut:
            SAID.add((limit, self.text))
            log.warning("%d of %d texts are longer than %d tokens, and cut (max_length=)", cut, len(lengths), limit)
