"""cleanlab, in an environment of its own: label quality from probabilities that are handed over as files."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = Path(__file__).parents[1] / "rivals" / "run_cleanlab.py"
Array = np.ndarray[Any, Any]


class NoVenv(Exception):
    """The environment is not there."""


def cleanlab(cases: Mapping[str, tuple[Array, Array]]) -> dict[str, dict[str, Array]]:
    """Return, for each case ``(labels, probabilities)``, every method's score by name, high = wrong."""
    python = Path(os.environ.get("CLEANLAB_VENV", "/tmp/rivals/cleanlab")) / "bin" / "python"
    if not python.exists():
        raise NoVenv(f"no {python}: sh benchmarks/rivals/setup_cleanlab.sh")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for place, (labels, probabilities) in enumerate(cases.values()):
            np.savez(folder / f"{place}.npz", labels=labels, probabilities=probabilities)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(python), str(SCRIPT), str(folder)], env=clean, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"run_cleanlab: {done.stderr[-2000:]}")
        found = {}
        for place, name in enumerate(cases):
            with np.load(folder / f"{place}-scores.npz", allow_pickle=False) as kept:
                found[name] = {method: kept[method] for method in kept.files}
        return found
