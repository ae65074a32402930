"""A small convolutional network for 28x28 grey images (28,938 parameters), trained here.

python examples/models_cnn.py      trains it on Fashion-MNIST and measures it on the test images
"""

import time

import numpy as np
import torch
from common import digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


class CNN(nn.Module):
    """(B, 1, 28, 28) → logits (B, 10)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(32 * 7 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x).relu())  # (B, 16, 14, 14)
        x = self.pool(self.conv2(x).relu())  # (B, 32, 7, 7)
        return self.fc(x.flatten(1))


def pixels_to_input(images: np.ndarray) -> Tensor:
    """uint8 (N, 28, 28) → float (N, 1, 28, 28) between 0 and 1."""
    return torch.from_numpy(images).float().div(255).unsqueeze(1)


def train(x: Tensor, y: Tensor, *, epochs: int = 3, batch: int = 128, seed: int = 0) -> CNN:
    """Train on inputs (N, 1, 28, 28) and labels (N,): Adam, the rate falling to 0; the seed decides everything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CNN()
        adam = torch.optim.Adam(model.parameters(), lr=2e-3)
        rate = torch.optim.lr_scheduler.LinearLR(adam, 1, 0, total_iters=epochs * -(-len(x) // batch))
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(batch):
                adam.zero_grad()
                cross_entropy(model(x[rows]), y[rows]).backward()
                adam.step()
                rate.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of inputs (N, ...) whose largest logit is the label (N,)."""
    return (torch.cat([model(part).argmax(1) for part in x.split(1000)]) == y).float().mean().item()


if __name__ == "__main__":
    start = time.perf_counter()
    (x, y), (x_test, y_test) = digits("fashion_mnist", "train"), digits("fashion_mnist", "test")
    model = train(pixels_to_input(x), torch.from_numpy(y))
    print(f"{sum(p.numel() for p in model.parameters())} parameters, trained in {time.perf_counter() - start:.0f} s")
    print(f"test accuracy {accuracy(model, pixels_to_input(x_test), torch.from_numpy(y_test)):.2%}")
