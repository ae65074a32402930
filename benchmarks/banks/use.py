"""The banks that are committed, and their full models, trained again from the recipe and kept in the cache."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.banks import recipes
from benchmarks.data import Examples
from benchmarks.kept import place, save_tensors
from forwardinf.core.fingerprint import digest
from forwardinf.truth.bank import Bank, load_bank
from forwardinf.truth.lds import Lds, lds

HERE = Path(__file__).parent
CHECKPOINTS = 5


def bank_of(name: str) -> Bank:
    """Return the committed bank."""
    return load_bank(HERE / name)


def names() -> list[str]:
    """Return the banks that are there."""
    return [name for name in recipes.RECIPES if (HERE / name / "meta.json").exists()]


def halves(queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two fixed halves of the queries: settings are chosen on the first and reported on the second."""
    order = np.random.default_rng(7).permutation(queries)
    return np.sort(order[: queries // 2]), np.sort(order[queries // 2 :])


def lds_of(bank: Bank, scores: Any) -> Lds:
    """Return the LDS against a bank."""
    return lds(scores, bank.masks, bank.outputs, outputs_are=bank.outputs_are)


def full_model(name: str, seed: int = 0) -> nn.Module:
    """Return the model trained on all of the bank's data, in eval mode: trained once, then kept in the cache."""
    return _model(name, _trained(name, seed) / "model.safetensors")


def checkpoints(name: str, seed: int = 0) -> list[tuple[nn.Module, float]]:
    """Return models along that training, evenly spaced, the last at the end; each with the mean rate that led to it."""
    folder = _trained(name, seed)
    rates = load_file(folder / "rates.safetensors")["rates"].tolist()
    return [(_model(name, folder / f"c{place}.safetensors"), rate) for place, rate in enumerate(rates)]


def data(name: str) -> tuple[Examples, Examples]:
    """Return (train, queries), each (inputs, labels)."""
    found = recipes.data_of(name)
    return found.train, found.queries


def _trained(name: str, seed: int) -> Path:
    folder = place(f"full-{name}-{seed}-{digest(recipes.describe(name), torch.__version__)[:12]}")
    if not (folder / "model.safetensors").exists():
        epochs = recipes.RECIPES[name].epochs
        ends = [round(epochs * (checkpoint + 1) / CHECKPOINTS) for checkpoint in range(CHECKPOINTS)]
        rates: list[float] = []

        def keep(epoch: int, model: nn.Module, rate: float) -> None:
            rates.append(rate)
            if epoch + 1 in ends:
                save_tensors(folder / f"c{ends.index(epoch + 1)}.safetensors", model.state_dict())

        model = recipes.train(name, range(len(data(name)[0][1])), seed, keep)
        means = [sum(rates[start:end]) / (end - start) for start, end in zip([0, *ends], ends, strict=False)]
        save_tensors(folder / "rates.safetensors", {"rates": torch.tensor(means)})
        save_tensors(folder / "model.safetensors", model.state_dict())  # last: its presence says that all is there
    return folder


def _model(name: str, path: Path) -> nn.Module:
    model = recipes.build(name)
    model.load_state_dict(load_file(path))
    return model.eval()
