"""The four data sets of the verification, read from the data folder, and the published split of each.

``digits`` comes with scikit-learn; the others lie in the folder that ``$FORWARDINF_DATA`` names:
``mnist/mnist.npz``, ``fashion_mnist/fashion_mnist.npz`` (``x_train, y_train, x_test, y_test``) and
``cifar10/cifar10_jpeg.npz`` (JPEG files end to end: ``train_jpeg, train_offsets, y_train`` and the same for test).
Training images come before test images, as in OpenML's files, so that the published random split gives the same rows.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from forwardinf.core.errors import DataError, choose

Array = np.ndarray[Any, np.dtype[Any]]

FILES = {
    "mnist": "mnist/mnist.npz",
    "fashion": "fashion_mnist/fashion_mnist.npz",
    "cifar10": "cifar10/cifar10_jpeg.npz",
}
NAMES = ("digits", *FILES)


@dataclass(frozen=True)
class Pictures:
    """Images that are brought out row by row.

    Attributes:
        name: Of the data set.
        labels: ``(n,)`` int64.
        read: ``read(rows)`` gives ``(rows, channels, height, width)`` uint8 or float, to be divided by ``scale``.
        scale: What white is.
    """

    name: str
    labels: Tensor
    read: Callable[[Array], Array]
    scale: float

    def take(self, rows: Sequence[int] | Array) -> tuple[Tensor, Tensor]:
        """Return images ``(rows, channels, height, width)`` float64 in [0, 1], and labels."""
        chosen = np.asarray(rows)
        return torch.from_numpy(self.read(chosen).astype(np.float64) / self.scale), self.labels[
            torch.from_numpy(chosen)
        ]


def pictures(name: str, folder: str | Path | None = None) -> Pictures:
    """Return a data set.

    Args:
        name: ``digits``, ``mnist``, ``fashion`` or ``cifar10``.
        folder: The data folder; default ``$FORWARDINF_DATA``. ``digits`` needs none.

    Raises:
        SettingError: No such name.
        DataError: No such file.
    """
    if name not in NAMES:
        raise choose("verify(data=)", name, NAMES)
    if name == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        return Pictures(
            name, torch.from_numpy(found.target.astype(np.int64)), lambda rows: found.images[rows, None], 16.0
        )
    root = folder if folder is not None else os.environ.get("FORWARDINF_DATA")
    path = Path(root or "", FILES[name])
    if root is None or not path.is_file():
        raise DataError(f"verify(data={name!r})", expected=f"the file {FILES[name]} in the data folder",
                        got="no such file" if root else "no data folder",
                        do="Name the folder in FORWARDINF_DATA or data_dir=, or use data='digits'.")  # fmt: skip
    with np.load(path, allow_pickle=False) as file:
        labels = torch.from_numpy(np.concatenate([file["y_train"], file["y_test"]]).astype(np.int64))
        if name == "cifar10":
            return Pictures(name, labels, _from_jpeg(file["train_jpeg"], file["train_offsets"], file["test_jpeg"],
                                                     file["test_offsets"]), 255.0)  # fmt: skip
        images = np.concatenate([file["x_train"], file["x_test"]])[:, None]
    return Pictures(name, labels, lambda rows: images[rows], 255.0)


def split(size: int, train: int, validation: int, seed: int) -> tuple[Array, Array]:
    """Return (training rows, validation rows) as scikit-learn's ``train_test_split`` draws them, the same rows in the same order.

    Raises:
        DataError: There are not so many rows.
    """
    if train + validation > size:
        raise DataError("split", expected=f"at most {size} rows", got=f"{train} + {validation}")
    order = np.random.RandomState(seed).permutation(size)  # the generator the published split was drawn with
    return order[validation : validation + train], order[:validation]


def _from_jpeg(train: Array, train_ends: Array, test: Array, test_ends: Array) -> Callable[[Array], Array]:
    count = len(train_ends) - 1

    def one(row: int) -> Array:
        data, ends, place = (train, train_ends, row) if row < count else (test, test_ends, row - count)
        return np.asarray(
            Image.open(io.BytesIO(data[ends[place] : ends[place + 1]].tobytes()), formats=("PNG",)).convert("RGB")
        )

    return lambda rows: np.stack([one(int(row)) for row in rows]).transpose(0, 3, 1, 2)
