"""Data sets with a network each: small and real, what leaks, wrong labels and memorisation are looked for in."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import data
from benchmarks.banks import models
from benchmarks.data import Examples
from benchmarks.kept import kept_model, place

LONGEST = 64  # words: the longest sentence of SST-2 has 56


@dataclass(frozen=True)
class Set:
    """One data set and its network.

    Attributes:
        name: As in the tables.
        train: Inputs and labels. Images are in [0, 1], ``(n, C, H, W)``; the network normalises.
        test: The same, never trained on.
        build: Makes the network, initialised by torch's generator as it stands.
        rows: Which rows of the source the training examples are.
        words: ``(training texts, vocabulary)`` where the inputs are texts.
    """

    name: str
    train: Examples
    test: Examples
    build: Callable[[], nn.Module]
    rows: np.ndarray[Any, Any]
    words: tuple[list[list[str]], dict[str, int]] | None = None


class Normalised(nn.Module):
    """A network behind the subtraction of CIFAR-10's mean and the division by its spread, of each channel."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(models.CIFAR_MEAN)[:, None, None])
        self.register_buffer("spread", torch.tensor(models.CIFAR_SPREAD)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.mean) / self.spread)


@cache
def digits() -> Set:
    """1,000 and 797 of scikit-learn's digits, 8×8; a CNN of 38 k parameters."""
    images, labels, order = data.digits()
    train, test = ((images[rows], labels[rows]) for rows in (order[:1000], order[1000:]))
    return Set("digits", train, test, lambda: models.cnn(8), order[:1000])


@cache
def fashion(count: int = 2000, side: int = 14) -> Set:
    """Fashion-MNIST images drawn at random, and 1,000 of its test images; halved to 14×14 unless asked whole."""
    (train, rows), (test, _) = data.fashion(count, 1000, side)
    return Set("Fashion-MNIST", train, test, lambda: models.cnn(side), rows)


@cache
def cifar(count: int, network: str = "ResNet-8") -> Set:
    """``count`` of the 4,000 CIFAR-10 images with exact pixels; the others are its test images."""
    images, labels, index, order = data.cifar()
    train, test = np.sort(order[:count]), np.sort(order[count:])

    def build() -> nn.Module:
        if network == "ResNet-8":
            return Normalised(models.ResNet())
        return Normalised(example("models_resnet").ResNet(20))

    return Set("CIFAR-10", (images[train], labels[train]), (images[test], labels[test]), build, index[train])


@cache
def sst2() -> Set:
    """2,000 sentences of SST-2, and its 872 of dev; a mean of embeddings and two dense layers."""
    train, dev, known = data.sst2(2000, 872)
    parts = [(data.as_ids(texts, known, LONGEST), torch.tensor(labels)) for texts, labels, _ in (train, dev)]
    return Set("SST-2", *parts, lambda: models.Bag(len(known) + 2), train[2], (train[0], known))


def example(name: str) -> Any:
    """Return a module of the examples."""
    folder = str(Path(__file__).parents[1] / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return __import__(name)


def trained(name: str, of: Set, make: Callable[[], nn.Module]) -> nn.Module:
    """Return a trained network of a set: from the cache, or trained now."""
    return kept_model(place("models", f"{name}.safetensors"), of.build, make)
