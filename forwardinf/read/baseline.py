"""The baseline: every training example's loss before any perturbation. Read once, kept under a digest of its content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from forwardinf.core.cache_files import STALE, discard, read_kept, write_kept
from forwardinf.core.fingerprint import digest
from forwardinf.read.noise_floor import Floor
from forwardinf.read.reproduce import differing
from forwardinf.tasks.feed import Feed

FORMAT = "forwardinf.baseline/3"


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


def load_baseline(path: Path | None, feed: Feed, batch_size: int, notes: list[str]) -> Baseline | None:
    """Return a kept baseline, or None. One that is damaged, or that the model does not give any more, counts as none.

    Cost: its checksum, and at most two batches, which must give the losses that are kept (:mod:`forwardinf.read.reproduce`).
    """
    kept = read_kept(path, FORMAT, notes=notes)
    if kept is None:
        return None
    assert path is not None
    try:
        losses, header = kept[0]["losses"], kept[1]
        found = Baseline(losses, Floor(float(header["floor"]), float(header["root_floor"])))
    except (KeyError, TypeError, ValueError):
        discard(path, "not one of ours", notes)
        return None
    if len(losses) != feed.examples.units or differing(feed, losses, found.floor, batch_size):
        discard(path, STALE, notes)
        return None
    return found


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Keep a baseline for later calls. 8 bytes an example."""
    write_kept(
        path, {"losses": baseline.losses}, {"floor": baseline.floor.loss, "root_floor": baseline.floor.root}, FORMAT
    )
