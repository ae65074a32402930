"""p-values and the false-discovery rate, against hand computation and against what they promise."""

import numpy as np
import pytest

from forwardinf.use.leaks.fdr import benjamini_hochberg, from_clean, from_test_set


def test_benjamini_and_hochberg_by_hand():
    # their own example, 1995, section 3.2: at q = .05 the first four of fifteen are rejected
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1.0,
    ]
    assert benjamini_hochberg(p, 0.05).tolist() == [True] * 4 + [False] * 11
    mixed = [0.04, 0.9, 0.01, 0.03]  # sorted .01 ≤ .025, .03 ≤ .05, .04 > .0375 at q = .05 · k/4: .03 ≤ .025? no
    assert benjamini_hochberg(mixed, 0.05).tolist() == [False, False, True, False]
    assert benjamini_hochberg(mixed, 0.06).tolist() == [True, False, True, True]  # .04 ≤ .06·3/4: all up to it
    assert benjamini_hochberg([0.5, 0.6], 0.05).tolist() == [False, False]
    assert benjamini_hochberg([], 0.05).tolist() == []


def test_p_values_of_clean_queries_are_what_they_say():
    draw = np.random.default_rng(0)
    null = from_clean(draw.exponential(2.0, 4000))
    p = null.p_value(draw.exponential(2.0, 20000))
    for level in (0.5, 0.1, 0.01, 1e-3):  # three standard errors of a share, and of the 4,000 behind the null
        room = 3 * np.sqrt(level / 20000) + 3 * level * np.sqrt(1 / (0.2 * 4000)) * max(1, -np.log(level)) + 1e-3
        assert abs(float((p <= level).mean()) - level) < room
    assert np.all(np.diff(null.p_value(np.linspace(0, 30, 200))) <= 1e-12)
    assert null.p_value([null.value_at(1e-4)])[0] == pytest.approx(1e-4)


def test_the_middle_of_a_test_set_is_its_null_though_a_tenth_leaked():
    draw = np.random.default_rng(1)
    values = np.concatenate([draw.exponential(2.0, 900), 60 + draw.exponential(2.0, 100)])
    rejected = benjamini_hochberg(from_test_set(values).p_value(values), 0.05)
    assert rejected[900:].all()
    assert rejected[:900].sum() <= 0.1 * rejected.sum()


def test_equal_values_give_no_division_by_zero():
    for null in (from_clean(np.ones(30)), from_test_set(np.ones(60))):
        p = null.p_value([0.0, 1.0, 2.0])
        assert np.isfinite(p).all()
        assert p[2] < p[1]
