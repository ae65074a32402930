"""What does each engine cost, beside one plain forward pass and beside rivals? One question, one JSON, one plot.

- goals: ratios to F (eager, ordinary layout, best batch size), floor and ours in turn; beside each the same ratio of what was
  multiplied, and the plan's estimate against what came
- growth: seconds of reading against N, Q and P, by engine
- rivals: time, memory and agreement with kronfluence, captum and dattri on one bank's model, Q = 1, 10, 100 (``RIVALS_VENV``)

CPU seconds of the process by default; on a quiet machine say so (``--quiet --clock wall``): the JSON says so of each part.
Resumable: what is there is not measured again (benchmarks/.cache/engines).

python benchmarks/bench_engines.py [--small] [--parts goals growth rivals] [--threads 1 2]     # 50 minutes; small: 8
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arithmetic import multiplications
from attribution_rows import Bench
from banks import use
from engines_table import write_docs
from harness import CLOCKS, MODELS, RESULTS, Clock, bare, best_setting, commit, paired, write
from lines import plot
from rivals.run import export
from torch import Tensor, nn

import forwardinf as fi
from forwardinf.core.files import read_json, write_json
from forwardinf.core.machine import peak_bytes
from forwardinf.job.options import Options
from forwardinf.job.self_influence import prepare_self
from forwardinf.read import choose, tune

HERE = Path(__file__).parent
WORK = HERE / ".cache" / "engines"
FORMAT = "forwardinf.bench-engines/1"
LAST = {"cnn": ("9.*",), "resnet": ("11.*",), "decoder": ("norm.*",)}
BLOCK = {"cnn": ("7.*", "9.*"), "resnet": ("8.*", "11.*"), "decoder": ("blocks.layers.3.*",)}
GOALS = {
    "cnn": {"factored, Q=10": 2.5, "factored, Q=100": 2.5, "last layer, Q=100": 1.2, "self-influence": 4.0,
            "trunk, last block, a query": 0.2, "index, M=4096": 6.0},
    "resnet": {"factored, Q=20": 4.0, "last layer, Q=100": 1.2, "self-influence": 4.0, "trunk, last block, a query": 0.2},
    "decoder": {"factored, Q=20": 5.0, "self-influence": 4.0, "trunk, last block, a query": 0.2},
}  # fmt: skip
ROWS = {"cnn": 4000, "resnet": 1000, "decoder": 500}


class Case:
    """One model of the harness with its data, its floor, and a cache of its own."""

    def __init__(self, name: str, rows: int, clock: Clock) -> None:
        self.name, self.clock = name, clock
        self.model, inputs, labels = MODELS[name]()
        self.inputs, self.labels = inputs[:rows], None if labels is None else labels[:rows]
        self.task = fi.CausalLM() if labels is None else fi.Classification()
        self.train = self.inputs if labels is None else (self.inputs, self.labels)
        self.size = best_setting(self.model, self.inputs, self.labels, (False,))[0]
        self.folder = tempfile.TemporaryDirectory()

    def forward(self) -> Tensor:
        return bare(self.model, self.inputs, self.labels, self.size, False)

    def floor(self) -> float:
        return self.clock.seconds(self.forward)

    def queries(self, count: int) -> Any:
        """Examples of the same kind: changed ones of the training set."""
        _, inputs, labels = MODELS[self.name]()
        own = inputs[-count:].roll(1, -1)
        return own if labels is None else (own, labels[-count:])

    def attribute(self, count: int, engine: str, parameters: Any = None) -> fi.Scores:
        return fi.attribute(self.model, self.train, self.queries(count), task=self.task, engine=engine, progress=False,
                            perturbation=fi.Perturbation(parameters=parameters), cache_dir=self.folder.name)  # fmt: skip


def everywhere(clock: Clock) -> Clock:
    """Let the planner measure by the same clock: its estimate is held against what came."""
    clock.monotonic = time.monotonic  # type: ignore[attr-defined]
    for module in (tune, choose):
        module.time = clock  # type: ignore[assignment]
    return clock


def counted(scores: fi.Scores) -> float:
    """Seconds from the queries' gradients to the last score."""
    return float(scores.cost["queries_s"] + scores.cost["read_s"])


def goal(case: Case, what: str, pairs: int) -> dict[str, Any]:
    """Measure one goal: the ratio to the floor, pair by pair, and how far the plan's estimate was off."""
    offs, each = list[float](), 8 if what.startswith("trunk") else 1

    def read(count: int, engine: str, parameters: Any = None) -> Callable[[], float]:
        case.attribute(count, engine, parameters)  # tunes, checks, reads the baseline, fills the trunk

        def ours() -> float:
            scores = case.attribute(count, engine, parameters)
            if scores.cost["expected_read_s"] > 0:
                offs.append(scores.cost["read_s"] / scores.cost["expected_read_s"] - 1)
            return counted(scores) / each

        return ours

    if what.startswith("factored"):
        ours = read(int(what.partition("=")[2]), "factored")
    elif what.startswith("last layer"):
        ours = read(int(what.partition("=")[2]), "factored", LAST[case.name])
    elif what.startswith("trunk"):
        ours = read(each, "trunk", BLOCK[case.name])
    elif what == "self-influence":
        job = prepare_self(case.model, case.train, task=case.task, perturbation=fi.Perturbation(), ids=None, collate_fn=None,
                           options=Options(progress=False))  # fmt: skip
        ours = lambda: case.clock.seconds(job.read)  # noqa: E731
    else:
        count = int(what.partition("=")[2])

        def ours() -> float:
            with tempfile.TemporaryDirectory() as folder:
                return case.clock.seconds(lambda: fi.ProbeIndex.build(Path(folder) / "i", case.model, case.train,
                                                                      task=case.task, probes=count, progress=False))  # fmt: skip

    found = paired(case.floor, ours, pairs)
    found["multiplications"] = round(multiplications(ours) / each / multiplications(case.forward), 3)
    if offs:
        found["plan off by"] = round(sorted(offs)[len(offs) // 2], 3)
    return {**found, "N": len(case.inputs), "goal": GOALS[case.name][what], "load": round(os.getloadavg()[0], 1)}


def goals(clock: Clock, threads: list[int], names: list[str], small: bool, pairs: int) -> dict[str, Any]:
    found = {}
    for thread in threads:
        torch.set_num_threads(thread)
        for name in names:
            wanted = GOALS[name]
            kept: list[Case] = []
            for what in wanted:
                key = f"{name}, {thread} thread{'s' if thread > 1 else ''}: {what}"

                def measure(name: str = name, what: str = what, kept: list[Case] = kept) -> dict[str, Any]:
                    kept[:] = kept or [Case(name, ROWS[name] // (8 if small else 1), clock)]
                    return goal(kept[0], what, pairs)

                found[key] = once(f"goal {key} {small} {clock.name}", measure)
                print(key, found[key], flush=True)
    return found


def growth(clock: Clock, small: bool) -> dict[str, Any]:
    """Seconds of reading by each engine as one of N, Q and P grows, the others as they are."""
    torch.set_num_threads(1)
    base = {"N": 1000, "Q": 10, "width": 128}
    steps = {"N": (300, 1000, 3000, 9000), "Q": (1, 3, 10, 30), "width": (32, 64, 128, 256, 512)}
    found: dict[str, Any] = {}
    for letter, values in steps.items():
        for value in values[:3] if small else values:
            for engine in ("forward", "factored"):
                sizes = {**base, letter: value}
                key = f"{letter}={value}, {engine}"

                def measure(sizes: dict[str, int] = sizes, engine: str = engine) -> dict[str, Any]:
                    torch.manual_seed(0)
                    width = sizes["width"]
                    model = nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                                          nn.Linear(width, 10))  # fmt: skip
                    train = torch.randn(sizes["N"], 256), torch.randint(10, (sizes["N"],))
                    queries = torch.randn(sizes["Q"], 256), torch.randint(10, (sizes["Q"],))
                    with tempfile.TemporaryDirectory() as cache:
                        runs = [fi.attribute(model, train, queries, task=fi.Classification(), engine=engine, cache_dir=cache,
                                             progress=False) for _ in range(4)]  # fmt: skip
                    took = sorted(run.cost["read_s"] for run in runs[1:])
                    return {**sizes, "P": sum(p.numel() for p in model.parameters()), "engine": engine,
                            "read_s": round(took[1], 5), "expected_s": runs[-1].cost["expected_read_s"]}  # fmt: skip

                found[key] = once(f"growth {key} {clock.name}", measure)
                print(key, found[key], flush=True)
    return found


# -- rivals ------------------------------------------------------------------------------------------------------------


def ours(bench: Bench, direction: str, engine: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return (scores, times) of a call of ours, everything counted but what a fit costs apart."""
    clock, before = Clock("cpu"), peak_bytes()
    began = clock.perf_counter()
    scores = fi.attribute(bench.model, bench.train, bench.queries, task=fi.Classification(), engine=engine,
                          perturbation=fi.Perturbation(direction), cache_dir=None if direction == "plain" else bench_cache(),
                          progress=False, on_bad_query="skip")  # fmt: skip
    took = clock.perf_counter() - began
    fit = float(scores.cost["fit_s"])
    return scores.values, {"fit_s": fit, "score_s": took - fit, "peak_bytes": peak_bytes() - before}


def bench_cache() -> str:
    return tempfile.mkdtemp(prefix="forwardinf-bench-")


OURS = {
    "forwardinf forward": ("plain", "forward"), "forwardinf factored": ("plain", "factored"),
    "forwardinf EK-FAC": ("ekfac", "factored"), "forwardinf hold": ("hold", "factored"),
}  # fmt: skip
THEIRS = ("kronfluence identity", "kronfluence EK-FAC", "captum TracInCP", "captum TracInCPFast", "dattri TRAK 512")
SAME = {"kronfluence identity": "forwardinf factored", "captum TracInCP": "forwardinf factored",
        "kronfluence EK-FAC": "forwardinf EK-FAC", "forwardinf forward": "forwardinf factored"}  # fmt: skip


def child(bank: str, count: int, name: str, folder: Path) -> None:
    """Run one of ours in a process of its own, as rivals are."""
    torch.set_num_threads(1)
    scores, told = ours(Bench(bank, 0, np.arange(count)), *OURS[name])
    np.savez(folder / "scores.npz", scores=scores)
    (folder / "timed.json").write_text(json.dumps(told))


def run(bank: str, count: int, name: str) -> dict[str, Any]:
    """Return times, memory and scores of one system; or why it could not be run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if name in OURS:
            command = [sys.executable, __file__, "--child", bank, str(count), name, scratch]
            environment = dict(os.environ)
        else:
            python = Path(os.environ.get("RIVALS_VENV", "/tmp/rivals/venv")) / "bin" / "python"
            if not python.exists():
                return {"not run": f"no {python}: sh benchmarks/rivals/setup.sh"}
            export(Bench(bank, 0, np.arange(count)), folder)
            command = [str(python), str(HERE / "rivals" / "timed.py"), scratch, name]
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        if done.returncode:
            return {"not run": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "failed"}
        told = json.loads((folder / "timed.json").read_text())
        with np.load(folder / "scores.npz", allow_pickle=False) as kept:
            return {**told, "scores": kept["scores"].astype(np.float32).round(6).tolist()}


def rivals(small: bool) -> dict[str, Any]:
    """Time, memory and agreement of each system on the same work."""
    bank = "digits-short" if small else "fashion"
    use.full_model(bank, 0)
    counts = (1, 10) if small else (1, 10, 100)
    found: dict[str, Any] = {}
    for count in counts:
        rows: dict[str, dict[str, Any]] = {}
        for name in (*OURS, *THEIRS):
            rows[name] = once(f"rival {bank} {count} {name}", lambda count=count, name=name: run(bank, count, name))
            told = rows[name].get("not run") or f"{rows[name]['fit_s']:.1f} + {rows[name]['score_s']:.1f} s"
            print(f"Q={count:<4} {name:25} {told}", flush=True)
        for name, row in rows.items():
            other = rows.get(SAME.get(name, ""), {})
            if "scores" in row and "scores" in other:
                pairs = zip(row["scores"], other["scores"], strict=True)
                row["agreement"] = round(float(np.median([np.corrcoef(one, two)[0, 1] for one, two in pairs])), 5)
        found[str(count)] = {name: {k: v for k, v in row.items() if k != "scores"} for name, row in rows.items()}
    return {"bank": bank, "parameters": sum(p.numel() for p in use.full_model(bank, 0).parameters()), "by Q": found}


def drawn(found: dict[str, Any], path: Path) -> None:
    """Draw time against Q, one line for each system, fits counted."""
    by = found["by Q"]
    lines = {
        name: [
            (int(q), rows[name]["fit_s"] + rows[name]["score_s"]) for q, rows in by.items() if "score_s" in rows[name]
        ]
        for name in (*OURS, *THEIRS)
    }
    plot({name: line for name, line in lines.items() if line}, path, across="queries", up="CPU seconds, fit counted",
         title=f"{found['bank']}: {found['parameters']:,} parameters, one thread")  # fmt: skip


def once(key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a measurement, from its file or made now."""
    path = WORK / f"{''.join(c if c.isalnum() else '-' for c in key)}.json"
    if path.is_file():
        return dict(read_json(path, FORMAT, what="a measurement")["found"])
    found = measure()
    if "not run" not in found:
        write_json(path, {"format": FORMAT, "found": found, "commit": commit()})
    return found


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        bank, count, name, folder = sys.argv[2:]
        child(bank, int(count), name, Path(folder))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="an eighth of the data, fewer pairs, a smaller bank")
    parser.add_argument(
        "--parts", nargs="+", default=["goals", "growth", "rivals"], choices=["goals", "growth", "rivals"]
    )
    parser.add_argument("--models", nargs="+", default=list(GOALS), choices=list(GOALS), help="of the goals")
    parser.add_argument("--pairs", type=int, default=7, help="how often floor and ours are measured in turn")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--quiet", action="store_true", help="say in the result that nothing else ran")
    given = parser.parse_args()
    print(f"about {'8' if given.small else '50'} minutes on a quiet machine; resumable", file=sys.stderr)
    clock, path = everywhere(Clock(given.clock)), RESULTS / "engines.json"
    results = json.loads(path.read_text()).get("results", {}) if path.is_file() else {}
    how = {"clock": given.clock, "small": given.small, "quiet": given.quiet, "date": time.strftime("%Y-%m-%d")}
    if "goals" in given.parts:
        results["goals"] = {**how, "rows": goals(clock, given.threads, given.models, given.small, given.pairs)}
    if "growth" in given.parts:
        results["growth"] = {**how, "rows": growth(clock, given.small)}
    if "rivals" in given.parts:
        results["rivals"] = {**how, "clock": "cpu", **rivals(given.small)}
        if any("score_s" in row for rows in results["rivals"]["by Q"].values() for row in rows.values()):
            drawn(results["rivals"], HERE.parent / "docs" / "engines.png")
    write("engines", {"question": "what each engine costs", "seed": 0, "results": results})
    write_docs(path)


if __name__ == "__main__":
    main()
