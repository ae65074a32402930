"""Files of fits: tensors and a plain header in one safetensors file, whole or absent; a damaged one counts as absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forwardinf.core.files import written

FORMAT = "forwardinf.fit/1"


def write_kept(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and what is to be known about them, at once or not at all."""
    with written(path) as part:
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(plain, part, metadata={"about": json.dumps({"format": FORMAT, **header})})


def read_kept(path: Path | None, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return (tensors, header), or None where there is no file, or none of ours; a damaged one is removed."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {})["about"])
            if header["format"] != FORMAT:
                return None
            names = list(file.keys())  # cloned: products round differently where memory is not aligned
            return {name: file.get_tensor(name).clone() for name in names}, header
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        path.unlink(missing_ok=True)
        return None
