"""How much memory does reading take beyond the model? One question, one table.

The promise: one copy of the parameters that move (two where a perturbation has two sides, is found by its rise, or moves
float32 masters of a bfloat16 model), the losses, and 64 MiB. Resident memory is looked at inside every forward of the
reading; what a plain forward of the same model and batch takes is there before and does not count. The query's own
backward is not reading: the whole call's high-water mark is listed apart.

Each case is a process of its own, as memory once touched is not always given back.
"""

import tempfile
from argparse import Namespace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import forwardinf as fi
from benchmarks.apart import apart
from benchmarks.engines.models import Decoder
from benchmarks.runner import Found, Part
from forwardinf.core import machine

LASTING = False
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


def parts(given: Namespace) -> list[Part]:
    return [Part(case, partial(apart, measure, case), 12) for case in CASES]


def made(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model whose parameters outweigh a batch, and its training inputs."""
    torch.manual_seed(0)
    if name == "decoder":
        return Decoder(16384, 576, 4, 32).eval(), torch.randint(16384, (N, 32))
    width = 24 * MIB // 2048 // 2  # 24 Mi parameters
    model = nn.Sequential(nn.Linear(2048, width, bias=False), nn.ReLU(), nn.Linear(width, 2048, bias=False)).eval()
    x = torch.randn(N, 2048)
    return (model.bfloat16(), x.bfloat16()) if "bfloat16" in name else (model, x)


def measure(case: str) -> dict[str, Any]:
    """Measure one case; in a process of its own."""
    name, settings, copies = CASES[case]
    model, x = made(name)
    base = fi.CausalLM() if name == "decoder" else None
    seen: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = base.loss(model, batch) if base else (model(batch[0]) - batch[0]).float().square().mean(1)
        if not torch.is_grad_enabled():
            seen.append(machine.resident_bytes())
        return found

    def data(rows: Tensor) -> Any:
        return {"input_ids": rows} if base else (rows,)

    small = torch.eye(2), torch.tensor([0, 1])
    fi.attribute(nn.Linear(2, 2), small, small, task=fi.Classification(), progress=False)  # imports
    with torch.no_grad():
        loss(model, data(x[:BATCH]))  # the workspace of a plain forward
    before = max(seen)
    seen.clear()
    with tempfile.TemporaryDirectory() as cache:
        scores = fi.attribute(model, data(x), data(x[:2]), task=loss, perturbation=fi.Perturbation(**settings),
                              batch_size=BATCH, engine="forward", cache_dir=cache, progress=False)  # fmt: skip
    reading = seen[-(N // BATCH) * (2 if scores.plan.get("sides", 1) == 2 else 1) :]  # the last query's readings
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    masters = sum(p.numel() * 4 for p in model.parameters())
    copy = masters if "bfloat16" in name else parameters
    allowed, grown = copies * copy + 4 * N + SLACK, max(reading) - before
    return {
        "parameters_mib": round(parameters / MIB, 1), "copies_allowed": copies, "allowed_mib": round(allowed / MIB, 1),
        "reading_mib": round(grown / MIB, 1), "copies": round(grown / copy, 3), "within": grown <= allowed,
        "whole_call_mib": round(scores.cost["peak_bytes"] / MIB, 1),
    }  # fmt: skip


def result(given: Namespace, found: Found) -> Found:
    return {
        "N": N,
        "batch_size": BATCH,
        "slack_mib": SLACK // MIB,
        "results": found,
    }
