import pytest
import torch
from close import assert_close
from tiny import make, read, texts, transformers

import forwardinf as fi

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
    assert_close(scores.share[0, 2:3], torch.ones(1), rtol=2e-2, why="law 8, by differences in float32")


def test_the_settings_of_a_classification_hold_for_texts():
    model, rows = make("bert"), labelled(3)
    task = fi.SequenceClassification(query="predicted", label_smoothing=0.1)
    batch = task.collate(rows)
    filled = task.ask(model, batch)
    assert torch.equal(filled["labels"], model(**{k: v for k, v in batch.items() if k != "labels"}).logits.argmax(1))
    with pytest.raises(fi.SettingError):
        fi.SequenceClassification(query="predcted")
