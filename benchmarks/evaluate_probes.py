"""What are responses to M shared perturbations worth? LDS and copies found against M, forward passes alone and projected.

On the committed banks: the linear datamodelling score of whitened scores (β = ½, damping as `hold` has it), and how often the
training original of an altered copy comes first, by the cosine of responses and by whitened unit responses. Beside them the
exact kernel, the plain gradient, our EK-FAC, kronfluence's (where its environment is there), and the free baselines.

python benchmarks/evaluate_probes.py [--banks digits sst2-short] [--small]       # says its time first; resumable
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from attribution_rows import Bench
from banks import models, use
from harness import RESULTS, commit, write
from probes_table import write_docs
from rivals import run as rivals
from torch import Tensor

import forwardinf as fi
from forwardinf.core.files import read_json, write_json
from forwardinf.data.examples import examples
from forwardinf.gradients.ridge import Ridge
from forwardinf.perturb.parameters import select
from forwardinf.perturb.probes import Probes, probe_responses, tables_of
from forwardinf.tasks.feed import Feed
from forwardinf.truth.agreement import mean_interval
from forwardinf.truth.retrain import spoken

WORK = Path(__file__).parent / ".cache" / "probes"
BANKS = ("digits", "digits-short", "fashion", "sst2", "sst2-short")
COUNTS = (16, 64, 256, 1024, 4096)
FORMAT = "forwardinf.probes-row/1"
TASK = fi.Classification()
COPIES = 60
GAUSSIAN = 2**16  # parameters up to which a thousand Gaussian directions are kept, not drawn again for every batch


class Case:
    """One bank, one full model, and where its indexes are kept."""

    def __init__(self, bank: str, seed: int) -> None:
        self.bank, self.seed = bank, seed
        self.bench = Bench(bank, seed, np.arange(len(use.data(bank)[1][1])))
        self.model, self.train, self.queries = self.bench.model, self.bench.train, self.bench.queries
        self.forward_s = self.bench.forward_s
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.altered = altered(bank, self.train)

    def index(self, name: str, probes: int, **settings: Any) -> tuple[fi.ProbeIndex, float]:
        """Return an index, built or recalled, and the CPU seconds that its filling took when it was made."""
        path = WORK / f"{self.bank}-{self.seed}" / name.replace(".", "_")
        began = time.process_time()
        index = fi.ProbeIndex.build(path, self.model, self.train, task=TASK, probes=probes, progress=False, **settings)
        took, clock = time.process_time() - began, path.with_suffix(".seconds.json")
        if not clock.is_file():
            write_json(clock, {"format": FORMAT, "seconds": took})
        return index, float(read_json(clock, FORMAT, what="a time")["seconds"])

    def judged(self, scores: Any) -> dict[str, Any]:
        """Return the LDS of a table of scores, with its interval over queries."""
        table = np.nan_to_num(np.asarray(scores, dtype=np.float64))
        found = mean_interval(np.nan_to_num(use.lds_of(use.bank_of(self.bank), table).per_query))
        return {"LDS": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def altered(bank: str, train: tuple[Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return altered copies of training examples, by kind: (inputs, labels, the originals' places)."""
    draw = torch.Generator().manual_seed(11)
    at = torch.randperm(len(train[1]), generator=draw)[:COPIES]
    inputs, labels = train[0][at], train[1][at]
    if bank.startswith("sst2"):
        dropped = inputs.clone()
        for row in dropped:
            words = int((row != 0).sum())
            if words > 2:
                place = int(torch.randint(words, (), generator=draw))
                row[place : words - 1] = row[place + 1 : words].clone()
                row[words - 1] = 0
        return {"exact": (inputs, labels, at), "one word less": (dropped, labels, at)}
    noisy = inputs + 0.1 * torch.randn(inputs.shape, generator=draw)
    return {
        "exact": (inputs, labels, at), "noise .1": (noisy, labels, at), "brightness × .8": (0.8 * inputs, labels, at),
        "shifted 1 px": (F.pad(inputs, (1, 0))[..., :-1], labels, at),
    }  # fmt: skip


def first(scores: np.ndarray, places: Tensor) -> float:
    """How often the original comes first."""
    return round(float((np.asarray(scores).argmax(1) == places.numpy()).mean()), 3)


def copies(case: Case, ask: Any) -> dict[str, dict[str, float]]:
    """Return how often originals come first, by kind of alteration and way of comparing."""
    found = {}
    for kind, (inputs, labels, places) in case.altered.items():
        tables = ask((inputs, labels))
        found[kind] = {how: first(table, places) for how, table in tables.items()}
    return found


def filled(case: Case, index: fi.ProbeIndex, most: int, how: str) -> dict[int, dict[str, Any]]:
    """Return what the first 16, 64, … probes of an index give, by their number."""
    counts = [count for count in COUNTS if count <= most][::-1]  # most first: the others are parts of it
    found: dict[int, dict[str, Any]] = {}
    for count in counts:
        began = time.process_time()
        scores = index.query(
            case.model, case.queries, task=TASK, probes=count, how=how, progress=False, on_bad_query="skip"
        )
        seconds = time.process_time() - began if count == most else math.nan
        found[count] = {"M": count, **case.judged(scores.values), "copies": {}}
        if count == most:
            found[count]["query_s"] = round(seconds, 2)
    by = {"cosine": {"compare": "cosine"}, "whitened": {"compare": "whitened", "temper": 1.0, "damping": 0.1}}
    for kind, (inputs, labels, places) in case.altered.items():
        for count in counts:
            found[count]["copies"][kind] = {
                name: first(np.nan_to_num(index.query(case.model, (inputs, labels), task=TASK, probes=count, how=how,
                                                      progress=False, on_bad_query="skip", **settings).values), places)
                for name, settings in by.items()
            }  # fmt: skip
    return dict(sorted(found.items()))


# -- rows: each a function (case) -> entries ---------------------------------------------------------------------------


def projected(case: Case, draw: str, most: int) -> list[dict[str, Any]]:
    index, seconds = case.index(f"projected-{draw}-{most}", most, draw=draw)
    return [{**entry, "fill_F": round(seconds / case.forward_s, 1)}
            for entry in filled(case, index, most, "projected").values()]  # fmt: skip


def forward(case: Case, length: float, two_sided: bool, most: int, draw: str = "structured") -> list[dict[str, Any]]:
    name = f"forward-{draw}-{length}-{'two' if two_sided else 'one'}-{most}"
    index, _ = case.index(name, most, how="forward", draw=draw, length=length, two_sided=two_sided)
    return [{**entry, "fill_F": count * (2 if two_sided else 1), "length": length, "two_sided": two_sided}
            for count, entry in filled(case, index, most, "forward").items()]  # fmt: skip


def by_layer(case: Case, most: int) -> list[dict[str, Any]]:
    """Every probe moves one parameter only: as many for each."""
    chosen = select(case.model, None)
    rows, asked = (Feed(case.model, TASK, examples(data), torch.device("cpu")) for data in (case.train, case.queries))
    found = []
    for count in COUNTS:
        if count > most or count < 2 * len(chosen):
            continue
        tables = []
        for feed in (rows, asked):
            parts = []
            for name, parameter in chosen.items():
                own = {name: parameter}
                probes = Probes(own, max(1, count // len(chosen)), tables=tables_of(case.model, own))
                parts.append(probe_responses(feed, range(len(feed.examples)), probes, 64) / probes.count**0.5)
            tables.append(torch.cat(parts, 1))
        ridge = Ridge(responses=tables[0], temper=0.5)
        scores = ridge.solve(tables[1].double() @ tables[0].double().T * ridge.inverse)
        found.append({"M": count, **case.judged((scores * ridge.inverse).numpy())})
    return found


def exact(case: Case, **settings: Any) -> list[dict[str, Any]]:
    """What engines that need gradients give: no sketch."""
    began = time.process_time()
    scores = fi.attribute(case.model, case.train, case.queries, task=TASK, perturbation=fi.Perturbation(**settings),
                          engine="factored", on_bad_query="skip", progress=False)  # fmt: skip
    return [{**case.judged(scores.values), "call_F": round((time.process_time() - began) / case.forward_s, 1)}]


def exact_copies(case: Case) -> list[dict[str, Any]]:
    """The cosine of whole gradients."""
    plain = fi.Perturbation()
    own = fi.self_influence(case.model, case.train, task=TASK, direction=plain, progress=False)

    def ask(queries: Any) -> dict[str, np.ndarray]:
        scores = fi.attribute(case.model, case.train, queries, task=TASK, perturbation=plain, engine="factored",
                              on_bad_query="skip", progress=False)  # fmt: skip
        return {"cosine": np.nan_to_num(scores.cosine(own))}

    return [{**case.judged(ask(case.queries)["cosine"]), "copies": copies(case, ask)}]


def neighbours(case: Case, features: Any) -> list[dict[str, Any]]:
    """Free: nothing of the training is used."""
    train = F.normalize(features(case.train[0]).flatten(1).double(), dim=1)

    def table(queries: Any) -> np.ndarray:
        return (F.normalize(features(queries[0]).flatten(1).double(), dim=1) @ train.T).numpy()

    same = (case.queries[1][:, None] == case.train[1][None]).numpy()
    return [{**case.judged(np.where(same, table(case.queries), 0.0)),
             "copies": copies(case, lambda queries: {"cosine": table(queries)})}]  # fmt: skip


def bags(case: Case, inputs: Tensor) -> Tensor:
    """Words as counts, pixels as they are."""
    if not case.bank.startswith("sst2"):
        return inputs
    words = use.recipes.data_of(case.bank).words
    return torch.zeros(len(inputs), words).scatter_add_(1, inputs, (inputs != 0).float())


def rival(case: Case) -> list[dict[str, Any]]:
    """EK-FAC as kronfluence has it, at its default damping."""
    (table,) = rivals.ROWS["kronfluence EK-FAC, default damping"](case.bench).values()
    return [case.judged(table)]


def rows(small: bool) -> dict[str, Any]:
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


def evaluate(bank: str, seed: int, name: str, work: Any, case: Any) -> list[dict[str, Any]]:
    """Return a row's entries, from its file or by running it."""
    path = WORK / f"{bank}-{seed}" / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"
    if path.is_file():
        return list(read_json(path, FORMAT, what="a row")["entries"])
    try:
        entries = work(case())
    except rivals.NoVenv as reason:
        print(f"{name}: {reason}", file=sys.stderr)
        return []
    write_json(path, {"format": FORMAT, "entries": entries, "commit": commit()})
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banks", nargs="+", default=list(BANKS), choices=use.names())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="at most 256 probes forward only, 1,024 projected")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work, results = rows(given.small), {}
    per_bank = (1024 + 256 * 5) if not given.small else 256 * 3
    total = sum(Bench(bank, given.seed, np.arange(1)).forward_s * per_bank * 2 for bank in given.banks)
    print(f"about {spoken(total)} on this machine, one thread; resumable", file=sys.stderr, flush=True)
    for bank in given.banks:
        kept: list[Case] = []

        def case(bank: str = bank, kept: list[Case] = kept) -> Case:
            kept[:] = kept or [Case(bank, given.seed)]
            return kept[0]

        found = {}
        for name, run in work.items():
            found[name] = evaluate(bank, given.seed, name, run, case)
            told = ", ".join(f"{entry.get('M', '')} {entry.get('LDS')}" for entry in found[name])
            print(f"{bank:13} {name:40} {told}", file=sys.stderr, flush=True)
        data = use.recipes.data_of(bank)
        results[bank] = {"N": len(data.train_ids), "Q": len(data.query_ids),
                         "ceiling": round(float(np.nanmean(use.bank_of(bank).ceiling())), 4), "rows": found}  # fmt: skip
    write("probes", {"question": "what responses to M shared perturbations are worth", "model seed": given.seed,
                     "small": given.small, "copies of each kind": COPIES, "banks": results})  # fmt: skip
    write_docs(RESULTS / "probes.json")


if __name__ == "__main__":
    main()
