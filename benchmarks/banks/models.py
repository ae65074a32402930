"""The banks' networks: small, and each with something that others lack (BatchNorm and skips, embeddings and a mask)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CIFAR_MEAN, CIFAR_SPREAD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def cnn(side: int) -> nn.Module:
    """Two convolutions and two dense layers on grey images: 38 k parameters at side 8, 106 k at side 14."""
    flat = 32 * (side // 2 if side == 8 else side // 4) ** 2
    early = [] if side == 8 else [nn.MaxPool2d(2)]
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), *early, nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(flat, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions with batch normalisation around a skip; the first may halve the picture."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        same = stride == 1 and inside == outside
        self.skip = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(hidden + self.skip(x))


class ResNet(nn.Module):
    """A ResNet-8 for 32×32 colour images whose first convolution halves the picture: 78 k parameters at width 16."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(hidden.mean((2, 3)))


class Bag(nn.Module):
    """Mean of the words' embeddings, then two dense layers. Word 0 is padding and does not count."""

    def __init__(self, words: int, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.first = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, 2)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != 0).to(self.embed.weight.dtype)[..., None]
        pooled = (self.embed(ids) * there).sum(1) / there.sum(1).clamp_min(1)
        return self.last(torch.relu(self.first(pooled)))


def last_hidden(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the last dense layer sees, for feature neighbours."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    try:
        with torch.no_grad():
            for rows in inputs.split(256):
                model(rows)
    finally:
        hook.remove()
    return torch.cat(seen)


# Of a size at which a forward pass over a thousand examples takes seconds.


class Skip(nn.Sequential):
    """Layers around a skip."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def resnet9(top: int = 192, last: int = 1) -> nn.Module:
    """A ResNet-9 with BatchNorm for 32×32 colour images: .9 million parameters; 1.6 with 256 channels on top, in two."""

    def conv(inside: int, outside: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
        )

    return nn.Sequential(
        conv(3, 32), conv(32, 64), nn.MaxPool2d(2), Skip(conv(64, 64), conv(64, 64)), conv(64, 128), nn.MaxPool2d(2),
        conv(128, top), nn.MaxPool2d(2), Skip(*(conv(top, top) for _ in range(last))), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        nn.Linear(top, 10),
    )  # fmt: skip


def cnn28() -> nn.Module:
    """Two convolutions and two dense layers for 28×28 grey images: .46 million parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class ViT(nn.Module):
    """A vision transformer of six layers for 32×32 colour images in patches of 4: 1.8 million parameters at width 160."""

    def __init__(self, width: int = 160, layers: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn(1, 64, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.blocks(self.patches(x).flatten(2).mT + self.places)
        return self.head(self.norm(hidden).mean(1))
