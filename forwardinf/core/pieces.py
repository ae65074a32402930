"""Pieces in a folder: files that are put once, whole, with a checksum, and are never changed; what is there is the listing.

A build that is killed loses the piece it was making. Two builds at once share what either of them has put.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from forwardinf.core.errors import FileError
from forwardinf.core.files import once, sweep, written

FORMAT, SUFFIX = "forwardinf.piece/1", ".safetensors"


class Piece(NamedTuple):
    """What a piece holds.

    Attributes:
        tensors: By name.
        about: What was put beside them, plain values.
        sum: The checksum of the tensors.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]
    sum: str


class Pieces:
    """The pieces of a folder, each by its name.

    Nothing is mapped: a piece is read whole, and no file stays open.

    Attributes:
        folder: Where they are; it need not be there yet.
        damaged: Names of pieces that were there and did not agree with their checksum: they count as absent, and are
            replaced when they are put again.

    Example:
        >>> import tempfile
        >>> pieces = Pieces(Path(tempfile.mkdtemp()))
        >>> pieces.put("one", {"rows": torch.ones(2)}), pieces.put("one", {"rows": torch.zeros(2)})
        (True, False)
        >>> pieces.names(), pieces.get("one").tensors["rows"].tolist()
        (['one'], [1.0, 1.0])
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self.folder = folder
        self.damaged: set[str] = set()

    def names(self, start: str = "") -> list[str]:
        """Return the names of those that are there now and begin so, sorted."""
        found = [path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"{start}*{SUFFIX}")]
        return sorted(name for name in found if not name.startswith(".") and name not in self.damaged)

    def __contains__(self, name: str) -> bool:
        return name not in self.damaged and self.path(name).is_file()

    def path(self, name: str) -> Path:
        """Return a piece's file."""
        return self.folder / f"{name}{SUFFIX}"

    def get(self, name: str) -> Piece | None:
        """Return a piece, checked against its checksum; None where there is none, or a damaged one.

        Raises:
            FileError: It is there and cannot be read.
        """
        try:
            content = self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FileError(str(self.path(name)), expected="a file that can be read", got=str(error)) from error
        try:
            head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            kept, tensors = json.loads(head["about"]), load(content)
            if kept["format"] == FORMAT and kept["sum"] == checksum(tensors, kept["about"]):
                return Piece(tensors, kept["about"], kept["sum"])
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError):
            pass
        self.damaged.add(name)
        return None

    def put(self, name: str, tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> bool:
        """Put a piece where there is none; False where another was quicker: then that one stays.

        Raises:
            FileError: There is no room for it, or no folder.
        """
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        kept = {"format": FORMAT, "sum": checksum(plain, about or {}), "about": about or {}}
        content = save(plain, {"about": json.dumps(kept)})
        if name not in self.damaged:
            return once(self.path(name), lambda part: part.write_bytes(content))
        with written(self.path(name)) as part:
            part.write_bytes(content)
        self.damaged.discard(name)
        return True

    def sweep(self) -> None:
        """Remove what killed processes left half-written."""
        sweep(self.folder)


def checksum(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """Return 32 hex digits of the content of tensors (names, types, shapes, bytes) and of what is said about them."""
    found = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
