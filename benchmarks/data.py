"""The data sets that everything is measured on, as tensors, drawn by fixed seeds; ``FORWARDINF_DATA`` names their folder."""

import gzip
import json
import os
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

Examples = tuple[Tensor, Tensor]  # inputs, labels
LOSSLESS = 4000  # CIFAR-10 images with exact pixels


def data_folder() -> Path:
    """Where the real data is."""
    folder = os.environ.get("FORWARDINF_DATA")
    if not folder:
        raise SystemExit("set FORWARDINF_DATA to the data folder (the Makefile does where it finds it)")
    return Path(folder)


def digits() -> tuple[Tensor, Tensor, np.ndarray]:
    """Return scikit-learn's digits in [0, 1], ``(1797, 1, 8, 8)``, their labels, and an order to draw them in."""
    found = load_digits()
    images = torch.tensor(found.images[:, None] / 16.0, dtype=torch.float32)
    order = np.random.default_rng(0).permutation(len(images))
    return images, torch.tensor(found.target, dtype=torch.int64), order


@cache
def pixels(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ``mnist`` or ``fashion_mnist``: (N, 28, 28) uint8 and labels."""
    with np.load(data_folder() / name / f"{name}.npz") as file:
        return file[f"x_{split}"], file[f"y_{split}"].astype(np.int64)


def fashion(train: int, test: int, side: int = 14) -> list[tuple[Examples, np.ndarray]]:
    """Return so many training and test images of Fashion-MNIST in [0, 1], each with the rows they stand in."""
    draw, parts = np.random.default_rng(0), []
    for split, whole, count in (("train", 60000, train), ("test", 10000, test)):
        rows = np.sort(draw.choice(whole, count, False))
        images, labels = (part[rows] for part in pixels("fashion_mnist", split))
        found = torch.tensor(images, dtype=torch.float32)[:, None] / 255
        parts.append(((found if side == 28 else F.avg_pool2d(found, 2), torch.tensor(labels)), rows))
    return parts


def cifar() -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Return the CIFAR-10 images with exact pixels in [0, 1], their labels, their rows, and an order to draw them in."""
    with np.load(data_folder() / "cifar10" / "cifar10_lossless_train0_3999.npz") as kept:
        images = torch.tensor(kept["x"], dtype=torch.float32).permute(0, 3, 1, 2).contiguous() / 255
        labels, rows = torch.tensor(kept["y"], dtype=torch.int64), kept["index"]
    return images, labels, rows, np.random.default_rng(0).permutation(LOSSLESS)


Sentences = tuple[list[list[str]], list[int], np.ndarray]  # words, labels, rows


def sst2(train: int, dev: int) -> tuple[Sentences, Sentences, dict[str, int]]:
    """Return so many sentences of SST-2's two parts, and a vocabulary of the words that the first holds twice or more."""
    draw, found = np.random.default_rng(0), []
    for part, size in (("train", train), ("dev", dev)):
        with gzip.open(data_folder() / "sst2" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        rows = np.sort(draw.choice(len(lines), size, False))
        found.append(([lines[row]["text"].split() for row in rows], [lines[row]["label"] for row in rows], rows))
    counts = Counter(word for text in found[0][0] for word in text)
    known = {word: place for place, word in enumerate(sorted(w for w, n in counts.items() if n > 1), start=2)}
    return found[0], found[1], known


def as_ids(texts: list[list[str]], known: dict[str, int], longest: int) -> Tensor:
    """Return word ids, padded with 0; words that are not in the vocabulary are 1."""
    return torch.tensor([[known.get(word, 1) for word in text] + [0] * (longest - len(text)) for text in texts])
