import pytest
from words import FORGETS, MARKED, PLAIN, said, tokenizer

from forwardinf.core.errors import DataError, SettingError
from forwardinf.data.chat import as_text, chat_tokens

pytest.importorskip("transformers")

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hi you"},
    {"role": "user", "content": "who are you"},
    {"role": "assistant", "content": "i am a bot"},
]
WHOLE = "<system> be kind <end> <user> hi <end> <bot> hi you <end> <user> who are you <end> <bot> i am a bot <end>"
COUNTED = "- - - - - - - - hi you <end> - - - - - - i am a bot <end>"


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_what_the_assistant_says_counts(template):
    words = tokenizer(template)
    ids, labels = chat_tokens(words, TALK)
    assert said(words, ids) == WHOLE
    assert said(words, labels) == COUNTED
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))


def test_both_ways_agree_with_what_transformers_makes_of_it():
    words = tokenizer(MARKED)
    want = words.apply_chat_template(TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    for template in (MARKED, PLAIN):
        ids, labels = chat_tokens(tokenizer(template), TALK)
        assert ids == want["input_ids"]
        assert [int(label >= 0) for label in labels] == want["assistant_masks"]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_turns_before_the_completion_do_not_count(template):
    words = tokenizer(template)
    _, labels = chat_tokens(words, TALK, first=4)
    assert said(words, labels) == "- " * 17 + "i am a bot <end>"


def test_a_conversation_without_the_assistant_counts_nothing():
    words = tokenizer(PLAIN)
    ids, labels = chat_tokens(words, TALK[:2])
    assert len(ids) == 7
    assert set(labels) == {-100}


def test_gaps_that_a_table_fills_with_none_are_no_fields():
    told = "{%- for m in messages -%}{{ 'bot ' if 'tool_calls' in m }}{{ m.content }} {% endfor -%}"
    words = tokenizer(told)
    ids, _ = chat_tokens(words, [{"role": "user", "content": "hi", "tool_calls": None}])
    assert said(words, ids) == "hi"


def test_a_template_that_rewrites_what_was_said_is_refused_by_name():
    words = tokenizer(FORGETS, name="org/thinker")
    with pytest.raises(DataError, match="org/thinker") as caught:
        chat_tokens(words, TALK, "row 7")
    assert caught.value.where == "row 7, turn 2"
    assert "'thinks" in caught.value.got
    assert "{% generation %}" in caught.value.do
    assert said(words, chat_tokens(words, TALK[:3])[1]).endswith("thinks hi you <end>"), "the last turn is as it stays"


def test_a_template_that_marks_nothing_of_it_is_refused():
    marks_questions = PLAIN.replace(
        "{{ m.content }} <end> {% endif", "{% generation %}{% endgeneration %} <end> {% endif"
    )
    with pytest.raises(DataError, match="marks nothing"):
        chat_tokens(tokenizer(marks_questions), TALK)


def test_a_tokenizer_without_a_template_is_refused_with_a_way_out():
    with pytest.raises(SettingError, match="words") as caught:
        chat_tokens(tokenizer(None), TALK)
    assert "chat template" in caught.value.expected
    assert "prompt and completion" in caught.value.do


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "at least one message"),
        (["hi"], "turn 0"),
        ([{"from": "human", "value": "hi"}], "Rename"),
        ([{"role": 3, "content": "hi"}], "role, content"),
        (TALK[2:], "before the assistant's first turn"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, told):
    with pytest.raises(DataError, match="row 3") as caught:
        chat_tokens(tokenizer(PLAIN), messages, "row 3")
    assert told in str(caught.value)


def test_what_a_template_refuses_is_an_error_of_ours():
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        chat_tokens(tokenizer(strict), TALK)


def test_a_conversation_for_people_is_a_line_for_each_turn():
    parts = [{"type": "text", "text": "see"}, {"type": "image"}]
    assert as_text([TALK[1], {"role": "user", "content": parts}]) == "user: hi\nuser: see [image]"
