"""Read a rival's job: the network with the same weights, and the same data. Runs in the rivals' environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "banks"))

import models


def read(folder: Path) -> tuple[torch.nn.Module, TensorDataset, TensorDataset]:
    """Return (model, train, queries)."""
    torch.set_num_threads(1)
    job = json.loads((folder / "job.json").read_text())
    model = getattr(models, job["function"])(*job["arguments"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with np.load(folder / "data.npz", allow_pickle=False) as kept:
        part = {name: torch.from_numpy(kept[name]) for name in kept.files}
    return (
        model.eval(),
        TensorDataset(part["x_train"], part["y_train"]),
        TensorDataset(part["x_query"], part["y_query"]),
    )
