"""Files of weights, read as tensors by name and never by running code from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from forwardinf.core.bounds import check_archive
from forwardinf.core.errors import Error, FileError, SettingError, choose

PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt")

State = dict[str, Tensor]


def read_tensors(path: Path, key: str | None) -> State:
    """Read a file of weights; ``key`` says where in it they are."""
    try:
        if path.suffix == ".safetensors":
            return tensors_in(load_file(path), key, str(path))
        if path.suffix in PICKLED:
            check_archive(path)
            return tensors_in(torch.load(path, map_location="cpu", weights_only=True), key, str(path))
    except Error:
        raise
    except pickle.UnpicklingError as error:
        raise FileError(
            str(path), expected="tensors only", got="a file that would run code when it is read, or a damaged one",
            do="Where you trust it, convert it once: safetensors.torch.save_model(model, 'model.safetensors').",
        ) from error  # fmt: skip
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, BadZipFile) as error:
        raise FileError(str(path), expected="a file of weights", got=f"a damaged or missing one ({error})") from error
    raise FileError(str(path), expected=f"a .safetensors file, or {', '.join(PICKLED)}", got=path.suffix or "no suffix")


def tensors_in(content: Any, key: str | None, where: str) -> State:
    """Return the mapping of names to tensors found under ``key``."""
    rest = key
    while rest:
        if not isinstance(content, Mapping):
            raise SettingError(f"{where}: weights_key {key!r}", expected=f"a mapping at {rest!r}", got="a value")
        step = rest if rest in content else rest.partition(".")[0]
        if step not in content:
            raise choose(f"{where}: weights_key", step, [str(name) for name in content])
        content, rest = content[step], rest[len(step) + 1 :]
    items = content.items() if isinstance(content, Mapping) else ()
    strange = [str(name) for name, value in items if not isinstance(value, Tensor)]
    if not items or strange:
        inside = [str(name) for name, value in items if isinstance(value, Mapping)]
        raise FileError(where, expected="a mapping of names to tensors",
                        got=f"other values at {', '.join(strange[:3])}" if strange else "something else",
                        do=f"Try weights_key= with one of {', '.join(inside[:5])}." if inside else "")  # fmt: skip
    return {str(name): value for name, value in items}
