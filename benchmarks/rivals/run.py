"""Rivals run in their own environments on the same checkpoint and data, passed as files; scores come back as files.

``RIVALS_VENV`` and ``CLEANLAB_VENV`` name the environments; ``benchmarks/rivals/setup.sh`` and ``setup_cleanlab.sh`` make them.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from benchmarks.apart import elsewhere

HERE = Path(__file__).parent
DAMPINGS = ("heuristic", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "1", "10")
ABSENT = "no environment for rivals: sh benchmarks/rivals/setup.sh"
PROJECTIONS = ("64", "128", "256", "512", "1024")
Tables = dict[str, np.ndarray]


def ask(bench: Any, rival: str, *settings: str) -> tuple[Tables, dict[str, float]]:
    """Return a rival's scores ``(Q, N)`` at each setting, and its times and memory; the bench has model, data and network."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (inputs, labels), (asked, answers) = bench.train, bench.queries
        data = {"x_train": inputs, "y_train": labels, "x_query": asked, "y_query": answers}
        np.savez(folder / "data.npz", **{name: tensor.numpy() for name, tensor in data.items()})
        save_file({k: v.contiguous() for k, v in bench.model.state_dict().items()}, folder / "model.safetensors")
        (folder / "job.json").write_text(json.dumps(bench.network))
        elsewhere("RIVALS_VENV", "/tmp/rivals/venv", "setup.sh", str(HERE / "score.py"), scratch, rival, *settings)
        with np.load(folder / "scores.npz", allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}, json.loads((folder / "timed.json").read_text())


def row(rival: str, *settings: str) -> Callable[[Any], Tables]:
    """Return a row of the table of faithfulness: a rival at some settings."""
    return lambda bench: ask(bench, rival, *settings)[0]


ROWS: dict[str, Callable[[Any], Tables]] = {
    "kronfluence identity (gradient dot product)": row("kronfluence", "identity"),
    "kronfluence EK-FAC, default damping": row("kronfluence", "1e-8"),
    "kronfluence EK-FAC, tuned damping": row("kronfluence", *DAMPINGS),
    "dattri TRAK, 512 projections": row("dattri", "512"),
    "dattri TRAK, tuned projections": row("dattri", *PROJECTIONS),
}
TIMED = {  # what is timed: the rival, and its setting
    "kronfluence identity": ("kronfluence", "identity"), "kronfluence EK-FAC": ("kronfluence", "1e-8"),
    "captum TracInCP": ("captum", "all"), "captum TracInCPFast": ("captum", "last layer"), "dattri TRAK 512": ("dattri", "512"),
}  # fmt: skip


def cleanlab(cases: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Tables]:
    """Return, for each case ``(labels, probabilities)``, every method's score by name, high = wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, found = Path(scratch), {}
        for place, (labels, probabilities) in enumerate(cases.values()):
            np.savez(folder / f"{place}.npz", labels=labels, probabilities=probabilities)
        elsewhere("CLEANLAB_VENV", "/tmp/rivals/cleanlab", "setup_cleanlab.sh", str(HERE / "run_cleanlab.py"), scratch)
        for place, name in enumerate(cases):
            with np.load(folder / f"{place}-scores.npz", allow_pickle=False) as kept:
                found[name] = {method: kept[method] for method in kept.files}
        return found
