"""A trainer's data: the columns that it keeps, and the collator that joins its rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from forwardinf.core.errors import DataError, SettingError
from forwardinf.data import noise

MIXING = (
    "mixup",
    "cutmix",
    "permutationlanguage",
    "wholeword",
    "forsop",
    "mlm",
)  # in a collator's name: it draws for each batch
FEW = 3  # rows that are joined and read, to see what they are

Collate = Callable[[list[Any]], Any]


class KeepColumns:
    """A collator that first drops from each example, where it is a dict, what the model does not take.

    Args:
        collate: What joins the examples.
        kept: The names that stay; None: all.
        tokenizer: What turns their token ids into text, for reports.
    """

    def __init__(self, collate: Collate, kept: Iterable[str] | None, tokenizer: Any = None) -> None:
        self.collate, self.tokenizer = collate, tokenizer
        self.kept = None if kept is None else frozenset(kept)

    def __call__(self, examples: Sequence[Any]) -> Any:
        """Return the batch."""
        return self.collate([self._stripped(example) for example in examples])

    def _stripped(self, example: Any) -> Any:
        if self.kept is None or not isinstance(example, Mapping):
            return example
        return {name: value for name, value in example.items() if name in self.kept}


class Columns:
    """Which columns a trainer keeps.

    Args:
        trainer: The trainer.
        model: Its model, out of its wrappers.
    """

    def __init__(self, trainer: Any, model: nn.Module) -> None:
        base: Any = model
        base = base.get_base_model() if hasattr(base, "get_base_model") else base  # PEFT
        self.model = type(base).__name__
        self.names = _taken(trainer, base) if trainer.args.remove_unused_columns else None
        holder = getattr(trainer, "processing_class", None) or getattr(trainer, "tokenizer", None)
        tokenizer = getattr(holder, "tokenizer", holder)
        known = tokenizer if callable(getattr(tokenizer, "decode", None)) else None
        self.collate = KeepColumns(trainer.data_collator, self.names, known)

    def kept(self, data: Any, what: str) -> Any:
        """Return data without what the trainer drops, texts apart: people want to see them."""
        where = f"from_trainer: {what}"
        if isinstance(data, Mapping):
            one = all(
                not hasattr(value, "__getitem__") or isinstance(value, str | list | Tensor) for value in data.values()
            )
            do = "Put one example into a list: [row]." if one else f"Choose one, like [{next(iter(data), 'test')!r}]."
            raise DataError(where, expected="a dataset or a list of rows", got=f"a {type(data).__name__}", do=do)
        if isinstance(data, IterableDataset | str) or not hasattr(data, "__getitem__"):
            raise DataError(where, expected="rows that can be read by position, twice",
                            got=f"{type(data).__name__}, which only iterates", do="Pass a map-style dataset.")  # fmt: skip
        if self.names is None:
            return data
        names = list(data.column_names) if hasattr(data, "column_names") else _keys(data)
        if names is not None and not set(names) & set(self.names):
            raise DataError(
                where, expected=f"a column that {self.model} takes", got=f"columns {names}", do="Tokenise it first."
            )
        if not hasattr(data, "column_names"):
            return data  # the collator strips its rows
        told = [name for name in names or () if name not in self.names and not _is_text(data, name)]
        return data.remove_columns(told)


def _taken(trainer: Any, model: nn.Module) -> list[str]:
    """Return the columns that the trainer does not drop."""
    names = [*inspect.signature(model.forward).parameters, "label", "label_ids", *(trainer.label_names or ())]
    ask = "_set_signature_columns_if_needed"
    own = next((kind for kind in type(trainer).__mro__ if ask in vars(kind)), None)
    if own is not None and not own.__module__.startswith("transformers."):  # trl keeps columns for its collator
        before, trainer._signature_columns = getattr(trainer, "_signature_columns", None), None
        try:
            getattr(trainer, ask)()
            names += trainer._signature_columns or ()
        finally:
            trainer._signature_columns = before
    return list(dict.fromkeys(names))


def _keys(data: Any) -> list[str] | None:
    first = data[0] if len(data) else None
    return [str(name) for name in first] if isinstance(first, Mapping) else None


def _is_text(data: Any, name: str) -> bool:
    kind = getattr(data, "features", None) or {}
    return getattr(kind.get(name), "dtype", None) in ("string", "large_string")


def check_collator(collator: Any, collate: Collate, train: Any) -> Any:
    """Return a few rows joined; refuse a collator that draws for each batch, or does not keep one row for each example.

    Raises:
        SettingError: Two joinings of the same rows differ, or there are fewer rows in the batch than examples.
        DataError: The rows cannot be joined.
    """
    refuse_mixing(collator)
    batches = []
    with noise.own_state():
        noise.seed_all(0)
        rows = [train[row] for row in range(min(FEW, len(train)))]
        for seed in (1, 2):
            noise.seed_all(seed)
            try:
                batches.append(collate([_copied(row) for row in rows]))
            except (TypeError, ValueError, KeyError, RuntimeError, IndexError) as error:
                raise DataError("from_trainer: data_collator", expected=f"a collator that joins {len(rows)} training rows",
                                got=f"{type(error).__name__}: {error}") from error  # fmt: skip
    one, other = batches
    expected = "a collator that gives the same batch every time"
    if not _same(one, other):
        raise SettingError("from_trainer: data_collator", expected=expected, got=f"{_name(collator)}, which draws",
                           do="Draw in the dataset, or pass attribute a collate_fn that does not.")  # fmt: skip
    lengths = {name: len(value) for name, value in _tensors(one).items() if value.ndim}
    if lengths and len(rows) not in lengths.values():
        raise SettingError("from_trainer: data_collator", expected=f"a row for each of {len(rows)} examples",
                           got=f"{_name(collator)}, which joins them into {next(iter(lengths.values()))}",
                           do="Pad, not flatten: padding_free=False, packing=False.")  # fmt: skip
    return one


def refuse_mixing(collator: Any) -> None:
    """Refuse a collator that masks or mixes anew for every batch, by its name: two readings would not see the same examples."""
    inside = list(vars(collator).values()) if hasattr(collator, "__dict__") else []
    names = [_name(each) for each in (collator, *inside)]
    mixing = [name for name in names if any(word in name.lower() for word in MIXING)]
    if getattr(collator, "mlm", False) or mixing:
        raise SettingError("from_trainer: data_collator", expected="a collator that gives the same batch every time",
                           got=(mixing or names)[0] + (" with mlm=True" if getattr(collator, "mlm", False) else ""),
                           do="Mask in the dataset, or pass attribute a collate_fn that does not mix.")  # fmt: skip


def _name(collator: Any) -> str:
    return str(getattr(collator, "__name__", type(collator).__name__))


def _copied(row: Any) -> Any:
    """Return a row that a collator may take apart."""
    return dict(row) if isinstance(row, Mapping) else row


def _tensors(batch: Any) -> dict[str, Tensor]:
    pairs = (
        batch.items()
        if isinstance(batch, Mapping)
        else enumerate(batch if isinstance(batch, tuple | list) else [batch])
    )
    return {str(name): value for name, value in pairs if isinstance(value, Tensor)}


def _same(one: Any, other: Any) -> bool:
    first, second = _tensors(one), _tensors(other)
    return first.keys() == second.keys() and all(
        first[name].shape == second[name].shape and torch.equal(first[name].nan_to_num(), second[name].nan_to_num())
        for name in first
    )
