import json
import logging

import pyarrow as pa
import pytest
import torch
from words import MARKED, PLAIN, said, tokenizer

from forwardinf.core.errors import DataError, SettingError
from forwardinf.data.load import load_data
from forwardinf.data.tokenise import is_text, pair_tokens, tokenised
from forwardinf.tasks.sequences import SequenceClassification
from forwardinf.tasks.text import CausalLM, Seq2Seq

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi you"}]


def table(**columns):
    return pa.table(columns)


def test_rows_are_the_tokenizers_own_with_their_text():
    words = tokenizer()
    rows = tokenised(table(text=["hi you", "bye"], label=[1, 0], page=["p", "q"]), words, keep=["page"])
    assert len(rows) == 2
    assert rows[0] == {
        "text": "hi you",
        "input_ids": words("hi you")["input_ids"],
        "attention_mask": [1] * 4,
        "page": "p",
        "labels": 1,
    }
    assert set(rows.column_names) == set(rows[0])
    assert rows.notes == []
    assert SequenceClassification().collate([rows[0], rows[1]])["labels"].tolist() == [1, 0]


def test_a_decoder_takes_no_class_numbers_for_tokens():
    rows = tokenised(table(text=["hi"], label=[1]), tokenizer(), reader="decoder")
    assert "labels" not in rows[0]
    batch = CausalLM().collate([rows[0]])
    assert sorted(batch) == ["attention_mask", "input_ids"]


def test_a_prompt_is_followed_by_its_completion_which_alone_counts():
    words = tokenizer()
    rows = tokenised(table(prompt=["who are you ", "hi "], completion=["a bot", "bye"]), words)
    assert said(words, rows[0]["input_ids"]) == "<s> who are you a bot </s>"
    assert said(words, rows[0]["labels"]) == "- - - - a bot </s>"
    assert rows[0]["text"] == "who are you  → a bot"
    named = tokenised(table(question=["hi "], answer=["bye"]), words, "question,answer")
    assert named[0] | {"text": ""} == rows[1] | {"text": ""}


def test_a_pairs_tokens_are_the_same_by_places_and_by_prefixes(monkeypatch):
    words = tokenizer()
    want = pair_tokens(words, "who are you ", "a bot")
    monkeypatch.setattr(type(words), "is_fast", False)
    assert pair_tokens(words, "who are you ", "a bot") == want
    with pytest.raises(DataError, match="stay as they are"):
        pair_tokens(words, "who are y", "ou")  # one word of both


@pytest.mark.parametrize("fast", [True, False])
def test_an_unknown_word_at_either_end_is_a_token_like_another(monkeypatch, fast):
    words = tokenizer(closing=False)
    monkeypatch.setattr(type(words), "is_fast", fast)
    assert said(words, pair_tokens(words, "hi zebra ", "bye zebra")["labels"]) == "- - - bye <unk>"


def test_special_tokens_that_are_no_end_of_text_do_not_count():
    words = tokenizer()
    words.eos_token = "<end>"
    words.add_special_tokens({"sep_token": "</s>"})
    assert said(words, pair_tokens(words, "hi ", "bye")["labels"]) == "- - bye -"


def test_an_encoder_decoder_reads_one_side_and_answers_with_the_other():
    words = tokenizer()
    rows = tokenised(table(prompt=["who are you"], completion=["a bot"]), words, reader="encoder-decoder")
    assert said(words, rows[0]["input_ids"]) == "<s> who are you </s>"
    assert said(words, rows[0]["labels"]) == "<s> a bot </s>"
    assert rows[0]["text"] == "who are you → a bot"
    assert Seq2Seq().collate([rows[0]])["labels"].shape == (1, 4)


def test_a_classifier_reads_two_texts_in_one_row():
    words = tokenizer()
    rows = tokenised(table(a=["hi"], b=["bye"], label=[1]), words, ["a", "b"], reader="classifier")
    want = words("hi", "bye")
    assert rows[0]["input_ids"] == want["input_ids"]
    assert rows[0].get("token_type_ids") == want.get("token_type_ids")
    assert (rows[0]["labels"], rows[0]["text"]) == (1, "hi | bye")


@pytest.mark.parametrize("template", [PLAIN, MARKED])
@pytest.mark.parametrize("columns", [{"messages": [TALK]}, {"prompt": [TALK[:1]], "completion": [TALK[1:]]}])
def test_conversations_are_read_from_a_table(template, columns):
    words = tokenizer(template)
    rows = tokenised(pa.table(columns), words)
    assert said(words, rows[0]["input_ids"]) == "<user> hi <end> <bot> hi you <end>"
    assert said(words, rows[0]["labels"]) == "- - - - hi you <end>"
    assert rows[0]["text"] == "user: hi\nassistant: hi you"


def test_a_file_of_conversations_is_read_in_python(tmp_path):
    path = tmp_path / "chat.jsonl"
    more = [*TALK, {"role": "user", "content": "bye", "name": "ada"}]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in (TALK, more)))
    words = tokenizer(PLAIN)
    rows = load_data(path, tokenizer=words)
    assert said(words, rows[1]["labels"]) == "- - - - hi you <end> - - -"
    batch = CausalLM().collate([rows[0], rows[1]])
    assert (batch["labels"] >= 0).sum(1).tolist() == [3, 3]


def test_what_is_cut_is_counted_and_said(caplog):
    words = tokenizer()
    with caplog.at_level(logging.WARNING):
        rows = tokenised(table(text=["hi you", "i am a bot", "two plus two is four"]), words, max_length=5)
    assert rows.notes == ["2 of 3 rows were cut to max_length=5 tokens"]
    assert rows.notes[0] in caplog.text
    assert [said(words, row["input_ids"]).split()[-1] for row in rows] == ["</s>"] * 3, "the tokenizer cuts, not we"
    pairs = tokenised(table(prompt=["two plus two "], completion=["is four"]), words, max_length=5)
    assert said(words, pairs[0]["labels"]) == "- - - - is"
    assert pairs.notes == ["1 of 1 rows were cut to max_length=5 tokens"]
    both = tokenised(
        table(prompt=["two plus two is"], completion=["four"]), words, max_length=4, reader="encoder-decoder"
    )
    assert said(words, both[0]["input_ids"]) == "<s> two plus </s>"
    assert tokenised(table(text=["hi"]), words, max_length=5).notes == []


def test_rows_in_which_nothing_counts_are_said():
    rows = tokenised(table(messages=[TALK, TALK[:1]]), tokenizer(PLAIN))
    assert rows.notes == ["in 1 of 2 rows nothing counts: their scores are 0"]
    cut = tokenised(table(prompt=["two plus two "], completion=["is four"]), tokenizer(), max_length=3)
    assert any("nothing counts" in note for note in cut.notes)


def test_chosen_rows_keep_their_lengths():
    rows = tokenised(table(text=["hi", "i am a bot", "bye"]), tokenizer()).select([1, 0])
    assert [row["text"] for row in rows] == ["i am a bot", "hi"]
    assert rows.lengths("input_ids").tolist() == [6, 3]
    assert rows.largest("input_ids").tolist() == [max(rows[0]["input_ids"]), max(rows[1]["input_ids"])]
    assert rows.lengths("labels").tolist() == [0, 0]
    assert [row["text"] for row in rows.select([1])] == ["hi"]


@pytest.mark.parametrize(
    ("columns", "settings", "error", "told"),
    [
        ({"text": ["hi"], "messages": [TALK]}, {}, SettingError, "text="),
        ({"body": ["hi"]}, {}, SettingError, "'body'"),
        ({"body": ["hi"]}, {"text": "bdy"}, SettingError, "Did you mean 'body'"),
        ({"a": ["hi"], "b": ["hi"], "c": ["hi"]}, {"text": "a,b,c"}, SettingError, "or two"),
        ({"text": ["hi"]}, {"reader": "encoder-decoder"}, SettingError, "two columns"),
        ({"messages": [TALK]}, {"reader": "encoder-decoder"}, SettingError, "conversations"),
        ({"messages": [TALK]}, {"reader": "classifier"}, SettingError, "conversations"),
        ({"text": ["hi", None]}, {}, DataError, "row 1"),
        ({"text": ["hi"], "label": ["good"]}, {}, DataError, "number of its class"),
        ({"prompt": ["hi", "hi"], "completion": ["bye", None]}, {}, DataError, "row 1"),
        ({"messages": [TALK, None]}, {}, DataError, "row 1"),
        ({"messages": [TALK, []]}, {}, DataError, "row 1"),
    ],
)
def test_what_cannot_be_read_is_refused_by_row_or_column(columns, settings, error, told):
    with pytest.raises(error, match=told):
        tokenised(pa.table(columns), tokenizer(PLAIN), **settings)


def test_a_text_without_a_token_is_a_row_without_ids_and_said():
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = tokenizers.processors.Sequence([])
    rows = tokenised([{"text": "hi"}, {"text": "  "}], bare)
    assert rows[1]["input_ids"] == []
    assert rows.notes == ["1 of 2 texts have no token"]
    pairs = tokenised(table(prompt=["hi"], completion=[""]), bare)
    assert pairs.notes == ["in 1 of 1 rows nothing counts: their scores are 0"]


@pytest.mark.parametrize("rows", [[{"text": "hi"}, {"text": "\ud800"}], [{"prompt": "hi", "completion": "hi"},
                                                                        {"prompt": "hi", "completion": "\ud800"}]])  # fmt: skip
def test_half_a_surrogate_pair_is_refused_by_row(rows):
    with pytest.raises(DataError, match=r"chat\.jsonl, column .*, row 1.*\\ud800"):
        tokenised(rows, tokenizer(), source="chat.jsonl")


def test_a_tokenizer_that_takes_one_text_only_will_do():
    class Letters:
        def __call__(self, text):
            return {"input_ids": list(text.encode())}

    assert [row["input_ids"] for row in tokenised(table(text=["ab", ""]), Letters())] == [[97, 98], []]


def test_data_that_is_text_is_known_from_other_data():
    assert is_text(table(text=["hi"]))
    assert is_text([{"text": "hi"}])
    assert not is_text(table(input_ids=[[1]]))
    assert not is_text((torch.ones(2), torch.ones(2)))
    assert not is_text([torch.ones(2)])
