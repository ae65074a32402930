"""A trained digits CNN with planted copies and wrong labels: what the uses are tested on. Built once a process, in seconds."""

import copy
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from cases import digits
from torch import nn

N = 400


@dataclass
class Planted:
    model: nn.Module
    train: tuple
    truth: torch.Tensor
    test: tuple  # never trained on

    @property
    def flipped(self):
        return self.train[1] != self.truth


def net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def fitted(images, labels, epochs, lr=5e-3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = net()
        optimiser = torch.optim.Adam(model.parameters(), lr=lr)
        for _ in range(epochs):
            for rows in torch.randperm(len(labels)).split(32):
                optimiser.zero_grad()
                F.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimiser.step()
    return model.eval()


@cache
def _planted(epochs, flips):
    images, truth = digits()
    truth = truth[:N]
    labels = truth.clone()
    draw = torch.Generator().manual_seed(3)
    rows = torch.randperm(N, generator=draw)[: round(flips * N)]
    labels[rows] = (labels[rows] + torch.randint(1, 10, (len(rows),), generator=draw)) % 10
    train = (images[:N], labels)
    return Planted(fitted(*train, epochs), train, truth, (images[N : N + 300], digits()[1][N : N + 300]))


def planted(epochs=25, flips=0.0):
    """Return a fresh copy."""
    found = _planted(epochs, flips)
    return Planted(copy.deepcopy(found.model), found.train, found.truth, found.test)
