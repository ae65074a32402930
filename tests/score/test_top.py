import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forwardinf.score.top import extremes, order

VALUES = st.lists(st.sampled_from([-np.inf, -2.0, -1.0, -0.0, 0.0, 1.0, 2.0, np.inf, np.nan]), max_size=14)


@given(VALUES, st.booleans(), st.randoms())
def test_order_is_a_stable_sort_by_score_then_place_without_nan(values, best, shuffle):
    places = list(range(len(values)))
    shuffle.shuffle(places)
    got = order(np.array(values, np.float32), np.array(places, np.int64), best=best)
    there = [n for n in range(len(values)) if not np.isnan(values[n])]
    assert got.tolist() == sorted(there, key=lambda n: (-values[n] if best else values[n], places[n]))


@given(VALUES, st.integers(1, 16))
def test_extremes_are_the_k_best_and_the_k_worst_sorted_by_place(values, k):
    scores, places = np.array(values, np.float32), np.arange(len(values)) + 5
    there = [n for n in range(len(values)) if not np.isnan(values[n])]
    best = sorted(there, key=lambda n: (-values[n], n))[:k]
    worst = sorted(there, key=lambda n: (values[n], n))[:k]
    found, at = extremes(scores, places, k)
    assert at.tolist() == [n + 5 for n in sorted({*best, *worst})]
    np.testing.assert_array_equal(found, scores[at - 5])
    assert found.dtype == np.float32


@given(VALUES, st.integers(1, 4), st.integers(1, 5))
def test_extremes_of_extremes_of_pieces_are_the_extremes_of_all(values, k, size):
    scores, places = np.array(values, np.float32), np.arange(len(values))
    pieces = [extremes(scores[at : at + size], places[at : at + size], k) for at in range(0, len(values), size)]
    joined = [np.concatenate([piece[n] for piece in pieces]) if pieces else np.empty(0, np.float32) for n in (0, 1)]
    got, want = extremes(joined[0], joined[1].astype(np.int64), k), extremes(scores, places, k)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])


def test_a_tie_at_the_edge_goes_to_the_earlier_place():
    found, at = extremes(np.array([1, 5, 5, 5, 0, 0, 0], np.float32), np.arange(7), 2)
    assert at.tolist() == [1, 2, 4, 5]
    assert found.tolist() == [5, 5, 0, 0]
