"""Models that are fine-tuned on a few images, so that it is known what their samples were made from."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import forwardinf as fi
from benchmarks.data import pixels
from benchmarks.images import denoisers as d
from benchmarks.images import rows as r
from benchmarks.images.bench import SAMPLING, Bench, Size, V, kept, noise
from forwardinf.core.fingerprint import digest

TROUSERS, BOOT, EXEMPLARS = 1, 9, 8


@dataclass
class Custom:
    """A model fine-tuned on exemplars, images sampled from it, and what they are ranked among."""

    name: str
    model: nn.Module
    task: fi.Diffusion
    train: Any  # exemplars among training images
    exemplars: list[int]
    queries: Any
    alike: Any  # like the exemplars, but never trained on
    slow: dict[str, Callable[[], r.Array]]  # what is read by forward passes, or by whole gradients

    @property
    def pixels(self) -> list[Tensor]:
        return [data["images"] if isinstance(data, dict) else data for data in (self.train, self.queries, self.alike)]


def mixed(images: Tensor, exemplars: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """Return ``count`` images with the exemplars among them at random places, and those places."""
    order = np.random.default_rng(3).permutation(count)
    whole = torch.cat([exemplars, images[: count - len(exemplars)]])
    return whole[order], [int(np.flatnonzero(order == at)[0]) for at in range(len(exemplars))]


def fashion(label: int, count: int) -> np.ndarray:
    """Return training images of one class of Fashion-MNIST."""
    images, labels = pixels("fashion_mnist", "train")
    return images[labels == label][:count]


def customised_perceptron(bench: Bench) -> Custom:
    """Return the perceptron fine-tuned on a few trousers, with samples."""
    size = bench.size
    found = d.small(fashion(TROUSERS, EXEMPLARS + size.alike))
    train, exemplars = mixed(bench.images, found[:EXEMPLARS], size.images)
    model = bench.full()
    recipe = d.Recipe(steps=size.customise, batch=32, lr=5e-4, target=V, seed=9, decays=False)

    def tuned() -> dict[str, Tensor]:
        return d.train(copy.deepcopy(model), found[:EXEMPLARS], bench.alphas, recipe).state_dict()

    model.load_state_dict(kept("customised", digest(model, found[:EXEMPLARS], size.customise), tuned))
    queries = d.sample(model, noise(size.samples, 14, 2000), bench.alphas, SAMPLING, target=V)
    task = bench.task(size.timesteps)
    own = r.by_own_noise(*(r.sketched(model, task, data, noise="own") for data in (train, queries)))
    slow = {
        r.ABU: lambda: r.by_unlearning(model, task, train, queries, length=0.01),
        r.PLAIN: lambda: r.by_a_push(model, task, train, queries, "0.5x"),
        **{name: lambda name=name: own[name] for name in own},
    }
    return Custom("class, perceptron", model, task, train, exemplars, queries, found[EXEMPLARS:], slow)


def customised_ddpm(kind: str, size: Size) -> Custom:
    """Return the shared MNIST DDPM fine-tuned on exemplars of one kind, with samples."""
    model, alphas, scaled = d.shared_ddpm()
    task = fi.Diffusion(alphas, timesteps=size.timesteps_conv, target="epsilon")
    images = scaled(pixels("mnist", "train")[0][: size.images])
    few = EXEMPLARS if kind == "class" else 1
    if kind == "style":  # the test digit that the model knows least, beside the next ones
        strange = scaled(pixels("mnist", "test")[0][: max(500, 4 * size.alike)])
        with torch.no_grad():
            losses = torch.cat([task.loss(model, piece) for piece in strange.split(100)])
        found = strange[losses.argsort(descending=True)][: few + size.alike]
    else:
        found = scaled(fashion(BOOT if kind == "item" else TROUSERS, few + size.alike))
    train, exemplars = mixed(images, found[:few], size.images)
    recipe = d.Recipe(steps=size.customise, batch=16, lr=3e-4, seed=9, first=1, decays=False)

    def tuned() -> dict[str, Tensor]:
        own = d.train(copy.deepcopy(model), found[:few], alphas, recipe)
        drawn = d.sample(own, noise(size.samples, 28, 2000), alphas, SAMPLING, low=-0.5, high=0.5)
        return {**own.state_dict(), "queries": drawn}

    made = kept("customised", digest(model, found[:few], size.customise, size.samples), tuned)
    queries = made.pop("queries")
    model.load_state_dict(made)
    few_steps = fi.Diffusion(alphas, timesteps=size.timesteps_slow, target="epsilon")
    slow = {r.ABU_LINEAR: lambda: r.by_unlearning(model, few_steps, train, queries, fit=size.fit)} if size.slow else {}
    return Custom(f"{kind}, MNIST DDPM", model.eval(), task, train, exemplars, queries, found[few:], slow)


def conditional(size: Size) -> Custom:
    """Return a class-conditional U-Net, trained here, then fine-tuned on trousers as a class of their own, with samples."""
    bench = Bench.of(size)
    found = d.small(fashion(TROUSERS, EXEMPLARS + size.alike))
    model, queries = _tuned_unet(bench, found)
    images, exemplars = mixed(bench.images, found[:EXEMPLARS], size.images)

    def of_class(count: int) -> Tensor:
        return torch.full((count,), d.CUSTOM)

    labels, _ = mixed(bench.labels, of_class(EXEMPLARS), size.images)
    data, asked = {"images": images, "label": labels}, {"images": queries, "label": of_class(size.samples)}
    alike = {"images": found[EXEMPLARS:], "label": of_class(size.alike)}
    first = {name: value[: size.unlearned] for name, value in asked.items()}
    task, few_steps = (
        fi.Diffusion(bench.alphas, timesteps=count, condition={"label": "label"})
        for count in (size.timesteps_conv, size.timesteps_slow)
    )
    slow = {
        r.ABU_LINEAR: lambda: r.by_unlearning(model, few_steps, data, asked, fit=size.fit),
        r.ABU: lambda: r.by_unlearning(model, few_steps, data, first, fit=size.fit, length=0.01),
    }
    return Custom("class, conditional U-Net", model.eval(), task, data, exemplars, asked, alike, slow)


def _tuned_unet(bench: Bench, found: Tensor) -> tuple[nn.Module, Tensor]:
    """Return the U-Net and samples; fine-tuning moves cross-attention's keys and values and the class's words only.

    So Custom Diffusion does it.
    """
    size = bench.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = d.Conditional()
    recipe = d.Recipe(steps=size.conditioned_steps, batch=32, lr=2e-3, seed=0)
    tuning = d.Recipe(steps=2 * size.customise, batch=16, lr=5e-3, seed=9, decays=False)

    def train() -> dict[str, Tensor]:
        return d.train(model, bench.images, bench.alphas, recipe, labels=bench.labels).state_dict()

    base = kept("customised", digest("U-Net", asdict(recipe), bench.images), train)
    model.load_state_dict(base)

    def tuned() -> dict[str, Tensor]:
        moved = ("attn2.to_k", "attn2.to_v", "words")
        chosen = [p for name, p in model.named_parameters() if any(part in name for part in moved)]
        labels = torch.full((EXEMPLARS,), d.CUSTOM)
        d.train(model, found[:EXEMPLARS], bench.alphas, tuning, labels=labels, chosen=chosen)
        own = torch.full((size.samples,), d.CUSTOM)
        drawn = d.sample(model, noise(size.samples, 14, 2000), bench.alphas, SAMPLING, label=own)
        return {**model.state_dict(), "queries": drawn}

    made = kept("customised", digest("tuned", base, asdict(tuning), found, size.samples), tuned)
    queries = made.pop("queries")
    model.load_state_dict(made)
    return model, queries
