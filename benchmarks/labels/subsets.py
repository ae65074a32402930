"""Memorisation by retraining: Feldman and Zhang's estimator from random subsets (NeurIPS 2020), with how sure it is.

Each of t models is trained on a random 70 % of the training set. An example's memorisation is how much more often it is right
in the models that saw it; a training example's influence on a test example likewise. What each model said is kept: masks and
right or wrong as bits, the probability of the own label as float16.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import sets
from benchmarks.kept import kept_arrays, place
from benchmarks.runner import say
from benchmarks.training import fit, probabilities
from forwardinf.truth.agreement import spearman

SHARE, CHUNK = 0.7, 20
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Recipe:
    """How every model of a set is trained."""

    data: sets.Set
    epochs: int
    models: int
    lr: float = 2e-3
    batch: int = 64


@dataclass(frozen=True)
class Bank:
    """What all models said: ``(models, N)`` and ``(models, Q)``."""

    masks: Array
    train: Array
    train_right: Array
    test: Array
    test_right: Array

    def memorization(self, right: bool = True) -> Array:
        """Return each training example's difference, seen less unseen, ``(N,)``: of being right, or of the probability."""
        return memorization(self.masks, self.train_right if right else self.train)

    def influence(self) -> Array:
        """Return ``(Q, N)``: by how much a training example raises the probability of a test example's label."""
        seen = self.masks.astype(np.float64)
        values = self.test.astype(np.float64)
        return values.T @ seen / seen.sum(0) - values.T @ (1 - seen) / (1 - seen).sum(0)

    def reliability(self, right: bool = True) -> float:
        """Return the Spearman correlation that two estimates of this size would have (halves, Spearman–Brown)."""
        outputs = self.train_right if right else self.train
        half = spearman(*(memorization(self.masks[at::2], outputs[at::2])[None] for at in (0, 1)))[0]
        return float(2 * half / (1 + half))


def memorization(masks: Array, outputs: Array) -> Array:
    """Return the mean of outputs ``(models, N)`` where a model saw the example, minus where it did not."""
    seen, values = masks.astype(np.float64), outputs.astype(np.float64)
    return (values * seen).sum(0) / seen.sum(0) - (values * (1 - seen)).sum(0) / (1 - seen).sum(0)


def drawn(recipe: Recipe) -> Array:
    """Return which examples each model sees, ``(models, N)``; the first models do not depend on how many there are."""
    size = len(recipe.data.train[1])
    masks = np.zeros((recipe.models, size), bool)
    for model in range(recipe.models):
        masks[model, np.random.default_rng([20, model]).permutation(size)[: round(SHARE * size)]] = True
    return masks


def train(recipe: Recipe, rows: Any, seed: int) -> torch.nn.Module:
    """Train one model on some rows."""
    chosen = torch.as_tensor(np.asarray(rows))
    data = recipe.data.train[0][chosen], recipe.data.train[1][chosen]
    return fit(recipe.data.build, data, epochs=recipe.epochs, seed=seed, lr=recipe.lr, batch=recipe.batch)


def bank(recipe: Recipe, path: Path) -> Bank:
    """Return the bank from its file, or train every model, in chunks that are kept, and write it."""

    def make() -> dict[str, Array]:
        masks, parts = drawn(recipe), []
        for start in range(0, recipe.models, CHUNK):
            some = masks[start : start + CHUNK]
            chunk = place("memorized", recipe.data.name, f"{start}.npz")
            parts.append(kept_arrays(chunk, lambda some=some, start=start: _chunk(recipe, some, start)))
            say(f"{recipe.data.name}: {start + len(some)} of {recipe.models} models")
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        packed = {name: np.packbits(whole[name], axis=1) for name in ("train_right", "test_right")}
        return {"masks": np.packbits(masks, axis=1), "train": whole["train"], "test": whole["test"], **packed}

    kept = kept_arrays(path, make)
    bits = {name: np.unpackbits(kept[name], axis=1).astype(bool) for name in ("masks", "train_right", "test_right")}
    size, asked = kept["train"].shape[1], kept["test"].shape[1]
    return Bank(bits["masks"][:, :size], kept["train"], bits["train_right"][:, :size], kept["test"],
                bits["test_right"][:, :asked])  # fmt: skip


def _chunk(recipe: Recipe, masks: Array, start: int) -> dict[str, Array]:
    found: dict[str, list[Array]] = {"train": [], "train_right": [], "test": [], "test_right": []}
    for at, mask in enumerate(masks):
        model = train(recipe, np.flatnonzero(mask), seed=1000 + start + at)
        for name, (inputs, labels) in (("train", recipe.data.train), ("test", recipe.data.test)):
            said = probabilities(model, inputs)
            found[name].append(said.gather(1, labels[:, None])[:, 0].numpy().astype(np.float16))
            found[f"{name}_right"].append((said.argmax(1) == labels).numpy())
    return {name: np.stack(rows) for name, rows in found.items()}
