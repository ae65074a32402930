"""A long fit, kept in parts: rows of a matrix, each part whole or absent, so that an interrupted fit goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forwardinf.core.files import written
from forwardinf.core.fingerprint import digest
from forwardinf.perturb.direction import Fitting

FORMAT = "forwardinf.fit/1"


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
            with written(self._path(len(self.parts))) as file:
                save_file({"rows": plain}, file, metadata={"format": FORMAT, "start": str(self.rows)})
        self.parts.append(plain)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"p-{number:05d}.safetensors"

    def _load(self, number: int) -> Tensor | None:
        """Return a kept part, or None. A damaged one counts as none, and so does all that follows it."""
        if self.folder is None or not (path := self._path(number)).is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") == FORMAT and header.get("start") == str(self.rows):
                    return file.get_tensor("rows")  # type: ignore[no-any-return]
        except (SafetensorError, OSError, ValueError):
            pass
        path.unlink(missing_ok=True)
        return None


def joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts as one matrix."""
    return torch.cat(list(parts))
