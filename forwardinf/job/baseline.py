"""The losses before any perturbation: recalled, left by the pass that reads exact scores, or read on their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from forwardinf.core.progress import Advance
from forwardinf.data.examples import Examples
from forwardinf.read.baseline import Baseline, save_baseline
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.noise_floor import Floor
from forwardinf.read.plan import shards
from forwardinf.score.store import Folder


class Before:
    """Every training example's loss before, as far as it is read.

    Args:
        examples: Training data.
        rows: Those that count.
        shard_rows: Rows of a file in the run folder.
        floor: What a reading cannot tell apart.
        known: Recalled from an earlier call, or None.
        folder: Of the run, or None: what an interrupted run has left there is taken.
        kept: The file in which the losses are kept for later calls, or None.

    Attributes:
        losses: ``(units,)`` float64 on the CPU; NaN where not read.
    """

    def __init__(
        self, examples: Examples, rows: Sequence[int], shard_rows: int, floor: Floor, known: Baseline | None = None,
        folder: Folder | None = None, kept: Path | None = None,
    ) -> None:  # fmt: skip
        """Keep where losses come from and go to."""
        self.examples, self.rows, self.shard_rows, self.floor = examples, rows, shard_rows, floor
        self.known, self.folder, self.kept = known, folder, kept
        self.losses = torch.full((examples.units,), float("nan"), dtype=torch.float64)

    def recall(self) -> int:
        """Take what is known and what the run folder holds; return how many rows are still to be read.

        Call it once the run folder is claimed.
        """
        for shard, piece in enumerate(self._pieces()):
            there = self.folder.base(shard, self.examples.units_of(piece)) if self.folder is not None else None
            if there is not None:
                self.losses[self._places(piece)] = torch.from_numpy(there)
            elif self.known is not None:
                self.put(piece, self.known.losses[self._places(piece)])
        return sum(len(piece) for piece in self._missing())

    def put(self, rows: Sequence[int], losses: Tensor) -> None:
        """Take the losses of one shard's rows, unless they are there; keep them in the run folder."""
        places = self._places(rows)
        if not self.losses[places].isnan().any():
            return
        self.losses[places] = losses
        if self.folder is not None:
            self.folder.write_base(self._pieces().index(rows), places.numpy(), losses.numpy())

    def read(self, engine: ForwardEngine, advance: Advance) -> None:
        """Read what is not there yet, and keep the whole for later calls."""
        for piece in self._missing():
            self.put(piece, engine.losses(piece, advance))
        if self.known is None and self.kept is not None:
            self.known = Baseline(self.losses, self.floor)
            save_baseline(self.kept, self.known)

    def of(self, rows: Sequence[int]) -> Tensor:
        """Return the losses of rows' units."""
        return self.losses[self._places(rows)]

    def _pieces(self) -> list[Sequence[int]]:
        return shards(self.rows, self.shard_rows)

    def _missing(self) -> list[Sequence[int]]:
        return [piece for piece in self._pieces() if self.of(piece).isnan().any()]

    def _places(self, rows: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.examples.units_of(rows))
