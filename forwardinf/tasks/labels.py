"""Labels as losses take them: of the right kind and shape, each value with a meaning; else an error that names the value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forwardinf.core.errors import SettingError, TaskError
from forwardinf.data.padding import NOT_COUNTED


def class_numbers(
    label: Any, shape: Sequence[int], classes: int, *, each: str = "example", ignore: int = NOT_COUNTED
) -> Tensor:
    """Return class numbers, ``shape`` int64, −100 where they are not counted; a dimension of one behind the batch's goes.

    Args:
        label: What the batch holds.
        shape: ``(B,)``, or ``(B, …)`` where each token or pixel has a label.
        classes: How many there are.
        each: What has one label, to a person.
        ignore: The number that is not counted.

    Raises:
        TaskError: No tensor of whole numbers, another shape, or a number that is no class.
    """
    if not isinstance(label, Tensor):
        raise TaskError(
            "label",
            expected="a tensor of class numbers",
            got=f"a {type(label).__name__}",
            do="Encode labels as whole numbers, or say where they are with label=.",
        )
    found = label.squeeze(1) if label.ndim == len(shape) + 1 and label.shape[1] == 1 else label
    if found.shape != tuple(shape):
        many = f"each of {shape[0]} examples" if len(shape) == 1 else f"each {each}: shape {tuple(shape)}"
        hot = label.ndim == len(shape) + 1 and label.shape[1] == classes
        raise TaskError(
            "label",
            expected=f"one class number for {many}",
            got=f"shape {tuple(label.shape)}",
            do="One-hot labels: pass their argmax(1)." if hot else "",
        )
    if found.is_floating_point() or found.is_complex():
        raise TaskError(
            "label",
            expected="class numbers",
            got=f"{label.dtype}",
            do="Use fi.MultiLabel() or fi.Regression(), or convert the labels to integers.",
        )
    found = found.long()
    if found.numel() == 0:
        return found
    # asked as yes or no: a number taken out of a tensor would look as if rows were picked by it (gradients/recording.py)
    if not 0 <= ignore < classes and bool(((found >= 0) & (found < classes)).all()):  # what nearly every batch is
        return found
    gone = found == ignore
    strange = ((found >= classes) | (found < 0)) & ~gone
    if bool(strange.any()):
        value = int(found[strange][0])
        do = "Number the classes from 0, as the model was trained."
        if len(shape) > 1 and ignore == NOT_COUNTED:
            do = f"If {value} marks what does not count, say ignore_index={value}. {do}"
        raise TaskError(
            "label", expected=f"class numbers from 0 to {classes - 1} (or {ignore}: not counted)", got=str(value), do=do
        )
    return found.masked_fill(gone, NOT_COUNTED)


def answers(label: Any, shape: Sequence[int], where: str, *, ignore: float | None = None) -> Tensor:
    """Return yes/no labels, ``shape`` float64: 0, 1 or a share between; NaN where they are not counted.

    Args:
        label: What the batch holds.
        shape: ``(B,)``, or ``(B, C)`` where each class has an answer of its own.
        where: The task.
        ignore: The value that is not counted (NaN is one); None: every label counts.

    Raises:
        TaskError: No tensor, another shape, or a value that is neither.
    """
    several = len(shape) > 1
    if not isinstance(label, Tensor) or label.shape != tuple(shape):
        what = f"labels of the output's shape {tuple(shape)}" if several else "one logit and one label for each example"
        told = str(tuple(label.shape)) if isinstance(label, Tensor) else f"a {type(label).__name__}"
        raise TaskError(where, expected=what, got=told if several else f"{shape[0]} logits and labels {told}")
    wide = label.double()
    if ignore is not None:
        wide = wide.masked_fill(wide.isnan() if math.isnan(ignore) else wide == ignore, math.nan)
    strange = ~((wide >= 0) & (wide <= 1))
    if ignore is not None:
        strange &= ~wide.isnan()
    if bool(strange.any()):
        value = float(wide[strange][0])
        raise TaskError(
            f"{where}: label",
            expected="0, 1 or a share between them",
            got=f"{value:g}",
            do=_remedy(value, several=several),
        )
    return wide


def _remedy(value: float, *, several: bool) -> str:
    """Return what the user of such a label may have meant."""
    if value > 1:
        return "Labels of 1 and 2: pass y - 1. Counts and grades: fi.Regression()."
    signs = "Labels of -1 and 1: pass (y + 1) / 2. " if value == -1 else ""
    if not several:
        return signs or "Leave out the rows that have no label."
    name = "float('nan')" if math.isnan(value) else f"{value:g}"
    return f"{signs}Labels that are missing: MultiLabel(ignore={name})."


def numbers(target: Any, where: str) -> Tensor:
    """Return targets as float64.

    Raises:
        TaskError: No tensor of real numbers.
    """
    if not isinstance(target, Tensor) or target.is_complex():
        got = f"a {type(target).__name__}" if not isinstance(target, Tensor) else str(target.dtype)
        raise TaskError(where, expected="targets as a tensor of numbers", got=got, do="Say where they are with label=.")
    return target.double()


def weights(value: Any, where: str) -> Tensor | None:
    """Return weights as a tensor, from a number, list, array or tensor; or None.

    Raises:
        SettingError: Not finite numbers of at least 0.
    """
    if value is None:
        return None
    try:
        found = torch.as_tensor(value)
        fine = found.ndim <= 1 and not found.is_complex() and bool(((found >= 0) & found.isfinite()).all())
    except (TypeError, ValueError, RuntimeError):
        fine = False
    if not fine:
        raise SettingError(f"{where}(weight=)", expected="finite numbers ≥ 0", got=repr(value))
    return found
