"""A small tokenizer of words for tests of text, built here: nothing is fetched."""

import pytest

WORDS = ["hi", "who", "are", "you", "i", "am", "a", "bot", "be", "kind", "bye", "two", "plus", "is", "four", "thinks"]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<user>", "<bot>", "<system>", "<end>"]

# <role> content <end>, the assistant's part marked where it is said to be
TURN = """{%- for m in messages -%}{%- if m.role == 'assistant' -%}<bot> OPEN{{ m.content }} <end> CLOSE
{%- else -%}<{{ m.role }}> {{ m.content }} <end> {% endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}<bot> {% endif -%}"""
PLAIN = TURN.replace("OPEN", "").replace("CLOSE", "")
MARKED = TURN.replace("OPEN", "{%- generation -%}").replace("CLOSE", "{%- endgeneration -%}")
# what the assistant said before the last turn loses its thoughts, as reasoning models' templates do
FORGETS = PLAIN.replace("{{ m.content }} <end>", "{{ 'thinks ' if loop.last else '' }}{{ m.content }} <end>", 1)


def tokenizer(template=None, *, closing=True, name="words"):
    """Return a fast tokenizer: a text becomes ``<s> text </s>`` (or ``<s> text``)."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>" if closing else "<s> $A",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 2), ("</s>", 3)],
    )
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=SPECIAL[4:],
        name_or_path=name,
    )
    found.chat_template = template
    return found


def said(found, ids):
    """Return token ids as words, −100 as a dash."""
    return " ".join("-" if token < 0 else found.convert_ids_to_tokens(token) for token in ids)
