"""What takes long to make is kept in ``benchmarks/.cache``, each file whole or not at all."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forwardinf.core.files import write_json, written

CACHE = Path(__file__).parent / ".cache"


def place(*parts: str) -> Path:
    """Return a path in the cache."""
    return CACHE.joinpath(*parts)


def kept_json(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return plain values from a file, or make them and keep them there."""
    if not path.exists():
        write_json(path, make())
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found.pop("checksum", None)
    return found


def kept_arrays(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return arrays from a file, or make them and keep them there."""
    if not path.exists():
        made = make()
        with written(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **made)
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def kept_tensors(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from a file, or make them and keep them there."""
    if not path.exists():
        save_tensors(path, make())
    return load_file(path)


def kept_model(path: Path, build: Callable[[], nn.Module], make: Callable[[], nn.Module]) -> nn.Module:
    """Return a trained network in eval mode: from its file, or trained now and kept there."""
    weights = kept_tensors(path, lambda: make().state_dict())
    model = build()
    model.load_state_dict(weights)
    return model.eval()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, on the CPU and apart from one another."""
    with written(path) as part:
        save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, part)
