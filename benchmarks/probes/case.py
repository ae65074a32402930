"""One bank and one full model, altered copies of its training examples, and how scores of them are judged."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import forwardinf as fi
from benchmarks.attribution.bench import Bench
from benchmarks.banks import use
from benchmarks.data import Examples
from benchmarks.kept import kept_json, place
from forwardinf.truth.agreement import mean_interval

TASK = fi.Classification()
COPIES = 60
Tables = dict[str, np.ndarray]


class Case:
    """One bank, one full model, and where its indexes are kept."""

    def __init__(self, bank: str, seed: int) -> None:
        self.bank, self.seed = bank, seed
        self.bench = Bench(bank, seed, np.arange(len(use.data(bank)[1][1])))
        self.model, self.train, self.queries = self.bench.model, self.bench.train, self.bench.queries
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.altered = altered(bank, self.train)

    def index(self, name: str, probes: int, **settings: Any) -> tuple[fi.ProbeIndex, float]:
        """Return an index, built or recalled, and the CPU seconds that its filling took when it was made."""
        path = place("probes", f"{self.bank}-{self.seed}", name.replace(".", "_"))
        began = time.process_time()
        index = fi.ProbeIndex.build(path, self.model, self.train, task=TASK, probes=probes, progress=False, **settings)
        took = time.process_time() - began
        return index, kept_json(path.with_suffix(".seconds.json"), lambda: {"seconds": took})["seconds"]

    def judged(self, scores: Any) -> dict[str, Any]:
        """Return the LDS of a table of scores, with its interval over queries."""
        table = np.nan_to_num(np.asarray(scores, dtype=np.float64))
        found = mean_interval(np.nan_to_num(use.lds_of(use.bank_of(self.bank), table).per_query))
        return {"LDS": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}

    def copies(self, ask: Callable[[Examples], Tables]) -> dict[str, dict[str, float]]:
        """Return how often originals come first, by kind of alteration and way of comparing."""
        return {
            kind: {how: first(table, places) for how, table in ask((inputs, labels)).items()}
            for kind, (inputs, labels, places) in self.altered.items()
        }


def altered(bank: str, train: Examples) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return altered copies of training examples, by kind: (inputs, labels, the originals' places)."""
    draw = torch.Generator().manual_seed(11)
    at = torch.randperm(len(train[1]), generator=draw)[:COPIES]
    inputs, labels = train[0][at], train[1][at]
    if bank.startswith("sst2"):
        dropped = inputs.clone()
        for row in dropped:
            words = int((row != 0).sum())
            if words > 2:
                gone = int(torch.randint(words, (), generator=draw))
                row[gone : words - 1] = row[gone + 1 : words].clone()
                row[words - 1] = 0
        return {"exact": (inputs, labels, at), "one word less": (dropped, labels, at)}
    noisy = inputs + 0.1 * torch.randn(inputs.shape, generator=draw)
    return {
        "exact": (inputs, labels, at), "noise .1": (noisy, labels, at), "brightness × .8": (0.8 * inputs, labels, at),
        "shifted 1 px": (F.pad(inputs, (1, 0))[..., :-1], labels, at),
    }  # fmt: skip


def first(scores: np.ndarray, places: Tensor) -> float:
    """How often the original comes first."""
    return round(float((np.nan_to_num(scores).argmax(1) == places.numpy()).mean()), 3)
