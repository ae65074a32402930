"""Are test examples that were copied into the training set found, and told from those that were not? Beside what is free.

Four networks; copies that are exact or altered; every way of comparing on the same queries: how often its best match is the
right one, and how many copies it finds where 1 % or 5 % of clean test examples are accused. Then the authors' protocol.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import forwardinf as fi
from benchmarks import sets
from benchmarks.data import Examples, as_ids
from benchmarks.labels.measures import average_precision
from benchmarks.leaks import copies
from benchmarks.leaks.protocol import protocol
from benchmarks.leaks.reading import HASH, LOSS, OURS, Best, Side, read, ways
from benchmarks.leaks.tables import tables as tables
from benchmarks.results import commit
from benchmarks.runner import Found, Part
from benchmarks.training import accuracy, fit
from forwardinf.truth.agreement import difference

PAGE = "leaks"
COPIED, CLEAN = 60, 400
RATES = (0.01, 0.05)
PROTOCOL = "protocol"
MINUTES = {"digits": 0.5, "Fashion-MNIST": 2, "SST-2": 1, "CIFAR-10": 8, PROTOCOL: 8}  # on one shared core
PLANS: dict[str, tuple[Callable[[], sets.Set], dict[str, Any]]] = {
    "digits": (sets.digits, {"epochs": 40}),
    "Fashion-MNIST": (lambda: sets.fashion(2000, 28), {"epochs": 30}),
    "CIFAR-10": (lambda: sets.cifar(2000, "ResNet-20"), {"epochs": 24}),
    "SST-2": (sets.sst2, {"epochs": 20, "lr": 3e-3}),
}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--tune", type=int, default=4, help="copies that the step of as_published is chosen on")
    parser.add_argument("--report", type=int, default=100, help="copies that the protocol is reported on")
    parser.add_argument("--few", type=int, default=12, help="of them, copies that as_published is asked for")


def parts(given: Namespace) -> list[Part]:
    sizes = (given.tune, given.few, given.report)
    runs = {name: partial(published, *sizes) if name == PROTOCOL else partial(of_set, name) for name in MINUTES}
    return [Part(name, run, 60 * MINUTES[name], sizes if name == PROTOCOL else None) for name, run in runs.items()]


def result(given: Namespace, found: Found) -> Found:
    return {"seeds": {"training": 0, "copies": 0, "protocol": 1},
            "sets": [found[name] for name in PLANS if name in found], "protocol": found.get(PROTOCOL)}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A trained network with its training set, altered copies of some of it, and clean test examples."""

    name: str
    model: nn.Module
    train: Examples
    rows: Tensor
    altered: dict[str, Examples]
    clean: Examples


def network(name: str) -> tuple[sets.Set, nn.Module]:
    """Return a set and its trained network."""
    make, how = PLANS[name]
    data = make()
    return data, sets.trained(f"leaks-{name}", data, lambda: fit(data.build, data.train, seed=0, **how))


def published(tune: int, few: int, report: int) -> dict[str, Any]:
    """Run the authors' protocol."""
    data, model = network("CIFAR-10")
    found = protocol(model, data.train, tune, few, report)
    return {**found, "train accuracy": round(accuracy(model, data.train), 4), "commit": commit()}


def of_set(name: str) -> dict[str, Any]:
    return {**evaluate(case(name)), "commit": commit()}


def case(name: str, copied: int = COPIED, clean: int = CLEAN) -> Case:
    """Return what is asked of one set."""
    return cased(*network(name), copied, clean)


def cased(data: sets.Set, model: nn.Module, copied: int, clean: int) -> Case:
    """Copy some training examples, in every way, and set some clean test examples beside them."""
    draw = np.random.default_rng(0)
    rows = torch.tensor(np.sort(draw.choice(len(data.train[1]), copied, replace=False)))
    labels = data.train[1][rows]
    if data.words is None:
        altered = {kind: (of(data.train[0][rows]), labels) for kind, of in copies.IMAGES.items()}
    else:
        texts, known = [data.words[0][row] for row in rows.tolist()], data.words[1]
        altered = {kind: (as_ids(of(texts), known, sets.LONGEST), labels) for kind, of in copies.TEXTS.items()}
    fresh = torch.tensor(np.sort(draw.choice(len(data.test[1]), min(clean, len(data.test[1])), replace=False)))
    return Case(data.name, model, data.train, rows, altered, (data.test[0][fresh], data.test[1][fresh]))


def evaluate(given: Case) -> dict[str, Any]:
    """Return what every way finds, and what :func:`forwardinf.leaks` decides."""
    sides, took = read(given.model, {"train": given.train, "clean": given.clean, **given.altered})
    train, known = sides["train"], set(sides["train"].content)
    fresh = [row for row, key in enumerate(sides["clean"].content) if key not in known]
    clean = {name: best.score[fresh].numpy() for name, best in ways(sides["clean"], train).items()}
    found = {kind: ways(sides[kind], train) for kind in given.altered}
    hits = {kind: {name: _right(best, given.rows, train) for name, best in of.items()} for kind, of in found.items()}
    rows = [
        {"row": name, **{kind: _measured(found[kind][name], hits[kind][name], clean[name], name) for kind in given.altered}}
        for name in clean
    ]  # fmt: skip
    return {
        "set": given.name, "N": len(given.train[1]), "parameters": sum(p.numel() for p in given.model.parameters()),
        "train accuracy": round(accuracy(given.model, given.train), 4), "copies": len(given.rows), "clean": len(fresh),
        "clean that are in the training set, bit for bit": len(given.clean[1]) - len(fresh),
        "rows": rows, "beside": _beside(found, hits, clean), "decision": _decided(given, fresh),
        "seconds": {name: round(value, 1) for name, value in took.items()},
    }  # fmt: skip


def _right(best: Best, rows: Tensor, train: Side) -> np.ndarray[Any, Any]:
    """Return whether each best match is the copied row, or one that is equal to it."""
    return np.array([at >= 0 and train.content[at] == train.content[row]
                     for at, row in zip(best.row.tolist(), rows.tolist(), strict=True)])  # fmt: skip


def _flagged(best: Best, hits: Any, clean: Any, name: str, rate: float) -> Any:
    """Return which copies are found where ``rate`` of the clean examples are accused at most."""
    over = best.score.numpy() > np.quantile(clean, 1 - rate, method="higher")
    return over if name == LOSS else over & hits


def _measured(best: Best, hits: Any, clean: Any, name: str) -> dict[str, float | None]:
    sure = np.ones_like(hits) if name == LOSS else hits
    values = np.concatenate([best.score.numpy(), clean])
    truth = np.concatenate([sure, np.zeros(len(clean), bool)])
    return {
        "top-1": None if name == LOSS else round(float(hits.mean()), 4),
        **{f"recall at {rate:.0%}": round(float(_flagged(best, hits, clean, name, rate).mean()), 4) for rate in RATES},
        "AP": round(average_precision(truth, values) * float(sure.mean()), 4) if truth.any() else 0.0,
    }  # fmt: skip


def _beside(found: dict[str, Any], hits: dict[str, Any], clean: dict[str, Any]) -> dict[str, Any]:
    """Compare ours with each other way over all near copies: recall at 1 %, paired over copies."""
    near = [kind for kind in found if kind != "exact"]
    flags = {
        name: np.concatenate([_flagged(found[k][name], hits[k][name], clean[name], name, RATES[0]) for k in near])
        for name in clean
    }
    return {
        name: {"recall": round(float(flags[name].mean()), 4), "ours less this": asdict(difference(flags[OURS], flags[name]))}
        for name in flags if name not in (OURS, LOSS, HASH)
    }  # fmt: skip


def _decided(given: Case, fresh: list[int]) -> dict[str, Any]:
    """Run the use as a user would: half of the clean examples calibrate, the other half are asked beside the copies."""
    half = len(fresh) // 2
    calibrating, asked = ((given.clean[0][some], given.clean[1][some]) for some in (fresh[:half], fresh[half:]))
    queries = tuple(torch.cat([*(part[side] for part in given.altered.values()), asked[side]]) for side in (0, 1))
    began = time.process_time()
    result = fi.leaks(
        given.model, given.train, queries, task=fi.Classification(), clean=calibrating, k=1, progress=False
    )
    flagged = result.table["is_leak"].to_numpy()
    size, copied = len(given.rows), len(given.rows) * len(given.altered)
    wrong = int(flagged[copied:].sum())
    return {
        "flagged": {kind: round(float(flagged[at * size : (at + 1) * size].mean()), 4)
                    for at, kind in enumerate(given.altered)},
        "clean flagged": wrong, "of clean": len(flagged) - copied, "q": result.fdr,
        "false discoveries": round(wrong / max(1, int(flagged.sum())), 4), "stated rate": result.false_positive_rate,
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip
