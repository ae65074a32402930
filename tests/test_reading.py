"""What is read of a training example: its loss, or the root of it; and how far from straight two sides run."""

import numpy as np
import pytest
import torch
from cases import QUERIES, ROWS, attribute, case
from close import assert_close, assert_within

import forwardinf as fi
from forwardinf.tasks.root import root, slope

SAME = "exact beside a difference at a length of 1e-6"
FINITE = {"rise": 0.1, "two_sided": True}
DIRECTIONS = pytest.mark.parametrize("direction", ["plain", "gfim", "hold"])


def rule(direction="plain", **settings):
    return fi.Perturbation(direction, reading="root", **settings)


@DIRECTIONS
@pytest.mark.parametrize("engine", ["forward", "factored"])
def test_a_rate_goes_through_the_slope_at_both_ends(direction, engine):
    given = case("cnn", torch.float64)
    loss = attribute(given, engine=engine, perturbation=fi.Perturbation(direction))
    found = attribute(given, engine=engine, perturbation=rule(direction))
    own, others = (slope(torch.from_numpy(each)).numpy() for each in (loss.query_baseline, loss.baseline))
    assert_close(found.values, loss.values * others * own[:, None], rtol=1e-5, why="the same numbers, kept in float32")
    assert_close(found.rise, loss.rise * own**2, rtol=1e-5, why="the same numbers")
    assert_close(found.cross, loss.cross * own * own[:, None], rtol=1e-5, why="the same numbers, kept in float32")
    assert (loss.unit, found.unit) == ("nats", "√nats")


@DIRECTIONS
@pytest.mark.parametrize("length", [{}, FINITE])
def test_a_copy_of_the_query_has_share_one(direction, length):
    given = case("cnn", torch.float64).with_copies()
    share = attribute(given, perturbation=rule(direction, **length)).share
    assert_within(np.diag(share[:, ROWS:]), np.ones(QUERIES), atol=1e-3, why=SAME)


def test_a_short_finite_push_is_the_rate():
    given = case("cnn", torch.float64)
    exact = attribute(given, engine="factored", perturbation=rule())
    short = attribute(given, perturbation=rule(length=1e-6, two_sided=True))
    assert_close(short.values / short.step[:, None], exact.values, rtol=1e-3, why=SAME)


def test_a_finite_score_is_half_the_difference_of_the_roots():
    given = case("cnn", torch.float64)
    seen = []

    class Seen(fi.Classification):
        rooted = True

        def loss(self, model, batch):
            seen.append(super().loss(model, batch))
            return seen[-1]

    found = attribute(given, task=Seen(), batch_size=ROWS, perturbation=rule(length=0.02, two_sided=True))
    up, down = (losses for losses in [each.detach() for each in seen if len(each) == ROWS][-2 * QUERIES :][:2])
    assert_close(found.values[0], (root(up) - root(down)) / 2, rtol=1e-5, why="kept in float32")


def test_a_query_asked_a_margin_has_no_slope_of_its_own():
    given, task = case("cnn", torch.float64), fi.Classification(query="margin")
    loss = attribute(given, engine="factored", task=task)
    found = attribute(given, engine="factored", task=task, perturbation=rule())
    assert_close(found.values, loss.values * slope(torch.from_numpy(loss.baseline)).numpy(), rtol=1e-5, why="float32")
    assert np.array_equal(found.rise, loss.rise)


def test_auto_reads_roots_where_losses_are_logs_of_probabilities():
    given = case("cnn")
    preset = attribute(given, perturbation="finite")
    assert (preset.perturbation["reading"], preset.unit) == ("root", "√nats")
    custom = attribute(given, task=fi.Classification().loss, perturbation="finite")
    assert (custom.perturbation["reading"], custom.unit) == ("loss", "loss")
    with pytest.raises(fi.SettingError, match="−log of one probability"):
        attribute(given, task=fi.Classification().loss, perturbation=rule())
    with pytest.raises(fi.SettingError, match="reading"):
        fi.Perturbation(lr=0.1, behaviour="as_published", reading="root")
    with pytest.raises(fi.SettingError, match="Did you mean 'root'"):
        fi.Perturbation(reading="roots")


def test_self_influence_and_cosine_are_read_alike():
    given = case("cnn", torch.float64).with_copies()
    settings = {"task": given.task, "progress": False}
    loss = fi.self_influence(given.model, given.train, direction=fi.Perturbation("gfim"), **settings)
    own = fi.self_influence(given.model, given.train, direction=rule("gfim"), **settings)
    assert_close(own.values, loss.values * slope(torch.from_numpy(loss.loss)).numpy() ** 2, rtol=1e-9, why="float64")
    assert own.unit == "√nats"
    scores = attribute(given, engine="factored", perturbation=rule("gfim"))
    assert_within(np.diag(scores.cosine(own)[:, ROWS:]), np.ones(QUERIES), atol=1e-5, why="a copy, kept in float32")
    with pytest.raises(fi.SettingError, match="cosine"):
        scores.cosine(loss)


def test_two_sides_say_how_far_from_straight_the_losses_run(tmp_path):
    given, both = case("cnn", torch.float64), {"length": 0.05, "two_sided": True}
    found = attribute(given, perturbation=both, output_dir=tmp_path / "run", shard_rows=16, batch_size=8)
    up, down = (attribute(given, perturbation={"length": 0.05, "toward": toward}).values
                for toward in ("ascent", "descent"))  # fmt: skip
    want = np.maximum(np.abs(up - down) / 2, found.noise_floor[:, None])
    assert_close(found.uncertainty, want, rtol=1e-4, why="the same four readings, kept in float32")
    assert found.top(3)["uncertainty"].notna().all()
    assert "stability" not in found.top(3), "a bound from curvature is no standard error"
    files = sorted((tmp_path / "run" / "uncertainty").rglob("*.parquet"))
    assert len(files) == len(sorted((tmp_path / "run" / "scores").rglob("*.parquet"))) > 1
    assert np.array_equal(fi.load_scores(tmp_path / "run").uncertainty, found.uncertainty)
    assert attribute(given, perturbation={"length": 0.05}).uncertainty is None
    assert attribute(given, perturbation=both, keep=3).uncertainty is None


def test_a_held_sample_says_as_much_as_it_can():
    given = case("cnn", torch.float64)
    found = attribute(given, perturbation=fi.Perturbation("hold", fit_examples=ROWS // 2))
    assert np.isfinite(found.values).all()
    assert_close(found.values, attribute(given, engine="factored",
                                         perturbation=fi.Perturbation("hold", fit_examples=ROWS // 2)).values,
                 rtol=1e-3, why=SAME)  # fmt: skip


@pytest.mark.parametrize("length", [{}, FINITE])
def test_a_group_is_the_mean_of_its_members_roots(length):
    given = case("cnn", torch.float64)
    found = attribute(given, perturbation=rule(**length), groups=["a", "b", "a"])
    assert_close(np.diag(found.cross), found.rise, rtol=1e-3, why=SAME)


def test_a_query_whose_loss_has_rounded_to_nothing_still_has_scores():
    given = case("cnn", torch.float64)
    with torch.no_grad():
        given.model.head.weight.mul_(40)
        given.model.head.bias.mul_(40)
    found = attribute(given, perturbation="linear", on_bad_query="skip")
    usable = [status == "ok" for status in found.status]
    assert any(usable)
    assert (np.abs(found.values[usable]).sum(1) > 0).all()


def test_losses_that_are_not_one_logarithm_are_read_as_they_are():
    given = case("cnn", torch.float64)

    class Shifted(fi.Classification):
        def loss(self, model, batch):
            return super().loss(model, batch) - 1

    class Asks(fi.Classification):
        def measure(self, model, batch):
            return self.logits(model, batch)[:, 0].double()

    for task in (fi.Classification(label_smoothing=0.1), fi.Classification(weight=torch.ones(10)), Shifted()):
        assert attribute(given, task=task, perturbation="linear").perturbation["reading"] == "loss"
    assert not Asks().asks_loss
    exact, other = (attribute(given, task=Asks(), engine=engine, perturbation=fi.Perturbation("hold", damping=0.5))
                    for engine in ("factored", "forward"))  # fmt: skip
    assert_close(other.cross, exact.cross, rtol=1e-3, why=SAME)
