"""Before anything is scored, a few rows are read twice; and how much a reading depends on its company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.errors import DataError, NoiseError
from forwardinf.core.fingerprint import row_digest
from forwardinf.data import noise
from forwardinf.data.examples import Examples
from forwardinf.gradients.compare import COMPANY, MIXED
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.root import root

AGAIN = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
FEW = 8  # rows that are read twice as a batch
ALONE = 4  # of them, read one at a time
ULPS = 4  # a loss cannot be read better than a few roundings of the model's own dtype


@dataclass(frozen=True)
class Floor:
    """How far what is read moves when only its batch changes.

    Attributes:
        loss: Of the loss, in its unit.
        root: Of its root (:mod:`forwardinf.tasks.root`).
    """

    loss: float
    root: float

    def raised(self, loss: Tensor, root: Tensor) -> Floor:
        """Return the floor, not below these."""
        return Floor(max(self.loss, float(loss)), max(self.root, float(root)))


def noise_floor(feed: Feed, rows: Sequence[int], batch_size: int) -> Floor:
    """Return how far a loss moves when only its batch changes; refuse what cannot be read twice.

    The first batch is read whole; its first rows, and the last ones there are, are read twice as a small batch (those must
    agree to rounding) and a few of them alone, as queries are read. Those differences are the noise under which no score
    means anything. Cost: about a batch and forty rows.

    Raises:
        NoiseError: Two readings of the same batch differ, or an example's loss depends on the others in its batch.
        DataError: The collate draws at random.
    """
    size = min(batch_size, len(rows))
    first, few = rows[:size], rows[: min(FEW, size)]
    _same_collate(feed.examples, first)
    floor = _of_a_batch(feed, few, Floor(0.0, 0.0), feed.losses(first, size)[: len(feed.examples.units_of(few))])
    if len(rows) > size:
        last = rows[max(size, len(rows) - min(FEW, size)) :]
        _same_collate(feed.examples, last)
        floor = _of_a_batch(feed, last, floor)
    return floor


def _of_a_batch(feed: Feed, rows: Sequence[int], floor: Floor, in_company: Tensor | None = None) -> Floor:
    """Return the floor raised by what these rows' losses are, read together twice, in greater company, and alone."""
    dtype = next((p.dtype for p in feed.model.parameters() if p.is_floating_point()), torch.float32)
    first, again = feed.losses(rows, len(rows)), feed.losses(rows, len(rows))
    if _apart(first, again) > AGAIN.get(dtype, 5e-3):
        raise NoiseError(
            f"two readings of rows {rows[0]} to {rows[-1]}", expected="the same losses",
            got=f"losses that differ by {float((first - again).abs().max()):.2g}",
            do="Something draws at random in the forward or is not deterministic: turn it off, or key it by example "
            "(forwardinf.data.noise.normal).",
        )  # fmt: skip
    rounding = ULPS * torch.finfo(dtype).eps
    floor = floor.raised(*(rounding * each.abs().mean().clamp_max(1.0) for each in (first, root(first))))
    others = {"alone": feed.losses(rows[:ALONE], 1)}
    if in_company is not None:
        others["in a whole batch"] = in_company
    for how, other in others.items():
        same = first[: len(other)]
        if _apart(same, other) > COMPANY.get(dtype, 2e-1):
            raise NoiseError(
                f"rows {rows[0]} to {rows[-1]} read {len(rows)} at a time and {how}",
                expected="losses that belong to the example",
                got=f"losses that differ by {float((same - other).abs().max()):.2g}",
                do=MIXED,
            )  # fmt: skip
        floor = floor.raised((same - other).abs().max(), (root(same) - root(other)).abs().max())
    return floor


def _apart(one: Tensor, other: Tensor) -> float:
    return float(((one - other).abs() / (1 + one.abs())).max()) if len(one) else 0.0


def _same_collate(examples: Examples, rows: Sequence[int]) -> None:
    """Join the same examples twice under two states of the generators; the batches must be equal."""
    if examples.sliced:
        return
    with noise.own_state():
        fetched = [examples[row] for row in rows]
        digests = []
        for seed in (1, 2):
            noise.seed_all(seed)
            digests.append(row_digest(examples.collate(list(fetched), rows)))
    if digests[0] != digests[1]:
        raise DataError(
            "collate_fn", expected="the same batch for the same examples", got="a batch that changes with the random state",
            do="Mixing examples (MixUp, CutMix) or random masking has no per-example loss: use the plain collate.",
        )  # fmt: skip
