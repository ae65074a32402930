"""Memorisation by retraining: Feldman and Zhang's estimator from random subsets (NeurIPS 2020), with how sure it is.

Each of t models is trained on a random 70 % of the training set. An example's memorisation is how much more often it is right
in the models that saw it; a training example's influence on a test example likewise. What each model said is kept: masks and
right or wrong as bits, the probability of the own label as float16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forwardinf.core.files import written

from . import sets

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
        from forwardinf.truth.agreement import spearman

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
    return sets.fit(recipe.data.build, data, epochs=recipe.epochs, seed=seed, lr=recipe.lr, batch=recipe.batch)


def bank(recipe: Recipe, path: Path, work: Path, say: Callable[[str], None] = print) -> Bank:
    """Return the bank from its file, or train every model, in chunks that are kept, and write it."""
    if not path.exists():
        masks = drawn(recipe)
        parts = []
        for start in range(0, recipe.models, CHUNK):
            chunk = work / f"{start}.npz"
            if not chunk.exists():
                _write(chunk, _chunk(recipe, masks[start : start + CHUNK], start))
                say(f"{recipe.data.name}: {min(start + CHUNK, recipe.models)} of {recipe.models} models")
            with np.load(chunk, allow_pickle=False) as kept:
                parts.append({name: kept[name] for name in kept.files})
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        packed = {name: np.packbits(whole[name], axis=1) for name in ("train_right", "test_right")}
        _write(path, {"masks": np.packbits(masks, axis=1), "train": whole["train"], "test": whole["test"], **packed})
    return load(path)


def load(path: Path) -> Bank:
    """Read a bank."""
    with np.load(path, allow_pickle=False) as kept:
        train_said, test_said = kept["train"], kept["test"]
        bits = {name: np.unpackbits(kept[name], axis=1).astype(bool) for name in ("masks", "train_right", "test_right")}
    size, asked = train_said.shape[1], test_said.shape[1]
    return Bank(bits["masks"][:, :size], train_said, bits["train_right"][:, :size], test_said,
                bits["test_right"][:, :asked])  # fmt: skip


def _chunk(recipe: Recipe, masks: Array, start: int) -> dict[str, Array]:
    found: dict[str, list[Array]] = {"train": [], "train_right": [], "test": [], "test_right": []}
    for place, mask in enumerate(masks):
        model = train(recipe, np.flatnonzero(mask), seed=1000 + start + place)
        for name, (inputs, labels) in (("train", recipe.data.train), ("test", recipe.data.test)):
            said = sets.probabilities(model, inputs)
            found[name].append(said.gather(1, labels[:, None])[:, 0].numpy().astype(np.float16))
            found[f"{name}_right"].append((said.argmax(1) == labels).numpy())
    return {name: np.stack(rows) for name, rows in found.items()}


def _write(path: Path, arrays: dict[str, Array]) -> None:
    with written(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
