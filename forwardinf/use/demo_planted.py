"""The demonstration's data: real digits, some labels flipped, some test images copied into the training set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

TEST, FLIPPED, COPIED = 400, 0.05, 20


@dataclass(frozen=True)
class Planted:
    """Digits with known mistakes. Images are ``(n, 1, 8, 8)`` in [0, 1].

    Attributes:
        train: Images and labels as the model sees them.
        test: Images and labels.
        truth: The right labels of the training images.
        copies: ``{test row: training row}`` of the test images that were copied into the training set.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    truth: Tensor
    copies: dict[int, int]

    @property
    def flipped(self) -> set[int]:
        """Training rows whose label is wrong on purpose."""
        return set((self.train[1] != self.truth).nonzero().flatten().tolist())


def plant(seed: int) -> Planted:
    """Split the digits, flip some training labels, copy some test images into the training set."""
    digits = load_digits()
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(digits.target))
    images = torch.tensor(digits.images[order] / 16.0, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target[order], dtype=torch.int64)
    test, train = (images[:TEST], labels[:TEST]), (images[TEST:], labels[TEST:].clone())
    copied = sorted(draw.choice(TEST, COPIED, replace=False).tolist())
    truth = torch.cat([train[1], test[1][copied]])
    given = truth.clone()
    flipped = torch.from_numpy(draw.choice(len(train[1]), round(FLIPPED * len(train[1])), replace=False))
    given[flipped] = (given[flipped] + torch.from_numpy(draw.integers(1, 10, len(flipped)))) % 10
    copies = {row: len(train[1]) + place for place, row in enumerate(copied)}
    return Planted((torch.cat([train[0], test[0][copied]]), given), test, truth, copies)
