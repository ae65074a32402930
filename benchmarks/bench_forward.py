"""How much does one query cost beyond one plain forward pass? One question, one table.

F is the plain eager loop (forward + per-example loss, inference mode, ordinary layout) at its best batch size; F* the same
loop at the batch size and memory layout that forwardinf found. Ours is counted from the query's gradient to the last loss,
with the baseline cached; set-up (tuning, hashing, double reading) is listed apart. Pairs are interleaved.

CPU seconds of the process by default, so that other work on the machine counts little; ``--clock wall`` on a quiet one.

python benchmarks/bench_forward.py [--pairs 7] [--threads 1 2] [--clock wall]     # about six minutes
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from harness import CLOCKS, MODELS, Clock, bare, best_setting, paired, write

import forwardinf as fi


def measure(name: str, pairs: int, clock: Clock) -> dict[str, Any]:
    model, inputs, labels = MODELS[name]()
    task = fi.CausalLM() if labels is None else fi.Classification()
    train = inputs if labels is None else (inputs, labels)
    query = inputs[:1] if labels is None else (inputs[:1], labels[:1])
    size, _, _ = best_setting(model, inputs, labels, (False,))
    with tempfile.TemporaryDirectory() as cache:

        def ours(**settings: Any) -> fi.Scores:
            return fi.attribute(model, train, query, task=task, perturbation=fi.Perturbation(**settings), cache_dir=cache,
                                progress=False)  # fmt: skip

        began = clock.perf_counter()
        first = ours()  # tunes, checks, reads the baseline: all of it cached from here on
        first_call = clock.perf_counter() - began
        star, layout = int(first.plan["batch_size"]), bool(first.plan["channels_last"])
        got = torch.from_numpy(first.baseline).float()
        assert torch.allclose(
            got, bare(model, inputs, labels, size, False), rtol=1e-3, atol=1e-3
        )  # fast and wrong does not count

        def floor(size: int, layout: bool) -> float:
            return clock.seconds(lambda: bare(model, inputs, labels, size, layout))

        def counted(**settings: Any) -> float:
            cost = ours(**settings).cost
            return cost["queries_s"] + cost["read_s"]

        def whole() -> float:
            return clock.seconds(ours)

        return {
            "N": len(inputs), "parameters": sum(p.numel() for p in model.parameters()),
            "F": {"batch_size": size}, "F_star": {"batch_size": star, "channels_last": layout},
            "F_star_over_F": paired(lambda: floor(size, False), lambda: floor(star, layout), pairs),
            "one_query_over_F_star": paired(lambda: floor(star, layout), counted, pairs),
            "one_query_over_F": paired(lambda: floor(size, False), counted, pairs),
            "two_readings_over_F_star": paired(lambda: floor(star, layout), lambda: counted(two_sided=True), pairs),
            "whole_call_cached_over_F_star": paired(lambda: floor(star, layout), whole, pairs),
            "first_call_s": round(first_call, 3), "first_setup_s": first.cost["setup_s"],
            "first_baseline_s": first.cost["baseline_s"], "cached_setup_s": ours().cost["setup_s"],
            "goals": {"one_query_over_F_star": 1.05, "two_readings_over_F_star": 2.1},
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--name", default="forward")
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    given = parser.parse_args()
    clock = Clock(given.clock)
    results: dict[str, Any] = {}
    for threads in given.threads:
        torch.set_num_threads(threads)
        for name in given.models:
            found = results[f"{name}, {threads} thread{'s' if threads > 1 else ''}"] = measure(name, given.pairs, clock)
            print(name, threads, found["one_query_over_F_star"], flush=True)
    write(given.name, {"question": "one query beyond one plain forward pass", "seed": 0, "clock": given.clock,
                       "results": results})  # fmt: skip


if __name__ == "__main__":
    main()
