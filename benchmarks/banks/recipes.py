"""What each bank is: its data by ids, its network, and how it is trained. Everything follows from here.

A bank is 100 random halves of the training set, each trained with two seeds of its own; what is kept of every training is
each query's loss and margin. Subset seeds differ from one another and from the full model's.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

SUBSETS, SHARE, SEEDS, DRAWN_BY = 100, 0.5, 2, 20240
FULL_SEEDS = (0, 1)


@dataclass(frozen=True)
class Data:
    """Training examples and queries, as tensors; ``ids`` say which of the source they are."""

    train: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]
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
    schedule: str = "cosine"  # to 0 over all steps, or constant
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


def shared() -> Path:
    """Where the real data is."""
    folder = os.environ.get("FORWARDINF_DATA")
    if not folder:
        raise SystemExit("set FORWARDINF_DATA to the data folder (the Makefile does where it finds it)")
    return Path(folder)


@lru_cache
def data_of(name: str) -> Data:
    """Return the data of a bank, drawn by fixed seeds."""
    kinds = {"digits": _digits, "digits-noisy": _noisy, "fashion": _fashion, "cifar": _cifar, "sst2": _sst2}
    return kinds[RECIPES[name].data]()


def _digits() -> Data:
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = torch.tensor(found.images[:, None] / 16.0, dtype=torch.float32)
    return _split(images, torch.tensor(found.target, dtype=torch.int64), order[:1000], order[1000:1200])


def _noisy() -> Data:
    """Return the same digits with 50 training labels wrong: another digit, any with equal chance."""
    clean, draw = _digits(), np.random.default_rng(1)
    images, labels = clean.train
    wrong = draw.choice(len(labels), 50, replace=False)
    labels = labels.clone()
    labels[wrong] = (labels[wrong] + torch.from_numpy(draw.integers(1, 10, len(wrong)))) % 10
    return Data((images, labels), clean.queries, clean.train_ids, clean.query_ids)


def _fashion() -> Data:
    with np.load(shared() / "fashion_mnist" / "fashion_mnist.npz") as kept:
        draw = np.random.default_rng(0)
        rows, asked = np.sort(draw.choice(60000, 2000, False)), np.sort(draw.choice(10000, 200, False))
        train, queries = (kept["x_train"][rows], kept["y_train"][rows]), (kept["x_test"][asked], kept["y_test"][asked])
    return Data(_grey14(*train), _grey14(*queries), rows.tolist(), asked.tolist())


def _grey14(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    pixels = torch.tensor(images, dtype=torch.float32)[:, None] / 255
    return F.avg_pool2d(pixels, 2), torch.tensor(labels, dtype=torch.int64)


def _cifar() -> Data:
    with np.load(shared() / "cifar10" / "cifar10_lossless_train0_3999.npz") as kept:
        images, labels, ids = kept["x"], kept["y"], kept["index"]
    order = np.random.default_rng(0).permutation(4000)
    pixels = torch.tensor(images, dtype=torch.float32).permute(0, 3, 1, 2) / 255
    mean, spread = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    pixels = ((pixels - mean[:, None, None]) / spread[:, None, None]).contiguous()
    found = _split(pixels, torch.tensor(labels, dtype=torch.int64), np.sort(order[:3500]), np.sort(order[3500:]))
    return Data(found.train, found.queries, ids[found.train_ids].tolist(), ids[found.query_ids].tolist())


def _sst2() -> Data:
    draw, found = np.random.default_rng(0), {}
    for part, size in (("train", 2000), ("dev", 200)):
        with gzip.open(shared() / "sst2" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        rows = np.sort(draw.choice(len(lines), size, False)).tolist()
        found[part] = ([lines[row]["text"].split() for row in rows], [lines[row]["label"] for row in rows], rows)
    counts = Counter(word for text in found["train"][0] for word in text)
    known = {word: place for place, word in enumerate(sorted(w for w, n in counts.items() if n > 1), start=2)}
    longest = max(len(text) for part in found.values() for text in part[0])

    def tensors(texts: list[list[str]], labels: list[int]) -> tuple[Tensor, Tensor]:
        ids = [[known.get(word, 1) for word in text] + [0] * (longest - len(text)) for text in texts]
        return torch.tensor(ids), torch.tensor(labels)

    train, dev = found["train"], found["dev"]
    return Data(tensors(*train[:2]), tensors(*dev[:2]), train[2], dev[2], len(known) + 2)


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
    name: str, rows: Sequence[int] | Any, seed: int, checkpoint: Callable[[int, nn.Module, float], None] | None = None
) -> nn.Module:
    """Train the bank's network on these training rows; the same rows and seed give the same weights on one machine.

    ``checkpoint(epoch, model, rate)`` is called after each epoch.
    """
    recipe, (inputs, labels) = RECIPES[name], data_of(name).train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, rows = build(name).train(), torch.as_tensor(np.asarray(rows))
        if recipe.optimiser == "sgd":
            optimiser: Any = torch.optim.SGD(
                model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay
            )
        else:
            optimiser = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
        steps = recipe.epochs * -(-len(rows) // recipe.batch)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for epoch in range(recipe.epochs):
            for some in rows[torch.randperm(len(rows))].split(recipe.batch):
                optimiser.zero_grad(set_to_none=True)
                F.cross_entropy(model(inputs[some]), labels[some]).backward()
                optimiser.step()
                if recipe.schedule == "cosine":
                    rate.step()
            if checkpoint is not None:
                checkpoint(epoch, model, optimiser.param_groups[0]["lr"])
    return model.eval()


@torch.no_grad()
def ask(model: nn.Module, examples: tuple[Tensor, Tensor]) -> dict[str, np.ndarray]:
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
