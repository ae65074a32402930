"""What each bank is: its data by ids, its network, and how it is trained. Everything follows from here.

A bank is 100 random halves of the training set, each trained with two seeds of its own; what is kept of every training is
each query's loss and margin. Subset seeds differ from one another and from the full model's.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import data as sources
from benchmarks.banks import models
from benchmarks.data import Examples
from benchmarks.training import fit

SUBSETS, SHARE, SEEDS, DRAWN_BY = 100, 0.5, 2, 20240
FULL_SEEDS = (0, 1)


@dataclass(frozen=True)
class Data:
    """Training examples and queries, as tensors; ``ids`` say which of the source they are."""

    train: Examples
    queries: Examples
    train_ids: list[int]
    query_ids: list[int]
    words: int = 0


@dataclass(frozen=True)
class Recipe:
    """How one bank's models are trained."""

    data: str
    model: str
    epochs: int
    batch: int
    lr: float
    optimiser: str = "sgd"  # momentum .9, or adamw
    weight_decay: float = 5e-4
    schedule: str = "cosine"  # to 0 over all steps
    regime: str = ""


RECIPES = {
    "digits": Recipe("digits", "cnn", epochs=40, batch=32, lr=0.05, regime="overfit"),
    "digits-short": Recipe("digits", "cnn", epochs=8, batch=32, lr=0.05, regime="stopped early"),
    "digits-noisy": Recipe("digits-noisy", "cnn", epochs=40, batch=32, lr=0.05, regime="overfit, 5 % wrong labels"),
    "fashion": Recipe("fashion", "cnn", epochs=20, batch=64, lr=0.03, regime="underfit"),
    "cifar": Recipe("cifar", "ResNet", epochs=14, batch=64, lr=0.1, regime="underfit"),
    "sst2": Recipe("sst2", "Bag", epochs=20, batch=32, lr=3e-3, optimiser="adamw", weight_decay=1e-2, regime="overfit"),
    "sst2-short": Recipe("sst2", "Bag", epochs=8, batch=32, lr=3e-3, optimiser="adamw", weight_decay=1e-2, regime="underfit"),
}  # fmt: skip


@cache
def data_of(name: str) -> Data:
    """Return the data of a bank, drawn by fixed seeds."""
    kinds = {"digits": _digits, "digits-noisy": _noisy, "fashion": _fashion, "cifar": _cifar, "sst2": _sst2}
    return kinds[RECIPES[name].data]()


def _digits() -> Data:
    images, labels, order = sources.digits()
    return _split(images, labels, order[:1000], order[1000:1200])


def _noisy() -> Data:
    """Return the same digits with 50 training labels wrong: another digit, any with equal chance."""
    clean, draw = _digits(), np.random.default_rng(1)
    images, labels = clean.train
    wrong = draw.choice(len(labels), 50, replace=False)
    labels = labels.clone()
    labels[wrong] = (labels[wrong] + torch.from_numpy(draw.integers(1, 10, len(wrong)))) % 10
    return Data((images, labels), clean.queries, clean.train_ids, clean.query_ids)


def _fashion() -> Data:
    (train, rows), (queries, asked) = sources.fashion(2000, 200)
    return Data(train, queries, rows.tolist(), asked.tolist())


def _cifar() -> Data:
    pixels, labels, ids, order = sources.cifar()
    mean, spread = torch.tensor(models.CIFAR_MEAN), torch.tensor(models.CIFAR_SPREAD)
    pixels = ((pixels - mean[:, None, None]) / spread[:, None, None]).contiguous()
    found = _split(pixels, labels, np.sort(order[:3500]), np.sort(order[3500:]))
    return Data(found.train, found.queries, ids[found.train_ids].tolist(), ids[found.query_ids].tolist())


def _sst2() -> Data:
    train, dev, known = sources.sst2(2000, 200)
    longest = max(len(text) for texts, _, _ in (train, dev) for text in texts)
    parts = [(sources.as_ids(texts, known, longest), torch.tensor(labels)) for texts, labels, _ in (train, dev)]
    return Data(*parts, train[2].tolist(), dev[2].tolist(), len(known) + 2)


def _split(inputs: Tensor, labels: Tensor, rows: Any, asked: Any) -> Data:
    return Data((inputs[rows], labels[rows]), (inputs[asked], labels[asked]), rows.tolist(), asked.tolist())


def network(name: str) -> dict[str, Any]:
    """Return how the bank's network is built: a function of ``models`` and its arguments."""
    kind, data = RECIPES[name].model, data_of(name)
    given = {"cnn": [data.train[0].shape[-1]], "ResNet": [], "Bag": [data.words]}[kind]
    return {"function": kind, "arguments": given}


def build(name: str) -> nn.Module:
    """Return the bank's network, initialised by torch's generator as it stands."""
    found = network(name)
    return getattr(models, found["function"])(*found["arguments"])


def train(
    name: str, rows: Sequence[int] | Any, seed: int, each: Callable[[int, nn.Module, float], None] | None = None
) -> nn.Module:
    """Train the bank's network on these training rows; ``each(epoch, model, rate)`` is called after each epoch."""
    recipe, (inputs, labels) = RECIPES[name], data_of(name).train
    some = torch.as_tensor(np.asarray(rows))
    kinds = {"sgd": partial(torch.optim.SGD, momentum=0.9), "adamw": torch.optim.AdamW}
    optimiser = partial(kinds[recipe.optimiser], weight_decay=recipe.weight_decay)
    return fit(lambda: build(name), (inputs[some], labels[some]), epochs=recipe.epochs, seed=seed, batch=recipe.batch,
               lr=recipe.lr, optimiser=optimiser, each=each)  # fmt: skip


@torch.no_grad()
def ask(model: nn.Module, examples: Examples) -> dict[str, np.ndarray]:
    """Return each example's loss and margin (its logit less log-sum-exp of the others) under a model, in float64."""
    model.eval()
    logits = torch.cat([model(some) for some in examples[0].split(256)]).double()
    labels = examples[1][:, None]
    own = logits.gather(1, labels)[:, 0]
    others = logits.scatter(1, labels, -torch.inf).logsumexp(1)
    return {"loss": F.cross_entropy(logits, labels[:, 0], reduction="none").numpy(), "margin": (own - others).numpy()}


def describe(name: str) -> dict[str, Any]:
    """Return the recipe and the ids, plain: for a bank's meta.json."""
    data = data_of(name)
    return {"name": name, **asdict(RECIPES[name]), "train_ids": data.train_ids, "query_ids": data.query_ids,
            "parameters": sum(p.numel() for p in build(name).parameters()), "subsets": SUBSETS, "share": SHARE,
            "seeds": SEEDS, "drawn_by": DRAWN_BY}  # fmt: skip
