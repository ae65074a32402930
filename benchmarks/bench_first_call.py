"""What does a whole first call cost? Everything counted: settings tried, checks, fit, baseline, queries, reading.

Multiples of F, one plain forward pass over the training set at its best batch size, in CPU seconds of one thread; each call in a
process of its own, nothing kept from another. Beside us captum and kronfluence (``RIVALS_VENV``) on the same weights and
data. Pictures and labels are random: what is timed does not depend on them. Resumable (benchmarks/.cache/first-call).

python benchmarks/bench_first_call.py [--models resnet9 …] [--counts 1 20 100]     # 40 minutes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import page
import torch
from banks import models
from harness import RESULTS, best_setting, commit, decoder, write
from lines import plot
from rivals.run import export
from torch import nn

import forwardinf as fi
from forwardinf.core.files import read_json, write_json

HERE = Path(__file__).parent
WORK = HERE / ".cache" / "first-call"
FORMAT = "forwardinf.bench-first-call/1"
ROWS = {"resnet9": 1000, "cnn28": 4000, "ViT": 1000, "decoder": 250}
SIDES = {"resnet9": (3, 32, 32), "cnn28": (1, 28, 28), "ViT": (3, 32, 32)}
COUNTS = (1, 20, 100)
OURS = {"forwardinf": "plain", "forwardinf, default (gfim)": None}
THEIRS = ("captum TracInCP", "kronfluence identity", "kronfluence EK-FAC")


class Work:
    """A model, its training set and so many queries; what :func:`rivals.run.export` writes."""

    def __init__(self, name: str, count: int) -> None:
        torch.manual_seed(0)
        if name == "decoder":
            self.model, rows, _ = decoder()
            self.train: Any = rows
            self.queries: Any = rows[-count:].roll(1, -1)
            self.task: Any = fi.CausalLM()
            return
        self.network = {"function": name, "arguments": []}
        self.model = getattr(models, name)().eval()
        size = ROWS[name]
        inputs, labels = torch.randn(size, *SIDES[name]), torch.randint(10, (size,))
        self.train, self.queries, self.task = (
            (inputs, labels),
            (inputs[-count:].roll(1, -1), labels[-count:]),
            fi.Classification(),
        )

    def floor(self) -> float:
        """CPU seconds of F."""
        inputs, labels = (self.train, None) if isinstance(self.train, torch.Tensor) else self.train
        return best_setting(self.model, inputs, labels, (False,))[2]


def ours(name: str, count: int, direction: str | None) -> dict[str, Any]:
    """Time a call of ours; in a process of its own."""
    torch.set_num_threads(1)
    work = Work(name, count)
    with torch.no_grad():  # threads and kernels are there
        work.model(work.queries[:1] if isinstance(work.queries, torch.Tensor) else work.queries[0][:1])
    with tempfile.TemporaryDirectory() as cache:
        times = []
        for _ in range(2):
            began = time.process_time()
            scores = fi.attribute(work.model, work.train, work.queries, task=work.task, perturbation=direction, cache_dir=cache,
                                  progress=False)  # fmt: skip
            times.append(time.process_time() - began)
    return {"seconds": times[0], "again": times[1], "engine": scores.plan["engine"]}


def theirs(name: str, count: int, rival: str) -> dict[str, Any]:
    """Time a rival, its fit counted."""
    python = Path(os.environ.get("RIVALS_VENV", "/tmp/rivals/venv")) / "bin" / "python"
    if not python.exists():
        return {"not run": f"no {python}: sh benchmarks/rivals/setup.sh"}
    if name == "decoder":
        return {"not run": "our harness gives it classifiers only"}
    with tempfile.TemporaryDirectory() as scratch:
        export(Work(name, count), Path(scratch))
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run([str(python), str(HERE / "rivals" / "timed.py"), scratch, rival], env=clean, text=True,
                              capture_output=True, check=False)  # fmt: skip
        if done.returncode:
            return {"not run": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "failed"}
        told = json.loads((Path(scratch) / "timed.json").read_text())
    return {"seconds": told["fit_s"] + told["score_s"], "fit_s": told["fit_s"]}


def once(key: str, command: list[str]) -> dict[str, Any]:
    """Return a measurement, from its file or made now in another process."""
    path = WORK / f"{''.join(c if c.isalnum() else '-' for c in key)}.json"
    if path.is_file():
        return dict(read_json(path, FORMAT, what="a measurement")["found"])
    done = subprocess.run([sys.executable, __file__, "--child", *command], text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "not run" not in found:
        write_json(path, {"format": FORMAT, "found": found, "commit": commit()})
    return found


def child(kind: str, name: str, count: str, *setting: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    if kind == "floor":
        work = Work(name, 1)
        return {"seconds": work.floor(), "parameters": parameters(work.model)}
    if kind == "ours":
        return ours(name, int(count), setting[0] if setting else None)
    return theirs(name, int(count), setting[0])


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def measured(name: str, counts: list[int]) -> dict[str, Any]:
    """Every system on one model: the floor is measured before and after, and its mean is F."""
    floor = once(f"{name} floor", ["floor", name, "1"])
    found: dict[str, Any] = {"N": ROWS[name], "parameters": floor["parameters"], "by Q": {}}
    for count in counts:
        rows = {}
        for label, direction in OURS.items():
            rows[label] = once(
                f"{name} {count} {label}", ["ours", name, str(count), *([direction] if direction else [])]
            )
        for rival in THEIRS:
            rows[rival] = once(f"{name} {count} {rival}", ["theirs", name, str(count), rival])
        found["by Q"][str(count)] = rows
    after = once(f"{name} floor after", ["floor", name, "1"])
    found["F_s"] = (floor["seconds"] + after["seconds"]) / 2
    for rows in found["by Q"].values():
        for label, row in rows.items():
            if "seconds" in row:
                row["in F"] = round(row["seconds"] / found["F_s"], 2)
                if "again" in row:
                    row["again in F"] = round(row["again"] / found["F_s"], 2)
                print(name, label, row, flush=True)
    return found


def tables(results: dict[str, Any]) -> str:
    """Return Markdown: multiples of F, a row for each system and model."""
    counts = list(next(iter(results.values()))["by Q"])
    rows = []
    for name, found in results.items():
        for label in (*OURS, *THEIRS):
            cells = [by.get(label, {}) for by in found["by Q"].values()]
            if any("in F" in cell for cell in cells):
                again = cells[0].get("again in F")
                model = f"{name}, {found['parameters'] / 1e6:.1f} M × {found['N']:,} (F = {found['F_s']:.1f} s)"
                rows.append([model, label, *(f"{cell['in F']:.1f}" if "in F" in cell else "–" for cell in cells),
                             "" if again is None else f"{again:.1f}"])  # fmt: skip
    return page.table(["", "", *(f"Q = {count}" for count in counts), "Q = 1, again"], rows)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    given = parser.parse_args()
    print("about 40 minutes for all; resumable", file=sys.stderr)
    path = RESULTS / "first-call.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    for name in given.models:
        results[name] = measured(name, given.counts)
    write("first-call", {"question": "what a whole first call costs", "seed": 0, "threads": 1, "results": results})
    page.put("engines", "bench_first_call", tables(results))
    shown = results.get("resnet9") or next(iter(results.values()))
    lines = {
        label: [(int(count), by[label]["in F"]) for count, by in shown["by Q"].items() if "in F" in by[label]]
        for label in (*OURS, *THEIRS)
    }
    plot({label: line for label, line in lines.items() if line}, HERE.parent / "docs" / "first-call.png", across="queries",
         up="whole first call, in plain forward passes over the training set",
         title=f"{shown['parameters'] / 1e6:.1f} M parameters, N = {shown['N']:,}, F = {shown['F_s']:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
