"""Holding the rest: against a dense inverse of the empirical Fisher, by the direction and by whitening."""

import numpy as np
import pytest
import torch
from cases import QUERIES, QUICK, ROWS, case
from close import assert_close
from given import Packed, Strange, dense, feed

import forwardinf as fi
import forwardinf.perturb.hold as module
from forwardinf.core.errors import SettingError
from forwardinf.perturb import push
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.gradient import query_gradient
from forwardinf.perturb.hold import Holding, fit_held, linear_scores, weighted_gradient
from forwardinf.perturb.parameters import select
from forwardinf.perturb.registry import make_direction, passes_of
from forwardinf.score.whiten import whitened

SAME = "float64 but for K, which is kept in float32"
MADE = {"cnn": lambda: case("cnn", torch.float64), "transformer": lambda: case("transformer", torch.float64),
        "strange": lambda: Strange(False), "packed": Packed}  # fmt: skip


def fitting(given, cache=None, key=None, batch_size=7, **settings):
    rule = fi.Perturbation("hold", **{"temper": 0.0, **settings})
    return Fitting(rule, feed(given), select(given.model, None), batch_size, key, cache, progress=False)


def flat(tensors, parameters):
    return torch.cat([tensors.get(n, torch.zeros_like(p)).double().flatten() for n, p in parameters.items()])


def vector(given, seed=0):
    """Return some gradient: it need not be a query's."""
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in select(given.model, None).items()}


def inverse(gradients, damping):
    """Return P = (GᵀG/N + λI)⁻¹ by dense algebra, λN being so many mean squares."""
    n = len(gradients)
    weight = damping * gradients.square().sum(1).mean() / n
    return torch.linalg.inv(gradients.T @ gradients / n + weight * torch.eye(gradients.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_the_direction_is_the_dense_inverse_times_the_gradient(name, unit):
    given = MADE[name]()
    made = fitting(given, damping=0.5, temper=float(unit))
    gradients = dense(given, range(len(given.train[0]) if isinstance(given.train, tuple) else len(given.train)))
    if unit:
        gradients = gradients / gradients.norm(dim=1, keepdim=True)
    v = vector(given)
    want = inverse(gradients, 0.5) @ flat(v, made.parameters)
    got = make_direction(made)({n: t.clone() for n, t in v.items()})
    assert_close(flat(got, made.parameters), want, rtol=1e-5, why=SAME)


def test_passes_over_the_training_set_are_sums_over_gradients():
    given = Packed()
    made, v = fitting(given), vector(given)
    gradients = dense(given, range(9))
    assert len(gradients) > 9
    weights = torch.randn(len(gradients), dtype=torch.float64)
    got = weighted_gradient(made.train, range(9), weights, made.parameters, 4)
    assert_close(flat(got, made.parameters), gradients.T @ weights, rtol=1e-10, why="float64")
    got = linear_scores(made.train, range(9), made.parameters, 4, v)
    assert_close(got, gradients @ flat(v, made.parameters), rtol=1e-10, why="float64")


def test_the_same_gradient_is_solved_once_and_gives_the_same_bits(monkeypatch):
    given = case("cnn", torch.float64)
    direction, calls = make_direction(fitting(given)), []
    plain = module.linear_scores
    monkeypatch.setattr(module, "linear_scores", lambda *args: calls.append(1) or plain(*args))
    first, again, other = (direction(vector(given, seed)) for seed in (0, 0, 1))
    assert len(calls) == 2
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("name", [*QUICK, "strange", "packed"])
def test_directions_made_together_are_those_made_alone(name):
    given = MADE[name]() if name in MADE else case(name, torch.float64)
    made = fitting(given, damping=0.5, temper=0.5)
    direction = make_direction(made)
    asked = [vector(given, seed) for seed in range(3)]
    untouched = next(iter(made.parameters))
    del asked[1][untouched]
    found = direction.together(asked)
    for place, gradient in enumerate(asked):
        want = direction({n: t.clone() for n, t in gradient.items()})
        assert_close(flat(found.of(place), made.parameters), flat(want, made.parameters), rtol=1e-9, why="float64")


def test_queries_pushed_together_score_as_queries_pushed_alone_do(monkeypatch):
    given = case("cnn", torch.float64)
    rule = fi.Perturbation("hold", rise=0.5, two_sided=True)

    def scores(**settings):
        return fi.attribute(
            given.model, given.train, given.queries, task=given.task, perturbation=rule, progress=False, **settings
        )

    calls, together = [], Holding.together
    monkeypatch.setattr(
        Holding, "together", lambda self, gradients: calls.append(len(gradients)) or together(self, gradients)
    )
    whole = scores(shard_rows=8)
    assert calls == [QUERIES]  # once for checking, and for pushing at every shard
    monkeypatch.setattr(push, "TOGETHER", 2)
    assert_close(
        scores().values, whole.values, rtol=1e-5, why="other blocks round differently, and a rise is searched for"
    )
    assert set(calls[1:]) == {2, 1}  # of three queries
    before = len(calls)
    monkeypatch.setattr(push, "TOGETHER", 1)
    assert_close(scores().values, whole.values, rtol=1e-5, why="the same, one at a time")
    assert len(calls) == before


def test_a_query_that_cannot_be_asked_does_not_spoil_those_pushed_with_it():
    given = case("cnn", torch.float64)
    rule = fi.Perturbation("hold", rise=0.5, two_sided=True)
    queries = given.queries[0].clone(), given.queries[1]
    settings = {"task": given.task, "perturbation": rule, "progress": False, "on_bad_query": "skip"}
    want = fi.attribute(given.model, given.train, queries, **settings)
    queries[0][1] = float("nan")
    found = fi.attribute(given.model, given.train, queries, **settings)
    assert np.isnan(found.values[1]).all()
    assert_close(found.values[[0, 2]], want.values[[0, 2]], rtol=1e-5, why="float32 values of float64 scores")


@pytest.mark.parametrize(
    ("queries", "together", "steps", "passes"),
    [(1, 32, 1, 8), (3, 1, 1, 24), (32, 32, 1, 6), (33, 32, 1, 36), (2, 32, 3, 38)],
)
def test_what_directions_cost(queries, together, steps, passes):
    assert passes_of("hold", queries, together, steps) == passes
    assert passes_of("gfim", queries, together, steps) == 0


def test_a_parameter_that_the_query_does_not_touch_moves_too():
    given = case("cnn", torch.float64)
    made = fitting(given, damping=1.0)
    v = vector(given)
    del v["conv1.weight"]
    want = inverse(dense(given, range(ROWS)), 1.0) @ flat(v, made.parameters)
    assert_close(flat(make_direction(made)(v), made.parameters), want, rtol=1e-5, why=SAME)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_law_2_linear_scores_by_direction_and_by_whitening_are_the_dense_ones(name, unit):
    given = case(name, torch.float64)
    rule = fi.Perturbation("hold", damping=0.5, temper=float(unit))
    made = Fitting(rule, feed(given), select(given.model, None), 7, progress=False)
    asked = feed(given, given.queries)
    queries = torch.stack(
        [flat(query_gradient(asked, [q], made.parameters, 1), made.parameters) for q in range(QUERIES)]
    )
    gradients = dense(given, range(ROWS))
    units = gradients / gradients.norm(dim=1, keepdim=True) if unit else gradients
    p = inverse(units, 0.5)
    values, cross = queries @ p @ gradients.T, queries @ p @ queries.T
    held = fit_held(made)
    twin = whitened(queries @ gradients.T, gram=held.gram, damping=0.5, temper=float(unit))
    assert_close(twin, values, rtol=1e-5, why=SAME)

    read = fi.attribute(given.model, given.train, given.queries, task=given.task, perturbation=rule, progress=False)
    assert_close(read.values, values, rtol=1e-4, why="a difference or an exact rate, kept in float32")
    assert_close(read.cross, cross, rtol=1e-4, why="a difference or an exact rate, kept in float32")
    assert_close(read.rise, cross.diagonal(), rtol=1e-4, why="a difference or an exact rate")


def test_blocks_give_the_same_matrix(monkeypatch):
    given = case("transformer", torch.float64)
    gradients = dense(given, range(ROWS))
    monkeypatch.setattr(module, "BLOCK", 200_000)
    for named in (given, Packed()):
        gradients = dense(named, range(len(named.train)))
        assert_close(fit_held(fitting(named)).gram, gradients @ gradients.T, rtol=1e-6, why="kept in float32")


def test_a_sample_of_examples_holds_by_itself():
    given = case("cnn", torch.float64)
    made = fitting(given, fit_examples=15, damping=1.0)
    held = fit_held(made)
    assert len(held.rows) == 15
    assert not held.whole
    assert list(held.rows) != list(range(15))
    v = vector(given)
    want = inverse(dense(given, range(ROWS))[list(held.rows)], 1.0) @ flat(v, made.parameters)
    assert_close(flat(make_direction(made)(v), made.parameters), want, rtol=1e-5, why=SAME)


def test_beyond_what_is_affordable_it_is_a_sketch_and_says_so(monkeypatch):
    given = case("cnn", torch.float64)
    gram = fit_held(fitting(given)).gram
    monkeypatch.setattr(module, "SHARD", 16)
    for name, value in (("EXACT_EXAMPLES", ROWS - 1), ("EXACT_WORK", 1.0)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            made = fitting(given)
            held = fit_held(made)
        assert held.gram is None
        assert "4096 shared probes" in made.notes[0]
        scale = gram.diagonal().sqrt()
        error = (held.responses @ held.responses.T - gram) / scale / scale[:, None]
        assert error.square().mean().sqrt() < 2 * (2 / 4096) ** 0.5
    plain = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(0))
    exact, near = whitened(plain, gram=gram), whitened(plain, responses=held.responses)
    assert np.corrcoef(exact.flatten(), near.flatten())[0, 1] > 0.999


# -- kept --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sketch", [False, True])
def test_an_interrupted_fit_goes_on_and_equals_an_uninterrupted_one(sketch, monkeypatch, tmp_path):
    given = case("cnn", torch.float64)
    monkeypatch.setattr(module, "BLOCK", 40_000)
    monkeypatch.setattr(module, "SHARD", 16)
    probes = 64 if sketch else None

    def fit(cache):
        held = fit_held(fitting(given, cache, "digest"), probes=probes)
        return held.responses if sketch else held.gram

    whole = fit(tmp_path / "whole")
    real, calls = module.Shards.add, []

    def stop(self, part):
        calls.append(len(part))
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, part)

    monkeypatch.setattr(module.Shards, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut")
    assert torch.equal(fit(tmp_path / "cut"), whole)
    assert len(calls) > 3
    calls.clear()
    assert torch.equal(fit(tmp_path / "cut"), whole)
    assert calls == []
    parts = sorted((tmp_path / "cut").rglob("*.safetensors"))
    assert len(parts) >= 3
    parts[1].write_bytes(parts[1].read_bytes()[:-9])
    calls += [0] * 4
    assert torch.equal(fit(tmp_path / "cut"), whole)
    assert len(calls) > 4


def test_another_model_or_other_parameters_are_another_fit(tmp_path):
    given = case("cnn", torch.float64)
    fit_held(fitting(given, tmp_path, "one"))
    fit_held(fitting(given, tmp_path, "two"))
    made = fitting(given, tmp_path, "one")
    made.parameters = select(given.model, ["head*"])
    held = fit_held(made)
    assert len(list((tmp_path / "fits").iterdir())) == 3
    head = dense(given, range(ROWS))[:, -sum(p.numel() for p in made.parameters.values()) :]
    assert_close(held.gram, head @ head.T, rtol=1e-6, why="kept in float32")


def test_unit_gradients_belong_to_hold():
    with pytest.raises(SettingError, match="hold"):
        fi.Perturbation("plain", temper=1.0)


def test_finite_scores_in_one_call():
    given = case("cnn")
    rule = fi.Perturbation("hold", rise=0.5, two_sided=True)
    scores = fi.attribute(given.model, given.train, given.queries, task=given.task, perturbation=rule, progress=False)
    assert np.isfinite(scores.values).all()
    assert scores.status == ["ok"] * QUERIES


def test_of_packed_rows_as_many_are_held_as_hold_so_many_documents(monkeypatch):
    monkeypatch.setattr(module, "EXACT_EXAMPLES", 8)
    held = fit_held(fitting(Packed(), rise=0.5))
    assert held.gram is not None
    assert held.responses is None
    assert 4 < len(held.gram) <= 8
    assert not held.whole


def test_how_many_are_held_does_not_depend_on_how_many_are_read_together():
    found = {module.exact_examples(fitting(case("transformer"), batch_size=size), range(ROWS)) for size in (1, 4, 16)}
    assert len(found) == 1
