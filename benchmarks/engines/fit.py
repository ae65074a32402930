"""How long does fitting EK-FAC take, beside kronfluence? One question, one table.

Both on the same checkpoint and training set, all of it, float32, one thread, true Fisher by one sampled label an example, batches
of 128, nothing cached; CPU seconds of each process, in turn, so that other work on the machine counts little. kronfluence runs
in its own environment (``benchmarks/rivals/setup.sh``).
"""

import tempfile
from argparse import ArgumentParser, Namespace
from functools import partial
from typing import Any

import forwardinf as fi
from benchmarks.attribution.bench import Bench, asked_of
from benchmarks.engines.timing import Clock, paired
from benchmarks.rivals import run as rivals
from benchmarks.runner import Found, Part

LASTING = False
BANKS = ("digits", "fashion", "cifar")


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=3)


def parts(given: Namespace) -> list[Part]:
    return [Part(bank, partial(measure, bank, given.pairs), 100, given.pairs) for bank in BANKS]


def measure(bank: str, pairs: int) -> dict[str, Any]:
    """Return both fits' seconds on a bank's network, and their ratio."""
    Clock("cpu")
    bench = Bench(bank, 0, asked_of(bank)[:1])

    def theirs() -> float:
        return rivals.ask(bench, "kronfluence", "1e-8")[1]["fit_s"]

    def ours() -> float:
        with tempfile.TemporaryDirectory() as cache:
            scores = fi.attribute(bench.model, bench.train, bench.queries, task=fi.Classification(), batch_size=128,
                                  perturbation=fi.Perturbation("ekfac"), cache_dir=cache, on_bad_query="skip",
                                  progress=False)  # fmt: skip
        return float(scores.cost["fit_s"])

    found = paired(theirs, ours, pairs)
    return {
        "N": len(bench.train[1]), "parameters": sum(p.numel() for p in bench.model.parameters()),
        "ours_over_kronfluence": {k: found[k] for k in ("median", "min", "max", "pairs")},
        "kronfluence_s": found["floor_s"], "ours_s": found["ours_s"],
    }  # fmt: skip


def result(given: Namespace, found: Found) -> Found:
    return {"threads": 1, "banks": found}
