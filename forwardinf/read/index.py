"""An index: how every training example responds to M shared perturbations, in files that are mapped, not loaded.

It grows by rows (more training data) and by probes, and is filled tile by tile: a killed filling loses one tile at most. Two
ways to fill it give the same numbers, gᵢᵀu_m: differences of losses (forward passes alone), or projections of per-example
gradients (one pass).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.errors import FileError
from forwardinf.core.feed import Feed
from forwardinf.core.files import read_json, write_json
from forwardinf.core.per_example import factored
from forwardinf.core.progress import Advance
from forwardinf.core.recording import Parameters
from forwardinf.core.uses import Use
from forwardinf.read.engine import silent

FORMAT = "forwardinf.responses/1"
COLUMNS, ROWS = 16, 1024  # probes of a tile filled by forward passes; examples of one filled by projections
Tile = tuple[int, int, int, int]  # rows from, to; probes from, to
Lent = Callable[[], AbstractContextManager[None]]


class ResponseFiles:
    """R ``(N, M)`` float32 in a folder: one file for the probes of each widening, examples in order.

    Attributes:
        parts: Where the rows of each appending begin and end.
        blocks: Where the probes of each widening begin and end: a file each.
        done: The tiles that are filled.
    """

    def __init__(self, folder: Path) -> None:
        """Open what is there, or start with nothing."""
        self.folder = folder
        self.parts: list[tuple[int, int]] = []
        self.blocks: list[tuple[int, int]] = []
        self.done: set[Tile] = set()
        if self._list.is_file():
            kept = read_json(self._list, FORMAT, what="an index of responses")
            self.parts = [(int(a), int(b)) for a, b in kept["parts"]]
            self.blocks = [(int(a), int(b)) for a, b in kept["blocks"]]
            self.done = {(int(a), int(b), int(c), int(d)) for a, b, c, d in kept["done"]}
            for number, (start, stop) in enumerate(self.blocks):
                size = self._file(number).stat().st_size if self._file(number).is_file() else -1
                if size != 4 * self.rows * (stop - start):
                    raise FileError(str(self._file(number)), expected=f"{4 * self.rows * (stop - start)} bytes",
                                    got="no such file" if size < 0 else f"{size}",
                                    do="The index is damaged: build it in another folder.")  # fmt: skip

    @property
    def rows(self) -> int:
        """N."""
        return self.parts[-1][1] if self.parts else 0

    @property
    def probes(self) -> int:
        """M."""
        return self.blocks[-1][1] if self.blocks else 0

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return 4 * self.rows * self.probes

    def grow(self, rows: int, probes: int) -> None:
        """Make room for so many more rows, and for so many probes in all.

        Raises:
            FileError: The disk has no room for it.
        """
        more = 4 * ((self.rows + rows) * max(probes, self.probes)) - self.nbytes
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if more > free:
            raise FileError(str(self.folder), expected=f"room for {more / 2**30:.1f} GiB of responses",
                            got=f"{free / 2**30:.1f} GiB free", do="Take fewer probes, or another disk.")  # fmt: skip
        if rows:
            self.parts.append((self.rows, self.rows + rows))
        if probes > self.probes:
            self.blocks.append((self.probes, probes))
        for number, (start, stop) in enumerate(self.blocks):
            with self._file(number).open("ab") as file:
                file.truncate(4 * self.rows * (stop - start))
        self._write()

    def todo(self, *, whole_rows: bool) -> list[Tile]:
        """Return the tiles that are missing: a few probes of all rows of a part, or all probes (``whole_rows``) of some."""
        found = []
        for first, last in self.parts:
            for start, stop in self.blocks:
                if whole_rows:
                    found += [(at, min(at + ROWS, last), start, stop) for at in range(first, last, ROWS)]
                else:
                    found += [(first, last, at, min(at + COLUMNS, stop)) for at in range(start, stop, COLUMNS)]
        return [tile for tile in found if tile not in self.done]

    def put(self, tile: Tile, values: Tensor) -> None:
        """Keep a tile's responses, ``(rows, probes)``."""
        first, last, start, stop = tile
        number = next(n for n, block in enumerate(self.blocks) if block[0] <= start < block[1])
        mapped = self._mapped(number, "r+")
        mapped[first:last, start - self.blocks[number][0] : stop - self.blocks[number][0]] = values.numpy()
        mapped.flush()
        self.done.add(tile)
        self._write()

    def table(self, probes: int | None = None) -> Tensor:
        """Return R, of the first ``probes``: mapped where one file holds them all, else in memory."""
        wanted, found = self.probes if probes is None else probes, []
        for number, (start, stop) in enumerate(self.blocks):
            if start < wanted:
                part = torch.from_numpy(self._mapped(number, "c"))  # written to nowhere, but torch wants to be able to
                found.append(part[:, : min(stop, wanted) - start])
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    @property
    def _list(self) -> Path:
        return self.folder / "responses.json"

    def _file(self, number: int) -> Path:
        return self.folder / f"responses-{number:03d}.f32"

    def _mapped(self, number: int, mode: Any) -> np.memmap[Any, np.dtype[np.float32]]:
        start, stop = self.blocks[number]
        return np.memmap(self._file(number), np.float32, mode, shape=(self.rows, stop - start))

    def _write(self) -> None:
        write_json(
            self._list, {"format": FORMAT, "parts": self.parts, "blocks": self.blocks, "done": sorted(self.done)}
        )


def by_differences(
    ask: Callable[[], Tensor], sides: Callable[[int], tuple[Sequence[Lent], float]], probes: Sequence[int],
    before: Tensor | None = None, advance: Advance = silent,
) -> Tensor:  # fmt: skip
    """Return the rates at which what is asked changes along these probes, ``(examples, …, probes)`` float64.

    Args:
        ask: Reads every example under whatever weights the model holds, ``(examples, …)`` float64.
        sides: A probe's ways to move the model (there and back, or one way only) and the length of a step.
        probes: Which.
        before: What is asked of the model unmoved, for probes that move one way.
        advance: Told of probes done.
    """
    found = []
    for m in probes:
        lent, step = sides(m)
        read = []
        for way in lent:
            with way():
                read.append(ask())
        other = read[1] if len(read) > 1 else before
        assert other is not None
        found.append((read[0] - other) / (step * len(read)))
        advance(1)
    return torch.stack(found, -1)


def by_projection(
    feed: Feed, rows: Sequence[int], parameters: Parameters, respond: Callable[[Sequence[Use], int], Tensor],
    batch_size: int, advance: Advance = silent,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Yield (responses ``(B, M)`` float32, losses ``(B,)`` float64) of batches of rows, in order, from their gradients.

    Cost: one forward, one activation-only backward, and the projections.
    """
    for units, losses, uses in factored(feed, rows, parameters, batch_size):
        yield respond(uses, len(units)).float().cpu(), losses
        advance(len(units))
