"""Language tasks: decoders and encoder-decoders. Text classifiers are in ``task_sequence.py``.

They bring their own collate: padding, and −100 for what is not counted. A text's loss is the sum over its counted tokens;
the count is kept, so that a mean needs no new reading.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.errors import SettingError, TaskError, choose
from forwardinf.data.padding import NOT_COUNTED, SHIFTED, as_row, pad, refuse_tuple, say_uncounted
from forwardinf.tasks import losses
from forwardinf.tasks.batches import LABELS
from forwardinf.tasks.labels import class_numbers
from forwardinf.tasks.outputs import Take, innermost, keywords_of, output_of, refuse_probabilities
from forwardinf.tasks.prediction import Prediction, classes
from forwardinf.tasks.task import Batch, Task

log = logging.getLogger(__name__)

Each = Callable[[Tensor, Tensor], Tensor]  # (logits, labels) → one number a token, 0 where it is not counted


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
        logits: Where the logits are in the model's output, as in :class:`Classification`.

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
        logits: Take = None,
    ) -> None:
        """Check the settings; see the class."""
        if query not in ("labels", "margin"):
            raise choose("CausalLM(query=)", str(query), ("labels", "margin"))
        if padding_side not in ("right", "left"):
            raise choose("CausalLM(padding_side=)", str(padding_side), ("right", "left"))
        if isinstance(documents, bool) or not isinstance(documents, str | int | None):
            raise SettingError("CausalLM(documents=)", expected="a column name or a token id", got=repr(documents))
        self.query, self.documents = query, documents
        self.pad_token_id, self.padding_side, self.output = pad_token_id, padding_side, logits
        self.only: int | None = None

    def collate(self, examples: list[Any]) -> Batch:
        """Pad to the longest row."""
        batch = pad(examples, token=self.pad_token_id, side=self.padding_side, aligned=True)
        if not bool(self.count(batch).all()):
            say_uncounted("CausalLM")
        return batch

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
        return max(self.numbers(example).tolist(), default=0) + 1 if self.packed else 1

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
        ids = torch.as_tensor(as_row(row)["input_ids"])
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
        ids = _ids(batch, "CausalLM", SHIFTED)
        if ids.ndim != 2:
            raise TaskError("CausalLM", expected="rows of token ids: a batch (B, T)", got=f"shape {tuple(ids.shape)}",
                            do="If this is one example, put it in a list: [test[0]].")  # fmt: skip
        if not isinstance(batch, Mapping):
            return ids
        mask, labels = batch.get("attention_mask"), batch.get("labels")
        if not isinstance(mask, Tensor) or mask.shape != ids.shape:
            mask = torch.ones_like(ids)
        seen = (mask != 0).long()
        if labels is None:
            labels = ids.masked_fill(seen == 0, NOT_COUNTED)
        if not isinstance(labels, Tensor) or labels.shape != ids.shape:
            got = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise TaskError("CausalLM: labels", expected=f"one for each of the input_ids {tuple(ids.shape)}", got=got)
        before = seen.cumsum(1) - seen == 0  # nothing but padding in front: a row's first token is predicted by nothing
        return labels.masked_fill(before, NOT_COUNTED)

    def token_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of every token but the first, ``(B, T - 1)`` float64; 0 where it is not counted."""
        return self._token_losses(batch, self._put_out(model, batch))

    def _token_losses(self, batch: Batch, logits: Tensor, each: Each = losses.token_losses) -> Tensor:
        following = nn.functional.pad(self._labels(batch)[:, 1:], (0, 1), value=NOT_COUNTED)
        return each(logits, following)[:, :-1]  # (B, T-1); cutting the logits instead would copy them all

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        labels, inputs = self._labels(batch), inputs_of(model, batch)
        if isinstance(inputs, Mapping):
            inputs = _placed(inputs)
        logits = output_of(model, inputs, self.output)
        if logits.shape[:-1] != labels.shape:
            raise TaskError("CausalLM", expected=f"logits of shape {(*labels.shape, 'V')}", got=str(tuple(logits.shape)),
                            do="Where the model adds tokens of its own (prompt tuning), cut them off.")  # fmt: skip
        _check_tokens(logits, labels, "CausalLM", self.output)
        return logits


class Seq2Seq(Task):
    """An encoder-decoder. Loss: the sum over the answer's counted tokens, in nats.

    A batch is a mapping with ``input_ids`` and ``labels`` (−100: not counted); the model shifts the labels itself.

    Args:
        pad_token_id: What short rows are filled with (masked out and not counted).
        logits: Where the logits are in the model's output, as in :class:`Classification`.
    """

    unit = "nats"

    def __init__(self, pad_token_id: int = 0, logits: Take = None) -> None:
        """Set what short rows are filled with; see the class."""
        self.pad_token_id, self.output = pad_token_id, logits

    def collate(self, examples: list[Any]) -> Batch:
        """Pad inputs and labels to the longest."""
        batch = pad(examples, token=self.pad_token_id)
        if "labels" in batch and not bool(self.count(batch).all()):
            say_uncounted("Seq2Seq")
        return batch

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
        labels, inputs = _answers(batch), inputs_of(model, batch)
        if "decoder_input_ids" not in inputs:
            shift: Any = getattr(innermost(model), "prepare_decoder_input_ids_from_labels", None)
            if shift is None:
                raise TaskError("Seq2Seq", expected="decoder_input_ids in the batch, or a model that makes them from labels",
                                got=type(model).__name__)  # fmt: skip
            inputs = {**inputs, "decoder_input_ids": shift(labels=labels)}
        logits = output_of(model, inputs, self.output)
        if logits.shape[:-1] != labels.shape:
            raise TaskError("Seq2Seq", expected=f"logits of shape {(*labels.shape, 'V')}", got=str(tuple(logits.shape)))
        _check_tokens(logits, labels, "Seq2Seq", self.output)
        return logits

    def count(self, batch: Batch) -> Tensor:
        """Return each answer's counted tokens, ``(B,)``."""
        return (_answers(batch) != NOT_COUNTED).sum(1)


def _redrawn(logits: Tensor, labels: Tensor, draw: int) -> Tensor:
    """Return tokens drawn from the logits where the labels count."""
    return classes(logits, labels != NOT_COUNTED, draw)


def _check_tokens(logits: Tensor, labels: Tensor, where: str, told: Take) -> None:
    """Refuse probabilities, and labels that are no token."""
    if told is None:
        refuse_probabilities(logits, where)
    class_numbers(labels, labels.shape, logits.shape[-1], each="token")


def inputs_of(model: nn.Module, batch: Batch) -> Any:
    """Return what the model is fed: everything but the labels (it would reduce their loss), and no key-value cache."""
    if not isinstance(batch, Mapping):
        return _ids(batch, "token ids", SHIFTED)
    inputs = {name: value for name, value in batch.items() if name not in LABELS}
    return inputs | {"use_cache": False} if "use_cache" in (keywords_of(innermost(model)) or ()) else inputs


def _answers(batch: Batch) -> Tensor:
    if not isinstance(batch, Mapping) or not isinstance(batch.get("labels"), Tensor):
        got = f"keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise TaskError(
            "Seq2Seq",
            expected="a batch with 'input_ids' and 'labels' (the answer's tokens)",
            got=got,
            do="Pass mappings.",
        )
    labels: Tensor = batch["labels"]
    if labels.ndim != 2:
        raise TaskError("Seq2Seq: labels", expected="rows of token ids (B, T)", got=f"shape {tuple(labels.shape)}")
    return labels


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


def _ids(batch: Batch, where: str, shifted: str = "") -> Tensor:
    """Return the token ids of a batch that is them, a tuple or list of nothing else, or a mapping."""
    if isinstance(batch, tuple | list) and len(batch) != 1:
        refuse_tuple(where, batch, shifted)
    if isinstance(batch, Mapping) and "input_ids" not in batch:
        raise TaskError(where, expected="'input_ids'", got=f"keys {sorted(map(str, batch))}")
    found = batch["input_ids"] if isinstance(batch, Mapping) else batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(found, Tensor) or found.is_floating_point():
        got = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
        raise TaskError(where, expected="token ids: a tensor of whole numbers", got=got)
    return found


def _rows(batch: Batch) -> list[Any]:
    if not isinstance(batch, Mapping):
        return list(_ids(batch, "token ids"))
    size = len(batch["input_ids"])
    return [
        {name: value[row] for name, value in batch.items() if isinstance(value, Tensor) and len(value) == size}
        for row in range(size)
    ]
