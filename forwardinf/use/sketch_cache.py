"""Sketched gradients of training examples, kept in pieces: made once, checked when they are used again, made anew if stale."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from forwardinf.core.errors import FileError, ModelError
from forwardinf.core.fingerprint import digest
from forwardinf.core.pieces import Piece, Pieces, checksum
from forwardinf.core.progress import Advance
from forwardinf.use.whitening import Kept

Make = Callable[[Sequence[int], Advance], Tensor]
PIECE = 256  # examples of a piece: what a kill loses
DRAWN = 2  # rows of each kept piece that are made anew before it is used


class KeptRows:
    """Rows ``(examples, width)`` of one model, data, task and sketch, by their places in the training set.

    Args:
        folder: Of these rows alone; None: nothing is kept.
        make: Makes rows of places; told of rows done.
        width: Numbers of a row.
        dtype: Of the model's parameters: how closely rows can be made again.
        note: Told what a person should know.
    """

    def __init__(
        self, folder: Path | None, make: Make, width: int, dtype: torch.dtype, note: Callable[[str], None]
    ) -> None:
        """See what is there; no row is read."""
        self.pieces = None if folder is None else Pieces(folder)
        self._make, self._width, self._note = make, width, note
        self._close = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
        self._sums: list[str] = []

    def places(self) -> dict[str, list[int]]:
        """Return the places of each piece that is there."""
        found = {}
        for name in [] if self.pieces is None else self.pieces.names("rows-"):
            try:
                with safe_open(self.pieces.path(name), "pt") as file:  # type: ignore[union-attr]
                    found[name] = file.get_tensor("places").tolist()
            except (SafetensorError, OSError, KeyError):
                self._damaged(name)
        return found

    def holds(self, count: int) -> bool:
        """Return whether rows of all ``count`` examples are there."""
        return len({place for places in self.places().values() for place in places}) >= count

    def take(self, places: Sequence[int], order: Sequence[int], advance: Advance) -> Tensor:
        """Return the rows of these places: those that are kept and hold, and the others made, in this order.

        After a kill the same call makes the pieces that are missing, and no other: with the same bytes.
        """
        found = torch.empty(len(places), self._width)
        at = {place: row for row, place in enumerate(places)}
        there = []
        for name, piece in self._read(at):
            here, rows = piece.tensors["places"].tolist(), piece.tensors["rows"]
            mine = [row for row, place in enumerate(here) if place in at]
            found[[at[here[row]] for row in mine]] = rows[mine]
            drawn = _drawn(len(here))
            there.append((name, here, piece.sum, [here[row] for row in drawn], rows[drawn]))
        stale = self._stale([(asked, rows) for _, _, _, asked, rows in there])
        left = set(at) - {place for _, here, *_ in there for place in here}
        self._sums = []
        for (name, here, total, *_), bad in zip(there, stale, strict=True):
            if bad:
                self.pieces.damaged.add(name)  # type: ignore[union-attr]
                left |= at.keys() & set(here)
            else:
                self._sums.append(total)
        if any(stale):
            self._note(
                f"{sum(stale)} of {len(stale)} kept pieces of sketches are not what the model gives now; made anew"
            )
        advance(len(at) - len(left))
        missing = [place for place in order if place in left]
        for start in range(0, len(missing), PIECE):
            here = missing[start : start + PIECE]
            found[[at[place] for place in here]] = self._made(here, advance)
        return found

    def kept(self, places: Sequence[int]) -> Kept | None:
        """Return where products of the rows last taken are kept; None where the rows themselves are not."""
        if self.pieces is None:
            return None
        return Kept(self.pieces, digest(list(places), sorted(self._sums)), self._note)

    def _read(self, wanted: dict[int, int]) -> Iterator[tuple[str, Piece]]:
        """Yield the pieces that hold any of these places."""
        for name, places in self.places().items():
            if not wanted.keys().isdisjoint(places):
                piece = self.pieces.get(name)  # type: ignore[union-attr]
                if piece is not None and piece.tensors["rows"].shape == (len(places), self._width):
                    yield name, piece
                else:
                    self._damaged(name)

    def _damaged(self, name: str) -> None:
        self.pieces.damaged.add(name)  # type: ignore[union-attr]
        self._note(f"{name}: a kept piece of sketches was damaged; made anew")

    def _stale(self, drawn: list[tuple[list[int], Tensor]]) -> list[bool]:
        """Return which of the drawn rows, made anew, are not what they were, to the rounding of another batch."""
        asked = [place for places, _ in drawn for place in places]
        if not asked:
            return []
        anew = torch.split(self._make(asked, lambda done: None), [len(places) for places, _ in drawn])
        return [bool(((again - rows).norm(dim=1) > self._close * rows.norm(dim=1)).any() or not again.isfinite().all())
                for again, (_, rows) in zip(anew, drawn, strict=True)]  # fmt: skip

    def _made(self, places: list[int], advance: Advance) -> Tensor:
        name = f"rows-{digest(places)}"
        if self.pieces is not None and name in self.pieces:  # another build was quicker
            piece = self.pieces.get(name)
            if piece is not None and piece.tensors["rows"].shape == (len(places), self._width):
                advance(len(places))
                self._sums.append(piece.sum)
                return piece.tensors["rows"]
        rows = self._make(places, advance)
        bad = ~torch.isfinite(rows).all(1)
        if bool(bad.any()):
            raise ModelError(f"train, example {places[int(bad.nonzero()[0])]}", expected="a finite gradient",
                             got="one that is not", do="Look at this example, and at the model's losses.")  # fmt: skip
        content = {"rows": rows, "places": torch.tensor(places)}
        self._sums.append(checksum(content, {}))
        if self.pieces is not None:
            try:
                self.pieces.put(name, content)
            except FileError as error:  # a cache is an offer: the scores are the same without
                self._note(f"sketches are not kept for the next call: {error}")
                self.pieces = None
        return rows


def _drawn(count: int) -> list[int]:
    """Return which rows of a piece are made anew."""
    return sorted(np.random.default_rng(count).choice(count, min(DRAWN, count), replace=False).tolist())
