"""The baseline: every training example's loss before any perturbation. Read once, kept under a digest of its content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from forwardinf.core.feed import Feed
from forwardinf.core.files import written
from forwardinf.core.fingerprint import digest
from forwardinf.read.check import Floor

FORMAT = "forwardinf.baseline/2"


@dataclass(frozen=True)
class Baseline:
    """Losses before, ``(units,)`` float64 (NaN where not read), and what a reading cannot tell apart."""

    losses: Tensor
    floor: Floor


def baseline_key(feed: Feed, model: str, data: str, task: str | None, batch_size: int) -> str | None:
    """Return the name under which a baseline may be used again, or None where the task's code cannot be told.

    The same losses come out only under the same dtype, device type, layout, batch size, threads and torch version.
    """
    if task is None:
        return None
    return digest(model, data, task, feed.device.type, feed.channels_last, batch_size, feed.seed,
                  torch.get_num_threads(), torch.__version__)  # fmt: skip


def load_baseline(path: Path | None) -> Baseline | None:
    """Return a kept baseline, or None. A damaged file counts as none (and is read again)."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                return None
            return Baseline(
                torch.from_numpy(file.get_tensor("losses")), Floor(float(header["floor"]), float(header["root_floor"]))
            )
    except (SafetensorError, OSError, KeyError, ValueError):
        path.unlink(missing_ok=True)
        return None


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Keep a baseline for later calls. 8 bytes an example."""
    header = {"format": FORMAT, "floor": repr(baseline.floor.loss), "root_floor": repr(baseline.floor.root)}
    with written(path) as part:
        save_file({"losses": np.ascontiguousarray(baseline.losses.numpy())}, part, metadata=header)
