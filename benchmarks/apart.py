"""Work in a process of its own: nothing is kept in memory from another, and rivals have their own environment."""

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.runner import CannotRun


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """Return what a function of a module gives in another process, on one thread."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return pool.submit(work, *given).result()


def elsewhere(variable: str, default: str, setup: str, *command: str) -> None:
    """Run a script by the Python of another environment, named by an environment variable or where ``setup`` makes it."""
    python = Path(os.environ.get(variable, default)) / "bin" / "python"
    if not python.exists():
        raise CannotRun(f"no {python}: sh benchmarks/rivals/{setup}")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(python), *command], env=clean, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).stem}: {done.stderr[-2000:]}")
