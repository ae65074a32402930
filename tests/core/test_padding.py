import re

import numpy as np
import pytest
import torch

import forwardinf as fi
from forwardinf.core.padding import pad


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
