"""How much does one query cost beyond one plain forward pass? One question, one table.

F is the plain eager loop (forward + per-example loss, inference mode, ordinary layout) at its best batch size; F* the same
loop at the batch size and memory layout that forwardinf found. Ours is counted from the query's gradient to the last loss,
with the baseline cached; set-up (tuning, hashing, double reading) is listed apart. Pairs are interleaved.

CPU seconds of the process by default, so that other work on the machine counts little; ``--clock wall`` on a quiet one.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from functools import partial
from typing import Any

import torch

import forwardinf as fi
from benchmarks.engines.models import MODELS, Work
from benchmarks.engines.timing import CLOCKS, Clock, best_size, counted, paired
from benchmarks.runner import Found, Part

LASTING = False
GOALS = {"one_query_over_F_star": 1.05, "two_readings_over_F_star": 2.1}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")


def cases(given: Namespace) -> dict[str, tuple[str, int]]:
    """Return (model, threads) of each case by its name."""
    return {f"{name}, {threads} thread{'s' if threads > 1 else ''}": (name, threads)
            for threads in given.threads for name in MODELS}  # fmt: skip


def parts(given: Namespace) -> list[Part]:
    def run(name: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        return measure(MODELS[name](), given.pairs, Clock(given.clock))

    return [Part(case, partial(run, *how), 60, (given.pairs, given.clock)) for case, how in cases(given).items()]


def measure(work: Work, pairs: int, clock: Clock) -> dict[str, Any]:
    """Return the ratios of one model."""
    size, _ = best_size(work)
    with tempfile.TemporaryDirectory() as cache:

        def ours(**settings: Any) -> fi.Scores:
            return work.attribute(work.queries(1), "forward", cache, **settings)

        began = clock.perf_counter()
        first = ours()  # tunes, checks, reads the baseline: all of it cached from here on
        first_call = clock.perf_counter() - began
        star, layout = int(first.plan["batch_size"]), bool(first.plan["channels_last"])
        got = torch.from_numpy(first.baseline).float()
        assert torch.allclose(got, work.bare(size), rtol=1e-3, atol=1e-3)  # fast and wrong does not count

        def plain() -> float:
            return clock.seconds(lambda: work.bare(size))

        def floor() -> float:
            return clock.seconds(lambda: work.bare(star, layout))

        return {
            "N": len(work.inputs), "parameters": work.parameters,
            "F": {"batch_size": size}, "F_star": {"batch_size": star, "channels_last": layout},
            "F_star_over_F": paired(plain, floor, pairs),
            "one_query_over_F_star": paired(floor, lambda: counted(ours()), pairs),
            "one_query_over_F": paired(plain, lambda: counted(ours()), pairs),
            "two_readings_over_F_star": paired(floor, lambda: counted(ours(two_sided=True)), pairs),
            "whole_call_cached_over_F_star": paired(floor, lambda: clock.seconds(ours), pairs),
            "first_call_s": round(first_call, 3), "first_setup_s": first.cost["setup_s"],
            "first_baseline_s": first.cost["baseline_s"], "cached_setup_s": ours().cost["setup_s"], "goals": GOALS,
        }  # fmt: skip


def result(given: Namespace, found: Found) -> Found:
    return {"seed": 0, "clock": given.clock, "results": found}
