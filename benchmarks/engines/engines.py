"""What does each engine cost, beside one plain forward pass and beside rivals? One question, one JSON, one plot.

- goals: ratios to F (eager, ordinary layout, best batch size), floor and ours in turn; beside each the same ratio of what was
  multiplied, and the plan's estimate against what came
- growth: seconds of reading against N, Q and P, by engine
- rivals: time, memory and agreement with kronfluence, captum and dattri on one bank's model, Q = 1, 10, 100 (``RIVALS_VENV``)

CPU seconds of the process by default; on a quiet machine say so (``--quiet --clock wall``): the JSON says so of each part.
"""

import time
from argparse import ArgumentParser, Namespace
from types import ModuleType
from typing import Any

from benchmarks.engines import goals, growth, systems
from benchmarks.engines.tables import tables as tables
from benchmarks.engines.timing import CLOCKS
from benchmarks.results import earlier
from benchmarks.runner import Found, Part

PAGE = "engines"
PARTS: dict[str, ModuleType] = {"goals": goals, "growth": growth, "rivals": systems}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--small", action="store_true", help="an eighth of the data, fewer pairs, a smaller bank")
    parser.add_argument("--pairs", type=int, default=7, help="how often floor and ours are measured in turn")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--quiet", action="store_true", help="say in the result that nothing else ran")


def parts(given: Namespace) -> list[Part]:
    return [part for module in PARTS.values() for part in module.parts(given)]


def result(given: Namespace, found: Found) -> Found:
    how = {"clock": given.clock, "small": given.small, "quiet": given.quiet, "date": time.strftime("%Y-%m-%d")}
    results = earlier("engines").get("results", {})
    for name, module in PARTS.items():
        if any(part.name in found for part in module.parts(given)):
            results[name] = {**how, **module.result(given, found)}
    return {"seed": 0, "results": results}


def draw(result: dict[str, Any]) -> None:
    if "rivals" in result["results"]:
        systems.draw(result["results"]["rivals"])
