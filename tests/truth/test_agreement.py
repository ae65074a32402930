import numpy as np
import pytest
from close import assert_close, assert_within
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

import forwardinf as fi
from forwardinf.truth.agreement import difference, mean_interval, pearson, ranks, ratio, spearman, top_overlap

# Few distinct values: ties everywhere.
TABLES = st.tuples(st.integers(1, 4), st.integers(2, 9)).flatmap(
    lambda shape: st.tuples(*[arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))] * 2)
)


@given(TABLES)
def test_correlations_are_scipys_row_by_row_ties_included(pair):
    one, other = pair
    for ours, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        found = ours(one, other)
        for q, (a, b) in enumerate(zip(one, other, strict=True)):
            if (a == a[0]).all() or (b == b[0]).all():
                assert np.isnan(found[q])
            else:
                assert_within([found[q]], [theirs(a, b)[0]], atol=1e-12, why="float64, another order of additions")


@given(TABLES)
def test_ranks_are_scipys_average_ranks(pair):
    np.testing.assert_array_equal(ranks(pair[0]), stats.rankdata(pair[0], axis=1))


def test_a_constant_row_has_no_correlation_even_where_its_mean_is_not_exact():
    assert np.isnan(pearson([[0.1] * 7], [list(range(7))]))[0]


def test_a_row_with_a_gap_is_nan_and_the_others_are_not():
    one, other = np.array([[1.0, np.nan, 2.0], [1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    for of in (pearson, spearman, lambda a, b: top_overlap(a, b, 2)):
        found = of(one, other)
        assert np.isnan(found[0])
        assert found[1] == pytest.approx(1.0)


@given(TABLES, st.integers(1, 2))
def test_top_overlap_counts_what_both_name(pair, k):
    found = top_overlap(*pair, k)
    for q, rows in enumerate(zip(*pair, strict=True)):
        named = [set(sorted(range(len(row)), key=lambda n, row=row: (-row[n], n))[:k]) for row in rows]
        assert found[q] == len(named[0] & named[1]) / k


@pytest.mark.parametrize("k", [0, 4, True, 1.5])
def test_top_overlap_refuses_a_k_that_is_no_number_of_entries(k):
    with pytest.raises(fi.SettingError, match="from 1 to 3"):
        top_overlap([[1, 2, 3]], [[1, 2, 3]], k)


def test_tables_of_different_shapes_are_refused():
    with pytest.raises(fi.DataError, match="one shape"):
        spearman(np.zeros((2, 3)), np.zeros((3, 2)))


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = [(i := mean_interval(draw.normal(0.3, 1, 60), 0.9, seed)).low <= 0.3 <= i.high for seed in range(200)]
    assert 0.84 <= np.mean(hits) <= 0.95, "binomial spread of 200 trials is .02, the bootstrap is a little short at 60"


def test_the_interval_is_as_wide_as_the_normal_one():
    values = np.random.default_rng(1).normal(size=400)
    found = mean_interval(values)
    want = 2 * 1.96 * values.std() / 20
    assert_close([found.high - found.low], [want], rtol=0.1, why="2,000 resamples: its ends move by a few per cent")


def test_intervals_repeat_under_one_seed_and_leave_gaps_out():
    there = np.random.default_rng(0).normal(size=30)
    values = np.insert(there, 4, np.nan)
    assert mean_interval(values, seed=3) == mean_interval(there, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)
    assert mean_interval(values).count == 30
    assert np.isnan(mean_interval([np.nan]).mean)


def test_paired_comparisons_take_out_what_queries_share():
    draw = np.random.default_rng(2)
    hard = draw.normal(0, 1, 200)
    one, other = 2.2 + hard + draw.normal(0, 0.05, 200), 2.0 + hard + draw.normal(0, 0.05, 200)
    found = difference(one, other)
    assert found.low > 0.18
    assert found.high < 0.22
    alone = mean_interval(one)
    assert alone.high - alone.low > 5 * (found.high - found.low)
    assert ratio(one, other).mean == pytest.approx(one.mean() / other.mean())
    assert ratio(one, other).low > 1
    with pytest.raises(fi.DataError, match="for both"):
        difference(one, other[:3])


@pytest.mark.parametrize("ci", [0, 1, 95, True, "0.95"])
def test_a_coverage_is_between_0_and_1(ci):
    with pytest.raises(fi.SettingError, match="coverage"):
        mean_interval([1.0, 2.0], ci)
