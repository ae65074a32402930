"""Seconds of reading by each engine as one of N, Q and P grows, the others as they are."""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import forwardinf as fi
from benchmarks.engines.timing import Clock
from benchmarks.runner import Found, Part
from forwardinf.read import choose, tune

BASE = {"N": 1000, "Q": 10, "width": 128}
STEPS = {"N": (300, 1000, 3000, 9000), "Q": (1, 3, 10, 30), "width": (32, 64, 128, 256, 512)}


def _asked(given: Namespace) -> Iterator[tuple[str, dict[str, int], str]]:
    for letter, values in STEPS.items():
        for value in values[:3] if given.small else values:
            for engine in ("forward", "factored"):
                yield f"{letter}={value}, {engine}", {**BASE, letter: value}, engine


def parts(given: Namespace) -> list[Part]:
    return [Part(f"growth {row}, {given.clock}", partial(measure, sizes, engine, given.clock), 8)
            for row, sizes, engine in _asked(given)]  # fmt: skip


def result(given: Namespace, found: Found) -> Found:
    rows = {row: f"growth {row}, {given.clock}" for row, *_ in _asked(given)}
    return {"rows": {row: found[part] for row, part in rows.items() if part in found}}


def measure(sizes: dict[str, int], engine: str, clock: str) -> dict[str, Any]:
    """Return the median seconds of reading an MLP's training set."""
    Clock(clock, tune, choose)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = sizes["width"]
    model = nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    train, queries = ((torch.randn(rows, 256), torch.randint(10, (rows,))) for rows in (sizes["N"], sizes["Q"]))
    with tempfile.TemporaryDirectory() as folder:
        runs = [fi.attribute(model, train, queries, task=fi.Classification(), engine=engine, cache_dir=folder,
                             progress=False) for _ in range(4)]  # fmt: skip
    took = sorted(run.cost["read_s"] for run in runs[1:])
    return {**sizes, "P": sum(p.numel() for p in model.parameters()), "engine": engine, "read_s": round(took[1], 5),
            "expected_s": runs[-1].cost["expected_read_s"]}  # fmt: skip
