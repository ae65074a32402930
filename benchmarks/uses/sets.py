"""The data sets and networks that the three uses are measured on: small, real, drawn by fixed seeds; and their training."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "examples"), str(HERE.parent)]

from banks import models  # noqa: E402
from harness import data_folder  # noqa: E402

from forwardinf.core.files import written  # noqa: E402

WORK = HERE.parent / ".cache" / "uses"
LOSSLESS = 4000  # CIFAR-10 images with exact pixels
Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Set:
    """One data set and its network.

    Attributes:
        name: As in the tables.
        train: Inputs and labels. Images are in [0, 1], ``(n, C, H, W)``; the network normalises.
        test: The same, never trained on.
        build: Makes the network, initialised by torch's generator as it stands.
        rows: Which rows of the source the training examples are.
        words: ``(training texts, test texts, vocabulary)`` where the inputs are texts.
    """

    name: str
    train: Part
    test: Part
    build: Callable[[], nn.Module]
    rows: np.ndarray[Any, Any]
    words: tuple[list[list[str]], list[list[str]], dict[str, int]] | None = None


class Normalised(nn.Module):
    """A network behind the subtraction of a mean and the division by a spread, one each for every channel."""

    def __init__(self, inner: nn.Module, mean: tuple[float, ...], spread: tuple[float, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("spread", torch.tensor(spread)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.mean) / self.spread)


def for_cifar(inner: nn.Module) -> nn.Module:
    return Normalised(inner, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@lru_cache
def digits() -> Set:
    """1,000 and 797 of scikit-learn's digits, 8×8; a CNN of 38 k parameters."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = torch.tensor(found.images[:, None] / 16.0, dtype=torch.float32)
    labels = torch.tensor(found.target, dtype=torch.int64)
    train, test = order[:1000], order[1000:]
    return Set("digits", (images[train], labels[train]), (images[test], labels[test]), lambda: models.cnn(8), train)


@lru_cache
def fashion(count: int = 2000, side: int = 14) -> Set:
    """Fashion-MNIST images drawn at random, and 1,000 of its test images; halved to 14×14 unless asked whole."""
    with np.load(data_folder() / "fashion_mnist" / "fashion_mnist.npz") as kept:
        draw = np.random.default_rng(0)
        rows, asked = np.sort(draw.choice(60000, count, False)), np.sort(draw.choice(10000, 1000, False))
        parts = [(kept["x_train"][rows], kept["y_train"][rows]), (kept["x_test"][asked], kept["y_test"][asked])]
    whole = [torch.tensor(images, dtype=torch.float32)[:, None] / 255 for images, _ in parts]
    drawn = whole if side == 28 else [F.avg_pool2d(images, 2) for images in whole]
    train, test = ((x, torch.tensor(y, dtype=torch.int64)) for x, (_, y) in zip(drawn, parts, strict=True))
    return Set("Fashion-MNIST", train, test, lambda: models.cnn(side), rows)


@lru_cache
def cifar(count: int, network: str = "ResNet-8") -> Set:
    """``count`` of the 4,000 CIFAR-10 images with exact pixels; the others are its test images."""
    with np.load(data_folder() / "cifar10" / "cifar10_lossless_train0_3999.npz") as kept:
        pixels = torch.tensor(kept["x"], dtype=torch.float32).permute(0, 3, 1, 2).contiguous() / 255
        labels, index = torch.tensor(kept["y"], dtype=torch.int64), kept["index"]
    order = np.random.default_rng(0).permutation(LOSSLESS)
    train, test = np.sort(order[:count]), np.sort(order[count:])

    def build() -> nn.Module:
        if network == "ResNet-20":
            import models_resnet  # the examples' own

            return for_cifar(models_resnet.ResNet(20))
        return for_cifar(models.ResNet())

    return Set("CIFAR-10", (pixels[train], labels[train]), (pixels[test], labels[test]), build, index[train])


@lru_cache
def sst2() -> Set:
    """2,000 sentences of SST-2, and its 872 of dev; a mean of embeddings and two dense layers."""
    draw, found = np.random.default_rng(0), {}
    for part, size in (("train", 2000), ("dev", 872)):
        with gzip.open(data_folder() / "sst2" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        rows = np.sort(draw.choice(len(lines), size, False))
        found[part] = [lines[row]["text"].split() for row in rows], [lines[row]["label"] for row in rows], rows
    counts = Counter(word for text in found["train"][0] for word in text)
    known = {word: place for place, word in enumerate(sorted(w for w, n in counts.items() if n > 1), start=2)}
    parts = [(as_ids(texts, known), torch.tensor(labels)) for texts, labels, _ in found.values()]
    words = found["train"][0], found["dev"][0], known
    return Set("SST-2", *parts, lambda: models.Bag(len(known) + 2), found["train"][2], words)


LONGEST = 64  # words: the longest sentence of SST-2 has 56


def as_ids(texts: list[list[str]], known: dict[str, int]) -> Tensor:
    """Return word ids, padded with 0; words that the training texts hold once at most are 1."""
    return torch.tensor([[known.get(word, 1) for word in text] + [0] * (LONGEST - len(text)) for text in texts])


def fit(
    build: Callable[[], nn.Module], data: Part, *, epochs: int, seed: int, lr: float = 2e-3, batch: int = 64,
    sgd: bool = False, each: Callable[[int, nn.Module], bool] | None = None,
) -> nn.Module:  # fmt: skip
    """Train a network, without augmentation or weight decay: Adam, or SGD with momentum; the rate falls as a cosine.

    ``each(epoch, model)``, in eval mode, may end the training by returning True.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, (inputs, labels) = build(), data
        optimiser: Any = (
            torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True)
            if sgd
            else torch.optim.Adam(model.parameters(), lr)
        )
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * -(-len(labels) // batch))
        for epoch in range(epochs):
            model.train()
            for rows in torch.randperm(len(labels)).split(batch):
                optimiser.zero_grad(set_to_none=True)
                F.cross_entropy(model(inputs[rows]), labels[rows]).backward()
                optimiser.step()
                rate.step()
            if each is not None and each(epoch, model.eval()):
                break
    return model.eval()


@torch.no_grad()
def probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the model's probabilities ``(n, C)``, float64."""
    return torch.cat([model(some).double().softmax(1) for some in inputs.split(250)])


def accuracy(model: nn.Module, data: Part) -> float:
    """Return the share of examples that the model gets right."""
    return float((probabilities(model, data[0]).argmax(1) == data[1]).double().mean())


def kept(name: str, build: Callable[[], nn.Module], make: Callable[[], nn.Module]) -> nn.Module:
    """Return a trained network: from its file, or trained now and written there."""
    path = WORK / "models" / f"{name}.safetensors"
    if not path.exists():
        save(path, make())
    model = build()
    model.load_state_dict(load_file(path))
    return model.eval()


def save(path: Path, model: nn.Module) -> None:
    """Write a network's weights, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as part:
        save_file({key: tensor.detach().clone().contiguous() for key, tensor in model.state_dict().items()}, part)
