"""One bank and one full model, with what is asked of them."""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.banks import recipes, use
from benchmarks.data import Examples

ASKED = {"cifar": 100}  # of its 500 queries; the others ask all 200


@dataclass
class Bench:
    """One bank and one full model, with what the rows need of them."""

    bank: str
    seed: int
    asked: np.ndarray  # which queries

    @cached_property
    def model(self) -> nn.Module:
        return use.full_model(self.bank, self.seed)

    @cached_property
    def train(self) -> Examples:
        return use.data(self.bank)[0]

    @cached_property
    def queries(self) -> Examples:
        inputs, labels = use.data(self.bank)[1]
        return inputs[self.asked], labels[self.asked]

    @cached_property
    def network(self) -> dict[str, Any]:
        """How the model is built: for rivals, who build it elsewhere."""
        return recipes.network(self.bank)

    @cached_property
    def forward_s(self) -> float:
        """Seconds of one plain forward pass over the training set."""
        took = []
        for _ in range(2):
            began = time.perf_counter()
            recipes.ask(self.model, self.train)
            took.append(time.perf_counter() - began)
        return min(took)

    @cached_property
    def products(self) -> tuple[np.ndarray, np.ndarray]:
        """(gᵢᵀ g_q as (Q, N), ‖gᵢ‖ as (N,)) of the full model."""
        return gradient_products(self.model, self.train, self.queries)


def asked_of(bank: str, most: int | None = None) -> np.ndarray:
    """Return which queries are asked: equally many of each half, in order; ``most``: so many at most."""
    queries = len(recipes.data_of(bank).query_ids)
    each = min(ASKED.get(bank, queries), most or queries) // 2
    return np.sort(np.concatenate([half[:each] for half in use.halves(queries)]))


def gradient_products(model: nn.Module, train: Examples, queries: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Return (dot products (Q, N), norms (N,)) of per-example gradients by autograd, the slow and obvious way."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    fixed = dict(model.named_buffers())

    def loss(moving: dict[str, Tensor], inputs: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (moving, fixed), (inputs[None],)), label[None])

    per_example = vmap(grad(loss), (None, 0, 0))

    def rows(inputs: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([part.flatten(1) for part in per_example(weights, inputs, labels).values()], 1)

    asked = torch.cat([rows(*some) for some in zip(queries[0].split(50), queries[1].split(50), strict=True)])
    dots, norms = [], []
    for inputs, labels in zip(train[0].split(50), train[1].split(50), strict=True):
        found = rows(inputs, labels)
        dots.append(asked @ found.T)
        norms.append(found.norm(dim=1))
    return torch.cat(dots, 1).numpy(), torch.cat(norms).numpy()
