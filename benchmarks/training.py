"""The training of small classifiers, and what they say afterwards."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data import Examples


def fit(
    build: Callable[[], nn.Module], data: Examples, *, epochs: int, seed: int, batch: int = 64, lr: float = 2e-3,
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    each: Callable[[int, nn.Module, float], Any] | None = None,
) -> nn.Module:  # fmt: skip
    """Train a network, without augmentation; the rate falls as a cosine. The same seed gives the same weights.

    ``each(epoch, model, rate)``, in eval mode, may end the training by returning True.
    """
    inputs, labels = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        steps = optimiser(model.parameters(), lr=lr)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(steps, epochs * -(-len(labels) // batch))
        for epoch in range(epochs):
            model.train()
            for rows in torch.randperm(len(labels)).split(batch):
                steps.zero_grad(set_to_none=True)
                F.cross_entropy(model(inputs[rows]), labels[rows]).backward()
                steps.step()
                rate.step()
            if each is not None and each(epoch, model.eval(), steps.param_groups[0]["lr"]):
                break
    return model.eval()


@torch.no_grad()
def probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the model's probabilities ``(n, C)``, float64."""
    return torch.cat([model(some).double().softmax(1) for some in inputs.split(250)])


def accuracy(model: nn.Module, data: Examples) -> float:
    """Return the share of examples that the model gets right."""
    return float((probabilities(model, data[0]).argmax(1) == data[1]).double().mean())
