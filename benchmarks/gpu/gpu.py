"""Is it right on this GPU, and how fast? A table of what is right, then times; at most ten minutes, one JSON.

- right: every direction and engine, recurrent layers, sets named jointly, generated images, beside float64 on the CPU
- forward: the forward engine beside the bare loop (goal: 1.05), a cached query, wall clock, in turn
- factored: 100 queries at once
- large: a network of ResNet-50's size (25 M) and a decoder of 300 M: plain forward, one query,
  10 queries at once, of the former 100 too

Data lie in the CPU's memory, for the bare loop as for forwardinf. ``--tiny`` shows on a CPU that it runs, on small networks:
its table is checked, its times mean nothing; with ``--out`` it is written.
"""

import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import forwardinf as fi
from benchmarks.engines.models import Work
from benchmarks.engines.timing import counted
from benchmarks.gpu.checks import checks
from benchmarks.gpu.models import cases
from benchmarks.runner import CannotRun, Found, Part, say

LASTING = False
GOALS = {"forward_over_bare": 1.05}
BEGAN = time.perf_counter()


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--tiny", action="store_true", help="small networks, on a CPU too: shows that it runs")
    parser.add_argument("--minutes", type=float, default=10.0, help="what is not begun by then is left out, and said")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)


def name(given: Namespace) -> str:
    return "gpu-tiny" if given.tiny else "gpu"


def parts(given: Namespace) -> list[Part]:
    if not torch.cuda.is_available() and not given.tiny:
        raise SystemExit("python -m benchmarks gpu: torch sees no GPU here; --tiny shows on the CPU that it runs")
    key = (given.tiny, given.seed, str(_device()))
    found = [Part("right", lambda: checks(_device(), given.seed), 120, key)]
    return found + [Part(case, partial(timed, case, given), 90, key) for case in cases(given.tiny)]


def result(given: Namespace, found: Found) -> Found:
    right = found["right"]
    return {
        "device": str(_device()), "tiny": given.tiny, "seed": given.seed, "clock": "wall", "goals": GOALS, "right": right,
        "wrong": len(_wrong(right)), "seconds": round(time.perf_counter() - BEGAN, 1),
        "results": {case: found.get(case, "left out: no time left") for case in cases(given.tiny)},
    }  # fmt: skip


def check(result: dict[str, Any]) -> None:
    """End with an error where a row is wrong."""
    wrong = _wrong(result["right"])
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(result['right'])} rows are wrong: {wrong}")


def _wrong(right: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in right if not each.get("right", "skipped" in each)]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(case: str, given: Namespace) -> dict[str, Any] | str:
    """Return the times of one model; or what went wrong, as the others are still worth knowing."""
    if time.perf_counter() - BEGAN > 0.8 * 60 * given.minutes:  # the longest part takes about a fifth
        raise CannotRun("left out: no time left")
    torch.manual_seed(given.seed)
    make, counts = cases(given.tiny)[case]
    try:
        with tempfile.TemporaryDirectory() as cache:
            found = measure(make(), counts, 1 if given.tiny else given.pairs, cache)
    except (fi.Error, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    say(f"{case}: {found}")
    return found


def measure(work: Work, counts: list[int], pairs: int, cache: str) -> dict[str, Any]:
    """Return the bare loop's seconds and forwardinf's calls, by the clock on the wall, until the device has done."""
    device = _device()
    work.model.eval().to(device)

    def attribute(count: int, engine: str) -> fi.Scores:
        return work.attribute(work.queries(count), engine, cache)

    first = attribute(1, "forward")  # tunes, checks, reads the baseline
    size, layout = int(first.plan["batch_size"]), bool(first.plan["channels_last"])

    def bare() -> float:
        began = time.perf_counter()
        work.bare(size, layout).cpu()
        return time.perf_counter() - began

    bare(), attribute(1, "forward")
    rows = [(bare(), counted(attribute(1, "forward"))) for _ in range(pairs)]
    found: dict[str, Any] = {
        "N": len(work.inputs), "parameters": work.parameters, "batch_size": size, "channels_last": layout,
        "bare_s": statistics.median(a for a, _ in rows), "one_query_s": statistics.median(b for _, b in rows),
        "forward_over_bare": round(statistics.median(b / a for a, b in rows), 4),
    }  # fmt: skip
    for count in counts:
        found |= _factored(partial(attribute, count, "factored"), count, found["bare_s"])
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        found["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return found


def _factored(call: Callable[[], fi.Scores], count: int, bare_s: float) -> dict[str, Any]:
    try:
        seconds = counted(call())
    except fi.Error as error:
        return {f"factored_{count}": str(error)}
    return {f"factored_{count}_s": seconds, f"factored_{count}_over_bare": round(seconds / bare_s, 3)}
