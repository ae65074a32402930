"""Where the inputs and the label are in a batch, and a label put in its place.

``inputs`` and ``label`` below are what a task was given to find them by: a name, a position, a function, or None. By default
a tuple or list is inputs, then the label; a mapping holds its label under ``labels`` or ``label``; a bare tensor is inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.errors import SettingError, TaskError
from forwardinf.tasks.outputs import Take, take

Batch = Any
LABELS = ("labels", "label")
ASK = "Queries that have none may be asked by query='predicted'."


def inputs_in(batch: Batch, inputs: Take, label: Take, where: str) -> Any:
    """Return what the model is fed: everything but the label, unless ``inputs`` says."""
    if isinstance(batch, Tensor) and not callable(inputs):
        return batch
    if inputs is not None:
        return take(batch, inputs, "inputs")
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in LABELS and name != label}
    if isinstance(batch, tuple | list):
        at = _place(batch, label)
        rest = [value for place, value in enumerate(batch) if place != at]
        return rest[0] if len(rest) == 1 else tuple(rest)
    raise TaskError(
        where,
        expected="a batch that is (inputs, label) or a mapping with 'labels'",
        got=type(batch).__name__,
        do="Say how with inputs= and label=, like inputs=lambda batch: batch, label='y'.",
    )


def label_in(batch: Batch, label: Take) -> Any:
    """Return the label.

    Raises:
        TaskError: There is none where it is looked for.
    """
    if label is not None and (callable(label) or has_label(batch, label)):
        return take(batch, label, "label")
    if label is None and has_label(batch, None):
        return batch[_name(batch)] if isinstance(batch, Mapping) else batch[-1]
    got = f"keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
    if label is not None:
        raise TaskError("label", expected=f"{label!r} in it", got=f"{got} without it", do=ASK)
    named = "a key 'labels' or 'label'" if isinstance(batch, Mapping) else "(inputs, label) or a mapping with 'labels'"
    raise TaskError("batch", expected=named, got=got, do=f"Say where the label is with label=. {ASK}")


def has_label(batch: Batch, label: Take) -> bool:
    """Return whether the label is there; a function is trusted to find it."""
    if callable(label):
        return True
    if isinstance(batch, Tensor):
        return False
    if isinstance(batch, Mapping):
        return label in batch if label is not None else any(name in batch for name in LABELS)
    if isinstance(label, str):
        return getattr(batch, label, None) is not None
    if isinstance(batch, tuple | list):
        return -len(batch) <= label < len(batch) if label is not None else len(batch) > 1
    return False


def with_label(batch: Batch, label: Take, value: Tensor) -> Batch:
    """Return the batch with another label in its place, or with one where it had none.

    Raises:
        SettingError: The label is found by a function: nothing says where to put one.
    """
    if callable(label):
        raise SettingError("query='predicted'", expected="label= as a name or position", got="a function")
    if isinstance(batch, Mapping):
        return {**batch, (_name(batch) if label is None else label): value}
    if hasattr(batch, "_fields"):
        return batch._replace(**{label if isinstance(label, str) else batch._fields[_place(batch, label)]: value})
    if isinstance(batch, Tensor | tuple | list) and not isinstance(label, str):
        parts = [batch] if isinstance(batch, Tensor) else list(batch)
        if has_label(batch, label):
            parts[_place(parts, label)] = value
        else:
            parts.insert(len(parts) if label is None or label < 0 else label, value)
        return tuple(parts)
    if isinstance(batch, Tensor | tuple | list):
        raise TaskError("queries", expected=f"a mapping, whose label goes under {label!r}", got=type(batch).__name__)
    other = copy.copy(batch)
    setattr(other, str(label), value)
    return other


def _name(batch: Mapping[str, Any]) -> str:
    return next((name for name in LABELS if name in batch), LABELS[0])


def _place(batch: Any, label: Take) -> int:
    """Return the label's position in a tuple or list; one that it does not have where there is none."""
    if isinstance(label, str):
        return batch._fields.index(label) if label in getattr(batch, "_fields", ()) else len(batch)
    if isinstance(label, int):
        return label % len(batch) if -len(batch) <= label < len(batch) else len(batch)
    return len(batch) - 1 if len(batch) > 1 else len(batch)


def with_tensors(example: Any) -> Any:
    """Return an example with its lists of numbers (tables have them) as tensors: `default_collate` turns lists inside out."""
    if isinstance(example, Mapping):
        return {name: _tensor_of(value) for name, value in example.items()}
    if type(example) in (tuple, list):
        return type(example)(map(_tensor_of, example))
    return example


def _tensor_of(value: Any) -> Any:
    if not isinstance(value, list) or not value or not isinstance(value[0], int | float | list):
        return value
    try:
        return torch.tensor(value)
    except (TypeError, ValueError):  # ragged, or not all numbers
        return value


def batch_size(batch: Batch) -> int:
    """Return how many examples a batch holds: what it says itself, or the first dimension of the first tensor in it."""
    if isinstance(batch, Tensor | np.ndarray) and batch.ndim > 0:
        return len(batch)
    told = getattr(batch, "num_graphs", getattr(batch, "batch_size", None))
    if isinstance(told, int):
        return told
    if is_dataclass(batch) and not isinstance(batch, Mapping | type):
        batch = [getattr(batch, field.name) for field in fields(batch)]
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    for value in values:
        if isinstance(value, list) and value and not isinstance(value[0], Tensor):
            return len(value)
        try:
            return batch_size(value)
        except TaskError:
            continue
    raise TaskError(
        "batch",
        expected="a tensor somewhere in it",
        got=type(batch).__name__,
        do="Join examples into tensors, or subclass fi.Task and define count(batch).",
    )
