"""A long fit, kept in parts: rows of a matrix, each part whole or absent, so that an interrupted fit goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from forwardinf.core.cache_files import STALE, discard, read_kept, write_kept
from forwardinf.core.fingerprint import digest
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.reproduce import believed, witness

FORMAT = "forwardinf.rows/1"
LABELS = "training"


class Shards:
    """The parts of one fit, rows in order; in memory, and under ``cache/fits/<digest>/`` where a fit may be kept.

    Args:
        fitting: Gives the cache and the digest of model, data and task.
        made_from: Whatever else the fit depends on.
    """

    def __init__(self, fitting: Fitting, *made_from: object) -> None:
        """Find what an earlier fit left."""
        self.fitting = fitting
        self.folder: Path | None = None
        if fitting.cache is not None and fitting.key is not None:
            device = next(iter(fitting.parameters.values())).device.type
            name = digest(FORMAT, fitting.key, sorted(fitting.parameters), device, *made_from)
            self.folder = fitting.cache / "fits" / name
        self.parts: list[Tensor] = []
        while (part := self._load(len(self.parts))) is not None:
            self.parts.append(part)

    @property
    def rows(self) -> int:
        """How many rows there are so far."""
        return sum(map(len, self.parts))

    def add(self, part: Tensor) -> None:
        """Keep the next rows, float32."""
        plain = part.detach().float().cpu().contiguous()
        if self.folder is not None:
            write_kept(self._path(len(self.parts)), {"rows": plain}, self._about(), FORMAT)
        self.parts.append(plain)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"p-{number:05d}.safetensors"

    def _about(self) -> dict[str, object]:
        return {"start": self.rows, "witness": witness(self.fitting, self.fitting.train, LABELS).to_dict()}

    def _load(self, number: int) -> Tensor | None:
        """Return a kept part, or None. One that is damaged or no longer true counts as none, and so does all that follows it."""
        if self.folder is None:
            return None
        path, notes = self._path(number), self.fitting.notes
        kept = read_kept(path, FORMAT, notes=notes)
        if kept is None or kept[1].get("start") != self.rows:
            path.unlink(missing_ok=True)
            return None
        if not believed(self.fitting, self.fitting.train, LABELS, kept[1]):
            discard(path, STALE, notes)
            return None
        return kept[0]["rows"]


def joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts as one matrix."""
    return torch.cat(list(parts))
