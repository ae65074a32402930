import re

import pytest
import torch
from close import assert_close
from tiny import V, make, read, texts, transformers

import forwardinf as fi
from forwardinf.tasks.sequences import SAID

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
FLOAT32 = "one float32 forward of another batch or another order of additions"


def labelled(rows, seed=0):
    return [{"input_ids": row, "label": number % 3} for number, row in enumerate(texts(rows, seed=seed))]


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_a_classifiers_loss_is_the_models_own(name):
    model, task, rows = make(name), fi.SequenceClassification(), labelled(5)
    want = [
        float(model(input_ids=row["input_ids"][None], labels=torch.tensor([row["label"]])).loss.detach())
        for row in rows
    ]
    assert_close(read(task, model, task.collate(rows)), torch.tensor(want), rtol=1e-5, why=FLOAT32)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_padding_changes_no_loss_of_a_classifier(name):
    model, task, rows = make(name).double(), fi.SequenceClassification(), labelled(6)
    for row in rows:
        row["token_type_ids"] = torch.zeros_like(row["input_ids"])
    alone = torch.cat([read(task, model, task.collate([row])) for row in rows])
    assert_close(read(task, model, task.collate(rows)), alone, rtol=1e-9, why="float64; masked out")


def word_tokenizer(side="right"):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({word: n for n, word in enumerate(["?", "a", "b", "c", "d"])}, unk_token="?")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="?", unk_token="?", padding_side=side)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("label", ["label", "labels"])
def test_rows_of_text_are_tokenised_as_the_tokenizer_does(side, label):
    task = fi.SequenceClassification(word_tokenizer(side), max_length=3)
    batch = task.collate([{"text": "a b c d", label: 1, "source": "x"}, {"text": "d", label: 0, "source": "y"}])
    want = word_tokenizer(side)(["a b c d", "d"], truncation=True, max_length=3, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], want["input_ids"])
    assert torch.equal(batch["attention_mask"], want["attention_mask"])
    assert batch["labels"].tolist() == [1, 0]
    assert "source" not in batch


def test_two_columns_of_text_are_a_pair():
    task = fi.SequenceClassification(word_tokenizer(), text=("question", "answer"))
    batch = task.collate([{"question": "a b", "answer": "c", "label": 1}])
    want = word_tokenizer()(["a b"], ["c"], return_tensors="pt")
    assert torch.equal(batch["input_ids"], want["input_ids"])


def test_a_text_classifier_is_attributed_from_text():
    rows = [{"text": text, "label": number % 3} for number, text in enumerate(["a b", "c", "d d a", "b c d", "a", "b"])]
    task = fi.SequenceClassification(word_tokenizer())
    scores = fi.attribute(make("bert"), rows, rows[2:3], task=task, progress=False)
    assert_close(scores.share[0, 2:3], torch.ones(1), rtol=2e-2, why="a copy has share 1, by differences in float32")


def test_the_settings_of_a_classification_hold_for_texts():
    model, rows = make("bert"), labelled(3)
    task = fi.SequenceClassification(query="predicted", label_smoothing=0.1)
    batch = task.collate(rows)
    filled = task.ask(model, batch)
    assert torch.equal(filled["labels"], model(**{k: v for k, v in batch.items() if k != "labels"}).logits.argmax(1))
    with pytest.raises(fi.SettingError):
        fi.SequenceClassification(query="predcted")


# -- rows of text ------------------------------------------------------------------------------------------------------


def sentences(*texts, **more):
    return [{"sentence": text, "target": number % 2, **more} for number, text in enumerate(texts)]


WORDS = ("a b", "c", "d d a", "b c d", "a", "b")


def test_the_label_of_a_text_is_found_where_label_says():
    rows, model = sentences(*WORDS, idx=3), make("bert")
    task = fi.SequenceClassification(word_tokenizer(), text="sentence", label="target")
    batch = task.collate(rows)
    assert batch["target"].tolist() == [0, 1, 0, 1, 0, 1]
    assert "idx" not in batch
    plain = fi.SequenceClassification(word_tokenizer())
    same = [{"text": row["sentence"], "label": row["target"]} for row in rows]
    want = read(plain, model, plain.collate(same))
    assert_close(read(task, model, batch), want, rtol=1e-12, why="the same texts")
    scores = fi.attribute(model, rows, rows[:2], task=task, progress=False)
    assert_close(
        scores.share[[0, 1], [0, 1]], torch.ones(2), rtol=2e-2, why="a copy has share 1, by differences in float32"
    )


def test_a_label_found_by_a_function_sees_the_rows_other_numbers():
    task = fi.SequenceClassification(word_tokenizer(), text="sentence", label=lambda batch: batch["target"])
    got = read(task, make("bert"), task.collate(sentences(*WORDS, source="x")))
    named = fi.SequenceClassification(word_tokenizer(), text="sentence", label="target")
    assert_close(got, read(named, make("bert"), named.collate(sentences(*WORDS))), rtol=1e-12, why="the same labels")


@pytest.mark.parametrize("text", [True, False])
def test_texts_without_labels_are_queries_asked_by_what_is_predicted(text):
    model = make("bert")
    tokenizer = word_tokenizer()
    inputs = [{"text": words} if text else {"input_ids": tokenizer(words)["input_ids"]} for words in WORDS]
    rows, bare = [row | {"label": number % 3} for number, row in enumerate(inputs)], inputs[:2]
    task = fi.SequenceClassification(tokenizer, query="predicted")
    call = {"perturbation": fi.Perturbation(), "progress": False}
    got = fi.attribute(model, rows, bare, task=task, **call)
    best = model(**{k: v for k, v in task.collate(rows[:2]).items() if k != "labels"}).logits.argmax(1).tolist()
    told = [{**row, "label": label} for row, label in zip(bare, best, strict=True)]
    want = fi.attribute(model, rows, told, task=fi.SequenceClassification(tokenizer), **call)
    assert_close(got.values, want.values, rtol=2e-3, why="the same queries, by differences in float32")
    with pytest.raises(fi.TaskError, match=re.escape("query='predicted'")):
        fi.attribute(model, rows, bare, task=fi.SequenceClassification(tokenizer), **call)


SURROGATE = "a \ud800 b"
TEXTS = {
    "no column of text": ([{"sentense": "a", "target": 1}], "a column 'sentence', got keys ['sentense', 'target']", "text="),
    "no text": ([{"sentence": None, "target": 1}], "text in 'sentence': expected text, got None", "Leave"),
    "a number": ([{"sentence": 3.5, "target": 1}], "expected text, got 3.5", ""),
    "words": ([{"sentence": ["a", "b"], "target": 1}], "expected text, got ['a', 'b']", ""),
    "bytes": ([{"sentence": b"a", "target": 1}], "expected text, got b'a'", ""),
    "a lone surrogate": ([{"sentence": SURROGATE, "target": 1}], "the lone surrogate '\\ud800'", "'replace'"),
    "an empty text": ([{"sentence": "a", "target": 1}, {"sentence": "", "target": 0}], "one without any", "Leave"),
    "a label as text": ([{"sentence": "a", "target": "good"}], "a class number, got 'good'", "numbers"),
    "a label that is none": ([{"sentence": "a", "target": None}], "labels in every row", ""),
    "a label here and none there": ([{"sentence": "a", "target": 1}, {"sentence": "b"}], "'target', which others have", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_cannot_be_read_says_why(name):
    rows, told, do = TEXTS[name]
    task = fi.SequenceClassification(word_tokenizer(), text="sentence", label="target")
    with pytest.raises(fi.TaskError, match=re.escape(told)) as caught:
        task.collate(rows)
    assert do in caught.value.do
    with pytest.raises(fi.TaskError, match=re.escape(told)):
        fi.attribute(make("bert"), [*rows] * 2, sentences("a"), task=task, progress=False)


def test_the_label_that_is_missing_is_said_where_the_loss_needs_it():
    task = fi.SequenceClassification(word_tokenizer(), text="sentence", label="target")
    with pytest.raises(fi.TaskError, match="'target' in it, got keys"):
        read(task, make("bert"), task.collate([{"sentence": "a"}]))
    pair = fi.SequenceClassification(word_tokenizer(), text=("question", "answer"))
    with pytest.raises(fi.TaskError, match="a column 'answer'"):
        pair.collate([{"question": "a", "label": 1}])
    with pytest.raises(fi.SettingError, match=r"SequenceClassification\(text=\)"):
        fi.SequenceClassification(text=("a", "b", "c"))
    with pytest.raises(fi.TaskError, match="give the task a tokenizer"):
        fi.SequenceClassification().collate([{"text": "a", "label": 1}])


def test_texts_that_are_cut_are_said_once_with_their_number(caplog):
    SAID.clear()
    task = fi.SequenceClassification(word_tokenizer(), max_length=2)
    rows = [{"text": text, "label": 0} for text in ("a b c", "a b", "c d a b", "a")]
    assert task.collate(rows)["input_ids"].shape == (4, 2)
    task.collate(rows)
    assert caplog.text.count("2 of 4 texts are longer than 2 tokens, and cut (max_length=)") == 1
    assert caplog.text.count("longer") == 1
    caplog.clear()
    limited = word_tokenizer()
    limited.model_max_length = 3
    fi.SequenceClassification(limited).collate(rows)
    assert "1 of 4 texts are longer than 3 tokens" in caplog.text
    caplog.clear()
    SAID.clear()
    fi.SequenceClassification(word_tokenizer(), max_length=4).collate(rows)
    assert not caplog.text, "a text of exactly the length is whole"


# -- classifiers that read their last token ----------------------------------------------------------------------------


def last_token(pad):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(
            vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=3, bos_token_id=1, eos_token_id=2,
            pad_token_id=pad,
        ))  # fmt: skip
    return model.double().eval()


@pytest.mark.parametrize("pad", [0, 2])
def test_a_tokenizer_without_padding_pads_with_the_models_own(pad):
    model, task, rows = last_token(pad), fi.SequenceClassification(), labelled(5)
    alone = torch.cat([read(task, model, task.collate([row])) for row in rows])
    together = read(task, model, task.collate(rows))
    assert_close(together, alone, rtol=1e-9, why="float64; the last real token is found in any batch")


def test_a_model_that_knows_no_padding_says_so_and_can_be_read_one_by_one():
    model, task, rows = last_token(None), fi.SequenceClassification(), labelled(4)
    with pytest.raises(fi.TaskError, match="a model that knows its padding token") as caught:
        fi.attribute(model, rows, rows[:1], task=task, progress=False, batch_size=2)
    assert "model.config.pad_token_id" in caught.value.do
    scores = fi.attribute(model, rows, rows[:1], task=task, progress=False, batch_size=1, perturbation=fi.Perturbation(),
                          engine="forward")  # fmt: skip
    assert scores.values.shape == (1, 4)
