"""Columns of an ``.npz`` file as tensors, images scaled to what a model takes."""

from __future__ import annotations

import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.bounds import check_arrays
from forwardinf.core.errors import DataError, Error, FileError, SettingError, choose
from forwardinf.data.endings import SPLITS, choose_split


def read_arrays(source: str, given: dict[str, Any]) -> tuple[Tensor, ...]:
    """Read the arrays of a file as columns, in file order or that of ``columns``."""
    if not zipfile.is_zipfile(source):
        raise FileError(source, expected="an .npz file", got="a damaged one, or another kind of file")
    try:
        check_arrays(Path(source))
        with np.load(source, allow_pickle=False) as file:
            columns, arrays = _columns_of(source, list(file.files), given.get("split")), {}
            for name in given.get("columns") or columns:
                if name not in columns:
                    raise choose(f"{source}: column", name, columns)
                arrays[name] = file[columns[name]]
    except Error:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        LZMAError,
    ) as error:
        if "allow_pickle" not in str(error):
            raise FileError(source, expected="an .npz file", got=f"a damaged one ({error})") from error
        raise FileError(source, expected="arrays of numbers", got="arrays of objects, which would be unpickled",
                        do="Save them with a numeric dtype, or choose others with columns=.") from error  # fmt: skip
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise DataError(source, expected="columns of equal length", got=str(lengths),
                        do="Choose with columns=, or read the file in a function of your own (module:function).")  # fmt: skip
    pictures = [name for name, array in arrays.items() if array.dtype == np.uint8 and array.ndim >= 3]
    for setting in ("scale", "mean", "std"):
        if setting in given and not pictures:
            raise SettingError(f"{setting}=", expected="images: uint8 arrays of three dimensions or more",
                               got=str({name: f"{array.dtype}, {array.ndim} dimensions" for name, array in arrays.items()}),
                               do=f"Leave {setting}= out: other arrays are taken as they are.")  # fmt: skip
    floating = None if "dtype" not in given else as_dtype(given["dtype"])
    return tuple(_tensor(f"{source}: column {name!r}", array, floating, given) for name, array in arrays.items())


def _columns_of(source: str, names: list[str], split: str | None) -> dict[str, str]:
    """Map column names to names in the file, like ``x`` to ``x_test``, for the split asked for."""
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        left, _, right = name.rpartition("_")
        if left and right in SPLITS:
            parts.setdefault(right, {})[left] = name
        elif (begin := name.partition("_"))[0] in SPLITS and begin[2]:
            parts.setdefault(begin[0], {})[begin[2]] = name
    plain = {name: name for name in names if not any(name in part.values() for part in parts.values())}
    if parts and plain and "train" not in parts:
        parts["train"] = plain
    chosen = choose_split(source, split, sorted(parts))
    columns = parts[chosen] if chosen else plain
    if not columns:
        raise DataError(source, expected="at least one array", got="none")
    return columns


def _tensor(where: str, array: np.ndarray[Any, Any], dtype: torch.dtype | None, given: dict[str, Any]) -> Tensor:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(where, expected="numbers", got=f"an array of {array.dtype}", do="Choose others with columns=.")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype != np.uint8 or array.ndim < 3:
        tensor = torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array)
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    images = torch.from_numpy(array)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.ndim == 4 and images.shape[3] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        images = images.permute(0, 3, 1, 2)
    images = images.to(torch.float32, memory_format=torch.contiguous_format).mul_(given.get("scale", 1 / 255))
    images = normalised(images, given.get("mean"), given.get("std"), channels=1)
    return images if dtype is None else images.to(dtype)


def normalised(images: Tensor, mean: Any, std: Any, *, channels: int) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel (axis ``channels``), in place."""
    for name, value in (("mean", mean), ("std", std)):
        if value is None:
            continue
        numbers = torch.as_tensor(value, dtype=torch.float32)
        count = images.shape[channels]
        if numbers.numel() not in (1, count) or numbers.ndim > 1 or (name == "std" and not bool((numbers > 0).all())):
            raise SettingError(name, expected=f"one number, or {count}, one for each channel"
                               + (", above 0" if name == "std" else ""), got=repr(value))  # fmt: skip
        each = numbers.reshape(-1, *[1] * (images.ndim - channels - 1))
        images = images.sub_(each) if name == "mean" else images.div_(each)
    return images


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return the floating dtype of this name; anything else is a SettingError."""
    found = name if isinstance(name, torch.dtype) else getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SettingError("dtype", expected="'float32', 'float64', 'bfloat16' or 'float16'", got=repr(name))
    return found
