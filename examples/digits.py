"""Handwritten digits, from training to attribution, with nothing but what forwardinf installs.

python examples/digits.py                # trains, attributes, and leaves digits.npz and digits.safetensors behind
forwardinf attribute --model examples.digits:Net --weights digits.safetensors --data digits.npz --queries data:test \
    --where misclassified --task-option query=predicted --report digits.html
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import forwardinf as fi


class Net(nn.Sequential):
    """A small CNN on 8×8 images."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip


def train_model(images: Tensor, labels: Tensor, epochs: int, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(32):
            optimiser.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimiser.step()
    return model.eval()


def main(argv: list[str] | None = None) -> fi.Scores:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-train", type=int, default=1400, help="training examples (default %(default)s)")
    parser.add_argument("--n-queries", type=int, default=5, help="queries to ask (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args(argv)

    # Data
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    x_train, x_test = images[: args.n_train], images[1400:]
    y_train, y_test = digits.target[: args.n_train], digits.target[1400:]
    np.savez("digits.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)

    # Model
    model = train_model(torch.from_numpy(x_train), torch.from_numpy(y_train), args.epochs)
    save_file(model.state_dict(), "digits.safetensors")

    # Attribute: any arrays will do
    ask = slice(0, args.n_queries)
    scores = fi.attribute(model, (x_train, y_train), (x_test[ask], y_test[ask]), task=fi.Classification())

    # Show
    print(scores.top(3))
    return scores


if __name__ == "__main__":
    main()
