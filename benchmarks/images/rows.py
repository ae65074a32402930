"""Every way of ranking training images: the free ones, gradients, ours, unlearning."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import forwardinf as fi
from forwardinf.data.examples import examples
from forwardinf.gradients.ridge import DAMPING
from forwardinf.models.borrowed import borrowed
from forwardinf.perturb.parameters import select
from forwardinf.tasks.feed import Feed
from forwardinf.use.images.trace_images import READINGS, unlearning
from forwardinf.use.jointly import jointly
from forwardinf.use.responses import unit
from forwardinf.use.sketch import DAMPING as WHITENING
from forwardinf.use.sketch import WIDER, Sketcher, compared, side_by_side

Array = np.ndarray[Any, np.dtype[np.float64]]
CPU = torch.device("cpu")
RANDOM, PIXELS, FEATURES = "random", "pixel neighbours", "classifier's features"
DOT, COSINE = "gradient dot", "gradient cosine"
WHITENED, UNIT, HOLD = "ours: whitened, by the loss", "ours: unit-whitened, by the loss", "ours: hold"
OURS, JOINTLY = "ours: unit-whitened, by loss and picture", "ours: the same, jointly"
PLAIN = "ours: plain, a finite push"
OWN = "own noise, unit-whitened, damping .02"
OWN_COSINE = "own noise, gradient cosine"
ABU, ABU_LINEAR = "Attribution by Unlearning", "Attribution by Unlearning, one step's limit"


class Classifier(nn.Module):
    """A small CNN whose last hidden layer stands for "what it looks like"."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def classifier(images: Tensor, labels: Tensor, *, steps: int = 400, seed: int = 0) -> nn.Module:
    """Return the CNN, trained on labelled images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(images.shape[-1])
    draw, optimiser = torch.Generator().manual_seed(seed), torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=draw)
        optimiser.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimiser.step()
    return model.eval()


def free(train: Tensor, queries: Tensor, features: nn.Module) -> dict[str, Array]:
    """Return what needs no denoiser: chance, pixels, a classifier's features (cosines about the training set's mean)."""
    draw = np.random.default_rng(0)
    with torch.no_grad():
        seen = [torch.cat([features.body(piece) for piece in images.split(256)]) for images in (train, queries)]
    return {
        RANDOM: draw.random((len(queries), len(train))),
        PIXELS: _cosines(train.flatten(1), queries.flatten(1)),
        FEATURES: _cosines(*seen),
    }


def _cosines(train: Tensor, queries: Tensor) -> Array:
    middle = train.mean(0)
    return (unit(queries - middle).double() @ unit(train - middle).double().T).numpy()


def sketched(
    model: nn.Module, task: fi.Diffusion, data: Any, *, noise: str = "shared", seed: int = 0
) -> dict[str, Tensor]:
    """Return every image's gradients by reading, sketched as :func:`forwardinf.trace_images` does it, ``(N, M)`` each.

    ``noise``: all images see the same draw (``"shared"``), or each its own.
    """
    found = {}
    for reads in READINGS["both"]:
        read = task.varied(noise=noise, reads=reads)
        rows = examples(data, task_collate=read.collate)
        with borrowed(model):
            found[reads] = Sketcher(select(model, None), side=WIDER[0]).rows(
                Feed(model, read, rows, CPU, seed=seed), range(len(rows)), 32
            )
    return found


def by_gradients(
    train: dict[str, Tensor], queries: dict[str, Tensor], fit: dict[str, Tensor] | None = None
) -> dict[str, Array]:
    """Return the linear scores of sketched gradients; ``fit``: the rows that whiten (default: all)."""
    fit = fit or train
    rows, asked, own = (each["error"] for each in (train, queries, fit))
    found = {name: compared(rows, asked, how, WHITENING, own)[0] for name, how in
             ((DOT, "dot"), (COSINE, "cosine"), (WHITENED, "whitened"), (UNIT, "unit-whitened"))}  # fmt: skip
    held = [tempered(each) for each in (rows, asked, own)]
    found[HOLD] = compared(held[0], held[1], "whitened", DAMPING, held[2])[0]
    (rows, asked), (own, _) = both(train, queries), both(fit, queries)
    found[OURS] = compared(rows, asked, "unit-whitened", WHITENING, own)[0]
    return {name: values.numpy() for name, values in found.items()}


def both(train: dict[str, Tensor], queries: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return both readings side by side."""
    return side_by_side(list(zip(train.values(), queries.values(), strict=True)), "unit-whitened")


def together(train: dict[str, Tensor], queries: dict[str, Tensor], count: int) -> Array:
    """Return, for each query, the places of the images that count together, ``(Q, count)``."""
    found = compared(*both(train, queries), "unit-whitened", WHITENING)
    return np.stack([places for places, _ in jointly(found, count)]).astype(np.float64)


def by_own_noise(train: dict[str, Tensor], queries: dict[str, Tensor]) -> dict[str, Array]:
    """Return what sketches under each image's own noise give, and the damping that serves for text."""
    rows, asked = train["error"], queries["error"]
    return {OWN: compared(rows, asked, "unit-whitened", 0.02)[0].numpy(),
            OWN_COSINE: compared(rows, asked, "cosine")[0].numpy()}  # fmt: skip


def tempered(rows: Tensor, beta: float = 0.5) -> Tensor:
    """Return gradients at length ‖g‖^(1−β), as ``hold`` has them."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) ** beta


def by_unlearning(
    model: nn.Module, task: fi.Task, train: Any, queries: Any, *, fit: int | str = "auto", length: float | None = None
) -> Array:
    """Return the scores of Attribution by Unlearning; ``length``: its own finite step, None: the limit of a short one.

    The limit, gᵢᵀF⁻¹g_q, is read for all queries in one pass; the finite step costs a reading of all images for each query.
    """
    preset = unlearning(model, length=length)
    settings = {**preset.to_dict(), "fit_examples": fit}
    if length is None:
        settings["length"] = "linear"
    return _attributed(model, task, train, queries, fi.Perturbation.from_dict(settings))


def by_a_push(model: nn.Module, task: fi.Task, train: Any, queries: Any, rise: str) -> Array:
    """Return the scores of Forward-INF itself: a finite push along the plain gradient, read by forward passes."""
    return _attributed(model, task, train, queries, fi.Perturbation("plain", rise=rise))


def _attributed(model: nn.Module, task: fi.Task, train: Any, queries: Any, rule: fi.Perturbation) -> Array:
    engine = "factored" if rule.kind == "linear" else "forward"
    found = fi.attribute(model, train, queries, task=task, perturbation=rule, engine=engine, keep="all", progress=False)
    return np.asarray(found.values, dtype=np.float64)


def timed(costs: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """Run ``work`` and note its seconds."""
    began = time.perf_counter()
    found = work()
    costs[name] = round(time.perf_counter() - began, 1)
    return found
