"""Training data and queries in every form people have them, read by position, each row the same at every reading.

Forms: a tensor or array; a tuple or mapping of them (columns); a list (rows); an Arrow table; a `datasets.Dataset` or any
map-style dataset; a DataLoader over one. The order of the data is the order of the results.
"""

from __future__ import annotations

import copy
import logging
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from forwardinf.core import noise
from forwardinf.core.errors import DataError
from forwardinf.core.fingerprint import Unknowable, digest, row_digest

Batch = Any
Collate = Callable[[list[Any]], Batch]
Id = int | str

log = logging.getLogger(__name__)


class Examples:
    """Rows read by position. Built by :func:`examples`.

    Attributes:
        name: What the data is to a person: ``"train"`` or ``"queries"``.
        ids: One unique value for each unit, in order.
        offsets: Row r holds the units ``offsets[r]:offsets[r + 1]``. One unit a row, unless the task finds several
            documents packed in it.
        notes: What a person should know about how the data is read.
        two_texts: Whether a row's labels are the tokens of another text (an encoder-decoder's answer).
    """

    two_texts = False

    def __init__(self, name: str, rows: Any, size: int, collate: Collate | None, seed: int, num_workers: int) -> None:
        """Hold the data; :func:`examples` checks it first."""
        self.name, self.notes = name, list[str]()
        self.ids: list[Id] = list(range(size))
        self.offsets = np.arange(size + 1)
        self._rows, self._size, self._collate = rows, size, collate
        self._seed, self._num_workers = seed, num_workers
        self._row_ids: list[Id] = list(range(size))
        self._seen: list[bytes | None] = [None] * size  # what each row was when it was first read
        self._stamps: dict[Any, str] = {}

    def __len__(self) -> int:
        return self._size

    @property
    def units(self) -> int:
        """How many examples the rows hold: the ``N`` of the scores."""
        return int(self.offsets[-1])

    @property
    def sliced(self) -> bool:
        """Whether batches are slices of columns in memory, so that nothing is called row by row."""
        return isinstance(self._rows, Tensor | tuple | dict) and self._collate is None

    @property
    def tokenizer(self) -> Any:
        """What turns the rows' token ids into text, where the rows, what joins them or the task know it; else None."""
        joins = self._collate
        knows = (self._rows, getattr(self._rows, "dataset", None), joins, getattr(joins, "__self__", None),
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

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[Sequence[int], Batch]]:
        """Yield ``(rows, batch)`` in order. Rows that are not what they were at the first reading are an error."""
        pieces = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        if self._num_workers == 0 or self.sliced:
            for piece in pieces:
                yield piece, self._checked(piece, *self._load(piece))
            return
        loader = DataLoader(_Batches(self), batch_sampler=[list(piece) for piece in pieces], collate_fn=_alone,
                            num_workers=self._num_workers, generator=torch.Generator())  # fmt: skip
        for piece, (batch, digests) in zip(pieces, loader, strict=True):
            yield piece, self._checked(piece, batch, digests)

    def seal(self, rows: Sequence[int], advance: Callable[[int], None], parts: Callable[[Any], int] | None) -> str:
        """Read ``rows`` once without the model, keep what they were, and return the digest of their content.

        ``parts(example)`` counts the documents packed in a row; the row then holds that many units.
        """
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
        """Take ids from a column or a list; they must be unique, one for each unit."""
        if ids is None:
            return
        if not isinstance(ids, str) and (not hasattr(ids, "__iter__") or isinstance(ids, bytes | Mapping)):
            raise DataError(f"{self.name} ids", expected="a list of ids, or a column's name", got=repr(ids))
        values = self._column(ids) if isinstance(ids, str) else [_plain_id(value) for value in ids]
        if len(values) != self.units:
            raise DataError(f"{self.name} ids", expected=f"{self.units}, one for each example", got=str(len(values)))
        seen: set[Id] = set()
        for place, value in enumerate(values):
            if not isinstance(value, int | str) or value == "":
                raise DataError(
                    f"{self.name} ids, position {place}", expected="text or a whole number", got=repr(value)
                )
            if value in seen:
                raise DataError(f"{self.name} ids, position {place}", expected="unique values",
                                got=f"{value!r} for the second time", do="Give each example its own id.")  # fmt: skip
            seen.add(value)
        self.ids = values
        if self.units == self._size:
            self._row_ids = values

    def _column(self, name: str) -> list[Any]:
        rows = self._rows
        if isinstance(rows, pa.Table | dict) or hasattr(rows, "column_names"):
            names = rows.column_names if hasattr(rows, "column_names") else list(rows)
            if name not in names:
                raise DataError(f"{self.name} ids", expected=f"a column of {names}", got=repr(name))
            column = rows[name]
            return [
                _plain_id(value) for value in (column.to_pylist() if isinstance(column, pa.ChunkedArray) else column)
            ]
        found = [self[row] for row in range(self._size)]
        if not all(isinstance(example, Mapping) and name in example for example in found):
            raise DataError(f"{self.name} ids", expected=f"rows that are mappings with {name!r}", got="other rows",
                            do="Pass ids as a list.")  # fmt: skip
        return [_plain_id(example[name]) for example in found]

    def _fetch(self, rows: Sequence[int]) -> list[Any]:
        """Return the examples one by one; what ``dataset[i]`` draws is seeded by (seed, id)."""
        source = self._rows
        if isinstance(source, Tensor):
            return [source[row] for row in rows]
        if isinstance(source, tuple):
            return [tuple(column[row] for column in source) for row in rows]
        if isinstance(source, dict):
            return [{name: column[row] for name, column in source.items()} for row in rows]
        if isinstance(source, pa.Table):
            return list(source.take(list(rows)).to_pylist())
        if hasattr(source, "column_names") and hasattr(source, "__getitems__"):  # Arrow-backed: nothing to draw
            return list(source.__getitems__(list(rows)))
        examples = []
        for row in rows:
            noise.seed_all(noise.seed_of(self._seed, self._row_ids[row]))
            examples.append(source[row])
        return examples

    def _load(self, rows: Sequence[int]) -> tuple[Batch, list[bytes] | None]:
        if self.sliced:
            at: Any = slice(rows[0], rows[-1] + 1) if _contiguous(rows) else torch.as_tensor(list(rows))
            source = self._rows
            if isinstance(source, Tensor):
                return source[at], None
            if isinstance(source, tuple):
                return tuple(column[at] for column in source), None
            return {name: column[at] for name, column in source.items()}, None
        with noise.own_state():
            fetched = self._fetch(rows)
            digests = [self._digest_of(row, example) for row, example in zip(rows, fetched, strict=True)]
            return self.collate(fetched), digests

    def collate(self, fetched: list[Any]) -> Batch:
        """Join examples into a batch with the user's or the task's collate."""
        try:
            return (self._collate or default_collate)(fetched)
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise DataError(
                f"{self.name}: joining {len(fetched)} examples into a batch", expected="a collate that fits these examples",
                got=f"{type(error).__name__}: {error}", do="Pass collate_fn=, or a task with its own collate.",
            ) from error  # fmt: skip

    def _checked(self, rows: Sequence[int], batch: Batch, digests: list[bytes] | None) -> Batch:
        for row, now in zip(rows, digests or (), strict=False):
            kept = self._seen[row]
            if kept is not None and kept != now:
                raise _changed(self.name, f"row {row} (id {self._row_ids[row]!r})")
            self._seen[row] = now
        return batch

    def _digest_of(self, row: int, example: Any) -> bytes:
        try:
            return row_digest(example)
        except Unknowable as error:
            raise DataError(
                f"{self.name}, row {row}", expected="tensors, arrays, numbers, text, images, or containers of them",
                got=str(error), do="Wrap the dataset so that it returns those.",
            ) from error  # fmt: skip

    def _stamp(self, rows: Sequence[int]) -> str:
        if _contiguous(rows):
            return digest(self._load(rows)[0])
        return digest([self._load(rows[start : start + 4096])[0] for start in range(0, len(rows), 4096)])


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
    notes = []
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
    _refuse_streams(data, name)
    rows, size, sliced = _form(data, name)
    if size == 0:
        raise DataError(name, expected="at least one example", got="none")
    if task_collate is default_collate:
        task_collate = None
    own = collate_fn if collate_fn is not None or sliced else task_collate
    found = Examples(name, rows, size, own, seed, num_workers)
    found.notes += notes
    for note in notes:
        log.info(note)
    return found


def _form(data: Any, name: str) -> tuple[Any, int, bool]:
    """Return (rows, how many, whether they are columns in memory)."""
    if isinstance(data, np.ndarray | Tensor):
        column = _column(data, name)
        return column, len(column), True
    if isinstance(data, tuple) or (isinstance(data, Mapping) and not hasattr(data, "column_names")):
        pairs = list(data.items()) if isinstance(data, Mapping) else list(enumerate(data))
        if not pairs or not all(isinstance(column, np.ndarray | Tensor) and column.ndim > 0 for _, column in pairs):
            kinds = ", ".join(type(column).__name__ for _, column in pairs)
            raise DataError(name, expected="columns: tensors or arrays with equal first dimensions",
                            got=f"a {type(data).__name__} of ({kinds})",
                            do="If this is one example, put it in a list: [test[0]].")  # fmt: skip
        lengths = {key: len(column) for key, column in pairs}
        if len(set(lengths.values())) > 1:
            raise DataError(name, expected="columns with equal first dimensions", got=f"lengths {list(lengths.values())}",
                            do="If this is one example, put it in a list: [test[0]].")  # fmt: skip
        columns = {key: _column(column, f"{name}, column {key}") for key, column in pairs}
        size = next(iter(lengths.values()))
        return (columns if isinstance(data, Mapping) else tuple(columns.values())), size, True
    if isinstance(data, pa.Table):
        return data, data.num_rows, False
    if isinstance(data, Mapping):
        raise DataError(name, expected="one dataset", got=f"a {type(data).__name__} of {', '.join(map(repr, data))}",
                        do=f"Choose one, like data[{next(iter(data), 'train')!r}].")  # fmt: skip
    if isinstance(data, pd.DataFrame):
        raise DataError(name, expected="a dataset, tensors, a list of rows, a table or a DataLoader", got="a DataFrame",
                        do="Pass pyarrow.Table.from_pandas(frame), or its columns as arrays.")  # fmt: skip
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or isinstance(data, str | bytes):
        raise DataError(name, expected="a dataset, tensors, a list of rows, a table or a DataLoader",
                        got=type(data).__name__, do="A dataset needs __len__ and __getitem__.")  # fmt: skip
    return data, len(data), False


def _column(column: Any, name: str) -> Tensor:
    if isinstance(column, np.ndarray):
        if column.dtype.kind not in "biuf":
            raise DataError(name, expected="numbers", got=f"an array of {column.dtype}", do="Encode it first.")
        kind = column.dtype.newbyteorder("=")
        if kind == np.longdouble and kind.itemsize > 8:
            kind = np.dtype(np.float64)
        straight = column.flags.writeable and min(column.strides, default=0) >= 0
        column = torch.from_numpy(column.astype(kind, copy=not straight))
    if column.layout != torch.strided:
        raise DataError(name, expected="dense tensors", got=str(column.layout), do="Call .to_dense() first.")
    if column.ndim == 0:
        raise DataError(name, expected="a first dimension that counts examples", got="a single number")
    return column.detach()  # type: ignore[no-any-return]


def _refuse_streams(data: Any, name: str) -> None:
    streams = isinstance(data, IterableDataset) or type(data).__name__ == "IterableDataset"
    if streams or (hasattr(data, "__iter__") and not hasattr(data, "__getitem__")):
        raise DataError(
            name, expected="examples that can be read by position, twice", got=f"{type(data).__name__}, which only iterates",
            do="Pass a map-style dataset or list(...): every perturbation reads the same rows again.",
        )  # fmt: skip


def _changed(name: str, where: str) -> DataError:
    return DataError(
        f"{name}, {where}", expected="the same content as at the first reading", got="other content",
        do="The data changed, or dataset[i] draws from a generator of its own: seed it from i, or turn that transform off.",
    )  # fmt: skip


def _span(rows: Sequence[int]) -> Any:
    return (rows.start, rows.stop) if _contiguous(rows) and isinstance(rows, range) else digest(list(rows))


def _contiguous(rows: Sequence[int]) -> bool:
    return isinstance(rows, range) and rows.step == 1 and len(rows) > 0


def _plain_id(value: Any) -> Any:
    if isinstance(value, Tensor | np.generic):
        value = value.item()
    return int(value) if isinstance(value, numbers.Integral) else value


def _alone(batch: Any) -> Any:
    return batch


class _Batches(torch.utils.data.Dataset[Any]):
    """The rows as a dataset of whole batches, for worker processes."""

    def __init__(self, owner: Examples) -> None:
        self._owner = owner

    def __getitems__(self, rows: list[int]) -> Any:
        return self._owner._load(rows)

    def __len__(self) -> int:
        return len(self._owner)
