"""How long does fitting EK-FAC take, beside kronfluence? One question, one table.

Both on the same checkpoint and training set, all of it, float32, one thread, true Fisher by one sampled label an example, batches
of 128, nothing cached; CPU seconds of each process, in turn, so that other work on the machine counts little. kronfluence runs
in its own environment (``benchmarks/rivals/setup.sh``).

python benchmarks/bench_fit.py [--banks digits fashion cifar] [--pairs 3]      # about five minutes
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from attribution_rows import Bench
from banks import use
from evaluate_attribution import asked_of
from harness import Clock, paired, write
from rivals.run import rival

import forwardinf as fi


def measure(bank: str, pairs: int) -> dict[str, Any]:
    bench = Bench(bank, 0, asked_of(bank)[:1])
    theirs = rival("run_kronfluence", "fit")

    def ours() -> float:
        with tempfile.TemporaryDirectory() as cache:
            scores = fi.attribute(bench.model, bench.train, bench.queries, task=fi.Classification(), batch_size=128,
                                  perturbation=fi.Perturbation("ekfac"), cache_dir=cache, on_bad_query="skip",
                                  progress=False)  # fmt: skip
        return float(scores.cost["fit_s"])

    found = paired(lambda: float(theirs(bench)["fit"][0]), ours, pairs)
    return {
        "N": len(bench.train[1]), "parameters": sum(p.numel() for p in bench.model.parameters()),
        "ours_over_kronfluence": {k: found[k] for k in ("median", "min", "max", "pairs")},
        "kronfluence_s": found["floor_s"], "ours_s": found["ours_s"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banks", nargs="+", default=["digits", "fashion", "cifar"], choices=use.names())
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    Clock("cpu")
    results = {}
    for bank in given.banks:
        results[bank] = measure(bank, given.pairs)
        print(bank, results[bank], file=sys.stderr, flush=True)
    write("fit", {"question": "EK-FAC: seconds of the fit, ours over kronfluence's", "threads": 1, "banks": results})


if __name__ == "__main__":
    main()
