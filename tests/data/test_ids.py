import numpy as np
import pandas as pd
import pytest
import torch

import forwardinf as fi
from forwardinf.data.ids import places_of, several


@pytest.mark.parametrize(
    ("asked", "ids"),
    [("ab", ["ab"]), (3, [3]), (np.int64(3), [3]), (["a", "b"], ["a", "b"]), (np.array([1, 2]), [1, 2]), (range(2), [0, 1]),
     (torch.tensor([4]), [4]), (pd.Series(["x"]), ["x"]), (("a", 1), ["a", 1]), ([], []), ({"k": 1}, ["k"])],
)  # fmt: skip
def test_one_or_several(asked, ids):
    assert several(asked) == ids


def test_places_are_in_the_order_asked_each_once():
    assert places_of("here", ["c", "a", "c"], ["a", "b", "c"]) == [2, 0]
    assert places_of("here", [np.int64(7), torch.tensor(5)], [5, 6, 7]) == [2, 0]
    assert places_of("here", ["1", 1], [1, "1"]) == [1, 0]


@pytest.mark.parametrize(
    ("asked", "ids", "guess"),
    [("test 21", ["test 12", "test 2", "other"], "Did you mean 'test 2'?"), ("3", [1, 2, 3], "Did you mean 3, a number?"),
     (3, ["1", "3"], "Did you mean '3', text?"), (1, ["a", "b"], "Ids are not positions: the one at 1 is 'b'."),
     (-1, ["a", "b"], "the one at -1 is 'b'."), (slice(0, 2), [0, 1], "by position it is .values"), ((0, 1), [0, 1], ".values"),
     (True, [0, 1], ""), (9, [0, 1], ""), (None, [0, 1], ""), (1.5, [0, 1], ""), ([0], [0, 1], ""), ("x" * 300, ["a"], ""),
     ("a", [], "")],
)  # fmt: skip
def test_an_unknown_id_is_an_error_of_ours_and_a_key_error_with_a_guess(asked, ids, guess):
    with pytest.raises(fi.UnknownId) as caught:
        places_of("top(query=)", [asked], ids)
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, fi.SettingError)
    assert guess in caught.value.do
    assert bool(guess) == bool(caught.value.do)
    assert str(caught.value).startswith("top(query=): expected an id")
    assert len(str(caught.value)) < 400


def test_of_many_ids_a_few_are_named():
    with pytest.raises(fi.UnknownId, match=r"an id: 0, 1, 2, 3, 4 … \(100,000 in all\), got 'x'\."):
        places_of("here", ["x"], range(100_000))
