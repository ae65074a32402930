"""Files of the cache: named tensors and a plain header in one safetensors file, whole or absent, with a checksum of its content.

A cache is only worth what is certain about it: a file that is damaged, or no longer what was written, counts as absent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forwardinf.core.files import written
from forwardinf.core.fingerprint import digest

STALE = "of a task or model that gives other numbers now"

Found = tuple[dict[str, Tensor], dict[str, Any]]


def write_kept(path: Path, tensors: dict[str, Tensor], header: dict[str, Any], format: str) -> None:
    """Write tensors and what is to be known about them, at once or not at all."""
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    about = json.dumps({"format": format, **header})
    with written(path) as part:
        # one entry: several would be written in any order, and equal files have equal bytes
        save_file(plain, part, metadata={"kept": json.dumps([about, digest(about, plain)])})


def read_kept(
    path: Path | None, format: str, device: torch.device | str = "cpu", notes: list[str] | None = None
) -> Found | None:
    """Return (tensors, header), or None where there is no file, or none of this format.

    One whose content is not what its checksum says is removed, and ``notes`` told. Cost of the checksum: about 1 s a GiB.
    """
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())  # cloned: products round differently where memory is not aligned
            tensors = {name: file.get_tensor(name).clone() for name in names}
        about, checksum = json.loads(metadata["kept"])
        if checksum != digest(about, tensors):
            raise ValueError("another content")
        header = json.loads(about)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        discard(path, "damaged", notes)
        return None
    if header.get("format") != format:
        return None
    return {name: tensor.to(device) for name, tensor in tensors.items()}, header


def discard(path: Path, why: str, notes: list[str] | None) -> None:
    """Remove a kept file that cannot be used, and say so: what it held is made anew."""
    path.unlink(missing_ok=True)
    if notes is not None:
        notes.append(f"cache: {path.parent.name}/{path.name} is {why}: made anew")
