"""Memory while reading: one copy of the parameters that move (two for two-sided), the losses, and 64 MiB."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys
import torch
import forwardinf as fi
from forwardinf.core import machine

torch.set_num_threads(1)
P = 24 * 2**20                                   # parameters: 96 MiB
W = P // 2048 // 2
model = torch.nn.Sequential(torch.nn.Linear(2048, W, bias=False), torch.nn.ReLU(), torch.nn.Linear(W, 2048, bias=False))
x = torch.randn(32, 2048)
seen = []

def loss(model, batch):
    inputs, = batch
    found = (model(inputs) - inputs).square().mean(1)
    if not torch.is_grad_enabled():
        seen.append(machine.resident_bytes())
    return found

settings = json.loads(sys.argv[1])
small = torch.eye(2), torch.tensor([0, 1])
fi.attribute(torch.nn.Linear(2, 2), small, small, task=fi.Classification())
with torch.no_grad():
    loss(model, (x[:8],))                        # imports and the workspace of a plain forward are not ours
before = max(seen)
seen.clear()
scores = fi.attribute(model, (x,), (x[:2],), task=loss, perturbation=fi.Perturbation(**settings), batch_size=8, progress=False)
reading = seen[-8:]                              # the last query's readings
print(json.dumps({"grown": max(reading) - before, "parameters": 4 * P, "peak": scores.cost["peak_bytes"]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ({}, 1),
        pytest.param({"length": 0.01, "two_sided": True}, 2, marks=pytest.mark.whole),
        pytest.param({"rise": 0.1}, 1, marks=pytest.mark.whole),
    ],
)
def test_reading_takes_one_copy_of_the_parameters_or_two(tmp_path, settings, copies):
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(settings)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["grown"] <= copies * found["parameters"] + 64 * 2**20, found
    assert found["grown"] >= 0.9 * copies * found["parameters"], f"the measurement sees no copy at all: {found}"
    assert found["peak"] >= found["grown"] * 0.9
