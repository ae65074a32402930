"""Rivals run in their own environment on the same checkpoint and data, passed as files; scores come back as files.

``RIVALS_VENV`` names the environment (``benchmarks/rivals/setup.sh`` makes it; default /tmp/rivals/venv).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

HERE = Path(__file__).parent
DAMPINGS = ("heuristic", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "1", "10")


class NoVenv(Exception):
    """The rivals' environment is not there."""


def rival(script: str, *settings: str) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return a row that runs ``script`` with these settings, one table of scores for each."""

    def run(bench: Any) -> dict[str, np.ndarray]:
        python = Path(os.environ.get("RIVALS_VENV", "/tmp/rivals/venv")) / "bin" / "python"
        if not python.exists():
            raise NoVenv(f"no {python}: sh benchmarks/rivals/setup.sh")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            export(bench, folder)
            clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            done = subprocess.run([str(python), str(HERE / f"{script}.py"), str(folder), *settings], env=clean, text=True,
                                  capture_output=True, check=False)  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{script}: {done.stderr[-2000:]}")
            with np.load(folder / "scores.npz", allow_pickle=False) as kept:
                return {name: kept[name] for name in kept.files}

    return run


def export(bench: Any, folder: Path) -> None:
    """Write the checkpoint, the data and how to build the network."""
    (inputs, labels), (asked, answers) = bench.train, bench.queries
    np.savez(
        folder / "data.npz",
        x_train=inputs.numpy(),
        y_train=labels.numpy(),
        x_query=asked.numpy(),
        y_query=answers.numpy(),
    )
    save_file({k: v.contiguous() for k, v in bench.model.state_dict().items()}, folder / "model.safetensors")
    (folder / "job.json").write_text(json.dumps(bench.network))


ROWS: dict[str, Callable[[Any], dict[str, np.ndarray]]] = {
    "kronfluence identity (gradient dot product)": rival("run_kronfluence", "identity"),
    "kronfluence EK-FAC, default damping": rival("run_kronfluence", "1e-8"),
    "kronfluence EK-FAC, tuned damping": rival("run_kronfluence", *DAMPINGS),
    "dattri TRAK, 512 projections": rival("run_dattri", "512"),
    "dattri TRAK, tuned projections": rival("run_dattri", "64", "128", "256", "512", "1024"),
}
