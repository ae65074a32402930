"""Ids that a user gives to examples: a list, or a column of the rows themselves."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from forwardinf.core.errors import DataError

Id = int | str
ABSENT = object()


def plain_id(value: Any) -> Any:
    """Return a whole number of any library as Python's own; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    return int(value) if isinstance(value, numbers.Integral) else value


def field_of(example: Any, name: str, where: str) -> Any:
    """Return a named part of an example: of a mapping, or of an object of a class.

    Raises:
        DataError: It has none of that name.
    """
    found = example.get(name, ABSENT) if isinstance(example, Mapping) else getattr(example, name, ABSENT)
    if found is ABSENT:
        raise DataError(
            where, expected=f"rows that are mappings with {name!r}", got="other rows", do="Pass ids as a list."
        )
    return found


def check_ids(values: Sequence[Any], size: int, where: str) -> None:
    """Refuse ids that are not ``size`` unique texts or whole numbers.

    Raises:
        DataError: Says which is not.
    """
    if len(values) != size:
        raise DataError(where, expected=f"{size}, one for each example", got=str(len(values)))
    seen: set[Id] = set()
    for place, value in enumerate(values):
        if not isinstance(value, int | str) or value == "":
            raise DataError(f"{where}, position {place}", expected="text or a whole number", got=repr(value)[:100])
        if value in seen:
            raise DataError(f"{where}, position {place}", expected="unique values", got=f"{value!r} for the second time",
                            do="Give each example its own id.")  # fmt: skip
        seen.add(value)
