"""The factored engine: exact linear scores, equal to autograd's and, to their noise, to the forward engine's."""

import numpy as np
import pytest
import torch
from cases import NAMES, QUERIES, ROWS, Case, attribute, batch_of, case, feed, gradient, take
from close import assert_close, assert_within
from torch import nn

import forwardinf as fi
from forwardinf.gradients.per_example import factored, recorder_of
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.self_influence import per_example_gradients

EXACT = "float64, the same products in another order"


def dense(given, names=None):
    """Return (training gradients (N, P), query gradients (Q, P)) by autograd, one example at a time."""
    model = given.model.eval()
    rows = feed(given)
    chosen = {n: p for n, p in model.named_parameters() if names is None or n in names}
    train = [
        torch.cat([
            (grads[n] if n in grads else torch.zeros_like(p)).double().flatten() for n, p in chosen.items()
        ])
        for grads, _ in per_example_gradients(rows, range(ROWS), chosen)
    ]  # fmt: skip
    asked = feed(given, given.queries)
    queries = [
        gradient(model, -given.task.measure(model, batch_of(given.task, given.queries, q)), names)
        if not given.task.keyed
        else torch.cat([g.double().flatten() for g in next(per_example_gradients(asked, [q], chosen))[0].values()])
        for q in range(QUERIES)
    ]
    return torch.stack(train), torch.stack(queries)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_gradient_products(name):
    given = case(name, torch.float64)
    train, queries = dense(given)
    scores = attribute(given, engine="factored")
    assert scores.plan["engine"] == "factored"
    assert_close(scores.values, (queries @ train.T).numpy(), rtol=1e-6, why="float32 values")
    assert_close(scores.rise, queries.square().sum(1), rtol=1e-9, why=EXACT)
    assert_close(scores.cross, (queries @ queries.T).numpy(), rtol=1e-6, why="kept in float32 as scores are")


@pytest.mark.parametrize("name", NAMES)
def test_it_agrees_with_the_forward_engine_to_the_noise(name):
    given = case(name, torch.float64)
    exact, by_difference = attribute(given, engine="factored"), attribute(given, engine="forward")
    assert_close(by_difference.values, exact.values, rtol=1e-3, why="a difference at a length of 1e-6 bends a little")
    assert_close(by_difference.rise, exact.rise, rtol=1e-3, why="the same")


def test_the_sign_direction_and_chosen_parameters():
    given = case("transformer", torch.float64)
    names = [n for n, _ in given.model.named_parameters() if n.startswith("blocks.0")]
    train, queries = dense(given, names)
    rule = fi.Perturbation("sign", parameters="blocks.0*")
    scores = attribute(given, engine="factored", perturbation=rule)
    assert_close(scores.values, (queries.sign() @ train.T).numpy(), rtol=1e-6, why="float32 values")


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_the_query_has_share_one(name):
    scores = attribute(case(name).with_copies(), engine="factored")
    assert_within(np.diag(scores.share[:, ROWS:]), np.ones(QUERIES), atol=1e-5, why="float32 products")


def test_descent_means_the_same():
    given = case("cnn")
    want = attribute(given, engine="factored")
    assert np.array_equal(
        attribute(given, engine="factored", perturbation=fi.Perturbation(toward="descent")).values, want.values
    )


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_batches_do_not_matter(batch_size):
    given = case("resnet", torch.float64)
    want = attribute(given, engine="factored", batch_size=20)
    got = attribute(given, engine="factored", batch_size=batch_size)
    assert_close(got.values, want.values, rtol=1e-6, why="float32 values")


def test_groups_candidates_and_keep_work_as_with_the_forward_engine():
    given = case("cnn", torch.float64)
    settings = {"groups": ["a", "b", "a"], "candidates": [[0, 3, 39], [5, 6]]}
    exact, other = (attribute(given, engine=engine, **settings) for engine in ("factored", "forward"))
    assert np.array_equal(np.isnan(exact.values), np.isnan(other.values))
    assert_close(np.nan_to_num(exact.values), np.nan_to_num(other.values), rtol=1e-3, why="exact beside a difference")
    assert_close(exact.cross, other.cross, rtol=1e-3, why="exact beside a difference")
    whole, kept = attribute(given, engine="factored"), attribute(given, engine="factored", keep=2)
    assert kept.top(2)["train"].tolist() == whole.top(2)["train"].tolist()


def test_many_queries_are_read_in_blocks(monkeypatch):
    given = case("cnn", torch.float64)
    want = attribute(given, engine="factored")
    monkeypatch.setattr("forwardinf.read.passes.ROOM", 1)  # one query's directions at a time
    got = attribute(given, engine="factored")
    assert got.plan["query_block"] == 1
    assert_close(got.values, want.values, rtol=1e-6, why="float32 values")


def test_a_resumed_run_has_the_same_bytes(tmp_path, monkeypatch):
    given = case("cnn")
    settings = {"engine": "factored", "shard_rows": 20, "batch_size": 10}
    attribute(given, **settings, output_dir=tmp_path / "whole")
    read, calls = FactoredEngine.read, []

    def dies(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:  # the queries' own rows, one shard, and not the second
            raise KeyboardInterrupt
        return read(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FactoredEngine, "read", dies)
        with pytest.raises(KeyboardInterrupt):
            attribute(given, **settings, output_dir=tmp_path / "cut")
    attribute(given, **settings, output_dir=tmp_path / "cut")
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.parquet"))
    assert len(files) > 3
    for name in files:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_out_of_memory_halves_the_batch(monkeypatch):
    given = case("cnn", torch.float64)
    want = attribute(given, engine="factored")
    scores, sizes = FactoredEngine.scores, []

    def small(self, directions, rows, size, *args):
        sizes.append(size)
        if size > 8:
            raise MemoryError
        return scores(self, directions, rows, size, *args)

    monkeypatch.setattr(FactoredEngine, "scores", small)
    engine = FactoredEngine(feed(given), dict(given.model.named_parameters()), 32)
    directions = engine.directions(1)
    directions.put(0, {n: p.detach() for n, p in given.model.named_parameters()})
    engine.read(directions, range(ROWS))
    assert sizes == [32, 16, 8]
    assert engine.batch_size == 8
    assert want.values.shape == (QUERIES, ROWS)


# -- what it does not read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [{"length": 0.01}, {"rise": 0.1}, {"lr": 1e-3}])
def test_a_finite_length_is_refused_and_auto_reads_it_by_forwards(rule):
    given = case("cnn")
    with pytest.raises(fi.SettingError, match="engine='factored': expected length='linear'"):
        attribute(given, engine="factored", perturbation=fi.Perturbation(**rule))
    assert attribute(given, engine="auto", perturbation=fi.Perturbation(**rule)).plan["engine"] == "forward"


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def recurrent():
    torch.manual_seed(0)
    return Recurrent(), (torch.randn(12, 5, 3), torch.arange(12) % 2), (torch.randn(4, 5, 3), torch.arange(4) % 2)


def test_a_layer_that_is_not_known_is_read_one_example_at_a_time_and_named():
    model, train, queries = recurrent()
    settings = {"task": fi.Classification(), "progress": False, "perturbation": fi.Perturbation()}
    exact = fi.attribute(model, train, queries, engine="factored", **settings)
    other = fi.attribute(model, train, queries, engine="forward", **settings)
    assert_close(exact.values, other.values, rtol=5e-3, why="exact beside a difference in float32")
    assert any("one example at a time" in note and "used by gru()" in note for note in exact.notes)
    rule = fi.Perturbation(parameters="head.*")  # the rest need not be known where it does not move
    moved = fi.attribute(model, train, queries, engine="factored", **settings | {"perturbation": rule})
    assert not any("one example at a time" in note for note in moved.notes)


def met(given, rows):
    """Return what is known of a case's gradients once a batch has been looked at."""
    parameters, reader = dict(given.model.named_parameters()), feed(given)
    list(factored(reader, rows, parameters, 16))
    return recorder_of(reader, parameters)


def test_gradients_that_are_wrong_are_found_out_and_autograd_takes_over(monkeypatch):
    from forwardinf.gradients.layer_uses import Outer

    given = case("cnn", torch.float64)
    assert met(given, range(ROWS)).reason == ""
    want, _ = dense(given)
    factors = Outer.factors
    monkeypatch.setattr(Outer, "factors", lambda self: (factors(self)[0] * 1.001, factors(self)[1]))
    found = met(given, range(ROWS))
    assert found.odd, "every linear layer"
    scores = attribute(given, engine="factored", queries=take(given.train, range(QUERIES)))
    assert_close(scores.values, want[:QUERIES] @ want.T, rtol=1e-6, why="float32 values")


class Kinked(nn.Module):
    """Its first hidden unit stands at its kink for an input of zeros: in a batch it falls to the other side."""

    def __init__(self, mixed=0.0):
        super().__init__()
        self.body, self.head, self.mixed = nn.Linear(3, 50), nn.Linear(50, 2), mixed
        with torch.no_grad():
            self.body.bias[0] = 0.0
            self.head.weight[:, 0] *= 0.05

    def forward(self, x):
        hidden = torch.relu(self.body(x) + (1e-9 if len(x) > 1 else -1e-9))
        return self.head(hidden + self.mixed * (hidden - hidden.detach()).mean(0))


@pytest.mark.parametrize("mixed", [0.0, 0.01])
def test_a_unit_at_its_kink_is_no_wrong_gradient_but_examples_that_see_one_another_are(mixed):
    torch.manual_seed(0)
    train = torch.randn(16, 3), torch.arange(16) % 2
    given = Case("kinked", Kinked(mixed), train, train, fi.Classification())
    given.train[0][0] = 0.0
    found = met(given, range(16))
    if mixed:  # in the gradient alone: the losses are what they are without
        assert "batch" in found.reason
        return
    assert found.reason == ""
    assert found.error < 1e-5  # the kink counts as no rounding


def test_auto_takes_one_pass_for_many_queries():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    train = torch.randn(600, 256), torch.arange(600) % 10
    many = torch.randn(40, 256), torch.arange(40) % 10
    settings = {"task": fi.Classification(), "perturbation": fi.Perturbation(), "progress": False}
    scores = fi.attribute(model, train, many, **settings)
    assert scores.plan["engine"] == "factored", scores.plan
    assert scores.plan["considered"].keys() == {"forward", "factored"}
    few = fi.attribute(model, train, (many[0][:1], many[1][:1]), **settings)
    assert few.plan["engine"] == "forward"
    held = fi.attribute(
        model, train, (many[0][:1], many[1][:1]), **settings | {"perturbation": fi.Perturbation("hold")}
    )
    assert held.plan["engine"] == "factored", "a direction of its own takes more passes than one, whitened"
