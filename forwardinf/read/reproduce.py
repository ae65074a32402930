"""Nothing that was kept is believed until it reproduces itself: a few of its losses are computed again, by the model as it is.

What is kept is named by a digest of model, data and code. A digest cannot see all that a loss depends on: a module that the task
imports, an attribute of an object's class, an environment variable, what a hook closes over. The numbers themselves can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forwardinf.read.noise_floor import Floor
from forwardinf.tasks.feed import Feed

ROWS = 32  # read again: at most two batches
AGAIN = 4  # times the noise floor, which was measured on two batches and not on these
ROUNDING = 1e-5  # relative, or so many roundings of a coarser dtype


def differing(feed: Feed, losses: Tensor, floor: Floor, batch_size: int) -> tuple[float, float] | None:
    """Return (a kept loss, the same now) where kept losses are not those that are read now, to the noise floor; else None.

    The rows are spread evenly over the order of their losses: large, small and middling ones, of every part of the data.

    Args:
        feed: Model and training data.
        losses: Of all units, NaN where none is kept.
        floor: What a reading cannot tell apart.
        batch_size: Examples at a time.
    """
    rows = _spread(feed, losses)
    if not rows:
        return None
    kept = losses[torch.from_numpy(feed.examples.units_of(rows))]
    return apart(feed, kept, feed.losses(rows, max(1, min(batch_size, ROWS // 2))), floor.loss)


def apart(feed: Feed, kept: Tensor, now: Tensor, floor: float) -> tuple[float, float] | None:
    """Return the pair that differs most, where that is more than noise; NaN among the kept counts for nothing."""
    dtypes = [p.dtype for p in feed.model.parameters() if p.is_floating_point()]
    rounding = max([ROUNDING, *(AGAIN * torch.finfo(dtype).eps for dtype in dtypes[:1])])
    off = torch.where(kept == now, 0.0, (kept - now).abs()).nan_to_num(nan=float("inf"))
    excess = off - (AGAIN * floor + rounding * (1 + now.abs().nan_to_num(posinf=0.0)))
    excess[torch.isnan(kept)] = -1.0
    if not len(excess) or float(excess.max()) <= 0:
        return None
    worst = int(excess.argmax())
    return float(kept[worst]), float(now[worst])


def _spread(feed: Feed, losses: Tensor) -> Sequence[int]:
    """Return rows of kept losses, spread over their order, ascending."""
    there = torch.nonzero(~torch.isnan(losses)).flatten()
    if not len(there):
        return []
    order = there[torch.argsort(losses[there], stable=True)].numpy()
    places = np.linspace(0, len(order) - 1, min(ROWS, len(order))).round().astype(np.int64)
    found = np.searchsorted(feed.examples.offsets, order[places], side="right") - 1
    return [int(row) for row in np.unique(found)]
