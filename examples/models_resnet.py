"""CIFAR ResNets (He et al. 2016, section 4.2) with parameter-free shortcuts, and their trained weights.

python examples/models_resnet.py      measures all four on the 4,000 lossless training images
"""

import numpy as np
import torch
from common import cifar_jpeg, cifar_lossless, data
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad, relu

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the figures these weights were trained with
BLOCKS = {20: 3, 32: 5, 44: 7, 56: 9}  # depth → blocks per stage


class Block(nn.Module):
    """Two convolutions and a shortcut: (B, C_in, H, W) → (B, C_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride, self.extra = stride, (c_out - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.extra:  # option A: every second pixel, and zero channels on both sides
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return relu(out + x)


class ResNet(nn.Module):
    """(B, 3, 32, 32) → logits (B, 10)."""

    def __init__(self, depth: int = 20, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self.stage(16, 16, BLOCKS[depth], 1)
        self.layer2 = self.stage(16, 32, BLOCKS[depth], 2)
        self.layer3 = self.stage(32, 64, BLOCKS[depth], 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(c_in, c_out, stride), *[Block(c_out, c_out, 1) for _ in range(blocks - 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))  # (B, 16, 32, 32)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64, 8, 8)
        return self.linear(x.mean((2, 3)))


def load(depth: int = 20) -> ResNet:
    """Return the trained ResNet-20, -32, -44 or -56, in eval mode."""
    model = ResNet(depth)
    model.load_state_dict(load_file(data("models", "cifar10_resnets", f"resnet{depth}.safetensors")), strict=True)
    return model.eval()


def pixels_to_input(images: np.ndarray) -> Tensor:
    """Normalise: uint8 (N, 32, 32, 3) → float (N, 3, 32, 32)."""
    x = torch.from_numpy(images).float().div(255)
    return x.sub(torch.tensor(MEAN)).div(torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def input_to_pixels(x: Tensor) -> np.ndarray:
    """Undo `pixels_to_input` for one image: (3, 32, 32) → uint8 (32, 32, 3)."""
    x = x.detach().cpu().permute(1, 2, 0).mul(torch.tensor(STD)).add(torch.tensor(MEAN))
    return x.mul(255).round().clamp(0, 255).byte().numpy()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of inputs (N, ...) whose largest logit is the label (N,)."""
    right = [model(a).argmax(1) == b for a, b in zip(x.split(500), y.split(500), strict=True)]
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    images, labels, _ = cifar_lossless()
    test, test_labels = cifar_jpeg("test", 2000)
    for depth in BLOCKS:
        model = load(depth)
        train = accuracy(model, pixels_to_input(images), torch.from_numpy(labels))
        jpeg = accuracy(model, pixels_to_input(test), torch.from_numpy(test_labels))
        print(f"ResNet-{depth}: 4,000 lossless train images {train:.2%}; first 2,000 JPEG test images {jpeg:.2%}")
