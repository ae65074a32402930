"""Ratios of our calls to one plain forward pass over the training set, F, beside what they were meant to cost."""

import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import forwardinf as fi
from benchmarks.engines.arithmetic import multiplications
from benchmarks.engines.models import MODELS, Work
from benchmarks.engines.timing import Clock, best_size, counted, paired
from benchmarks.runner import Found, Part
from forwardinf.job.options import Options
from forwardinf.job.self_influence import prepare_self
from forwardinf.read import choose, tune

LAST = {"cnn": ("9.*",), "resnet": ("11.*",), "decoder": ("norm.*",)}
BLOCK = {"cnn": ("7.*", "9.*"), "resnet": ("8.*", "11.*"), "decoder": ("blocks.layers.3.*",)}
GOALS = {
    "cnn": {"factored, Q=10": 2.5, "factored, Q=100": 2.5, "last layer, Q=100": 1.2, "self-influence": 4.0,
            "trunk, last block, a query": 0.2, "index, M=4096": 6.0},
    "resnet": {"factored, Q=20": 4.0, "last layer, Q=100": 1.2, "self-influence": 4.0, "trunk, last block, a query": 0.2},
    "decoder": {"factored, Q=20": 5.0, "self-influence": 4.0, "trunk, last block, a query": 0.2},
}  # fmt: skip
ROWS = {"cnn": 4000, "resnet": 1000, "decoder": 500}
TOGETHER = 8  # queries of the trunk, each of which is to cost that little


class Case:
    """One model with its floor, and a cache of its own."""

    def __init__(self, name: str, rows: int, clock: str) -> None:
        # the planner measures by the same clock: its estimate is held against what came
        self.name, self.clock = name, Clock(clock, tune, choose)
        self.whole = MODELS[name]()
        self.work: Work = self.whole.first(rows)
        self.size = best_size(self.work)[0]
        self.folder = tempfile.TemporaryDirectory()

    def forward(self) -> torch.Tensor:
        return self.work.bare(self.size)

    def floor(self) -> float:
        return self.clock.seconds(self.forward)

    def attribute(self, count: int, engine: str, parameters: Any = None) -> fi.Scores:
        return self.work.attribute(self.whole.queries(count), engine, self.folder.name, parameters=parameters)


case_of = cache(Case)


def _asked(given: Namespace) -> Iterator[tuple[str, int, str, str]]:
    """Yield (row, threads, model, goal)."""
    for threads in given.threads:
        for name in GOALS:
            for what in GOALS[name]:
                yield f"{name}, {threads} thread{'s' if threads > 1 else ''}: {what}", threads, name, what


def _part(given: Namespace, row: str) -> str:
    return f"goal {row}, {given.clock}{', small' if given.small else ''}"


def parts(given: Namespace) -> list[Part]:
    def run(threads: int, name: str, what: str) -> dict[str, Any]:
        torch.set_num_threads(threads)
        return goal(case_of(name, ROWS[name] // (8 if given.small else 1), given.clock), what, given.pairs)

    return [Part(_part(given, row), partial(run, *how), 12 if given.small else 90) for row, *how in _asked(given)]


def result(given: Namespace, found: Found) -> Found:
    rows = {row: _part(given, row) for row, *_ in _asked(given)}
    return {"rows": {row: found[part] for row, part in rows.items() if part in found}}


def goal(case: Case, what: str, pairs: int) -> dict[str, Any]:
    """Measure one goal: the ratio to the floor, pair by pair, and how far the plan's estimate was off."""
    offs: list[float] = []
    each = TOGETHER if what.startswith("trunk") else 1
    ours = _call(case, what, offs)
    found = paired(case.floor, lambda: ours() / each, pairs)
    found["multiplications"] = round(multiplications(ours) / each / multiplications(case.forward), 3)
    if offs:
        found["plan off by"] = round(sorted(offs)[len(offs) // 2], 3)
    return {**found, "N": len(case.work.inputs), "goal": GOALS[case.name][what], "load": round(os.getloadavg()[0], 1)}


def _call(case: Case, what: str, offs: list[float]) -> Callable[[], float]:
    """Return the call that a goal is about, in seconds; ``offs`` gets how far each plan was off."""
    count = int(what.partition("=")[2] or TOGETHER)
    if what.startswith("factored"):
        return _reading(case, offs, count, "factored")
    if what.startswith("last layer"):
        return _reading(case, offs, count, "factored", LAST[case.name])
    if what.startswith("trunk"):
        return _reading(case, offs, count, "trunk", BLOCK[case.name])
    work = case.work
    if what == "self-influence":
        job = prepare_self(work.model, work.train, task=work.task, perturbation=fi.Perturbation(), ids=None, collate_fn=None,
                           options=Options(progress=False))  # fmt: skip
        return lambda: case.clock.seconds(job.read)

    def index() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return case.clock.seconds(lambda: fi.ProbeIndex.build(Path(folder) / "i", work.model, work.train, task=work.task,
                                                                  probes=count, progress=False))  # fmt: skip

    return index


def _reading(case: Case, offs: list[float], *how: Any) -> Callable[[], float]:
    """Return a call that is counted from the queries' gradients to the last score."""
    case.attribute(*how)  # tunes, checks, reads the baseline, fills the trunk

    def read() -> float:
        scores = case.attribute(*how)
        if scores.cost["expected_read_s"] > 0:
            offs.append(scores.cost["read_s"] / scores.cost["expected_read_s"] - 1)
        return counted(scores)

    return read
