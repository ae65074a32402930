"""Linear scores under ``hold``: one plain reading, whitened, is what reading along each direction gives."""

import numpy as np
import pytest
import torch
from cases import QUERIES, ROWS, attribute, case
from close import assert_close, assert_within

import forwardinf as fi

SAME = "exact beside a difference at a length of 1e-6"
TEMPERS = pytest.mark.parametrize("temper", [0.0, 0.5, 1.0])


def rule(**settings):
    return fi.Perturbation("hold", damping=0.5, **settings)


def assert_same(given, **settings):
    exact, other = (attribute(given, engine=engine, **settings) for engine in ("factored", "forward"))
    assert (exact.plan["engine"], other.plan["engine"]) == ("factored", "forward")
    for name in ("values", "rise", "cross"):
        assert_close(getattr(other, name), getattr(exact, name), rtol=1e-3, why=SAME)
    assert exact.unit == other.unit
    return exact


@TEMPERS
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_both_engines_give_the_same(name, temper):
    scores = assert_same(case(name, torch.float64), perturbation=rule(temper=temper))
    assert scores.unit == "nats"


@TEMPERS
def test_a_copy_of_the_query_has_share_one(temper):
    given = case("cnn", torch.float64).with_copies()
    for engine in ("factored", "forward"):
        share = attribute(given, engine=engine, perturbation=rule(temper=temper)).share
        assert_within(np.diag(share[:, ROWS:]), np.ones(QUERIES), atol=1e-3, why=SAME)


@TEMPERS
def test_queries_asked_something_else_and_groups(temper):
    given = case("cnn", torch.float64)
    assert_same(given, perturbation=rule(temper=temper), task=fi.Classification(query="margin"))
    assert_same(given, perturbation=rule(temper=temper), groups=["a", "b", "a"])


def test_candidates_and_blocks_of_queries(monkeypatch):
    given = case("cnn", torch.float64)
    whole = attribute(given, engine="factored", perturbation=rule())
    some = attribute(given, engine="factored", perturbation=rule(), candidates=[[1, 2], [3], [39, 0]])
    for query, places in enumerate([[1, 2], [3], [39, 0]]):
        assert_close(some.values[query, places], whole.values[query, places], rtol=1e-6, why="float32 values")
    monkeypatch.setattr("forwardinf.read.passes.ROOM", 1)
    split = attribute(given, engine="factored", perturbation=rule())
    assert split.plan["query_block"] == 1
    assert_close(split.values, whole.values, rtol=1e-6, why="float32 values")
    assert_close(split.cross, whole.cross, rtol=1e-6, why="float32 values")


def test_a_run_folder_is_resumed_and_loaded(tmp_path):
    given = case("cnn")
    settings = {"engine": "factored", "perturbation": rule(), "shard_rows": 20, "batch_size": 10}
    scores = attribute(given, **settings, output_dir=tmp_path / "run")
    (tmp_path / "run" / "scores" / "b-00000" / "s-00001.parquet").unlink()
    (tmp_path / "run" / "done.json").unlink()
    again = attribute(given, **settings, output_dir=tmp_path / "run")
    assert np.array_equal(again.values, scores.values)
    assert np.array_equal(again.rise, scores.rise)
    assert np.array_equal(fi.load_scores(tmp_path / "run").share, scores.share)


def test_a_skipped_query_is_left_out():
    given = case("cnn")
    labels = given.queries[1].clone()
    labels[1] = -100
    scores = attribute(
        given, queries=(given.queries[0], labels), engine="factored", perturbation=rule(), on_bad_query="skip"
    )
    assert np.isnan(scores.values[1]).all()
    assert np.isfinite(scores.values[[0, 2]]).all()


@pytest.mark.parametrize("temper", [-0.1, 1.5, True, "half"])
def test_a_temper_out_of_range_is_refused(temper):
    with pytest.raises(fi.SettingError, match="temper"):
        fi.Perturbation("hold", temper=temper)


@TEMPERS
@pytest.mark.parametrize("engine", ["forward", "factored"])
def test_a_sketch_stands_for_the_matrix_and_a_copy_has_share_one(temper, engine, monkeypatch):
    given = case("cnn", torch.float64)
    exact = attribute(given, engine="factored", perturbation=rule(temper=temper))
    monkeypatch.setattr("forwardinf.perturb.hold.EXACT_EXAMPLES", ROWS - 1)
    scores = attribute(given, engine=engine, perturbation=rule(temper=temper))
    for got, want in zip(scores.values, exact.values, strict=True):
        assert np.corrcoef(got, want)[0, 1] > 0.98, "4,096 probes for 830 numbers: an estimate, near the exact one"
    assert any("4096 shared probes" in note for note in scores.notes)
    share = attribute(given.with_copies(), engine=engine, perturbation=rule(temper=temper)).share
    assert_within(np.diag(share[:, ROWS:]), np.ones(QUERIES), atol=1e-4, why="one sketch of the same gradient")


def test_finite_scores_hold_a_sample_where_all_are_too_many(monkeypatch):
    given = case("cnn")
    monkeypatch.setattr("forwardinf.perturb.hold.EXACT_EXAMPLES", ROWS // 2)
    scores = attribute(given, perturbation=fi.Perturbation("hold", rise=0.1, two_sided=True))
    assert any(f"hold: {ROWS // 2} training examples drawn by the seed are held" in note for note in scores.notes)
    assert scores.status == ["ok"] * QUERIES
