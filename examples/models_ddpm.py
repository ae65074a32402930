"""A small unconditional MNIST diffusion model (DDPM) that predicts the noise, and its trained weights.

python examples/models_ddpm.py      measures the noise error on 2,000 test and 2,000 training images
"""

import numpy as np
import torch
from common import data, digits
from safetensors.torch import load_file
from torch import Tensor, nn

STEPS = 1000  # step 1 is almost clean, step 999 almost noise


class Block(nn.Module):
    """A 7x7 convolution, a norm over the whole picture, GELU: (B, c_in, 28, 28) → (B, c_out, 28, 28)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(c_in, c_out, 7, padding=3), nn.LayerNorm((c_out, 28, 28)), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class DDPM(nn.Module):
    """Noisy pictures (B, 1, 28, 28) and times step/1000 (B,) → the noise in them (B, 1, 28, 28)."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            [Block(1, 16), Block(16, 32), Block(32, 32), Block(32, 16), nn.Conv2d(16, 1, 3, padding=1)]
        )
        self.time_embed = nn.Sequential(
            *(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU()),
            *(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 16)),
        )
        self.register_buffer("frequencies", torch.zeros(16))
        self.register_buffer("beta_t", torch.zeros(STEPS + 1))
        self.register_buffer("alpha_t", torch.zeros(STEPS + 1))  # what is left of the signal's variance ("alpha bar")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phases = t[:, None] * self.frequencies  # (B, 16)
        time = self.time_embed(torch.cat([phases.sin(), phases.cos() - 1], dim=1))  # (B, 16)
        x = self.blocks[0](x) + time[:, :, None, None]
        for block in self.blocks[1:]:
            x = block(x)
        return x


class ByStep(nn.Module):
    """The same model asked by step number, the way diffusion libraries ask: `model(noisy, step)`."""

    def __init__(self, net: DDPM):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.net(x, step / STEPS)


def load(name: str = "sd_linear_100ep") -> DDPM:
    """Return a trained model, in eval mode."""
    model = DDPM()
    model.load_state_dict(load_file(data("models", "mnist_ddpm", f"{name}.safetensors")), strict=True)
    return model.eval()


def pixels_to_input(images: np.ndarray) -> Tensor:
    """uint8 (N, 28, 28) → float (N, 1, 28, 28) between -.5 and .5."""
    return torch.from_numpy(images).float().div(255).sub(0.5).unsqueeze(1)


@torch.no_grad()
def noise_error(model: DDPM, x: Tensor, seed: int = 1) -> float:
    """Return the mean squared error of the predicted noise, one random step in 1..999 per picture.

    Small steps cost ten times as much as the rest, so on 2,000 pictures another seed moves the figure by .001 or .002.
    """
    draw = torch.Generator().manual_seed(seed)
    steps, noise = torch.randint(1, STEPS, (len(x),), generator=draw), torch.randn(x.shape, generator=draw)
    left = model.alpha_t[steps].view(-1, 1, 1, 1)
    noisy = left.sqrt() * x + (1 - left).sqrt() * noise
    found = torch.cat([model(a, t) for a, t in zip(noisy.split(100), (steps / STEPS).split(100), strict=True)])
    return (found - noise).square().mean().item()


if __name__ == "__main__":
    x = {split: pixels_to_input(digits("mnist", split)[0][:2000]) for split in ("test", "train")}
    for path in sorted(data("models", "mnist_ddpm").glob("*.safetensors")):
        model = load(path.stem)
        errors = {split: round(noise_error(model, pictures), 4) for split, pictures in x.items()}
        print(f"{path.stem}: noise error {errors}")
