"""An index of responses in a folder of pieces: R ``(N, M)`` in tiles, which examples and how many probes there are.

It grows by rows (more training data) and by probes, and is filled tile by tile: what is there is the listing, so a killed
filling goes on, and two fillings at once share their tiles. Two ways to fill it give the same numbers, gᵢᵀu_m: differences
of losses (forward passes alone), or projections of per-example gradients (one pass).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from forwardinf.core.errors import DataError, FileError
from forwardinf.core.machine import free_bytes
from forwardinf.core.pieces import Piece, Pieces
from forwardinf.data.examples import Id

COLUMNS, ROWS = 16, 1024  # probes of a tile filled by forward passes; examples of one filled by projections


class Tile(NamedTuple):
    """Rows (of one part) and probes, from and to."""

    part: int
    first: int
    last: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The name of its piece."""
        return f"tile-{self.part:03d}-{self.first:09d}-{self.last:09d}-{self.start:06d}-{self.stop:06d}"


class Part(NamedTuple):
    """Examples that were added at once.

    Attributes:
        data: Digest of their content.
        ids: Theirs.
        losses: Theirs, ``(rows,)`` float64.
    """

    data: str
    ids: list[Id]
    losses: Tensor


class ResponseFiles:
    """The pieces of an index of responses.

    Attributes:
        parts: Which examples there are, in order.
        probes: M.
    """

    def __init__(self, folder: Path) -> None:
        """See what is there."""
        self.pieces = Pieces(folder)
        self.parts: list[Part] = []
        self.probes = 0
        self._table: Tensor | None = None
        self.refresh()

    @property
    def rows(self) -> int:
        """N."""
        return sum(len(part.ids) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return 4 * self.rows * self.probes

    def refresh(self) -> None:
        """See what others have put."""
        names = self.pieces.names("part-")
        for number in range(len(self.parts), len(names)):
            piece = self._sound(f"part-{number:03d}")
            ids = json.loads(piece.tensors["ids"].numpy().tobytes())
            self.parts.append(Part(str(piece.about["data"]), ids, piece.tensors["losses"]))
        self.probes = max([int(name.removeprefix("probes-")) for name in self.pieces.names("probes-")], default=0)

    def _sound(self, name: str) -> Piece:
        piece = self.pieces.get(name)
        if piece is None:
            raise FileError(str(self.pieces.path(name)), expected="a piece of an index", got="a damaged or missing file",
                            do="Build the index in another folder.")  # fmt: skip
        return piece

    def room_for(self, rows: int, probes: int) -> None:
        """Refuse what the disk has no room for: so many more rows, so many probes in all."""
        more = 4 * ((self.rows + rows) * max(probes, self.probes)) - self.nbytes
        there = next(path for path in (self.pieces.folder, *self.pieces.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        if more > free:
            raise FileError(str(self.pieces.folder), expected=f"room for {more / 2**30:.1f} GiB of responses",
                            got=f"{free / 2**30:.1f} GiB free", do="Take fewer probes, or another disk.")  # fmt: skip

    def add(self, data: str, ids: Sequence[Id] | None, losses: Tensor, probes: int) -> int:
        """Put examples after those that are there, unless they are there already; return their part's number.

        ``ids``: None: the positions that follow.
        """
        while True:
            self.refresh()
            found = self.find(data)
            if found is not None:
                return found
            names: list[Id] = list(range(self.rows, self.rows + len(losses))) if ids is None else list(ids)
            taken = {value for part in self.parts for value in part.ids}
            twice = [value for value in names if value in taken]
            if twice:
                raise DataError("index.append(ids=)", expected="ids that are not taken", got=repr(twice[0]))
            self.room_for(len(losses), probes)
            told = torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8)
            self.pieces.put(f"part-{len(self.parts):03d}", {"ids": told, "losses": losses}, {"data": data})

    def find(self, data: str) -> int | None:
        """Return the number of the part with this content."""
        return next((number for number, part in enumerate(self.parts) if part.data == data), None)

    def widen(self, probes: int) -> None:
        """Say that there are to be so many probes."""
        if probes > self.probes:
            self.room_for(0, probes)
            self.pieces.put(f"probes-{probes:06d}", {"count": torch.tensor([probes])})
            self.refresh()

    def todo(self, *, whole_rows: bool, part: int | None = None) -> list[Tile]:
        """Return the tiles that are missing: a few probes of all rows of a part, or all probes (``whole_rows``) of some."""
        there: dict[tuple[int, int, int], list[Tile]] = {}
        for tile in self._tiles():
            there.setdefault(tile[:3], []).append(tile)
        found = []
        for number in range(len(self.parts)) if part is None else [part]:
            size = len(self.parts[number].ids)
            step, wide = (ROWS, self.probes) if whole_rows else (size, COLUMNS)
            for first in range(0, size, step):
                last = min(first + step, size)
                at = _covered(there.get((number, first, last), []))
                while at < self.probes:
                    tile = Tile(number, first, last, at, min(at + wide, self.probes))
                    found.append(tile)
                    at = _covered([*there.get((number, first, last), []), tile], at)
        return found

    def _tiles(self) -> list[Tile]:
        return [Tile(*map(int, name.split("-")[1:])) for name in self.pieces.names("tile-")]

    def of(self, part: int) -> list[Tile]:
        """Return the tiles of a part that are there."""
        return [tile for tile in self._tiles() if tile.part == part]

    def sound(self, part: int) -> list[Tile]:
        """Read a part's tiles: what is damaged is missing from then on. Return them."""
        return [tile for tile in self.of(part) if self.pieces.get(tile.name) is None]

    def drop(self, tile: Tile) -> None:
        """Count a tile as missing: it is put anew."""
        self.pieces.damaged.add(tile.name)
        self._table = None

    def get(self, tile: Tile) -> Tensor | None:
        """Return a tile's responses; None where it is not there, or damaged."""
        piece = self.pieces.get(tile.name) if tile.name in self.pieces else None
        return None if piece is None else piece.tensors["values"]

    def put(self, tile: Tile, values: Tensor) -> None:
        """Keep a tile's responses, ``(rows, probes)``."""
        self.pieces.put(tile.name, {"values": values})

    def table(self, probes: int | None = None) -> Tensor:
        """Return R of the first ``probes``, checked; kept in memory for the next call."""
        wanted = self.probes if probes is None else min(probes, self.probes)
        if self._table is None or self._table.shape[0] != self.rows or self._table.shape[1] < wanted:
            self._table = self._read(wanted)
        return self._table[:, :wanted]

    def _read(self, wanted: int) -> Tensor:
        size, free = 4 * self.rows * wanted, free_bytes(torch.device("cpu"))
        if free and size > free:
            raise FileError(str(self.pieces.folder), expected=f"{size / 2**30:.1f} GiB of memory for the responses",
                            got=f"{free / 2**30:.1f} GiB free", do="Ask fewer of them: probes=.")  # fmt: skip
        found = torch.empty(self.rows, wanted)
        starts = [sum(len(part.ids) for part in self.parts[:number]) for number in range(len(self.parts))]
        for tile in self._tiles():
            if tile.start < wanted:
                values = self._sound_tile(tile)[:, : wanted - tile.start]
                at = starts[tile.part]
                found[at + tile.first : at + tile.last, tile.start : tile.start + values.shape[1]] = values
        return found

    def _sound_tile(self, tile: Tile) -> Tensor:
        values = self.get(tile)
        if values is None or values.shape != (tile.last - tile.first, tile.stop - tile.start):
            raise FileError(str(self.pieces.path(tile.name)), expected="responses as they were put", got="a damaged file",
                            do="Make the call that built the index again: only this piece is read anew.")  # fmt: skip
        return values


def _covered(tiles: list[Tile], at: int = 0) -> int:
    """Return how many probes the tiles of some rows hold without a gap."""
    while True:
        further = max((tile.stop for tile in tiles if tile.start <= at), default=at)
        if further <= at:
            return at
        at = further
