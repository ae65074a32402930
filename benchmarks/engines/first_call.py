"""What does a whole first call cost? Everything counted: settings tried, checks, fit, baseline, queries, reading.

Multiples of F, one plain forward pass over the training set at its best batch size, in CPU seconds of one thread; each call in a
process of its own, nothing kept from another. Beside us captum and kronfluence (``RIVALS_VENV``) on the same weights and
data. Pictures and labels are random: what is timed does not depend on them.
"""

import tempfile
import time
from argparse import ArgumentParser, Namespace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

import forwardinf as fi
from benchmarks import page, pictures
from benchmarks.apart import apart
from benchmarks.banks import models
from benchmarks.engines.models import Work, decoder
from benchmarks.engines.timing import best_size
from benchmarks.results import earlier
from benchmarks.rivals import run as rivals
from benchmarks.runner import Found, Part

PAGE = "engines"
ROWS = {"resnet9": 1000, "cnn28": 4000, "ViT": 1000, "decoder": 250}
SIDES = {"resnet9": (3, 32, 32), "cnn28": (1, 28, 28), "ViT": (3, 32, 32)}
OURS = {"forwardinf": "plain", "forwardinf, default (gfim)": None}
THEIRS = ("captum TracInCP", "kronfluence identity", "kronfluence EK-FAC")


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 20, 100], help="of queries")


def parts(given: Namespace) -> list[Part]:
    """The floor is measured before and after the systems: its mean is F."""
    found = []
    for name in ROWS:
        found.append(Part(f"{name} floor", partial(apart, floor, name), 60))
        for count in given.counts:
            for system in (*OURS, *THEIRS):
                work = partial(apart, ours) if system in OURS else theirs
                found.append(Part(f"{name} {count} {system}", partial(work, name, count, system), 30))
        found.append(Part(f"{name} floor after", partial(apart, floor, name), 60))
    return found


def work_of(name: str) -> Work:
    """Return a model and its training set."""
    if name == "decoder":
        return decoder()
    torch.manual_seed(0)
    model, rows = getattr(models, name)().eval(), ROWS[name]
    return Work(model, torch.randn(rows, *SIDES[name]), torch.randint(10, (rows,)))


def floor(name: str) -> dict[str, Any]:
    """Return the CPU seconds of F; in a process of its own."""
    work = work_of(name)
    return {"seconds": best_size(work)[1], "parameters": work.parameters}


def ours(name: str, count: int, system: str) -> dict[str, Any]:
    """Time a call of ours; in a process of its own."""
    work = work_of(name)
    with torch.no_grad():  # threads and kernels are there
        work.model(work.inputs[:1])
    with tempfile.TemporaryDirectory() as cache:
        times = []
        for _ in range(2):
            began = time.process_time()
            scores = fi.attribute(work.model, work.train, work.queries(count), task=work.task, perturbation=OURS[system],
                                  cache_dir=cache, progress=False)  # fmt: skip
            times.append(time.process_time() - began)
    return {"seconds": times[0], "again": times[1], "engine": scores.plan["engine"]}


def theirs(name: str, count: int, system: str) -> dict[str, Any]:
    """Time a rival, its fit counted."""
    if name == "decoder":
        return {"not run": "our harness gives rivals classifiers only"}
    work = work_of(name)
    job = SimpleNamespace(model=work.model, train=work.train, queries=work.queries(count),
                          network={"function": name, "arguments": []})  # fmt: skip
    try:
        _, told = rivals.ask(job, *rivals.TIMED[system])
    except RuntimeError as reason:  # too much memory, or a layer that it does not know
        return {"not run": str(reason).strip()[-300:]}
    return {"seconds": told["fit_s"] + told["score_s"], "fit_s": told["fit_s"]}


def result(given: Namespace, found: Found) -> Found:
    results = earlier("first-call").get("results", {})
    results |= {name: measured(name, given.counts, found) for name in ROWS if f"{name} floor after" in found}
    return {"seed": 0, "threads": 1, "results": results}


def measured(name: str, counts: list[int], parts: Found) -> Found:
    """Return every system's seconds on one model, and as multiples of F."""
    before, after = parts[f"{name} floor"], parts[f"{name} floor after"]
    unit = (before["seconds"] + after["seconds"]) / 2
    found = {"N": ROWS[name], "parameters": before["parameters"], "by Q": {}, "F_s": unit}
    for count in counts:
        rows = {}
        for system in (*OURS, *THEIRS):
            row = rows[system] = parts.get(f"{name} {count} {system}", {"not run": rivals.ABSENT})
            row |= {f"{told}in F": round(row[key] / unit, 2)
                    for key, told in (("seconds", ""), ("again", "again ")) if key in row}  # fmt: skip
        found["by Q"][str(count)] = rows
    return found


def tables(result: dict[str, Any]) -> str:
    """Return Markdown: multiples of F, a row for each system and model."""
    results = result["results"]
    counts = list(next(iter(results.values()))["by Q"])
    rows = []
    for name, found in results.items():
        for system in (*OURS, *THEIRS):
            cells = [by.get(system, {}) for by in found["by Q"].values()]
            if any("in F" in cell for cell in cells):
                again = cells[0].get("again in F")
                model = f"{name}, {found['parameters'] / 1e6:.1f} M × {found['N']:,} (F = {found['F_s']:.1f} s)"
                rows.append([model, system, *(f"{cell['in F']:.1f}" if "in F" in cell else "–" for cell in cells),
                             "" if again is None else f"{again:.1f}"])  # fmt: skip
    return page.table(["", "", *(f"Q = {count}" for count in counts), "Q = 1, again"], rows)


def draw(result: dict[str, Any]) -> None:
    """Draw one model's first calls against the number of queries."""
    found = result["results"].get("resnet9") or next(iter(result["results"].values()))
    lines = {
        system: [(int(count), by[system]["in F"]) for count, by in found["by Q"].items() if "in F" in by[system]]
        for system in (*OURS, *THEIRS)
    }
    title = f"{found['parameters'] / 1e6:.1f} M parameters, N = {found['N']:,}, F = {found['F_s']:.1f} s"
    pictures.lines(lines, page.DOCS / "first-call.png", title=title, across="queries",
                   up="whole first call, in plain forward passes over the training set")  # fmt: skip
