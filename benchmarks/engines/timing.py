"""Honest timing: one clock for everything, the best plain loop, and two things in turn."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import forwardinf as fi
from benchmarks.engines.models import Work
from forwardinf.job import job, prepare
from forwardinf.perturb import push

CLOCKS = {
    "cpu": time.process_time,  # what the process itself used: on a machine that others use too
    "wall": time.perf_counter,
}
TIMED = (job, prepare, push)  # they keep the accounts
SIZES = (8, 16, 32, 64, 128, 256, 512)


class Clock:
    """The clock of a benchmark: it takes the place of ``time`` in forwardinf's own accounts too, so that both are alike."""

    def __init__(self, name: str, *others: Any) -> None:
        self.name, self.perf_counter, self.monotonic = name, CLOCKS[name], time.monotonic
        for module in (*TIMED, *others):
            module.time = self

    def seconds(self, work: Callable[[], Any]) -> float:
        """How long ``work`` takes."""
        began = self.perf_counter()
        work()
        return self.perf_counter() - began


def best_size(work: Work) -> tuple[int, float]:
    """Return (batch size, CPU seconds) of the fastest plain loop in the ordinary layout."""
    tried = []
    for size in SIZES:
        if size <= len(work.inputs):
            work.bare(size)
            times = []
            for _ in range(3):
                began = time.process_time()
                work.bare(size)
                times.append(time.process_time() - began)
            tried.append((statistics.median(times), size))
    took, size = min(tried)
    return size, took


def counted(scores: fi.Scores) -> float:
    """Return the seconds from the queries' gradients to the last score."""
    return float(scores.cost["queries_s"] + scores.cost["read_s"])


def paired(floor: Callable[[], float], ours: Callable[[], float], pairs: int) -> dict[str, Any]:
    """Time two things in turn and return the ratios pair by pair: the machine's drift cancels."""
    floor(), ours()
    rows = [(floor(), ours()) for _ in range(pairs)]
    ratios = sorted(b / a for a, b in rows)
    return {
        "median": round(statistics.median(ratios), 4), "min": round(ratios[0], 4), "max": round(ratios[-1], 4),
        "floor_s": round(statistics.median(a for a, _ in rows), 5), "ours_s": round(statistics.median(b for _, b in rows), 5),
        "pairs": pairs,
    }  # fmt: skip
