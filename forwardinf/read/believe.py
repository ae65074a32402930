"""Nothing that was kept is believed until it reproduces itself: a few of its losses are computed again, by the model as it is.

What is kept is named by a digest of model, data and code. A digest cannot see all that a loss depends on: a module that the task
imports, an attribute of an object's class, an environment variable, what a hook closes over. The numbers themselves can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.feed import Feed
from forwardinf.read.check import Floor

ROWS = 32  # read again: at most two batches
AGAIN = 4  # times the noise floor, which was measured on two batches and not on these
ROUNDING = 1e-5  # relative; the floor of half precision is far above


def differing(feed: Feed, losses: Tensor, floor: Floor, batch_size: int) -> str:
    """Return how kept losses differ from what is read now, in words; nothing where they agree to the noise floor.

    The rows are spread evenly over the order of their losses: large, small and middling ones, of every part of the data.

    Args:
        feed: Model and training data.
        losses: Of all units, NaN where none is kept.
        floor: What a reading cannot tell apart.
        batch_size: Examples at a time.
    """
    rows = _spread(feed, losses)
    if not rows:
        return ""
    kept = losses[torch.from_numpy(feed.examples.units_of(rows))]
    now = feed.losses(rows, max(1, min(batch_size, ROWS // 2)))
    return told(kept, now, floor.loss)


def told(kept: Tensor, now: Tensor, floor: float) -> str:
    """Return the largest difference that is more than noise, in words, or nothing."""
    apart = torch.where(torch.isnan(kept), 0.0, (kept - now).abs())
    excess = apart - (AGAIN * floor + ROUNDING * (1 + now.abs()))
    if not len(excess) or not bool((excess > 0).any()):
        return ""
    worst = int(excess.argmax())
    return f"a loss of {float(kept[worst]):.6g} is {float(now[worst]):.6g} now"


def _spread(feed: Feed, losses: Tensor) -> Sequence[int]:
    """Return rows of kept losses, spread over their order, ascending."""
    there = torch.nonzero(~torch.isnan(losses)).flatten()
    if not len(there):
        return []
    order = there[torch.argsort(losses[there], stable=True)].numpy()
    places = np.linspace(0, len(order) - 1, min(ROWS, len(order))).round().astype(np.int64)
    found = np.searchsorted(feed.examples.offsets, order[places], side="right") - 1
    return [int(row) for row in np.unique(found)]
