"""`forwardinf evaluate`, run as a user would."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import forwardinf as fi
from forwardinf.truth.bank import Bank

FIT = """
import numpy as np, torch
from torch import nn
with np.load("digits.npz") as found:
    x, y = torch.tensor(found["x_train"]).flatten(1), torch.tensor(found["y_train"])

def fit(positions, seed):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[positions]), y[positions]).backward()
        optimiser.step()
    return model
"""
ROWS, QUERIES = 30, 4


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with data, a training function, saved scores and a bank that agrees with them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cli_fit", raising=False)
    Path("cli_fit.py").write_text(FIT)
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    x, y = (images[:ROWS], images[90:100]), (digits.target[:ROWS], digits.target[90:100])
    np.savez("digits.npz", x_train=x[0], y_train=y[0], x_test=x[1], y_test=y[1])
    draw = np.random.default_rng(0)
    effects, masks = draw.normal(size=(QUERIES, ROWS)).astype(np.float32), draw.random((20, ROWS)) < 0.5
    fi.Scores.from_array(effects).save("scores")
    np.save("scores.npy", effects)
    good = masks @ effects.T
    Bank(masks, -good, "loss", {"worse": good * draw.normal(size=good.shape)}).save("bank")
    return tmp_path


@pytest.fixture
def evaluate(here, run):
    return partial(run, "evaluate")


def means(out):
    return {(row["scores"], row["truth"], row["metric"]): row["mean"] for row in json.loads(out)["table"]}


@pytest.mark.parametrize("scores", ["scores", "scores.npy"])
def test_saved_scores_are_held_against_a_bank(evaluate, scores):
    code, out, _ = evaluate(scores, "--bank", "bank", "--json")
    assert code == 0
    found = means(out)
    assert found["scores", "lds", "spearman"] == pytest.approx(1, abs=1e-4)
    assert abs(found["control: shuffled", "lds", "spearman"]) < 0.5
    code, out, _ = evaluate(scores, "--bank", "bank", "--output", "worse", "--json")
    assert means(out)["scores", "lds", "spearman"] < 0.7


def test_people_get_a_table_on_stderr(evaluate):
    code, out, err = evaluate("scores", "--bank", "bank")
    assert code == 0
    assert out == ""
    assert "spearman" in err
    assert "control: shuffled" in err


def test_a_training_function_makes_a_bank_that_stays(evaluate):
    words = ["scores", "--train", "cli_fit:fit", "--queries", "digits.npz", "--data-option", "split=test"]
    words += [
        "--where",
        "0:4",
        "--subsets",
        6,
        "--seeds",
        2,
        "--leave-out",
        5,
        "--remove",
        "3,6",
        "--remove-queries",
        2,
    ]
    words += ["--out", "found", "--json"]
    code, out, _ = evaluate(*words)
    assert code == 0
    kept = json.loads(Path("found/evaluation.json").read_text())
    assert kept.pop("checksum"), "the file has one; what is printed is the numbers"
    assert kept == json.loads(out)
    assert {row["truth"] for row in kept["table"]} == {"lds", "loo"}
    assert [row["k"] for row in kept["curve"]] == [3, 6]
    assert fi.load_bank("found/bank").outputs.shape == (6, 2, 4)
    changed = {path: path.stat().st_mtime_ns for path in Path("found/trainings").rglob("*.npz")}
    assert len(changed) == 12 + 2 + 10 + 4 + 8
    code, again, _ = evaluate(*words)
    assert again == out
    assert changed == {path: path.stat().st_mtime_ns for path in Path("found/trainings").rglob("*.npz")}, "resumed"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["scores"], 2, "Give bank="),
        (["scores", "--subsets", "3"], 2, "train_fn="),
        (["scores", "--bank", "nowhere"], 1, "a bank"),
        (["scores", "--bank", "bank", "--output", "wors"], 2, "Did you mean 'worse'"),
        (["scores", "--output", "worse"], 2, "--bank"),
        (["nowhere", "--bank", "bank"], 1, "nowhere"),
        (["scores.txt.npy", "--bank", "bank"], 1, "scores"),
        (["scores", "--remove", "3,x"], 2, "--remove"),
        (["scores", "--train", "cli_fit:fitt", "--queries", "digits.npz", "--subsets", "3"], 2, "Did you mean"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(evaluate, words, code, told):
    got, out, err = evaluate(*words)
    assert (got, out) == (code, "")
    assert told in err
    assert err.count("\n") == 1
