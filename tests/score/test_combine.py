import numpy as np
import pytest
import torch
from close import assert_close, assert_within
from scipy.stats import norm

import forwardinf as fi
from forwardinf.score.combine import combine
from forwardinf.score.influence import influence, residual
from forwardinf.score.stability import DRAWS, stability

DRAW = np.random.default_rng(0)
VALUES = DRAW.normal(size=(3, 2, 7)).astype(np.float32)  # checkpoints, queries, training examples
RISE = np.abs(DRAW.normal(size=(3, 2))) + 1


def part(number, values=VALUES, **more):
    scores = fi.Scores.from_array(values[number], rise=RISE[number], unit="nats", kind="finite")
    scores.cross = np.outer(RISE[number], [1.0, 0.5])
    scores.noise_floor = np.array([1e-3, 2e-3]) * (number + 1)
    for name, value in more.items():
        setattr(scores, name, value)
    return scores


def parts(**more):
    return [part(number, **more) for number in range(3)]


def test_the_mean_keeps_the_unit_and_carries_its_standard_error():
    found = combine(parts())
    for q in range(2):
        for i in range(7):
            seen = [float(VALUES[c, q, i]) for c in range(3)]
            assert_within(found.values[q, i], np.mean(seen), atol=1e-6, why="float32")
            assert_within(found.uncertainty[q, i], np.std(seen, ddof=1) / 3**0.5, atol=1e-6, why="float32")
    assert_close(found.rise, RISE.mean(0), rtol=1e-12, why="the same sums")
    assert_close(found.share, found.values / RISE.mean(0)[:, None], rtol=1e-6, why="float32")
    assert_close(found.noise_floor, [2e-3, 4e-3], rtol=1e-12, why="a mean, not smaller for more checkpoints")
    assert (found.unit, found.kind) == ("nats", "finite")


def test_standardized_scores_do_not_depend_on_the_scale_of_a_checkpoint():
    plain = combine(parts(), "standardized")
    scaled = VALUES * np.array([1.0, 100.0, 0.01], dtype=np.float32)[:, None, None]
    again = [part(c, scaled, rise=RISE[c] * s, cross=part(c).cross * s) for c, s in enumerate((1.0, 100.0, 0.01))]
    found = combine(again, "standardized")
    wide = VALUES.astype(np.float64)
    z = (wide - wide.mean(2, keepdims=True)) / wide.std(2, keepdims=True)
    assert_close(plain.values, z.mean(0), rtol=1e-6, why="float32")
    assert_close(
        plain.uncertainty, np.maximum(z.std(0, ddof=1) / 3**0.5, plain.noise_floor[:, None]), rtol=1e-6, why="float32"
    )
    assert_close(found.values, plain.values, rtol=1e-5, why="scaled in float32")
    assert_close(found.rise, plain.rise, rtol=1e-5, why="scaled in float32")
    assert_close(found.cross, plain.cross, rtol=1e-5, why="scaled in float32")
    assert plain.unit is None


@pytest.mark.parametrize("how", ["mean", "standardized"])
def test_an_exact_copy_of_the_query_has_share_one(how):
    values = VALUES.copy()
    values[:, :, 3] = RISE
    found = combine([part(c, values) for c in range(3)], how)
    assert_close(found.share[:, 3], np.ones(2), rtol=1e-5, why="float32")


def test_pairs_not_read_stay_unread_and_a_query_is_combined_where_it_is_usable():
    values = VALUES.copy()
    values[:, 0, 2] = np.nan  # not among the candidates
    values[1, 1] = np.nan  # skipped under checkpoint 1
    given = [part(c, values) for c in range(3)]
    given[1].status = ["ok", "zero gradient"]
    given[1].rise = np.array([RISE[1, 0], np.nan])
    given[1].notes = ["odd"]
    found = combine(given)
    assert np.isnan(found.values[0, 2])
    assert np.isnan(found.uncertainty[0, 2])
    assert_close(found.values[1], VALUES[[0, 2], 1].mean(0), rtol=1e-6, why="float32")
    assert_close(
        found.uncertainty[1], np.fmax(VALUES[[0, 2], 1].std(0, ddof=1) / 2**0.5, 4e-3), rtol=1e-5, why="float32"
    )
    assert_close(found.rise[1], RISE[[0, 2], 1].mean(), rtol=1e-12, why="the same sums")
    assert found.status == ["ok", "ok"]
    assert found.notes[0] == "checkpoint 1: odd"
    assert "1 queries are usable under some" in found.notes[-1]


def test_one_checkpoint_is_as_uncertain_as_its_noise():
    found = combine([part(2)])
    assert np.array_equal(found.values, VALUES[2])
    assert_close(found.uncertainty, np.tile([[3e-3], [6e-3]], (1, 7)), rtol=1e-6, why="float32")
    assert "noise floor" in found.notes[-1]


def test_a_checkpoint_that_scores_all_alike_says_nothing_standardized():
    values = VALUES.copy()
    values[0, 0] = 1.0
    found = combine([part(c, values) for c in range(3)], "standardized")
    want = combine(parts()[1:], "standardized")
    assert_close(found.values[0], want.values[0], rtol=1e-6, why="float32")
    assert any("alike" in note for note in found.notes)


@pytest.mark.parametrize(
    ("given", "how", "message"),
    [
        (list, "mean", "at least one"),
        (parts, "median", "one of 'mean', 'standardized'"),
        (lambda: [part(0), part(1, unit="squared error")], "mean", "the same unit"),
        (lambda: [part(0), part(1, ids=list(range(1, 8)))], "mean", "the same ids"),
        (lambda: [part(0), part(1, perturbation={"steps": 2})], "mean", "the same perturbation"),
        (lambda: [part(0, dense=None, kept=1)], "mean", "all scores"),
    ],
)
def test_what_does_not_go_together_is_refused(given, how, message):
    with pytest.raises(fi.Error, match=message):
        combine(given(), how)


def test_combined_scores_survive_a_save(tmp_path):
    found = combine(parts())
    kept = fi.load_scores(found.save(tmp_path / "s"))
    assert np.array_equal(kept.uncertainty, found.uncertainty)
    assert kept.top(2).equals(found.top(2))


# -- how stable the top k is -------------------------------------------------------------------------------------------


def test_top_tells_how_stable_its_members_are_only_where_that_is_known():
    assert "stability" not in part(0).top(2)
    found = combine(parts())
    table = found.top(3)
    assert table["stability"].between(0, 1).all()
    for q in range(2):
        want = stability(found.values[q], found.uncertainty[q], 3)
        assert table[table["query"] == q]["stability"].tolist() == want.tolist()
    low = found.bottom(2, query=1)["stability"].tolist()
    assert low == stability(-found.values[1], found.uncertainty[1], 2).tolist()


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0, 3.0])
def test_of_two_the_probability_is_known_in_closed_form(gap):
    got = stability(np.array([gap, 0.0]), np.array([1.0, 2.0]), 1)
    assert_within(got, [norm.cdf(gap / 5**0.5)], atol=4 * 0.5 / DRAWS**0.5, why="four standard errors of the draws")


def test_probabilities_agree_with_drawing_every_example():
    draw = np.random.default_rng(1)
    values, error = draw.normal(size=400), np.abs(draw.normal(size=400)) * 0.3
    got = stability(values, error, 10)
    seen = values + error * np.random.default_rng(2).standard_normal((4000, 400))
    inside = np.zeros(400)
    for row in seen:
        inside[np.argsort(-row)[:10]] += 1
    want = inside[np.argsort(-values.astype(np.float32), kind="stable")[:10]] / 4000
    assert_within(got, want, atol=4 * 0.5 * (1 / DRAWS + 1 / 4000) ** 0.5, why="four standard errors of both")
    assert 0.05 < got.min() < 0.95, "a case where drawing matters"


def test_what_is_sure_is_one_what_is_unread_never_enters_and_few_are_all_there():
    values = np.array([9.0, np.nan, 1.0, 0.99, 0.0, -5.0])
    error = np.array([0.1, np.nan, 0.5, 0.5, 0.1, 0.1])
    got = stability(values, error, 2)
    assert got[0] == 1.0
    assert 0.3 < got[1] < 0.7
    assert stability(values, error, 5).tolist() == [1.0] * 5
    assert stability(values, error, 9).tolist() == [1.0] * 5
    assert stability(values, np.zeros(6), 2).tolist() == [1.0, 1.0]
    assert np.array_equal(got, stability(values, error, 2)), "the same draws"


# -- the curvature residual --------------------------------------------------------------------------------------------


def test_the_residual_is_the_second_order_term_that_the_score_is_free_of():
    before, slope, bend = torch.randn(3, 50, dtype=torch.float64)
    length = 0.1

    def at(step):
        return before + slope * step + bend * step**2 / 2

    sides = [at(length), at(-length)]
    rule = fi.Perturbation(length=length, two_sided=True)
    assert_close(influence(before, sides, rule, 1.0), slope * length, rtol=1e-12, why="float64, a parabola")
    assert_close(residual(before, sides, rule), (bend * length**2 / 2).abs(), rtol=1e-12, why="float64, a parabola")


@pytest.mark.parametrize("after", [[torch.ones(3)], [torch.ones(3), torch.ones(2)]])
def test_the_residual_needs_two_sides_of_the_same_examples(after):
    with pytest.raises(fi.TaskError, match="two sides"):
        residual(torch.ones(3), after, fi.Perturbation(length=0.1, two_sided=True))
