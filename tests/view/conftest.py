import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from forwardinf.view.cli import main

NET = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=16):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

def absolute(model, batch):
    inputs, label = batch
    return torch.nn.functional.cross_entropy(model(inputs), label, reduction="none")
"""


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``forwardinf …`` in this process; return (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["forwardinf", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module, weights and data, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cli_net", raising=False)
    Path("cli_net.py").write_text(NET)
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    np.savez(
        "digits.npz",
        x_train=images[:300],
        y_train=digits.target[:300],
        x_test=images[300:340],
        y_test=digits.target[300:340],
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.from_numpy(images[:300]), torch.from_numpy(digits.target[:300])
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    save_file(model.state_dict(), "net.safetensors")
    return tmp_path
