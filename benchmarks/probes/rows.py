"""The rows of the table of probes: each a function ``(Case) -> entries``, one entry for each number of probes."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import forwardinf as fi
from benchmarks.banks import models, recipes
from benchmarks.data import Examples
from benchmarks.probes.case import TASK, Case, Tables
from benchmarks.rivals import run as rivals
from forwardinf.data.examples import examples
from forwardinf.gradients.ridge import Ridge
from forwardinf.perturb.parameters import select
from forwardinf.perturb.probes import Probes, probe_responses, tables_of
from forwardinf.tasks.feed import Feed

COUNTS = (16, 64, 256, 1024, 4096)
GAUSSIAN = 2**16  # parameters up to which a thousand Gaussian directions are kept, not drawn again for every batch
Entries = list[dict[str, Any]]


def filled(case: Case, index: fi.ProbeIndex, most: int, how: str) -> Entries:
    """Return what the first 16, 64, … probes of an index give."""
    found: dict[int, dict[str, Any]] = {}
    settings = {"task": TASK, "how": how, "progress": False, "on_bad_query": "skip"}
    counts = [count for count in COUNTS if count <= most][::-1]  # most first: the others are parts of it
    for count in counts:
        began = time.process_time()
        scores = index.query(case.model, case.queries, probes=count, **settings)
        seconds = time.process_time() - began
        found[count] = {"M": count, **case.judged(scores.values), "copies": {}}
        if count == most:
            found[count]["query_s"] = round(seconds, 2)
    by = {"cosine": {"compare": "cosine"}, "whitened": {"compare": "whitened", "temper": 1.0, "damping": 0.1}}
    for count in counts:
        found[count]["copies"] = case.copies(lambda asked, count=count: {
            name: index.query(case.model, asked, probes=count, **settings, **more).values for name, more in by.items()
        })  # fmt: skip
    return [found[count] for count in sorted(found)]


def projected(case: Case, draw: str, most: int) -> Entries:
    index, seconds = case.index(f"projected-{draw}-{most}", most, draw=draw)
    cost = round(seconds / case.bench.forward_s, 1)
    return [{**entry, "fill_F": cost} for entry in filled(case, index, most, "projected")]


def forward(case: Case, length: float, two_sided: bool, most: int, draw: str = "structured") -> Entries:
    name = f"forward-{draw}-{length}-{'two' if two_sided else 'one'}-{most}"
    index, _ = case.index(name, most, how="forward", draw=draw, length=length, two_sided=two_sided)
    return [{**entry, "fill_F": entry["M"] * (2 if two_sided else 1), "length": length, "two_sided": two_sided}
            for entry in filled(case, index, most, "forward")]  # fmt: skip


def by_layer(case: Case, most: int) -> Entries:
    """Every probe moves one parameter only: as many for each."""
    chosen = select(case.model, None)
    feeds = [Feed(case.model, TASK, examples(data), torch.device("cpu")) for data in (case.train, case.queries)]
    found = []
    for count in COUNTS:
        if count > most or count < 2 * len(chosen):
            continue
        sides = []
        for feed in feeds:
            layers = []
            for name, parameter in chosen.items():
                own = {name: parameter}
                probes = Probes(own, max(1, count // len(chosen)), tables=tables_of(case.model, own))
                layers.append(probe_responses(feed, range(len(feed.examples)), probes, 64) / probes.count**0.5)
            sides.append(torch.cat(layers, 1))
        ridge = Ridge(responses=sides[0], temper=0.5)
        scores = ridge.solve(sides[1].double() @ sides[0].double().T * ridge.inverse)
        found.append({"M": count, **case.judged((scores * ridge.inverse).numpy())})
    return found


def attribute(case: Case, queries: Examples, rule: fi.Perturbation) -> fi.Scores:
    """Return what engines that need gradients give: no sketch."""
    return fi.attribute(case.model, case.train, queries, task=TASK, perturbation=rule, engine="factored", on_bad_query="skip",
                        progress=False)  # fmt: skip


def exact(case: Case, **settings: Any) -> Entries:
    began = time.process_time()
    scores = attribute(case, case.queries, fi.Perturbation(**settings))
    return [{**case.judged(scores.values), "call_F": round((time.process_time() - began) / case.bench.forward_s, 1)}]


def exact_copies(case: Case) -> Entries:
    """The cosine of whole gradients."""
    plain = fi.Perturbation()
    own = fi.self_influence(case.model, case.train, task=TASK, direction=plain, progress=False)

    def ask(queries: Examples) -> Tables:
        return {"cosine": attribute(case, queries, plain).cosine(own)}

    return [{**case.judged(ask(case.queries)["cosine"]), "copies": case.copies(ask)}]


def neighbours(case: Case, features: Callable[[Tensor], Tensor]) -> Entries:
    """Free: nothing of the training is used."""
    train = F.normalize(features(case.train[0]).flatten(1).double(), dim=1)

    def near(queries: Examples) -> np.ndarray:
        return (F.normalize(features(queries[0]).flatten(1).double(), dim=1) @ train.T).numpy()

    same = (case.queries[1][:, None] == case.train[1][None]).numpy()
    copies = case.copies(lambda queries: {"cosine": near(queries)})
    return [{**case.judged(np.where(same, near(case.queries), 0.0)), "copies": copies}]


def bags(case: Case, inputs: Tensor) -> Tensor:
    """Words as counts, pixels as they are."""
    if not case.bank.startswith("sst2"):
        return inputs
    words = recipes.data_of(case.bank).words
    return torch.zeros(len(inputs), words).scatter_add_(1, inputs, (inputs != 0).float())


def rival(case: Case) -> Entries:
    """EK-FAC as kronfluence has it, at its default damping."""
    (table,) = rivals.ROWS["kronfluence EK-FAC, default damping"](case.bench).values()
    return [case.judged(table)]


def rows(small: bool) -> dict[str, Callable[[Case], Entries]]:
    """Return every row by its name."""
    most = 1024 if small else 4096
    own = {
        "gradient": lambda case: exact(case, direction="plain"),
        "gradient cosine": exact_copies,
        "exact kernel (hold)": lambda case: exact(case, direction="hold", reading="root"),
        "EK-FAC, ours": lambda case: exact(case, direction="ekfac"),
        "gfim by the root (preset linear)": lambda case: exact(case, direction="gfim", reading="root"),
        "projected": lambda case: projected(case, "structured", most),
        "projected, a layer each": lambda case: by_layer(case, most),
        "forward only": lambda case: forward(case, 0.01, False, 256 if small else 1024),
        "forward only, there and back": lambda case: forward(case, 0.01, True, 256),
        "projected, gaussian": lambda case: projected(case, "gaussian", 1024 if case.parameters < GAUSSIAN else 256),
        "EK-FAC, kronfluence": rival,
        "input neighbours (same label)": lambda case: neighbours(case, lambda x: bags(case, x)),
        "feature neighbours (same label)": lambda case: neighbours(case, lambda x: models.last_hidden(case.model, x)),
    }
    others = {
        "forward only, length .001": lambda case: forward(case, 0.001, False, 256),
        "forward only, length .1": lambda case: forward(case, 0.1, False, 256),
        "forward only, gaussian": lambda case: forward(case, 0.01, False, 256, "gaussian"),
    }
    return own if small else {**own, **others}
