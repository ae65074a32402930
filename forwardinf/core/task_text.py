"""Language tasks: decoders, encoder-decoders, text classifiers.

They bring their own collate: padding, and −100 for what is not counted. A text's loss is the sum over its counted tokens;
the count is kept, so that a mean needs no new reading.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from forwardinf.core import losses
from forwardinf.core.errors import SettingError, TaskError, choose
from forwardinf.core.prediction import NOT_COUNTED, Prediction, classes
from forwardinf.core.task import Batch, Classification, Task, accepted, output_of

log = logging.getLogger(__name__)

Each = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) → one number a token, 0 where it is not counted
FILL = {"labels": NOT_COUNTED, "attention_mask": 0, "decoder_attention_mask": 0, "token_type_ids": 0}


def pad(examples: Sequence[Any], *, token: int, side: str = "right") -> Batch:
    """Join rows of token ids, or mappings of them, padded to the longest.

    ``input_ids`` are filled with ``token`` and masked out; labels with −100; other sequences with 0; single numbers
    become a column; text and other metadata are left out. A mapping without ``attention_mask`` gets one.
    """
    if not isinstance(examples[0], Mapping):
        return pad([{"input_ids": example} for example in examples], token=token, side=side)
    batch: dict[str, Any] = {}
    for name in examples[0]:
        values = [_tensor(example[name]) for example in examples]
        if any(value is None for value in values):
            continue
        if values[0].ndim == 0:  # type: ignore[union-attr]
            batch["labels" if name == "label" else name] = torch.stack(values)  # type: ignore[arg-type]
        else:
            fill = token if name.endswith("input_ids") else FILL.get(name, 0)
            batch[name] = pad_sequence(values, batch_first=True, padding_value=fill, padding_side=side)  # type: ignore[arg-type]
    if "input_ids" not in batch:
        raise TaskError("text example", expected="'input_ids'", got=f"keys {sorted(map(str, examples[0]))}",
                        do="Tokenise the data first, or give the task a tokenizer.")  # fmt: skip
    if "attention_mask" not in batch:
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        inside = torch.arange(batch["input_ids"].shape[1])[None] < lengths[:, None]
        batch["attention_mask"] = (inside if side == "right" else inside.flip(1)).long()
    return batch


class CausalLM(Task):
    """A decoder that predicts the next token. Loss: the sum over counted tokens, in nats.

    A batch is ids ``(B, T)``, or a mapping with ``input_ids`` and, where they exist, ``labels`` (−100: not counted),
    ``attention_mask`` and others that the model takes. Without labels every token but the padding counts.

    Args:
        query: ``"labels"``: minus the loss of the query's counted tokens. ``"margin"``: the sum over them of
            log p/(1−p), which does not vanish for an answer the model is sure of.
        documents: Where one document ends and the next begins inside packed rows; each is then an example of its own.
            The name of a column (a number for each token: positions that restart at 0 if it is ``"position_ids"``,
            else document numbers), or the id of the token that ends a document. A token belongs to the document it is
            in, the first one included, so that the documents' losses add up to the row's.
        pad_token_id: What short rows are filled with (masked out and not counted).
        padding_side: ``"right"`` or ``"left"``.

    Example:
        >>> CausalLM(documents=0).parts({"input_ids": [5, 6, 0, 7, 0]})
        2
    """

    unit = "nats"

    def __init__(
        self,
        query: str = "labels",
        documents: str | int | None = None,
        pad_token_id: int = 0,
        padding_side: str = "right",
    ) -> None:
        """Check the settings; see the class."""
        if query not in ("labels", "margin"):
            raise choose("CausalLM(query=)", str(query), ("labels", "margin"))
        if padding_side not in ("right", "left"):
            raise choose("CausalLM(padding_side=)", str(padding_side), ("right", "left"))
        if isinstance(documents, bool) or not isinstance(documents, str | int | None):
            raise SettingError("CausalLM(documents=)", expected="a column name or a token id", got=repr(documents))
        self.query, self.documents = query, documents
        self.pad_token_id, self.padding_side = pad_token_id, padding_side
        self.only: int | None = None

    def collate(self, examples: list[Any]) -> Batch:
        """Pad to the longest row."""
        return pad(examples, token=self.pad_token_id, side=self.padding_side)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over each row's counted tokens, ``(B,)``; with ``documents`` one number for each document."""
        return self._judged(batch, self._put_out(model, batch))

    def predicted(self, model: nn.Module, batch: Batch) -> Prediction:
        """Return logits and what the loss makes of them."""

        def drawn(logits: Tensor, draw: int) -> Tensor:
            labels = _redrawn(logits[:, :-1], self._labels(batch)[:, 1:], draw)
            return self._summed(batch, losses.token_losses(logits[:, :-1], labels))

        return Prediction(self._put_out(model, batch), partial(self._judged, batch), drawn)

    def _judged(self, batch: Batch, logits: Tensor) -> Tensor:
        return self._summed(batch, self._token_losses(batch, logits))

    def _summed(self, batch: Batch, each: Tensor) -> Tensor:
        if not self.packed:
            return each.sum(1)
        numbers = torch.stack([self.numbers(row) for row in _rows(batch)]).to(each.device)[:, 1:]  # (B, T-1)
        if self.only is not None:
            return each.masked_fill(numbers != self.only, 0.0).sum(1)
        sizes = torch.tensor([self.parts(row) for row in _rows(batch)], device=each.device)
        first = sizes.cumsum(0) - sizes
        found = each.new_zeros(int(sizes.sum()))
        return found.index_add(0, (numbers + first[:, None]).flatten(), each.flatten())

    def measure(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return minus the loss, or the margin, summed over each row's counted tokens, ``(B,)``."""
        each = self.token_losses(model, batch)  # −log p, 0 where not counted
        return -each.sum(1) if self.query == "labels" else losses.margin_of(each).sum(1)

    @property
    def asks_loss(self) -> bool:
        """Whether queries are asked their loss, and not a margin."""
        return type(self).measure is CausalLM.measure and self.query == "labels"

    def count(self, batch: Batch) -> Tensor:
        """Return each row's counted tokens, ``(B,)``."""
        return (self._labels(batch)[:, 1:] != NOT_COUNTED).sum(1)

    @property
    def packed(self) -> bool:
        """Whether rows may hold several documents."""
        return self.documents is not None

    def parts(self, example: Any) -> int:
        """Return how many documents a row holds."""
        return int(self.numbers(example).max()) + 1 if self.packed else 1

    def whole(self) -> CausalLM:
        """Return this task with every row one example."""
        rows = copy.copy(self)  # a subclass keeps what it measures
        rows.documents = None
        return rows

    def nth(self, number: int) -> CausalLM:
        """Return this task with only the number-th document of each packed row counted: one loss a row, 0 where none is."""
        one = copy.copy(self)
        one.only = number
        return one

    def numbers(self, row: Any) -> Tensor:
        """Return each token's document number inside its row, ``(T,)`` from 0."""
        ids = torch.as_tensor(row["input_ids"] if isinstance(row, Mapping) else row)
        starts = torch.zeros(len(ids), dtype=torch.bool)
        if isinstance(self.documents, int):
            starts[1:] = (ids[:-1] == self.documents).cpu()
        elif isinstance(row, Mapping) and self.documents in row:
            column = torch.as_tensor(row[self.documents]).cpu()
            starts[1:] = column[1:] == 0 if self.documents == "position_ids" else column[1:] != column[:-1]
        else:
            _say_rows(self.documents)
        if isinstance(row, Mapping) and "attention_mask" in row:
            inside = torch.as_tensor(row["attention_mask"]).bool().cpu()
            starts[1:] &= inside[1:] & inside[:-1]  # padding belongs to the document beside it, on either side
        return starts.cumsum(0)

    def _labels(self, batch: Batch) -> Tensor:
        if not isinstance(batch, Mapping):
            return _ids(batch)
        mask = batch.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            return cast("Tensor", batch["labels"] if "labels" in batch else batch["input_ids"])
        labels = batch["labels"] if "labels" in batch else batch["input_ids"].masked_fill(mask == 0, NOT_COUNTED)
        before = mask.cumsum(1) - mask == 0  # nothing but padding in front: a row's first token is predicted by nothing
        return cast("Tensor", labels.masked_fill(before, NOT_COUNTED))

    def token_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of every token but the first, ``(B, T - 1)`` float64; 0 where it is not counted."""
        return self._token_losses(batch, self._put_out(model, batch))

    def _token_losses(self, batch: Batch, logits: Tensor, each: Each = losses.token_losses) -> Tensor:
        following = nn.functional.pad(self._labels(batch)[:, 1:], (0, 1), value=NOT_COUNTED)
        return each(logits, following)[:, :-1]  # (B, T-1); cutting the logits instead would copy them all

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        labels, inputs = self._labels(batch), inputs_of(model, batch)
        if labels.ndim != 2:
            raise TaskError("CausalLM", expected="rows of token ids: a batch (B, T)", got=f"shape {tuple(labels.shape)}",
                            do="If this is one example, put it in a list: [test[0]].")  # fmt: skip
        if isinstance(inputs, Mapping):
            inputs = _placed(inputs)
        logits = output_of(model, inputs)
        if logits.shape[:-1] != labels.shape:
            raise TaskError("CausalLM", expected=f"logits of shape {(*labels.shape, 'V')}", got=str(tuple(logits.shape)),
                            do="Where the model adds tokens of its own (prompt tuning), cut them off.")  # fmt: skip
        return logits


class Seq2Seq(Task):
    """An encoder-decoder. Loss: the sum over the answer's counted tokens, in nats.

    A batch is a mapping with ``input_ids`` and ``labels`` (−100: not counted); the model shifts the labels itself.
    """

    unit = "nats"

    def __init__(self, pad_token_id: int = 0) -> None:
        """Set what short rows are filled with."""
        self.pad_token_id = pad_token_id

    def collate(self, examples: list[Any]) -> Batch:
        """Pad inputs and labels to the longest."""
        return pad(examples, token=self.pad_token_id)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over each answer's counted tokens, ``(B,)``."""
        return self._judged(batch, self._put_out(model, batch))

    def _judged(self, batch: Batch, logits: Tensor) -> Tensor:
        return self._summed(batch, self._token_losses(batch, logits))

    def _summed(self, _batch: Batch, each: Tensor) -> Tensor:
        return each.sum(1)

    def token_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of every token of the answers, ``(B, T)`` float64; 0 where it is not counted."""
        return self._token_losses(batch, self._put_out(model, batch))

    def _token_losses(self, batch: Batch, logits: Tensor, each: Each = losses.token_losses) -> Tensor:
        return each(logits, _answers(batch))

    def predicted(self, model: nn.Module, batch: Batch) -> Prediction:
        """Return logits and what the loss makes of them."""

        def drawn(logits: Tensor, draw: int) -> Tensor:
            return losses.token_losses(logits, _redrawn(logits, _answers(batch), draw)).sum(1)

        return Prediction(self._put_out(model, batch), partial(self._judged, batch), drawn)

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, labels = inputs_of(model, batch), _answers(batch)
        if "decoder_input_ids" not in inputs:
            shift: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
            if shift is None and hasattr(model, "get_base_model"):
                shift = getattr(cast("Any", model).get_base_model(), "prepare_decoder_input_ids_from_labels", None)
            if shift is None:
                raise TaskError("Seq2Seq", expected="decoder_input_ids in the batch, or a model that makes them from labels",
                                got=type(model).__name__)  # fmt: skip
            inputs = {**inputs, "decoder_input_ids": shift(labels=labels)}
        return output_of(model, inputs)

    def count(self, batch: Batch) -> Tensor:
        """Return each answer's counted tokens, ``(B,)``."""
        return (_answers(batch) != NOT_COUNTED).sum(1)


class SequenceClassification(Classification):
    """A text classifier. Rows are mappings of ``input_ids`` and ``labels``; or of text, with a tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer; needed for rows of text, and gives the padding token.
        text: The column(s) of text, for rows of text.
        max_length: Longest text in tokens.
        **settings: As in :class:`Classification`.
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
        self.tokenizer, self.text, self.max_length = (
            tokenizer,
            (text,) if isinstance(text, str) else tuple(text),
            max_length,
        )

    def collate(self, examples: list[Any]) -> Batch:
        """Tokenise where rows are text, then pad."""
        if "input_ids" not in examples[0] and self.tokenizer is not None:
            label = next(name for name in ("labels", "label") if name in examples[0])
            columns = [[example[name] for example in examples] for name in self.text]
            tokens = self.tokenizer(*columns, truncation=True, max_length=self.max_length)
            examples = [
                {name: values[row] for name, values in tokens.items()} | {"labels": example[label]}
                for row, example in enumerate(examples)
            ]
        token = getattr(self.tokenizer, "pad_token_id", None)
        return pad(examples, token=0 if token is None else token, side=getattr(self.tokenizer, "padding_side", "right"))


def _redrawn(logits: Tensor, labels: Tensor, draw: int) -> Tensor:
    """Return tokens drawn from the logits where the labels count."""
    return classes(logits, labels != NOT_COUNTED, draw)


def inputs_of(model: nn.Module, batch: Batch) -> Any:
    """Return what the model is fed: everything but the labels (it would reduce their loss), and no key-value cache."""
    if not isinstance(batch, Mapping):
        return _ids(batch)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "label")}
    taken = accepted(type(model).forward)
    return inputs | {"use_cache": False} if taken is not None and "use_cache" in taken else inputs


def _answers(batch: Batch) -> Tensor:
    if not isinstance(batch, Mapping) or "labels" not in batch:
        got = f"keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise TaskError("Seq2Seq", expected="a batch with 'input_ids' and 'labels' (the answer's tokens)", got=got)
    return cast("Tensor", batch["labels"])


def _placed(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the inputs with positions counted from the first real token where rows are padded on the left."""
    mask = inputs.get("attention_mask")
    if "position_ids" in inputs or not isinstance(mask, Tensor) or mask.ndim != 2 or bool((mask[:, 0] != 0).all()):
        return inputs
    return {**inputs, "position_ids": (mask.long().cumsum(1) - 1).clamp_min(0)}


@cache
def _say_rows(column: str | int | None) -> None:
    """Warn, once, that documents cannot be told apart."""
    log.warning("no column %r in the training rows: each row is read as one document", column)


def _ids(batch: Batch) -> Tensor:
    return cast("Tensor", batch[0] if isinstance(batch, tuple | list) else batch)


def _rows(batch: Batch) -> list[Any]:
    if not isinstance(batch, Mapping):
        return list(_ids(batch))
    size = len(batch["input_ids"])
    return [
        {name: value[row] for name, value in batch.items() if isinstance(value, Tensor) and len(value) == size}
        for row in range(size)
    ]


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if (
        isinstance(value, str | bytes)
        or value is None
        or (isinstance(value, Sequence) and value and isinstance(value[0], str))
    ):
        return None
    return torch.as_tensor(value) if not isinstance(value, list) or value else torch.empty(0, dtype=torch.int64)
