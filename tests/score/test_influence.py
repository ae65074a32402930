import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import forwardinf as fi
from forwardinf.score.influence import influence

BEFORE = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
WORSE, BETTER = BEFORE + 0.5, BEFORE - 0.25


def test_a_loss_that_rises_as_the_query_is_unlearnt_is_a_proponents():
    assert influence(BEFORE, [WORSE], fi.Perturbation(length=0.1), 1.0).tolist() == [0.5] * 3


def test_a_loss_that_falls_as_the_query_is_learnt_is_a_proponents():
    assert influence(BEFORE, [BETTER], fi.Perturbation(length=0.1, toward="descent"), 1.0).tolist() == [0.25] * 3


def test_two_sides_are_half_their_difference_and_need_no_before():
    both = fi.Perturbation(length=0.1, two_sided=True)
    assert influence(BEFORE, [WORSE, BETTER], both, 1.0).tolist() == [0.375] * 3


def test_a_rate_is_per_unit_step_and_a_finite_change_is_not():
    assert influence(BEFORE, [WORSE], fi.Perturbation(), 0.01).tolist() == pytest.approx([50.0] * 3)
    assert influence(BEFORE, [WORSE], fi.Perturbation(lr=0.01), 0.01).tolist() == [0.5] * 3


def test_published_scores_are_magnitudes():
    published = fi.Perturbation.preset("as_published")
    assert influence(BEFORE, [BETTER], published, 1.0).tolist() == [0.25] * 3


def test_nothing_moved_is_exactly_nothing():
    for setting in (
        fi.Perturbation(),
        fi.Perturbation(length=0.1, toward="descent"),
        fi.Perturbation.preset("as_published"),
    ):
        assert torch.equal(influence(BEFORE, [BEFORE.clone()], setting, 1e-4), torch.zeros(3, dtype=torch.float64))


@given(st.floats(0.01, 10), st.floats(-5, 5))
def test_turning_the_push_round_turns_the_change_round_and_leaves_the_score(step, change):
    ascent, descent = fi.Perturbation(length=0.1), fi.Perturbation(length=0.1, toward="descent")
    here = torch.tensor([2.0], dtype=torch.float64)
    one, other = influence(here, [here + change], ascent, step), influence(here, [here - change], descent, step)
    assert torch.allclose(one, other, rtol=0, atol=1e-14)


def test_readings_of_other_examples_are_refused():
    with pytest.raises(fi.TaskError, match=r"expected \(3,\) losses, got \(2,\)"):
        influence(BEFORE, [WORSE[:2]], fi.Perturbation(), 1.0)
