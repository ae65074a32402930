"""The benchmark for GPUs runs on a CPU, tiny: its table is right there, and it says when a row is not."""

import json

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import kept
from benchmarks.gpu import checks, gpu


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "CACHE", tmp_path / "kept")
    monkeypatch.setattr(checks, "find_spec", lambda name: None)  # the import of diffusers alone takes seconds
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.whole
def test_the_table_is_right_on_a_cpu(tmp_path):
    command.main(["gpu", "--tiny", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["wrong"] == 0
    rows = {(each["what"], each["how"]): each for each in found["right"]}
    for direction in ("plain", "sign", "diagonal", "kfac", "ekfac", "gfim", "cg", "hold"):
        for engine in ("factored", "forward"):
            assert rows[f"direction {direction}", engine]["against"] == "float64 autograd on the CPU"
    assert {"finite, one side", "K-FAC through the metric", "recurrent: LSTM", "diffusion"} <= {
        what for what, _ in rows
    }
    assert set(found["results"]) == {"ResNet-50's size", "decoder, 300 M"}
    assert all(each["factored_2_s"] > 0 for each in found["results"].values())
    assert {"machine", "versions", "commit", "seed"} <= set(found)


def test_a_wrong_row_is_said_and_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "PARTS", (lambda device, seed: iter([checks.row("this", "that", 1.0, 1e-4)]),
                                          lambda device, seed: 1 / 0))  # fmt: skip
    monkeypatch.setattr(gpu, "cases", lambda tiny: {})
    with pytest.raises(SystemExit, match="2 of 2 rows are wrong"):
        command.main(["gpu", "--tiny", "--out", str(tmp_path / "gpu.json")])
    assert "ZeroDivisionError" in (tmp_path / "gpu.json").read_text()


def test_without_a_gpu_it_refuses():
    with pytest.raises(SystemExit, match="sees no GPU here; --tiny"):
        command.main(["gpu"])
