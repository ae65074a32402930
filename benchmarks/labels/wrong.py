"""Wrong labels: planted ones (uniform, or each class mistaken for one other), and human ones (CIFAR-10N)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import data_folder

RATES = (0.05, 0.1, 0.2, 0.4)
KINDS = ("uniform", "class-dependent")
HUMAN = {"aggregate": "aggre_label", "random1": "random_label1", "worse": "worse_label"}
# Fashion-MNIST: the class that each is most like; digits: the shape that each is most like.
MISTAKEN = {
    "Fashion-MNIST": [6, 3, 4, 1, 2, 7, 0, 5, 9, 7],
    "digits": [6, 7, 8, 8, 9, 3, 0, 1, 3, 4],
}


def flipped(labels: Tensor, kind: str, rate: float, data: str, seed: int = 0) -> Tensor:
    """Return labels of which exactly ``rate`` are wrong."""
    draw = np.random.default_rng(seed)
    rows = torch.from_numpy(draw.choice(len(labels), round(rate * len(labels)), replace=False))
    found = labels.clone()
    if kind == "uniform":
        found[rows] = (labels[rows] + torch.from_numpy(draw.integers(1, 10, len(rows)))) % 10
    else:
        found[rows] = torch.tensor(MISTAKEN[data])[labels[rows]]
    return found


def human(rows: np.ndarray[Any, Any], which: str) -> Tensor:
    """Return the labels that people gave CIFAR-10's training images."""
    with np.load(data_folder() / "cifar10n" / "cifar10n.npz") as kept:
        return torch.from_numpy(kept[HUMAN[which]][rows].astype(np.int64))
