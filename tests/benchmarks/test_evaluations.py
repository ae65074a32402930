"""The evaluations of the three uses, small: they run, their numbers are what they say, the pages hold what the JSON says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import fitted, net
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks import kept, page, sets
from benchmarks.__main__ import find
from benchmarks.labels import memorized, mislabeled, mislabeled_tables, subsets, training, wrong
from benchmarks.labels.measures import average_precision, beside, measured
from benchmarks.leaks import copies, leaks, protocol
from benchmarks.leaks import tables as leaks_tables

ROOT = Path(__file__).parents[2]


@pytest.fixture
def digits(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "CACHE", tmp_path / "kept")
    whole = sets.digits()
    train, test = ((part[0][:300], part[1][:300]) for part in (whole.train, whole.test))
    return sets.Set("digits", train, test, net, whole.rows[:300])


def test_measures_are_scikit_learns_ties_included():
    draw = np.random.default_rng(0)
    truth, score = draw.random(300) < 0.2, draw.integers(0, 20, 300) / 20
    found = measured(truth, score)
    assert found["AP"] == pytest.approx(average_precision_score(truth, score), abs=1e-4)
    assert found["AUROC"] == pytest.approx(roc_auc_score(truth, score), abs=1e-4)
    assert average_precision(truth, truth) == 1
    compared = beside(truth, truth + 0.0, score, draws=50)["AUROC"]
    assert compared["low"] > 0
    assert beside(truth, score, score, draws=50)["AP"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_copies_are_altered_and_keep_their_shape():
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for kind, of in copies.IMAGES.items():
        found = of(images)
        assert found.shape == images.shape
        assert found.min() >= 0
        assert found.max() <= 1
        assert torch.equal(found, images) == (kind == "exact")
    texts = [["a", "good", "movie", "is", "here"], ["bad"], ["so", "there"]]
    for kind, of in copies.TEXTS.items():
        found = of(texts)
        assert all(found), kind
        assert (found == texts) == (kind == "exact")
    assert copies.TEXTS["words swapped"](texts)[0] == ["good", "a", "is", "movie", "here"]


def test_wrong_labels_are_as_many_as_asked():
    labels = torch.arange(1000) % 10
    for kind in wrong.KINDS:
        found = wrong.flipped(labels, kind, 0.2, "digits")
        assert int((found != labels).sum()) == 200
    assert all(to != at for of in wrong.MISTAKEN.values() for at, to in enumerate(of))


def test_leaks_small(digits):
    model = fitted(*digits.train, epochs=15)
    found = leaks.evaluate(leaks.cased(digits, model, 12, 80))
    rows = {row["row"]: row for row in found["rows"]}
    assert rows["responses, cosine"]["exact"]["top-1"] == 1
    assert rows[leaks.OURS]["exact"]["recall at 1%"] == 1
    assert rows[leaks.HASH]["crop"]["top-1"] == 0
    assert found["decision"]["flagged"]["exact"] == 1
    told = leaks_tables.tables({"sets": [json.loads(json.dumps(found))], "protocol": None})
    assert leaks.OURS in told


def test_the_published_protocol_small(digits):
    model = fitted(*digits.train, epochs=5)
    found = protocol.protocol(model, digits.train, 3, 4, 6)
    rows = {row["row"]: row for row in found["rows"]}
    assert rows["responses alone, cosine"]["top-1"] == 1
    assert len(rows) == 6
    leaks_tables.tables({"sets": [], "protocol": {**found, "train accuracy": 1.0}})


def test_mislabeled_small(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(mislabeled, "SEEDS", 1)
    monkeypatch.setattr(training, "HELD", 50)
    monkeypatch.setenv("CLEANLAB_VENV", str(tmp_path / "none"))
    plan = training.Plan(digits, 60, 4)
    given = wrong.flipped(digits.train[1], "uniform", 0.2, "digits")
    case = training.Case("digits", "uniform", 0.2, plan, given, (digits.test[0][-50:], digits.test[1][-50:]))
    found = mislabeled.evaluate(case)
    assert found["wrong"] == 60
    assert found["stages"]["memorised"]["fits its labels"] > found["stages"]["stopped early"]["fits its labels"]
    assert found["stages"]["stopped early"]["rows"][mislabeled.OURS]["AUROC"] > 0.9
    assert set(found["acting"]) > {"as given", "flagged dropped"}
    assert "digits" in mislabeled_tables.tables({"cases": [found]})


@pytest.mark.whole
def test_memorized_small(digits, tmp_path):
    recipe = subsets.Recipe(digits, epochs=12, models=20)
    bank = subsets.bank(recipe, tmp_path / "bank.npz")
    assert bank.masks.sum(1).tolist() == [210] * 20
    assert np.array_equal(bank.masks, subsets.drawn(recipe))
    assert np.isfinite(bank.memorization()).all()
    assert bank.influence().shape == (300, 300)
    own, found = memorized.scores(recipe, 0)
    assert all(np.isfinite(values).all() for values in own.values())
    told = memorized.pairs(recipe, bank, found)
    assert (
        told["mean influence of the first pair"]["true best"]
        >= told["mean influence of the first pair"]["`fi.memorized`"]
    )


def test_the_estimator_is_the_difference_it_stands_for():
    masks = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    outputs = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 1, 1]], np.float64)
    want = [outputs[masks[:, i], i].mean() - outputs[~masks[:, i], i].mean() for i in range(3)]
    assert subsets.memorization(masks, outputs) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", ["leaks", "mislabeled", "memorized", "engines", "verify", "probes", "attribution"])
def test_the_pages_hold_what_the_results_say(name):
    module = find(name).module
    told = module.tables(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text()))
    text = (page.DOCS / f"{module.PAGE}.md").read_text()
    for mark, each in {name: told}.items() if isinstance(told, str) else told.items():
        assert text == page.filled(text, mark, each), f"python -m benchmarks {name} --docs"
