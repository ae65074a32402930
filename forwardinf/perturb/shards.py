"""A long fit, kept in parts: rows of a matrix, each part whole or absent, so that an interrupted fit goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from forwardinf.core.fingerprint import digest
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.kept import FORMAT, read_kept, write_kept


class Shards:
    """The parts of one fit, rows in order; in memory, and under ``cache/fits/<digest>/`` where a fit may be kept.

    Args:
        fitting: Gives the cache and the digest of model, data and task.
        made_from: Whatever else the fit depends on.
    """

    def __init__(self, fitting: Fitting, *made_from: object) -> None:
        """Find what an earlier fit left."""
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
            write_kept(self._path(len(self.parts)), {"rows": plain}, {"start": self.rows})
        self.parts.append(plain)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"p-{number:05d}.safetensors"

    def _load(self, number: int) -> Tensor | None:
        """Return a kept part, or None. A damaged one counts as none, and so does all that follows it."""
        if self.folder is None:
            return None
        kept = read_kept(self._path(number))
        if kept is not None and kept[1].get("start") == self.rows:
            return kept[0]["rows"]
        self._path(number).unlink(missing_ok=True)
        return None


def joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts as one matrix."""
    return torch.cat(list(parts))
