"""Planted copies are found, decisions are calibrated or say that they are not, and every refusal has its words."""

import json

import pandas as pd
import pytest
import torch
from cases import case
from close import assert_close
from planted import planted

import forwardinf as fi
from forwardinf.use.leaks.decision import COLUMNS
from forwardinf.use.leaks.evidence import matches, whitening
from forwardinf.use.leaks.leaks import response_cosine
from forwardinf.use.responses import unit


def asked(found, copies, fresh):
    """Return test examples: copies of the first training rows, then fresh ones."""
    x = torch.cat([found.train[0][:copies], found.test[0][:fresh]])
    return x, torch.cat([found.train[1][:copies], found.test[1][:fresh]])


def leaks(found, queries, **settings):
    return fi.leaks(found.model, found.train, queries, **{"task": fi.Classification(), "progress": False, **settings})


def test_every_planted_copy_is_the_best_match_and_flagged_and_few_others_are():
    found = planted()
    clean = (found.test[0][100:], found.test[1][100:])
    result = leaks(found, asked(found, 20, 80), clean=clean)
    best = result.table[result.table["rank"] == 1].reset_index(drop=True)
    assert list(result.table.columns) == list(COLUMNS)
    assert best["train"][:20].tolist() == list(range(20))
    assert best["is_leak"][:20].all()
    assert best["same_content"].tolist() == [True] * 20 + [False] * 80
    assert best["is_leak"][20:].sum() <= 4
    assert_close(best["cosine"][:20], torch.ones(20), rtol=1e-4, why="float32, batches of another size")
    assert_close(best["share"][:20], torch.ones(20), rtol=1e-3, why="small gradients in float32")
    assert 0 < result.false_positive_rate <= 0.05
    assert result.calibration.startswith("null: clean")
    assert (result.p_values[:20] < 1e-3).all()


def test_the_copy_is_found_by_responses_alone():
    found = planted()
    result = leaks(found, asked(found, 30, 0), k=3)
    by_response = result.table.sort_values(["query", "cosine"], ascending=[True, False]).groupby("query").first()
    assert by_response["train"].tolist() == list(range(30))


def test_near_copies_are_found_as_well_as_by_the_best_single_view():
    found = planted()
    noisy = found.train[0][:40] + 0.2 * torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    result = leaks(found, (noisy, found.train[1][:40]), k=1)
    right = torch.arange(40).numpy()
    ours = (result.table["train"].to_numpy() == right).mean()
    single = max(
        (result.baselines[f"{view}_neighbour"].to_numpy() == right).mean() for view in ("input", "early", "last")
    )
    assert ours >= single - 0.026, (ours, single)  # one query of forty


def test_a_relabelled_copy_is_found_by_its_input():
    found = planted()
    x, y = asked(found, 10, 60)
    result = leaks(found, (x, torch.cat([(y[:10] + 1) % 10, y[10:]])), k=1)
    assert result.table["train"][:10].tolist() == list(range(10))
    assert result.table["is_leak"][:10].all()
    assert "same content" in result.table["evidence"][0]


def test_few_queries_without_clean_examples_are_uncalibrated_and_say_so():
    found = planted()
    result = leaks(found, asked(found, 3, 3), k=1)
    assert result.calibration == "uncalibrated"
    assert result.false_positive_rate is None
    assert result.p_values.isna().all()
    assert result.table["is_leak"].tolist()[:3] == [True] * 3
    assert result.table["evidence"][0].endswith("(uncalibrated)")
    assert any("uncalibrated" in note for note in result.notes)
    assert leaks(found, asked(found, 3, 60), k=1).calibration.startswith("null: test set")


def test_two_stages_and_own_candidates_read_less_and_find_the_same():
    found = planted()
    queries = asked(found, 6, 4)
    whole = leaks(found, queries, k=1)
    near = leaks(found, queries, k=1, candidates="neighbours")
    assert near.cost["gradients_read"] < 0.8 * whole.cost["gradients_read"]
    assert near.table["train"][:6].tolist() == whole.table["train"][:6].tolist() == list(range(6))
    mine = leaks(found, queries, k=2, candidates=[[9, 8, q] for q in range(10)])
    assert mine.table[mine.table["rank"] == 1]["train"][:6].tolist() == list(range(6))
    assert set(mine.table["train"]) <= set(range(10))


def test_the_model_is_given_back_and_the_same_call_gives_the_same_table():
    found = planted()
    found.model.train()
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    one, other = (leaks(found, asked(found, 2, 2)).table for _ in range(2))
    pd.testing.assert_frame_equal(one, other)
    assert found.model.training
    assert all(parameter.requires_grad for parameter in found.model.parameters())
    assert all(torch.equal(tensor, found.model.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.parametrize("rows", [30, 5])
def test_whitening_is_the_formula_it_stands_for(rows):
    u = unit(torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)))
    q = unit(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)))
    whiten = whitening(u)
    want = torch.linalg.solve(u.double() @ u.double().T + 0.1 * torch.eye(rows).double(), u.double() @ q.double().T).T
    assert_close(whiten(q) @ whiten(u).T, want, rtol=1e-5, why="(UUᵀ + .1)⁻¹U u_q, in float32")


def test_one_copy_more_in_the_training_set_does_not_hide_the_first():
    rows = unit(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))
    alone = matches({"input": rows[:1]}, {"input": rows}, 2)
    twice = matches({"input": rows[:1]}, {"input": torch.cat([rows, rows[:1]])}, 2)
    assert sorted(twice.rows[0].tolist()) == [0, 200]
    assert float(twice.score[0, 1]) > 0.5 * float(alone.score[0, 0])


def test_responses_to_the_queries_own_perturbations_find_copies_too():
    found = planted()
    scores = fi.attribute(found.model, found.train, asked(found, 8, 8), task=fi.Classification(), progress=False,
                          perturbation=fi.Perturbation(length=1e-2))  # fmt: skip
    assert response_cosine(scores)[:8].argmax(1).tolist() == list(range(8))


def test_hostile_ids_are_written_and_shown_whole(tmp_path):
    found = planted()
    ids = ["<script>alert(1)</script>", "\x1b[2J", "=1+1", "\ud800"] + [f"row {n}" for n in range(396)]
    result = leaks(found, asked(found, 4, 0), ids=ids, query_ids=["<b>", "\x07", "q", "\u202e"], k=1)
    assert result.table["train"].tolist() == ids[:4]
    result.save(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "use.json").read_text())
    assert facts["format"] == "forwardinf.use/1"
    page = result.report(tmp_path / "page.html").read_text()
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert page.count("data:image/png") == 8
    json.dumps(result.to_dict())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fdr": 0}, "fdr: expected a number between 0 and 1"),
        ({"k": 0}, "k: expected a whole number ≥ 1"),
        ({"candidates": "near"}, "'neighbours'"),
        ({"candidates": [[1]]}, "at least one for each of 3 queries"),
        ({"candidates": [[1], [2], [4000]]}, "positions that there are"),
        ({"candidates": {0: [1]}}, "none for 1"),
        ({"clean": "few"}, "at least 20"),
        ({"clean": "leaked"}, "not in the training set"),
    ],
)
def test_what_is_refused(settings, words):
    found = planted()
    special = {"few": (found.test[0][:5], found.test[1][:5]), "leaked": (found.train[0][:30], found.train[1][:30])}
    settings = {
        name: special.get(value, value) if isinstance(value, str) else value for name, value in settings.items()
    }
    with pytest.raises(fi.Error, match=words):
        leaks(found, asked(found, 3, 0), **settings)


def test_a_regression_can_leak_too():
    given = case("cnn")
    task = fi.Regression(label=lambda batch: torch.nn.functional.one_hot(batch[1], 10).float())
    found = fi.leaks(given.model, given.train, (given.train[0][:3], given.train[1][:3]), task=task, progress=False, k=1)
    assert found.table["train"].tolist() == [0, 1, 2]
