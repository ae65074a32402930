"""The benchmark for GPUs runs on a CPU, tiny: its table is right there, and it says when a row is not."""

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_gpu
    import gpu_checks

    monkeypatch.setattr(gpu_checks, "find_spec", lambda name: None)  # the import of diffusers alone takes seconds
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield bench_gpu, gpu_checks
    for name in ("bench_gpu", "gpu_checks", "harness"):
        sys.modules.pop(name, None)


@pytest.mark.whole
def test_the_table_is_right_on_a_cpu(bench, tmp_path, capsys):
    bench[0].main(["--tiny", "--out", str(tmp_path / "gpu.json")])
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


def test_a_wrong_row_is_said_and_ends_with_an_error(bench, tmp_path, monkeypatch):
    run, rows = bench
    monkeypatch.setattr(rows, "PARTS", (lambda device, seed: iter([rows.row("this", "that", 1.0, 1e-4)]),
                                        lambda device, seed: 1 / 0))  # fmt: skip
    monkeypatch.setattr(run, "cases", lambda tiny: {})
    with pytest.raises(SystemExit, match="2 of 2 rows are wrong"):
        run.main(["--tiny", "--out", str(tmp_path / "gpu.json")])
    assert "ZeroDivisionError" in (tmp_path / "gpu.json").read_text()


def test_without_a_gpu_it_refuses(bench):
    with pytest.raises(SystemExit, match="sees no GPU here; --tiny"):
        bench[0].main([])
