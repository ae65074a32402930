"""Every example runs, on a small slice of its real data, and shows what it says it shows."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from close import assert_close

import forwardinf as fi

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
FOLDER = Path(__file__).parents[1] / "examples"
MODELS = {path.stem for path in FOLDER.glob("models_*.py")} | {"common"}
RUNS = {
    "digits": ["--n-train", "200", "--n-queries", "2", "--epochs", "2"],
    "cifar_resnet": ["--n-train", "48", "--n-queries", "2"],
    "fashion_cnn": ["--n-train", "600", "--n-queries", "2"],
    "mnist_diffusion": ["--n-train", "6", "--n-queries", "1", "--timesteps", "2"],
    "tinystories_llama": ["--n-train", "24", "--n-queries", "1"],
    "hf_classifier": ["--n-train", "300", "--n-queries", "2", "--epochs", "1"],
    "lora_adapter": ["--n-train", "24", "--n-queries", "1", "--epochs", "1"],
}
NEEDS = {"hf_classifier": ["transformers", "tokenizers"], "lora_adapter": ["transformers", "peft"]}
EVERY = pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name == "digits" else pytest.mark.data) for name in RUNS
])  # fmt: skip


@pytest.fixture
def run(monkeypatch, tmp_path, request):
    """Return a function that runs an example by name in a folder of its own: (scores, what it printed, its report)."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)

    def started(name, capsys):
        for package in NEEDS.get(name, ()):
            pytest.importorskip(package)
        if name != "digits":
            request.getfixturevalue("data_folder")
        report = tmp_path / "report.html"
        asked = [*RUNS[name], *(["--out", str(report)] if name != "digits" else [])]
        scores = importlib.import_module(name).main(asked)
        return scores, capsys.readouterr().out, report

    yield started
    for name in MODELS | set(RUNS):
        sys.modules.pop(name, None)


def test_no_example_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.py")} == MODELS | set(RUNS)


@EVERY
def test_an_example_runs_and_its_numbers_hold(run, capsys, name):
    scores, printed, report = run(name, capsys)
    asked = dict(zip(RUNS[name][::2], map(int, RUNS[name][1::2]), strict=True))
    assert isinstance(scores, fi.Scores)
    assert scores.values.shape == (asked["--n-queries"], asked["--n-train"])
    assert np.isfinite(scores.values).all()
    assert (scores.rise > 0).all()
    assert (scores.baseline >= 0).all()
    assert np.ptp(scores.values, axis=1).min() > 0
    if name != "fashion_cnn":  # there a query is asked by what the model predicted, not by its training loss
        near = 6 * scores.noise_floor / scores.rise
        assert_close(
            np.diag(scores.cross),
            scores.rise,
            rtol=max(near.max(), 1e-6),
            why="a copy has share 1, but for noise",
        )
    best = scores.top(1)["score"]
    assert f"{best.iloc[0]:+.3g}" in printed or f"{scores.top(1)['share'].iloc[0]:+.2f}" in printed or name == "digits"
    if report.exists() or name != "digits":
        assert report.read_text().count('class="card') > asked["--n-queries"]


@pytest.mark.whole
@pytest.mark.data
def test_a_storys_ending_is_traced_to_the_window_that_holds_it(run, capsys):
    _, printed, _ = run("tinystories_llama", capsys)
    first = next(line for line in printed.splitlines() if line.strip().startswith("1."))
    assert "holds it" in first, printed


@pytest.mark.data
def test_only_the_adapter_moves(run, capsys):
    scores, printed, _ = run("lora_adapter", capsys)
    assert "nats per token" in printed
    assert scores.length == pytest.approx([1e-4], rel=0.05), "a length over the effective weights that it adapts"
