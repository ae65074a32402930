"""How much memory does reading take beyond the model? One question, one table.

The promise: one copy of the parameters that move (two where a perturbation has two sides, is found by its rise, or moves
float32 masters of a bfloat16 model), the losses, and 64 MiB. Resident memory is looked at inside every forward of the
reading; what a plain forward of the same model and batch takes is there before and does not count. The query's own
backward is not reading: the whole call's high-water mark is listed apart.

Each case is a process of its own, as memory once touched is not always given back.

python benchmarks/bench_memory.py [--cases mlp:linear …]     # two to four minutes
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from typing import Any

import torch
from harness import Decoder, write
from torch import Tensor, nn

import forwardinf as fi
from forwardinf.core import machine

MIB = 2**20
SLACK = 64 * MIB
N, BATCH = 64, 8
RULES: dict[str, tuple[dict[str, Any], int]] = {  # settings, copies allowed
    "linear": ({}, 1),
    "sign": ({"direction": "sign"}, 1),
    "finite": ({"length": 0.01}, 1),
    "two-sided": ({"length": 0.01, "two_sided": True}, 2),
    "rise": ({"rise": 0.1}, 2),
    "rise, two-sided": ({"rise": 0.1, "two_sided": True}, 2),
}
CASES = {f"{model}:{rule}": (model, *RULES[rule]) for model in ("mlp", "decoder") for rule in RULES}
CASES["mlp in bfloat16:finite"] = ("mlp in bfloat16", {"length": 0.05}, 2)


def made(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model whose parameters outweigh a batch, and its training inputs."""
    torch.manual_seed(0)
    if name == "decoder":
        return Decoder(16384, 576, 4, 32).eval(), torch.randint(16384, (N, 32))
    width = 24 * MIB // 2048 // 2  # 24 Mi parameters
    model = nn.Sequential(nn.Linear(2048, width, bias=False), nn.ReLU(), nn.Linear(width, 2048, bias=False)).eval()
    x = torch.randn(N, 2048)
    return (model.bfloat16(), x.bfloat16()) if "bfloat16" in name else (model, x)


def child(case: str) -> None:
    """Measure one case, and print what was found."""
    name, settings, copies = CASES[case]
    model, x = made(name)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    masters = sum(p.numel() * 4 for p in model.parameters())
    base = fi.CausalLM() if name == "decoder" else None
    seen: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if base is not None:
            found = base.loss(model, batch)
        else:
            (inputs,) = batch
            found = (model(inputs) - inputs).float().square().mean(1)
        if not torch.is_grad_enabled():
            seen.append(machine.resident_bytes())
        return found

    small = torch.eye(2), torch.tensor([0, 1])
    fi.attribute(nn.Linear(2, 2), small, small, task=fi.Classification(), progress=False)  # imports
    rows, query = ({"input_ids": x}, {"input_ids": x[:2]}) if base is not None else ((x,), (x[:2],))
    batch = {"input_ids": x[:BATCH]} if base is not None else (x[:BATCH],)
    with torch.no_grad():
        loss(model, batch)  # the workspace of a plain forward
    before = max(seen)
    seen.clear()
    with tempfile.TemporaryDirectory() as cache:
        scores = fi.attribute(model, rows, query, task=loss, perturbation=fi.Perturbation(**settings), batch_size=BATCH,
                              engine="forward", cache_dir=cache, progress=False)  # fmt: skip
    reading = seen[-(N // BATCH) * (2 if scores.plan.get("sides", 1) == 2 else 1) :]  # the last query's readings
    copy = masters if "bfloat16" in name else parameters
    allowed = copies * copy + 4 * N + SLACK
    grown = max(reading) - before
    print(json.dumps({
        "parameters_mib": round(parameters / MIB, 1), "copies_allowed": copies, "allowed_mib": round(allowed / MIB, 1),
        "reading_mib": round(grown / MIB, 1), "copies": round(grown / copy, 3), "within": grown <= allowed,
        "whole_call_mib": round(scores.cost["peak_bytes"] / MIB, 1),
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--name", default="memory")
    parser.add_argument("--child", choices=list(CASES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        return child(given.child)
    results = {}
    for case in given.cases:
        done = subprocess.run([sys.executable, __file__, "--child", case], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case}: exit code {done.returncode}\n{done.stderr}")
        results[case] = json.loads(done.stdout)
        print(case, results[case], flush=True)
    write(given.name, {"question": "memory while reading, beyond the model and a plain forward", "N": N,
                       "batch_size": BATCH, "slack_mib": SLACK // MIB, "results": results})  # fmt: skip
    return None


if __name__ == "__main__":
    main()
