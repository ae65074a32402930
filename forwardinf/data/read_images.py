"""Images in one folder for each class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from forwardinf.core.errors import DataError, SettingError, choose
from forwardinf.data.endings import FORMS, IMAGES, SPLITS, choose_split, folders_in
from forwardinf.data.read_arrays import normalised

FORMATS = (
    "PNG",
    "JPEG",
    "BMP",
    "GIF",
    "WEBP",
    "TIFF",
    "PPM",
)  # not EPS under another name: Pillow would run Ghostscript


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images in one folder for each class, sorted by class and then by path: ``(float32 (C, H, W) in [0, 1], class)``.

    Nothing is read before it is asked for. Rotation tags are ignored, transparency is dropped.

    Attributes:
        classes: Names, in the order of their numbers. A class that another split has and this one lacks keeps its number.
        ids: Paths relative to the folder, with ``/``.
    """

    def __init__(self, root: Path, classes: Sequence[str], files: Sequence[tuple[str, int]], *, image_mode: str = "RGB",
                 image_size: int | tuple[int, int] | None = None, mean: Any = None, std: Any = None) -> None:  # fmt: skip
        if image_mode not in ("RGB", "L"):
            raise choose("image_mode", image_mode, ("RGB", "L"))
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise SettingError("image_size", expected="a number above 0, or (height, width)", got=repr(image_size))
        self.root, self.classes, self._files = root, list(classes), list(files)
        self._mode, self._size, self._mean, self._std = image_mode, size, mean, std

    @property
    def ids(self) -> list[str]:
        """Paths relative to the folder."""
        return [name for name, _ in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        name, label = self._files[row]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(self.root / name, formats=FORMATS) as image:
                    deep = image.mode.startswith(("I", "F"))
                    picture = image.convert(self._mode)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError,
                Image.DecompressionBombWarning) as error:  # fmt: skip
            raise DataError(str(self.root / name), expected="an image", got=f"{type(error).__name__}: {error}",
                            do="Mend or remove the file.") from error  # fmt: skip
        if deep:
            raise DataError(str(self.root / name), expected="8 bits a channel", got="more, which would be clipped",
                            do="Read the images in a function of your own (module:function).")  # fmt: skip
        if self._size is not None:
            picture = picture.resize((self._size[1], self._size[0]), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, -1).permute(2, 0, 1)
        scaled = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return normalised(scaled, self._mean, self._std, channels=0), label

    def select(self, rows: Sequence[int]) -> ImageFolder:
        """Return these rows, in this order."""
        return ImageFolder(self.root, self.classes, [self._files[row] for row in rows], image_mode=self._mode,
                           image_size=self._size, mean=self._mean, std=self._std)  # fmt: skip


def _images_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and not path.name.startswith(".")]


def read_images(source: str, given: dict[str, Any]) -> ImageFolder:
    """Read ``folder/class/image`` or ``folder/split/class/image``; classes are numbered over all splits."""
    root = Path(source)
    splits = [folder for folder in folders_in(root)
              if folder.name in SPLITS and any(_images_in(inside) for inside in folders_in(folder))]  # fmt: skip
    chosen = choose_split(source, given.pop("split", None), [folder.name for folder in splits])
    here = root / chosen if chosen else root
    classes = sorted({folder.name for top in (splits or [root]) for folder in folders_in(top)})
    files = [(path.relative_to(here).as_posix(), number)
             for number, name in enumerate(classes) for path in _images_in(here / name)]  # fmt: skip
    if not files:
        raise DataError(source, expected="folder/class/image.png, or another form: " + FORMS, got="no images")
    return ImageFolder(here, classes, sorted(files, key=lambda file: (file[1], file[0])), **given)
