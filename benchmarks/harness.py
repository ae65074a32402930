"""What every benchmark shares: models of three kinds, honest timing, and the JSON with machine, versions and commit."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forwardinf.core import machine
from forwardinf.job import job, prepare
from forwardinf.perturb import push

CLOCKS = {
    "cpu": time.process_time,  # what the process itself used: on a machine that others use too
    "wall": time.perf_counter,
}
TIMED = (job, prepare, push)  # they keep the accounts
RESULTS = Path(__file__).parent / "results"
SIZES = (8, 16, 32, 64, 128, 256, 512)


def cnn() -> tuple[nn.Module, Any, Any]:
    """W1: a CNN of 0.46 M parameters on 28×28 images, N = 4,000."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    return model.eval(), torch.randn(4000, 1, 28, 28), torch.randint(10, (4000,))


class Residual(nn.Module):
    """Two convolutions with batch normalisation around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _conv(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


def resnet() -> tuple[nn.Module, Any, Any]:
    """W2: a ResNet-9 with BatchNorm, 1.6 M parameters, on 32×32 colour images, N = 1,000."""
    torch.manual_seed(0)
    model = nn.Sequential(
        _conv(3, 32), _conv(32, 64), nn.MaxPool2d(2), Residual(64), _conv(64, 128), nn.MaxPool2d(2), _conv(128, 256),
        nn.MaxPool2d(2), Residual(256), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    return model.eval(), torch.randn(1000, 3, 32, 32), torch.randint(10, (1000,))


class Decoder(nn.Module):
    """A small decoder with tied embeddings."""

    def __init__(self, vocabulary: int = 2048, width: int = 192, layers: int = 4, context: int = 128) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=input_ids.device)
        hidden = self.embed(input_ids) + self.place.weight[:length]
        return F.linear(self.norm(self.blocks(hidden, mask=mask, is_causal=True)), self.embed.weight)


def decoder() -> tuple[nn.Module, Any, Any]:
    """W3: a decoder of 2.2 M parameters, context 128, vocabulary 2,048, N = 250 rows."""
    torch.manual_seed(0)
    return Decoder().eval(), torch.randint(2048, (250, 128)), None


MODELS: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {"cnn": cnn, "resnet": resnet, "decoder": decoder}


class Clock:
    """The clock of a benchmark: it takes the place of ``time`` in forwardinf's own accounts too, so that both are alike."""

    def __init__(self, name: str) -> None:
        self.name, self.perf_counter = name, CLOCKS[name]
        for module in TIMED:
            module.time = self  # type: ignore[attr-defined]

    def seconds(self, work: Callable[[], Any]) -> float:
        """How long ``work`` takes."""
        began = self.perf_counter()
        work()
        return self.perf_counter() - began


def bare(model: nn.Module, inputs: Tensor, labels: Any, size: int, channels_last: bool) -> Tensor:
    """The floor: one plain forward and its per-example loss over the whole set, nothing else."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(inputs), size):
            batch = inputs[start : start + size]
            if channels_last:
                batch = batch.to(memory_format=torch.channels_last)
            logits = model(batch)
            if labels is None:
                each = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
                found.append(each.view(len(batch), -1).sum(1))
            else:
                found.append(F.cross_entropy(logits, labels[start : start + size], reduction="none"))
    return torch.cat(found)


def best_setting(model: nn.Module, inputs: Tensor, labels: Any, layouts: tuple[bool, ...]) -> tuple[int, bool, float]:
    """Return (batch size, channels_last, CPU seconds) of the fastest plain loop."""
    tried = []
    for channels_last in layouts:
        for size in SIZES:
            if size <= len(inputs):
                run = lambda size=size, layout=channels_last: bare(model, inputs, labels, size, layout)  # noqa: E731
                tried.append((statistics.median(seconds(run, 3)), size, channels_last))
    took, size, layout = min(tried)
    return size, layout, took


def seconds(work: Callable[[], Any], repeats: int, warm: int = 1) -> list[float]:
    """CPU seconds of each repeat, after warming up."""
    times = []
    for _ in range(repeats + warm):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return times[warm:]


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


def commit() -> str:
    """The commit that was measured, with ``+`` where the tree had changes; nothing where there is no git."""
    if shutil.which("git") is None:
        return ""
    here = Path(__file__).parent
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    dirty = subprocess.run(["git", "status", "--porcelain", "--", "../forwardinf", "."], cwd=here, capture_output=True,
                           text=True, check=False)  # fmt: skip
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def write(name: str, content: dict[str, Any]) -> None:
    """Write ``results/<name>.json`` with machine, versions, commit and date, and print it."""
    facts = {"machine": {k: v for k, v in machine.describe().items() if k != "free_disk_gib"},
             "versions": machine.versions(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**content, **facts}, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    print(path.read_text())


def data_folder() -> Path:
    """Where the real data is."""
    folder = os.environ.get("FORWARDINF_DATA")
    if not folder:
        raise SystemExit("set FORWARDINF_DATA to the data folder (the Makefile does where it finds it)")
    return Path(folder)
