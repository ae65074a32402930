"""What a result says of itself fits a line or two, and results with rows for each query are asked by its id."""

import numpy as np
import pandas as pd
import pytest
import torch
from planted import planted
from texts_cases import decoder, texts, tokenizer

import forwardinf as fi
from forwardinf.truth.mirror import Mirror
from forwardinf.truth.verify import Verification

TASK = {"task": fi.Classification(), "progress": False}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path / "cache"))


def leaked(copies=4, fresh=8, **settings):
    found = planted()
    asked = (
        torch.cat([found.train[0][:copies], found.test[0][:fresh]]),
        torch.cat([found.train[1][:copies], found.test[1][:fresh]]),
    )
    return fi.leaks(found.model, found.train, asked, **TASK, **settings)


def traced(**settings):
    pytest.importorskip("transformers")
    return fi.trace(decoder(), texts(), ["hal lives in", "ada lives in"], tokenizer=tokenizer(), answers=["quito", "rome"],
                    question_ids=["hal", "ada"], progress=False, **settings)  # fmt: skip


def test_leaks_in_a_line():
    found = planted()
    clean = (found.test[0][100:], found.test[1][100:])
    said = repr(leaked(clean=clean))
    assert said.startswith("Leaks(4 of 12 queries have a copy among 400 training examples; score of at least ")
    assert ", or the same content; false-discovery rate 5 %, false-positive rate " in said
    assert said.endswith("; see .table, .baselines, .report(path))")
    said = repr(leaked())
    assert "4 of 12 queries" in said
    assert "; uncalibrated, no false-positive rate; see" in said


def test_labels_in_a_line():
    found = planted(6, 0.1)
    result = fi.mislabeled(found.model, found.train, **TASK)
    count, threshold = int(result.table["is_label_issue"].sum()), result.threshold
    assert repr(result) == (
        f"Mislabeled({count} of 400 labels look wrong; label_score of at most {threshold:.3g}; "
        "no false-positive rate (clean= would give one); see .table, .baselines, .report(path))"
    )
    result = fi.mislabeled(found.model, found.train, clean=(found.test[0][:100], found.test[1][:100]), **TASK)
    assert f"; false-positive rate {100 * result.false_positive_rate:.2g} %; see" in repr(result)


def test_what_is_memorised_in_a_line():
    found = planted(6, 0.1)
    result = fi.memorized(found.model, found.train, (found.test[0][:2], found.test[1][:2]), **TASK)
    count = int(result.table["is_memorized"].sum())
    assert repr(result) == (
        f"Memorized({count} of 400 training examples are memorised; memorization of at least 0.25; no false-positive rate; "
        "see .table, .baselines, .pairs, .report(path))"
    )


def test_a_trace_in_a_line():
    assert repr(traced(baselines=False, spans=0)) == (
        f"Traced(2 questions × {len(texts())} training examples, unit-whitened through kfac, margin; positive = proponent; "
        "see .table, .scores, .report(path))"
    )
    assert ".spans" in repr(traced(spans=1))


def test_self_influence_in_a_line():
    found = planted()
    result = fi.self_influence(found.model, found.train, direction="gfim", **TASK)
    assert repr(result) == "SelfInfluence(400 training examples, gfim, nats per unit step; see .top(k), .to_pandas())"
    assert len(result) == 400
    assert result.top(2)["self_influence"].is_monotonic_decreasing
    with pytest.raises(fi.SettingError, match="a whole number"):
        result.top(-1)


def test_an_index_in_a_line(tmp_path):
    found = planted()
    index = fi.ProbeIndex.build(tmp_path / "i", found.model, found.train, probes=16, **TASK)
    assert (
        repr(index)
        == f"ProbeIndex('{tmp_path / 'i'}': 400 training examples × 16 probes, projected, 0.0 MiB; see .query(model, queries))"
    )
    assert "16 probes" in repr(fi.ProbeIndex(tmp_path / "i"))


def test_evaluations_in_a_line():
    masks = np.random.default_rng(0).random((50, 8)) < 0.5
    truth = np.random.default_rng(1).normal(size=(6, 8))
    bank = fi.Bank(masks, masks @ truth.T, "measure")
    assert repr(bank) == "Bank(50 subsets of 8 training examples, 6 queries, measure)"
    found = fi.evaluate({"planted": truth}, bank=bank)
    said = repr(found)
    assert said.startswith(
        "Evaluation(planted: lds spearman 1.000 [1.000, 1.000] over 6 queries; planted: lds pearson 1.000"
    )
    assert said.endswith(f"{len(found.baselines)} rows of controls; see .table, .curve, .baselines, .save(path))")
    mirror = Mirror("digits", "removal", truth, truth, list("abcdef"), list(range(8)))
    said = "Verification(digits, removal: 6 × 8, Pearson 1.000, Spearman 1.000; see .table, .per_query, .plot(path))"
    assert repr(Verification([mirror])) == said
    assert "array" not in repr(mirror)


@pytest.mark.whole
def test_nothing_is_longer_than_three_lines():
    found = planted()
    for result in (
        leaked(),
        fi.memorized(found.model, found.train, **TASK),
        traced(),
        leaked(query_ids=[f"<{n}>\n" * 50 for n in range(12)]),
    ):
        assert len(repr(result)) < 360
        assert "\n" not in repr(result)


@pytest.mark.parametrize("made", [leaked, traced])
def test_a_query_is_asked_by_its_id(made):
    found = made()
    column = found.asked_by
    ids = list(found)
    assert len(found) == len(ids) == found.table[column].nunique()
    first, last = ids[0], ids[-1]
    pd.testing.assert_frame_equal(found[last], found.table[found.table[column] == last].reset_index(drop=True))
    assert last in found
    top = found.top(2, query=[last, first])
    assert top[column].tolist() == [last, last, first, first]
    assert top["rank"].tolist() == [1, 2, 1, 2]
    assert len(found.top(1)) == len(ids)
    assert len(found.top(1, query=last)) == 1
    with pytest.raises(KeyError, match=column):
        found["nobody"]
    with pytest.raises(fi.UnknownId):
        found.top(1, query=[first, "nobody"])
    with pytest.raises(fi.SettingError, match="a whole number"):
        found.top(0)


@pytest.mark.whole
def test_the_guess_at_a_mistyped_question():
    with pytest.raises(
        fi.UnknownId, match=r"found\[question\]: expected an id: 'hal', 'ada', got 'hel'. Did you mean 'hal'"
    ):
        traced(baselines=False, spans=0)["hel"]
