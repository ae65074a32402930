import re

import numpy as np
import pytest
import torch

import forwardinf as fi
from forwardinf.data.padding import pad


def test_rows_are_padded_with_what_each_column_needs():
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7], "token_type_ids": [1, 1, 1], "label": 2, "weight": 0.5,
         "text": "long", "words": ["a", "b", "c"], "note": None},
        {"input_ids": [8], "labels": [8], "token_type_ids": [1], "label": 1, "weight": 1.5, "text": "x", "words": ["a"],
         "note": None},
    ]  # fmt: skip
    rows_without = [{name: value for name, value in row.items() if name != "label"} for row in rows]
    batch = pad(rows_without, token=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[5, -100, 7], [8, -100, -100]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["weight"].tolist() == [0.5, 1.5]
    assert not {"text", "words", "note"} & set(batch)
    left = pad(rows_without, token=9, side="left")
    assert left["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left["labels"].tolist() == [[5, -100, 7], [-100, -100, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    "row", [np.array([5, 6]), torch.tensor([5, 6]), [5, 6], (5, 6), {"input_ids": np.array([5, 6])}]
)
def test_a_row_of_ids_may_be_any_sequence(row):
    assert pad([row], token=0)["input_ids"].tolist() == [[5, 6]]


def test_rows_that_are_not_tokenised_say_so():
    with pytest.raises(fi.TaskError, match=re.escape("expected 'input_ids', got keys ['text']")) as caught:
        fi.CausalLM().collate([{"text": "a b"}])
    assert "tokenizer" in caught.value.do


def test_rows_of_nothing_become_one_masked_token():
    batch = pad([[], []], token=9)
    assert batch["input_ids"].tolist() == [[9], [9]]
    assert batch["attention_mask"].tolist() == [[0], [0]]
    rows = [{"input_ids": np.array([]), "labels": []}, {"input_ids": np.array([]), "labels": []}]
    batch = pad(rows, token=9)
    assert batch["labels"].tolist() == [[-100], [-100]]
    assert batch["input_ids"].dtype == torch.int64
    mixed = pad([{"input_ids": np.array([])}, {"input_ids": [5, 6]}], token=0)
    assert mixed["input_ids"].tolist() == [[0, 0], [5, 6]]
    assert mixed["input_ids"].dtype == torch.int64


def test_a_column_keeps_its_fractions_wherever_they_begin():
    batch = pad([{"input_ids": [1, 2], "x": [1, 2]}, {"input_ids": [3], "x": [0.5]}], token=0)
    assert batch["x"].tolist() == [[1, 2], [0.5, 0]]


IDS = torch.tensor([5, 6, 7])
SEVERAL = {
    "ids, mask, labels": (IDS, torch.ones(3), IDS),
    "ids, labels": (IDS, IDS),
    "lists": ([5, 6], [5, 6]),
    "a list of arrays": [np.array([5, 6]), np.array([5, 6])],
    "ids and a number": (IDS, 3),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_row_of_several_columns_must_say_which_is_which(name):
    with pytest.raises(fi.TaskError, match=r"a mapping that says what is what, got a (tuple|list) of") as caught:
        pad([SEVERAL[name]], token=0)
    assert "'labels': …" in caught.value.do


def test_a_tuple_of_ids_alone_is_a_row():
    assert pad([(IDS,)], token=0)["input_ids"].tolist() == [[5, 6, 7]]
    assert pad([[IDS]], token=0)["input_ids"].tolist() == [[5, 6, 7]]


ODD = {
    "text": (["a b"], {}, "token ids, got text"),
    "numbers for rows": ([5, 6], {}, "a sequence of token ids, got int"),
    "a column that others have": ([{"input_ids": IDS, "labels": IDS}, {"input_ids": IDS}], {}, "'labels', which others have"),
    "labels that are none": ([{"input_ids": IDS, "labels": IDS}, {"input_ids": IDS, "labels": None}], {}, "labels in every row"),
    "labels of words": ([{"input_ids": IDS, "labels": [1, 2]}], {"aligned": True}, "one for each of its 3 tokens, got 2"),
    "one label for all": ([{"input_ids": IDS, "labels": 1}], {"aligned": True}, "3 tokens, got one number"),
    "a mask of another length": ([{"input_ids": IDS, "attention_mask": [1]}], {}, "attention_mask: expected one for each"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_rows_that_do_not_fit_say_what_is_wrong(name):
    rows, settings, told = ODD[name]
    with pytest.raises(fi.TaskError, match=told):
        pad(rows, token=0, **settings)


def test_an_answer_need_not_be_as_long_as_its_question():
    assert pad([{"input_ids": IDS, "labels": [1]}], token=0)["labels"].tolist() == [[1]]
