"""Is it right on this GPU, and how fast? A table of what is right, then times; at most ten minutes, one JSON.

- right: every direction and engine, recurrent layers, sets named jointly, generated images, beside float64 on the CPU
- forward: the forward engine beside the bare loop (goal: 1.05), a cached query, wall clock, in turn
- factored: 100 queries at once
- large: a network of ResNet-50's size (25 M) and a decoder of 300 M: plain forward, one query,
  10 queries at once, of the former 100 too

Data lie in the CPU's memory, for the bare loop as for forwardinf. ``--tiny`` shows on a CPU that it runs, on small networks:
its table is checked, its times mean nothing, and nothing is written to benchmarks/results/.

python -m benchmarks gpu [--tiny] [--minutes 10] [--seed 0] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_checks import checks
from harness import MODELS, Decoder, commit, write
from torch import Tensor, nn

import forwardinf as fi
from forwardinf.core import machine

GOALS = {"forward_over_bare": 1.05}


class Bottleneck(nn.Module):
    """ResNet-50's block: 1×1, 3×3, 1×1 around a skip."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        plain = stride == 1 and inside == out
        self.skip = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet50(width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> nn.Module:
    """The shape of ResNet-50, 25.6 M parameters, weights by chance."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inside = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Bottleneck(inside, width * 2**stage, 2 if stage and not block else 1))
            inside = 4 * width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


def cases(tiny: bool) -> dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor | None, list[int]]]]:
    """Return what is timed: (model, inputs, labels, numbers of queries of the factored engine)."""

    def small(name: str) -> Any:
        model, inputs, labels = MODELS[name]()
        return model, inputs, labels, [100]

    def pictures() -> Any:
        model = resnet50(8, (1, 1), 10) if tiny else resnet50()
        rows, side, classes = (8, 32, 10) if tiny else (512, 224, 1000)
        return model, torch.randn(rows, 3, side, side), torch.randint(classes, (rows,)), [2] if tiny else [10, 100]

    def words() -> Any:
        model = Decoder(64, 24, 1, 16) if tiny else Decoder(32000, 1152, 16, 256)  # 292 M
        rows, length = (8, 16) if tiny else (128, 256)
        return (
            model,
            torch.randint(64 if tiny else 32000, (rows, length)),
            None,
            [2] if tiny else [10],
        )  # a hundred directions of 300 M are 117 GB

    small_ones = {name: (lambda name=name: small(name)) for name in MODELS}
    return {
        **({} if tiny else small_ones),
        "ResNet-50's size": pictures,
        "decoder, 300 M": words,
    }


class Timed:
    """One model on the device: the bare loop and forwardinf's calls, in seconds."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, labels: Tensor | None, device: torch.device, cache: str
    ) -> None:
        self.model, self.inputs, self.labels, self.device = model.eval().to(device), inputs, labels, device
        self.task = fi.CausalLM() if labels is None else fi.Classification()
        self.train = inputs if labels is None else (inputs, labels)
        self.cache = cache

    def queries(self, count: int) -> Any:
        """Changed examples of the training set."""
        own = self.inputs[torch.arange(count) % len(self.inputs)].roll(1, -1)
        return own if self.labels is None else (own, self.labels[torch.arange(count) % len(self.inputs)])

    def attribute(self, count: int, engine: str) -> fi.Scores:
        return fi.attribute(self.model, self.train, self.queries(count), task=self.task, perturbation=fi.Perturbation(),
                            engine=engine, cache_dir=self.cache, progress=False)  # fmt: skip

    @torch.inference_mode()
    def bare(self, size: int, channels_last: bool) -> Tensor:
        """One plain forward and its losses over the whole set, data brought to the device batch by batch."""
        found = []
        layout = torch.channels_last if channels_last and self.inputs.ndim == 4 else torch.preserve_format
        for start in range(0, len(self.inputs), size):
            batch = self.inputs[start : start + size].to(self.device, memory_format=layout)
            batch = batch if self.labels is None else (batch, self.labels[start : start + size].to(self.device))
            found.append(self.task.loss(self.model, batch))
        return torch.cat(found).cpu()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Seconds by the clock on the wall, until the device has done."""
        began = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began


def measure(
    made: tuple[nn.Module, Tensor, Tensor | None, list[int]], device: torch.device, pairs: int
) -> dict[str, Any]:
    """Return the times of one model."""
    model, inputs, labels, counts = made
    with tempfile.TemporaryDirectory() as cache:
        return _measured(Timed(model, inputs, labels, device, cache), counts, pairs)


def _measured(timed: Timed, counts: list[int], pairs: int) -> dict[str, Any]:
    model, inputs, device = timed.model, timed.inputs, timed.device
    first = timed.attribute(1, "forward")  # tunes, checks, reads the baseline
    size, layout = int(first.plan["batch_size"]), bool(first.plan["channels_last"])

    def forward() -> float:
        cost = timed.attribute(1, "forward").cost
        return float(cost["queries_s"] + cost["read_s"])

    def bare() -> float:
        return timed.seconds(lambda: timed.bare(size, layout))

    bare(), forward()
    rows = [(bare(), forward()) for _ in range(pairs)]
    found: dict[str, Any] = {
        "N": len(inputs), "parameters": sum(p.numel() for p in model.parameters()), "batch_size": size, "channels_last": layout,
        "bare_s": statistics.median(a for a, _ in rows), "one_query_s": statistics.median(b for _, b in rows),
        "forward_over_bare": round(statistics.median(b / a for a, b in rows), 4),
    }  # fmt: skip
    for count in counts:
        try:
            cost = timed.attribute(count, "factored").cost
        except fi.Error as error:
            found[f"factored_{count}"] = str(error)
            continue
        seconds = float(cost["queries_s"] + cost["read_s"])
        found[f"factored_{count}_s"] = seconds
        found[f"factored_{count}_over_bare"] = round(seconds / found["bare_s"], 3)
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        found["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return found


def main(argv: list[str] | None = None) -> None:
    """Run, print, write; a table that is wrong ends with 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small networks, on a CPU too: shows that it runs")
    parser.add_argument("--minutes", type=float, default=10.0, help="what is not begun by then is left out, and said")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the JSON here instead of benchmarks/results/gpu.json")
    given = parser.parse_args(argv)
    if not torch.cuda.is_available() and not given.tiny:
        raise SystemExit("python -m benchmarks gpu: torch sees no GPU here; --tiny shows on the CPU that it runs")
    began, device = time.perf_counter(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    right = checks(device, given.seed)
    results: dict[str, Any] = {}
    for name, make in cases(given.tiny).items():
        if time.perf_counter() - began > 0.8 * 60 * given.minutes:  # the longest part takes about a fifth
            results[name] = "left out: no time left"
            continue
        torch.manual_seed(given.seed)
        try:
            results[name] = measure(make(), device, 1 if given.tiny else given.pairs)
        except (fi.Error, RuntimeError) as error:  # the others are still worth knowing
            results[name] = f"{type(error).__name__}: {error}"
        print(name, results[name], flush=True)
    wrong = [each for each in right if not each.get("right", "skipped" in each)]
    content = {
        "question": "right, and how fast, on one GPU", "device": str(device), "tiny": given.tiny, "seed": given.seed,
        "clock": "wall", "goals": GOALS, "right": right, "wrong": len(wrong), "results": results,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    if given.out is not None:
        facts = {"machine": machine.describe(), "versions": machine.versions(), "commit": commit()}
        given.out.write_text(json.dumps({**content, **facts}, indent=2, ensure_ascii=False) + "\n")
    elif not given.tiny:
        write("gpu", content)
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(right)} rows are wrong: {wrong}")
