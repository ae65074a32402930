"""Training data and queries in every form people have them, read by position, each row the same at every reading.

Forms: a tensor or array; a tuple or mapping of them (columns; series and frames of numbers too); a list (rows); an Arrow table
or a data frame; a `datasets.Dataset` or any map-style dataset; a DataLoader over one. The order of the data is the order of
the results.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from forwardinf.core.errors import DataError, Error
from forwardinf.core.fingerprint import digest, row_digest
from forwardinf.core.hasher import Unknowable
from forwardinf.data import noise
from forwardinf.data.forms import Columns, Form, form_of
from forwardinf.data.given_ids import Id as Id
from forwardinf.data.given_ids import check_ids, field_of, plain_id
from forwardinf.data.join import is_plain, join
from forwardinf.data.token_rows import TokenRows

Batch = Any
Collate = Callable[[list[Any]], Batch]

log = logging.getLogger(__name__)


class Examples:
    """Rows read by position. Built by :func:`examples`.

    Attributes:
        name: What the data is to a person: ``"train"`` or ``"queries"``.
        ids: One unique value for each unit, in order.
        offsets: Row r holds the units ``offsets[r]:offsets[r + 1]``. One unit a row, unless the task finds several
            documents packed in it.
        notes: What a person should know about how the data is read.
        settled: Whether it was seen if the model takes the data's dtype.
        cast: What brings a batch to the model's dtype, where that is needed.
        two_texts: Whether a row's labels are the tokens of another text (an encoder-decoder's answer).
    """

    two_texts = False

    def __init__(self, name: str, form: Form, collate: Collate | None, seed: int, num_workers: int) -> None:
        """Hold the data; :func:`examples` checks it first."""
        size = form.size
        self.name, self.notes = name, list[str]()
        self.settled = False
        self.cast: Callable[[Any, Batch], Batch] | None = None
        self.ids: list[Id] = list(range(size))
        self.offsets = np.arange(size + 1)
        self._form, self._size, self._collate = form, size, collate
        self._seed, self._num_workers = seed, num_workers
        self._row_ids: list[Id] = list(range(size))
        self._seen: list[bytes | None] = [None] * size  # what each row was when it was first read
        self._stamps: dict[Any, str] = {}
        self._kinds: dict[type, bytes] = {}  # the digests of the rows' classes

    def __len__(self) -> int:
        return self._size

    @property
    def units(self) -> int:
        """How many examples the rows hold: the ``N`` of the scores."""
        return int(self.offsets[-1])

    @property
    def sliced(self) -> bool:
        """Whether batches are slices of columns in memory, so that nothing is called row by row."""
        return isinstance(self._form, Columns) and self._collate is None

    @property
    def tokenizer(self) -> Any:
        """What turns the rows' token ids into text, where the rows, what joins them or the task know it; else None."""
        joins, rows = self._collate, getattr(self._form, "data", None)
        knows = (rows, getattr(rows, "dataset", None), joins, getattr(joins, "__self__", None),
                 getattr(joins, "collate", None))  # fmt: skip
        for one in knows:
            for name in ("tokenizer", "_tokenizer", "processing_class"):
                found = getattr(one, name, None)
                if callable(getattr(found, "decode", None)):
                    return found
        return None

    def __getitem__(self, row: int) -> Any:
        """Return one example as the dataset gives it, under its own seed; the caller's generators are given back."""
        with noise.own_state():
            return self._fetch([row])[0]

    def few(self, rows: Sequence[int]) -> Batch:
        """Return a batch of these rows, read in this process."""
        return self._load(rows)[0]

    def note(self, told: str) -> None:
        """Add what a person should know."""
        self.notes.append(f"{self.name}: {told}")
        log.info(self.notes[-1])

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[Sequence[int], Batch]]:
        """Yield ``(rows, batch)`` in order. Rows that are not what they were at the first reading are an error."""
        pieces = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        if self._num_workers == 0 or self.sliced:
            for piece in pieces:
                yield piece, self._checked(piece, *self._load(piece))
            return
        loader = DataLoader(_Batches(self), batch_sampler=[list(piece) for piece in pieces], collate_fn=_alone,
                            num_workers=self._num_workers, generator=torch.Generator())  # fmt: skip
        loaded = iter(loader)
        for piece in pieces:
            found = self._from_worker(loaded)
            yield piece, self._checked(piece, *found)

    def _from_worker(self, loaded: Iterator[Any]) -> Any:
        """Return a worker's next batch; what it raised of ours is raised here, in one piece."""
        try:
            found = next(loaded)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(self.name, expected="worker processes that live", got=str(error),
                            do="Try num_workers=0: it says what happened.") from error  # fmt: skip
        if isinstance(found, Error):
            raise found
        return found

    def seal(
        self,
        rows: Sequence[int],
        advance: Callable[[int], None],
        parts: Callable[[Any], int] | None,
        ids: str | Sequence[Id] | None = None,
    ) -> str:
        """Read ``rows`` once without the model, keep what they were, and return the digest of their content.

        ``parts(example)`` counts the documents packed in a row; the row then holds that many units. ``ids`` are taken as in
        :meth:`label_with`, before anything is read: what a row draws belongs to its id.
        """
        if parts is None:
            self.label_with(ids)
        if self.sliced and parts is None:
            return self._stamp(rows)
        counts = np.ones(self._size, dtype=np.int64)
        step = 256
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            with noise.own_state():
                fetched = self._fetch(piece)
            for row, example in zip(piece, fetched, strict=True):
                self._seen[row] = self._digest_of(row, example)
                if parts is not None:
                    counts[row] = parts(example)
            advance(len(piece))
        if parts is not None and counts.max(initial=1) > 1:
            self.offsets = np.concatenate([[0], np.cumsum(counts)])
            self.ids = list(range(self.units))
        if parts is not None:
            self.label_with(ids)
        return digest([self._seen[row] for row in rows])

    def guard(self, shard: Sequence[int]) -> None:
        """Remember what these rows of columns hold, so that :meth:`unchanged` can tell."""
        if self.sliced:
            self._stamps[_span(shard)] = self._stamp(shard)

    def unchanged(self, shard: Sequence[int]) -> None:
        """Raise DataError if columns in memory were written to since :meth:`guard` (fetched rows check themselves)."""
        kept = self._stamps.get(_span(shard))
        if kept is not None and kept != self._stamp(shard):
            raise _changed(self.name, f"rows {shard[0]} to {shard[-1]}")

    def keys(self, rows: Sequence[int]) -> list[bytes]:
        """Return what each row's noise belongs to: the digest of its content, so that exact copies share it."""
        missing = [row for row in rows if self._seen[row] is None]
        if missing:
            with noise.own_state():
                for row, example in zip(missing, self._fetch(missing), strict=True):
                    self._seen[row] = self._digest_of(row, example)
        return [key for row in rows if (key := self._seen[row]) is not None]

    def rows_of(self, units: Sequence[int]) -> list[int]:
        """Return the rows that hold these units, sorted, each once."""
        return sorted({int(row) for row in np.searchsorted(self.offsets, units, side="right") - 1})

    def units_of(self, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the units that these rows hold, in order."""
        if isinstance(rows, range) and rows.step == 1:
            return np.arange(self.offsets[rows.start], self.offsets[rows.stop])
        return np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])

    def one_each(self) -> Examples:
        """Return the same rows, each one unit: of packed rows, read whole or for one of their documents."""
        rows = copy.copy(self)
        rows.offsets = np.arange(len(self) + 1)
        return rows

    def label_with(self, ids: str | Sequence[Id] | None) -> None:
        """Take ids from a column or a list; they must be unique, one for each unit.

        Where no row was read yet, what a row draws belongs to its id from now on.
        """
        if ids is None:
            return
        if not isinstance(ids, str) and (not hasattr(ids, "__iter__") or isinstance(ids, bytes | Mapping)):
            raise DataError(f"{self.name} ids", expected="a list of ids, or a column's name", got=repr(ids))
        values = self._column(ids) if isinstance(ids, str) else [plain_id(value) for value in ids]
        check_ids(values, self.units, f"{self.name} ids")
        self.ids = values
        if not any(self._seen):
            self._row_ids = values

    def _column(self, name: str) -> list[Any]:
        try:
            values = self._form.column(name)
        except KeyError as error:
            raise DataError(f"{self.name} ids", expected=f"a column of {error.args[0]}", got=repr(name)) from None
        if values is None:
            values = [field_of(self[row], name, f"{self.name} ids") for row in range(self._size)]
        return [plain_id(value) for value in values]

    def _fetch(self, rows: Sequence[int]) -> list[Any]:
        """Return the examples one by one; what ``dataset[i]`` draws is seeded by (seed, id)."""
        return self._form.fetch(rows, lambda row: noise.seed_all(noise.seed_of(self._seed, self._row_ids[row])))

    def _load(self, rows: Sequence[int]) -> tuple[Batch, list[bytes] | None]:
        if self.sliced:
            return self._columns.batch(_at(rows)), None
        with noise.own_state():
            fetched = self._fetch(rows)
            digests = [self._digest_of(row, example) for row, example in zip(rows, fetched, strict=True)]
            self._compare(rows, digests)
            return self.collate(fetched, rows), digests

    @property
    def _columns(self) -> Columns:
        assert isinstance(self._form, Columns)
        return self._form

    def collate(self, fetched: list[Any], rows: Sequence[int] | None = None) -> Batch:
        """Join examples (of these rows) into a batch with the user's or the task's collate."""
        return join(self._collate or default_collate, fetched, self.name, rows)

    def _checked(self, rows: Sequence[int], batch: Batch, digests: list[bytes] | None) -> Batch:
        self._compare(rows, digests or [])
        for row, now in zip(rows, digests or (), strict=False):
            self._seen[row] = now
        return batch

    def _compare(self, rows: Sequence[int], digests: Sequence[bytes]) -> None:
        for row, now in zip(rows, digests, strict=False):
            if self._seen[row] not in (None, now):
                raise _changed(self.name, f"row {row} (id {self._row_ids[row]!r})")

    def _digest_of(self, row: int, example: Any) -> bytes:
        try:
            return row_digest(example, self._kinds)
        except Unknowable as error:
            raise DataError(
                f"{self.name}, row {row}", expected="tensors, arrays, numbers, text, images, or containers of them",
                got=str(error), do="Wrap the dataset so that it returns those.",
            ) from error  # fmt: skip

    def _stamp(self, rows: Sequence[int]) -> str:
        if _contiguous(rows):
            return digest(self._columns.whole(_at(rows)))
        return digest([self._columns.whole(_at(rows[start : start + 4096])) for start in range(0, len(rows), 4096)])


def examples(
    data: Any,
    *,
    name: str = "train",
    collate_fn: Collate | None = None,
    task_collate: Collate | None = None,
    seed: int = 0,
    num_workers: int = 0,
) -> Examples:
    """Return ``data`` as rows read by position.

    Args:
        data: One of the forms in the head of this file.
        name: For errors.
        collate_fn: The user's; else the loader's own; else, for rows, the task's.
        task_collate: The task's.
        seed: With the id, seeds what ``dataset[i]`` draws.
        num_workers: Worker processes that fetch rows (columns in memory need none).

    Raises:
        DataError: Columns of unequal length, a loader that only iterates, no rows, or something else altogether.
    """
    notes = [f"{name}: {note}" for note in data.notes] if isinstance(data, TokenRows) else []
    if isinstance(data, DataLoader):
        loader, data = data, data.dataset
        if loader.batch_sampler is None and not isinstance(data, IterableDataset):
            raise DataError(name, expected="a loader that joins examples into batches", got="one with batch_size=None",
                            do="Pass the dataset of single examples, or a loader with a batch_size.")  # fmt: skip
        shuffled = type(loader.sampler).__name__ not in ("SequentialSampler", "_InfiniteConstantSampler")
        notes.append(
            f"{name}: the loader's dataset is read in index order{' (the loader shuffles)' if shuffled else ''}"
        )
        if collate_fn is None and loader.collate_fn is not default_collate:
            collate_fn = loader.collate_fn
    form = form_of(data, name, joined=not (is_plain(collate_fn) and is_plain(task_collate)))
    if form.size == 0:
        raise DataError(name, expected="at least one example", got="none")
    if task_collate is default_collate:
        task_collate = None
    own = collate_fn if collate_fn is not None or isinstance(form, Columns) else task_collate
    found = Examples(name, form, own, seed, num_workers)
    found.notes += notes
    for note in notes:
        log.info(note)
    return found


def _changed(name: str, where: str) -> DataError:
    return DataError(
        f"{name}, {where}", expected="the same content as at the first reading", got="other content",
        do="The data changed, or dataset[i] draws from a generator of its own: seed it from i, or turn that transform off. What "
        "an object in a row keeps for later counts too, unless functools.cached_property keeps it.",
    )  # fmt: skip


def _at(rows: Sequence[int]) -> Any:
    return slice(rows[0], rows[-1] + 1) if _contiguous(rows) else torch.as_tensor(list(rows))


def _span(rows: Sequence[int]) -> Any:
    return (rows.start, rows.stop) if _contiguous(rows) and isinstance(rows, range) else digest(list(rows))


def _contiguous(rows: Sequence[int]) -> bool:
    return isinstance(rows, range) and rows.step == 1 and len(rows) > 0


def _alone(batch: Any) -> Any:
    return batch


class _Batches(torch.utils.data.Dataset[Any]):
    """The rows as a dataset of whole batches, for worker processes."""

    def __init__(self, owner: Examples) -> None:
        self._owner = owner

    def __getitems__(self, rows: list[int]) -> Any:
        try:
            return self._owner._load(rows)
        except Error as error:  # a loader would hand on its traceback as text
            return error

    def __len__(self) -> int:
        return len(self._owner)
