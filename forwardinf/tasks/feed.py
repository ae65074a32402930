"""Rows of examples brought to the model: on its device, in its dtype and the layout it reads fastest, each with its own noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.errors import TaskError
from forwardinf.core.memory import sizes, trim
from forwardinf.data import noise
from forwardinf.data.examples import Batch, Examples
from forwardinf.models.borrowed import first_forward
from forwardinf.tasks.dtypes import find_cast, told
from forwardinf.tasks.task import Task

Ask = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Asks:
    """Several things asked of one forward, each ``(B,)``: their gradients are that many backwards through one graph.

    Attributes:
        all: ``(model, batch) -> [(B,), …]``, as many for every batch.
    """

    all: Callable[[nn.Module, Batch], Sequence[Tensor]]


@dataclass(frozen=True)
class Feed:
    """A model, what its losses are, and the examples to ask about.

    Attributes:
        model: In eval mode (see :func:`forwardinf.models.borrowed.borrowed`).
        task: What is asked.
        examples: Whom.
        device: Where batches go.
        channels_last: Images ``(B, C, H, W)`` are laid out pixel by pixel, which convolutions often read faster.
        seed: Of the examples' noise.
        asked: For queries: batches as :meth:`Task.ask` filled them in, at the first call, by the unperturbed model.
        filled: The same, for those that have no label: also where the queries are read as if they were training examples
            (``replace(feed, asked=None)`` keeps it). None: every row must have one.
        skipped: Rows set aside (``on_bad_query="skip"``): their losses may be anything, NaN too.
        prepared: What :meth:`Task.prepare` made of each row, on the CPU: encoders run once.
        recorders: What is known of the model's per-example gradients, by the parameters that count.
    """

    model: nn.Module
    task: Task
    examples: Examples
    device: torch.device
    channels_last: bool = False
    seed: int = 0
    asked: dict[tuple[int, ...], Batch] | None = None
    skipped: frozenset[int] = frozenset()
    prepared: dict[int, Batch] = field(default_factory=dict)
    recorders: dict[tuple[str, ...], Any] = field(default_factory=dict)
    filled: dict[tuple[int, ...], Batch] | None = None

    def __post_init__(self) -> None:
        """See what the model needs, unless it is not borrowed yet: a forward in training mode would change it."""
        if self.filled is None:
            object.__setattr__(self, "filled", self.asked)
        if not self.model.training:
            self._settle_dtype()

    def _settle_dtype(self) -> None:
        if self.examples.settled:
            return
        self.examples.settled = True
        rows = range(min(2, len(self.examples)))
        batch = self.place(self.examples.few(rows))

        def loss(trial: Batch) -> Tensor:
            whose = noise.belonging_to(self.examples.keys(rows), self.seed)
            with first_forward(self.model), noise.own_state(), whose:
                ready = self.task.prepare(trial) if self.task.prepares else trial
                asks = self.asked is not None and self.task.asks
                return self.task.loss(self.model, self.task.ask(self.model, ready) if asks else ready)

        self.examples.cast = find_cast(self.model, self.task, batch, loss)
        if self.examples.cast is not None:
            self.examples.note(told(batch, self.examples.cast, self.task))

    def each(self, ask: Ask, rows: Sequence[int], batch_size: int) -> Iterator[Tensor]:
        """Yield ``ask(model, batch)`` for the rows in order; noise drawn inside belongs to the examples."""
        before: tuple[Any, ...] = ()
        for piece, batch in self.examples.batches(rows, batch_size):
            if self.device.type == "cuda" and (shapes := sizes(batch)) != before:
                trim(self.device)
                before = shapes
            keys = self.examples.keys(piece) if self.task.keyed else [b""] * len(piece)
            with first_forward(self.model), noise.belonging_to(keys, self.seed), self._inside(piece):
                found = ask(self.model, self._filled(tuple(piece), self._ready(piece, batch)))
            yield found

    @contextmanager
    def _inside(self, rows: Sequence[int]) -> Iterator[None]:
        """Make errors of what torch says of places that a table does not have, and of losses that take gradients."""
        try:
            yield
        except IndexError as error:
            if "out of range" not in str(error):
                raise
            raise TaskError(
                f"{self.examples.name}, rows {rows[0]} to {rows[-1]}", expected="token ids and positions that the model has",
                got=f"others ({error})",
                do="Cut what is longer than the model's positions, and use the tokenizer the model was trained with.",
            ) from error  # fmt: skip
        except RuntimeError as error:
            if torch.is_grad_enabled() or "does not require grad" not in str(error):
                raise
            raise TaskError(
                "loss", expected="one that can be read by forward passes alone", got=f"torch says: {error}",
                do="A loss that takes gradients itself (forces, penalties) does so under torch.enable_grad().",
            ) from error  # fmt: skip

    def _ready(self, rows: Sequence[int], batch: Batch) -> Batch:
        """Return the batch placed, and prepared where the task prepares: by encoders the first time, then from memory."""
        if not self.task.prepares:
            return self._as_taken(self.place(batch))
        if not all(row in self.prepared for row in rows):
            with torch.no_grad():
                made = self.task.prepare(self._as_taken(self.place(batch)))
            for place, row in enumerate(rows):
                self.prepared[row] = taken(made, place)
        return self.place(joined([self.prepared[row] for row in rows]))

    def _as_taken(self, batch: Batch) -> Batch:
        """Return the batch in the model's dtype, where it does not take the data's."""
        self._settle_dtype()
        return batch if self.examples.cast is None else self.examples.cast(self.task, batch)

    def place(self, batch: Batch) -> Batch:
        """Return the batch on the model's device, images in the chosen layout."""
        if isinstance(batch, Tensor):
            batch = batch.clone() if batch.is_inference() else batch  # made in inference mode: autograd would refuse it
            layout = torch.channels_last if self.channels_last and batch.ndim == 4 else torch.preserve_format
            return batch.to(self.device, non_blocking=True, memory_format=layout)
        if isinstance(batch, Mapping):
            return {name: self.place(value) for name, value in batch.items()}
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*(self.place(value) for value in batch))
        if isinstance(batch, tuple | list):
            return type(batch)(self.place(value) for value in batch)
        return batch.to(self.device) if hasattr(batch, "to") else batch

    def _filled(self, piece: tuple[int, ...], batch: Batch) -> Batch:
        known = self.asked if self.task.asks and self.asked is not None else None
        if known is None and self.filled is not None and self.task.lacks(batch):
            known = self.filled
        if known is None:
            return batch
        if piece not in known:
            known[piece] = self.task.ask(self.model, batch)
        return known[piece]

    @torch.no_grad()  # not inference_mode: what a model keeps from its first forward must serve the query's backward too
    def losses(
        self, rows: Sequence[int], batch_size: int, advance: Callable[[int], None] = lambda done: None
    ) -> Tensor:
        """Return the training loss of every unit in these rows, ``(units,)`` float64 on the CPU, by forward passes.

        Raises:
            TaskError: The loss is not one finite number for each example.
        """
        found, at = [], 0
        for values in self.each(self.task.loss, rows, batch_size):
            piece = rows[at : at + batch_size]
            found.append(self.checked(values, piece, self._units(piece)))
            at += len(piece)
            advance(len(piece))
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)

    def checked(self, values: Any, piece: Sequence[int], size: int) -> Tensor:
        """Return the ``size`` losses of a batch as float64 on the CPU; only those of rows set aside may be anything.

        Raises:
            TaskError: The loss is not one finite number for each example.
        """
        where, strict = f"{self.examples.name}, rows from {piece[0]}", self.skipped.isdisjoint(piece)
        each = one_each(values, size, where, finite=strict)
        if not strict:
            must = torch.tensor([row not in self.skipped for row in piece])
            one_each(each[must], int(must.sum()), where)
        return each

    @torch.no_grad()
    def measures(self, rows: Sequence[int], batch_size: int) -> Tensor:
        """Return what each query row is asked, ``(rows,)`` float64 on the CPU, by forward passes."""
        found, at = [], 0
        for values in self.each(self.task.measure, rows, batch_size):
            size = len(rows[at : at + batch_size])
            found.append(one_each(values, size, "query measurement", finite=False))
            at += size
        return torch.cat(found)

    @torch.no_grad()
    def counts(self, rows: Sequence[int], batch_size: int) -> Tensor:
        """Return how many terms each row's loss sums, ``(rows,)`` int64. Runs no model, but for queries without labels."""
        if type(self.task).count is Task.count:  # one each, whatever a batch is made of
            return torch.ones(len(rows), dtype=torch.int64)
        return torch.cat(
            [
                self.task.count(
                    self._filled(tuple(piece), self._ready(piece, batch)) if self.task.lacks(batch) else batch
                ).cpu()
                for piece, batch in self.examples.batches(rows, batch_size)
            ]
        )

    def _units(self, rows: Sequence[int]) -> int:
        return len(rows) if self.examples.units == len(self.examples) else len(self.examples.units_of(rows))


def taken(batch: Batch, place: int) -> Batch:
    """Return one example of a batch of tensors, on the CPU."""
    if isinstance(batch, Tensor):
        return batch[place].detach().cpu().clone()
    if isinstance(batch, Mapping):
        return {name: taken(value, place) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(taken(value, place) for value in batch)
    raise TaskError("prepare(batch)", expected="tensors, or a mapping or tuple of them", got=type(batch).__name__)


def joined(examples: Sequence[Batch]) -> Batch:
    """Undo :func:`taken`."""
    first = examples[0]
    if isinstance(first, Tensor):
        return torch.stack(list(examples))
    if isinstance(first, Mapping):
        return {name: joined([example[name] for example in examples]) for name in first}
    return type(first)(joined(list(part)) for part in zip(*examples, strict=True))


def one_each(values: Any, size: int, where: str, *, finite: bool = True) -> Tensor:
    """Return ``values`` as ``(size,)`` float64 on the CPU; refuse a reduced, misshapen or non-finite loss."""
    if not isinstance(values, Tensor):
        raise TaskError(f"loss of {where}", expected=f"a tensor of shape ({size},)", got=type(values).__name__)
    if values.ndim == 0:
        raise TaskError(f"loss of {where}", expected=f"one number for each of {size} examples", got="one number for all",
                        do="Use reduction='none', and sum over tokens if there are any.")  # fmt: skip
    if values.shape != (size,):
        raise TaskError(f"loss of {where}", expected=f"shape ({size},)", got=str(tuple(values.shape)),
                        do="Sum over tokens, average over pixels or outputs: one number for each example.")  # fmt: skip
    if values.is_complex():
        raise TaskError(f"loss of {where}", expected="real numbers", got=str(values.dtype),
                        do="Take the real part or the absolute value, whichever was trained.")  # fmt: skip
    plain = values.detach().double().cpu()
    if finite and not math.isfinite(float(plain.sum())) and not bool(torch.isfinite(plain).all()):
        bad = int((~torch.isfinite(plain)).nonzero()[0])
        raise TaskError(f"loss of {where}, place {bad} in the batch", expected="a finite number", got=str(plain[bad].item()),
                        do="Look at that example and at the model's output for it.")  # fmt: skip
    return plain
