"""Small denoisers for tracing generated images: how they are made, trained (again, without some images) and sampled.

Three of them: a residual perceptron on 14×14 pixels, which trains in seconds, so that it can be trained again many times; the
MNIST DDPM of the shared models (28×28), to be customised; and a class-conditional U-Net with cross-attention (14×14).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sets import example

STEPS = 100  # of the small models' schedule
LOW, HIGH = -0.5, 3.5  # black and white: digits then have mean 0 and deviation 1, about
WORDS, WIDTH_OF_A_WORD = 4, 16  # what a class is to the U-Net: so many words of this width
CUSTOM = 10  # the class that stands for what a model is customised to


def small(images: np.ndarray) -> Tensor:
    """Return images as 14×14 pixels between :data:`LOW` and :data:`HIGH`, ``(N, 1, 14, 14)``."""
    whole = torch.from_numpy(images).float()[:, None] / 255
    return F.avg_pool2d(whole, 2) * (HIGH - LOW) + LOW


def cosine_alphas(steps: int = STEPS) -> Tensor:
    """Return the cumulative alphas of the cosine schedule (Nichol & Dhariwal 2021), ``(steps,)`` float64."""
    at = (torch.arange(steps, dtype=torch.float64) + 1) / steps
    found = torch.cos((at + 0.008) / 1.008 * torch.pi / 2).square()
    return (found / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64)).square()).clamp_min(1e-4)


class Perceptron(nn.Module):
    """A residual perceptron ``model(noisy, step)`` that predicts v (Salimans & Ho 2022)."""

    def __init__(self, side: int = 14, width: int = 256, blocks: int = 2) -> None:
        super().__init__()
        self.side, self.width = side, width
        self.enter = nn.Linear(side * side, width)
        self.time = nn.Linear(32, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.leave = nn.Linear(width, side * side)

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        angles = step.to(noisy)[:, None] / STEPS * torch.pi * torch.arange(1, 17, device=noisy.device)
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        hidden = self.enter(noisy.flatten(1))
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            hidden = hidden + down(F.silu(up(norm(hidden)) + time))
        return self.leave(hidden).view_as(noisy)


class Conditional(nn.Module):
    """A small U-Net with cross-attention, ``model(noisy, step, label=…)`` → the noise; a class is a few learnt words."""

    def __init__(self, side: int = 14) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.words = nn.Embedding(CUSTOM + 1, WORDS * WIDTH_OF_A_WORD)
        self.unet = UNet2DConditionModel(
            sample_size=side, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH_OF_A_WORD, attention_head_dim=8,
        )  # fmt: skip

    def forward(self, noisy: Tensor, step: Tensor, label: Tensor) -> Tensor:
        words = self.words(label).view(-1, WORDS, WIDTH_OF_A_WORD)
        return self.unet(noisy, step, encoder_hidden_states=words).sample


def shared_ddpm(name: str = "sd_linear_100ep") -> tuple[nn.Module, Tensor, Callable[[np.ndarray], Tensor]]:
    """Return (the shared MNIST DDPM by step, its cumulative alphas, pixels → its input)."""
    models_ddpm = example("models_ddpm")
    net = models_ddpm.load(name)
    return models_ddpm.ByStep(net).eval(), net.alpha_t, models_ddpm.pixels_to_input


@dataclass(frozen=True)
class Recipe:
    """How a denoiser is trained; its digest names what is kept."""

    steps: int
    batch: int = 64
    lr: float = 3e-3
    seed: int = 0
    first: int = 0  # the lowest step of the schedule that is trained
    target: str = "epsilon"
    decays: bool = True


def train(
    model: nn.Module, images: Tensor, alphas: Tensor, recipe: Recipe, *, labels: Tensor | None = None,
    without: Sequence[int] = (), chosen: Sequence[nn.Parameter] | None = None,
) -> nn.Module:  # fmt: skip
    """Train in place by Adam; the same seed draws the same images, times and noise whatever is left out.

    Images left out are drawn too, and count for nothing: two trainings differ by what was removed and by nothing else.
    """
    draw = torch.Generator().manual_seed(recipe.seed)
    counts = torch.ones(len(images))
    counts[torch.as_tensor(list(without), dtype=torch.long)] = 0
    moved = list(model.parameters()) if chosen is None else list(chosen)
    optimiser = torch.optim.Adam(moved, lr=recipe.lr, betas=(0.9, 0.99))
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda at: 0.5 * (1 + np.cos(np.pi * at / recipe.steps)) if recipe.decays else 1.0
    )
    model.train()
    for _ in range(recipe.steps):
        rows = torch.randint(len(images), (recipe.batch,), generator=draw)
        times = torch.randint(recipe.first, len(alphas), (recipe.batch,), generator=draw)
        noise = torch.randn(recipe.batch, *images.shape[1:], generator=draw)
        clean, left = images[rows], alphas[times].view(-1, 1, 1, 1)
        signal, spread = left.sqrt().float(), (1 - left).sqrt().float()
        wanted = noise if recipe.target == "epsilon" else signal * noise - spread * clean
        given = {} if labels is None else {"label": labels[rows]}
        error = (model(signal * clean + spread * noise, times, **given) - wanted).square().flatten(1).mean(1)
        weight = counts[rows]
        optimiser.zero_grad()
        ((error * weight).sum() / weight.sum().clamp_min(1)).backward()
        optimiser.step()
        rates.step()
    optimiser.zero_grad()
    return model.eval()


@torch.no_grad()
def sample(
    model: nn.Module, noise: Tensor, alphas: Tensor, steps: int, *, target: str = "epsilon", low: float = LOW, high: float = HIGH,
    **given: Any,
) -> Tensor:  # fmt: skip
    """Return the images that this noise becomes, by DDIM (deterministic: the same noise, the same image)."""
    at = torch.linspace(len(alphas) - 1, 0, steps + 1).round().long()
    image = noise
    for now, after in zip(at[:-1].tolist(), at[1:].tolist(), strict=True):
        signal, spread = float(alphas[now].sqrt()), float((1 - alphas[now]).sqrt())
        told = model(image, torch.full((len(image),), now), **given)
        clean = (image - spread * told) / signal if target == "epsilon" else signal * image - spread * told
        clean = clean.clamp(low, high)
        error = (image - signal * clean) / spread
        image = float(alphas[after].sqrt()) * clean + float((1 - alphas[after]).sqrt()) * error
    return clean
