import math

import numpy as np
import pytest
import torch
from cases import QUERIES, attribute, batch_of, case, crossed, keyed, pusher
from close import assert_close

import forwardinf as fi
from forwardinf.perturb.length import CAP, TOLERANCE, find_rise
from forwardinf.perturb.swap import lend


@pytest.mark.parametrize("first", [1e-9, 1e-3, 0.1, 0.3, 5.0])
@pytest.mark.parametrize(
    "curve", [lambda x: 3 * x, lambda x: 40 * x**2, lambda x: math.expm1(20 * x), lambda x: 2 * math.sqrt(x)]
)
def test_the_rise_is_found_to_two_percent_wherever_the_search_starts(curve, first):
    target = curve(0.07)
    length, status = find_rise(curve, target, first)
    assert status == "ok"
    assert abs(curve(length) - target) <= TOLERANCE * target


def test_a_rise_beyond_the_cap_is_capped_and_none_at_all_is_unreachable():
    assert find_rise(lambda x: x, 10.0, 0.01) == (CAP, "capped")
    assert find_rise(lambda x: -x, 10.0, 0.01) == (CAP, "unreachable")
    assert find_rise(lambda x: 0.0, 10.0, 0.01) == (CAP, "unreachable")


def test_a_loss_that_overflows_is_not_taken_for_a_rise():
    assert find_rise(lambda x: math.inf if x > 0.01 else 2 * x, 0.015, 0.2)[1] == "ok"
    assert find_rise(lambda x: math.nan if x > 0.01 else 2 * x, 0.015, 0.2)[1] == "ok"
    length, status = find_rise(lambda x: math.inf if x > 0.01 else 0.0, 0.5, 0.2)
    assert status == "unreachable"
    assert length <= 0.011


def rose(given, push, row):
    """Measure by hand how far a query's loss rose under the first side of a push."""
    batch = batch_of(given.task, given.queries, row)

    def loss():
        with torch.no_grad(), keyed(given.task, given.queries, row):
            return float(given.task.loss(given.model.eval(), batch))

    before = loss()
    with lend(dict(given.model.named_parameters()), push.sides[0]):
        return loss() - before, before


@pytest.mark.parametrize(("name", "rise"), crossed([0.05, "0.5x", "0.1x"], unet=["0.5x"]))
@pytest.mark.parametrize("two_sided", [False, True])
def test_the_querys_own_loss_rises_by_what_was_asked(name, rise, two_sided):
    given = case(name)
    pushing = pusher(given, fi.Perturbation(rise=rise, two_sided=two_sided))
    for row in range(QUERIES):
        query = pushing.check([row], row, skip=False)
        got, before = rose(given, pushing.push(query), row)
        tokens = len(given.queries[row]) - 1 if name == "transformer" else 1  # a rise is per counted token
        want = float(rise[:-1]) * before if isinstance(rise, str) else rise * tokens
        assert query.status == "ok"
        assert abs(got - want) <= 0.021 * want, "2 %, measured here in another batch than there"
        if not two_sided:
            assert_close(query.rise, got, rtol=1e-3, why="float32: the same push, measured by hand")


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_rise_out_of_reach_is_capped_and_says_so(name):
    scores = attribute(case(name), perturbation=fi.Perturbation(rise=1e6))
    assert scores.status == ["capped"] * QUERIES
    assert_close(scores.length, [CAP] * QUERIES, rtol=1e-4, why="float32 weights")
    assert any("3 of 3 queries: rise capped" in note for note in scores.notes)
    assert np.isfinite(scores.values).all()


def test_a_share_of_a_negative_measurement_is_refused():
    with pytest.raises(fi.QueryError, match="rise"):
        attribute(case("cnn"), task=fi.Classification(query="margin"), perturbation=fi.Perturbation(rise="0.5x"))
