"""What is timed on a GPU: the small models of the CPU's benchmarks, a network of ResNet-50's size, a decoder of 300 M."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.engines.models import MODELS, Decoder, Work


class Bottleneck(nn.Module):
    """ResNet-50's block: 1×1, 3×3, 1×1 around a skip."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        wider = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.skip = nn.Identity() if stride == 1 and inside == out else wider

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet50(width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> nn.Module:
    """The shape of ResNet-50, 25.6 M parameters, weights by chance."""
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    body, inside = [], width
    for stage, count in enumerate(blocks):
        for block in range(count):
            body.append(Bottleneck(inside, width * 2**stage, 2 if stage and not block else 1))
            inside = 4 * width * 2**stage
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


def pictures(tiny: bool) -> Work:
    model = resnet50(8, (1, 1), 10) if tiny else resnet50()
    rows, side, classes = (8, 32, 10) if tiny else (512, 224, 1000)
    return Work(model, torch.randn(rows, 3, side, side), torch.randint(classes, (rows,)))


def words(tiny: bool) -> Work:
    model = Decoder(64, 24, 1, 16) if tiny else Decoder(32000, 1152, 16, 256)  # 292 M
    return Work(model, torch.randint(64, (8, 16)) if tiny else torch.randint(32000, (128, 256)))


def cases(tiny: bool) -> dict[str, tuple[Callable[[], Work], list[int]]]:
    """Return what is timed: the model, and how many queries the factored engine is asked at once."""
    large: dict[str, tuple[Callable[[], Work], list[int]]] = {
        "ResNet-50's size": (lambda: pictures(tiny), [2] if tiny else [10, 100]),
        "decoder, 300 M": (lambda: words(tiny), [2] if tiny else [10]),  # a hundred directions of 300 M are 117 GB
    }
    return large if tiny else {**{name: (make, [100]) for name, make in MODELS.items()}, **large}
