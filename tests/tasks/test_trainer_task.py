"""Every kind of trainer gives the task whose losses are those it trains on: equal to its own compute_loss on the same batch."""

import copy
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from words import MARKED, PLAIN, tokenizer

import forwardinf as fi
from forwardinf.core.errors import DataError, SettingError, TaskError
from forwardinf.data.examples import examples
from forwardinf.tasks.trainer import from_trainer, in_full_precision

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
pytest.importorskip("accelerate", reason="transformers.Trainer needs it")
from test_trainer import bert, gpt, t5, train  # noqa: E402, F401  (a fixture, and models)

# peft 0.21 asks transformers 5.23 for a property that transformers renames
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = [[2, 8, 9, 3], [2, 11, 3], [2, 12, 13, 14, 15, 3], [2, 16, 17, 3]]


def table(**columns):
    return datasets.Dataset.from_dict({"input_ids": IDS, "attention_mask": [[1] * len(row) for row in IDS], **columns})


def vit(**settings):
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8,
                                    patch_size=4, num_channels=1, **settings)  # fmt: skip
    return transformers.ViTForImageClassification(config)


def pictures():
    draw = np.random.default_rng(0)
    return datasets.Dataset.from_dict({
        "pixel_values": draw.normal(size=(4, 1, 8, 8)).astype(np.float32), "label": [0, 1, 1, 0],
        "name": ["a", "b", "c", "d"],
    }).with_format("torch")  # fmt: skip


def padded(**settings):
    return transformers.DataCollatorWithPadding(tokenizer(), **settings)


CASES = {
    "one class": (bert, {}, table(label=[0, 1, 1, 0]), padded(), "SequenceClassification"),
    "one class, smoothed": (bert, {"label_smoothing_factor": 0.1}, table(label=[0, 1, 1, 0]), padded(), "SequenceClassification"),
    "several classes": (lambda: bert(num_labels=3), {}, table(labels=[[1.0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]]), padded(),
                        "MultiLabel"),
    "several classes, said": (lambda: bert(num_labels=2, problem_type="multi_label_classification"), {},
                              table(labels=[[1.0, 0], [0, 0], [1, 1], [0, 1]]), padded(), "MultiLabel"),
    "a number": (lambda: bert(num_labels=1), {}, table(label=[0.5, 1, -1, 2]), padded(), "Regression"),
    "two numbers": (lambda: bert(num_labels=2, problem_type="regression"), {}, table(labels=[[0.5, 1], [1, 2], [3, 4], [5, 6]]),
                    padded(), "Regression"),
    "images": (vit, {}, pictures(), transformers.default_data_collator, "Classification"),
    "images, all columns": (vit, {"remove_unused_columns": False}, pictures().remove_columns("name"),
                            transformers.default_data_collator, "Classification"),
    "a decoder": (lambda: gpt(), {}, table(), transformers.DataCollatorForLanguageModeling(tokenizer(), mlm=False), "CausalLM"),
    "a decoder with labels": (lambda: gpt(), {}, table(labels=[[-100, *row[1:]] for row in IDS]),
                              transformers.DataCollatorForTokenClassification(tokenizer()), "CausalLM"),
    "an encoder-decoder": (t5, {}, table(labels=[[5, 3], [6, 7, 3], [8, 3], [9, 3]]),
                           transformers.DataCollatorForSeq2Seq(tokenizer(), label_pad_token_id=-100), "Seq2Seq"),
}  # fmt: skip


def with_vocabulary(make):
    """Return the model with as many tokens as the tokenizer has."""
    model = make()
    if hasattr(model, "resize_token_embeddings") and not isinstance(model, transformers.ViTForImageClassification):
        torch.manual_seed(1)
        model.resize_token_embeddings(24)
    return model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:The new embeddings will be initialized")
def test_the_task_has_the_losses_that_the_trainer_trains_on(train, name):  # noqa: F811
    make, settings, data, collator, task = CASES[name]
    model = with_vocabulary(make)
    trainer = train(model, data, collator=collator, **settings)
    got = from_trainer(trainer, queries=data.select([1]))
    assert type(got["task"]).__name__ == task
    assert got["model"] is model
    batch = got["collate_fn"]([got["train"][row] for row in range(4)])
    with torch.no_grad():
        each = got["task"].loss(model.eval(), dict(batch))
        want = trainer.compute_loss(model, dict(batch))
    assert each.shape == (4,)
    assert float(each.sum() / got["task"].count(batch).sum()) == pytest.approx(float(want), rel=1e-5)
    exact = fi.Perturbation(two_sided=True)  # one-sided, as short as "linear" is, curvature is up to 1 % of the rate
    scores = fi.attribute(**got, perturbation=exact, progress=False)
    alone = {name: value.requires_grad_() for name, value in model.named_parameters()}
    gradients = []
    for row in range(4):
        one = got["collate_fn"]([got["train"][row]])
        grads = torch.autograd.grad(got["task"].loss(model, one).sum(), list(alone.values()), allow_unused=True)
        gradients.append(torch.cat([torch.zeros(0) if g is None else g.double().flatten() for g in grads]))
    dots = torch.stack(gradients) @ gradients[1]
    np.testing.assert_allclose(scores.values[0], dots.numpy(), rtol=2e-3, atol=1e-4 * float(dots.abs().max()))


@pytest.mark.filterwarnings("ignore:The new embeddings will be initialized")
def test_token_classifiers_get_their_task(train):  # noqa: F811
    pytest.importorskip("forwardinf.tasks.places")
    model = with_vocabulary(lambda: bert("BertForTokenClassification", num_labels=3))
    data = table(labels=[[-100, 1, 2, -100], [-100, 0, -100], [-100, 1, 1, 2, 0, -100], [-100, 2, 2, -100]])
    trainer = train(model, data, collator=transformers.DataCollatorForTokenClassification(tokenizer()))
    got = from_trainer(trainer)
    assert type(got["task"]).__name__ == "TokenClassification"
    batch = got["collate_fn"]([got["train"][row] for row in range(4)])
    with torch.no_grad():
        each, want = got["task"].loss(model.eval(), batch), trainer.compute_loss(model, dict(batch))
    assert float(each.sum() / got["task"].count(batch).sum()) == pytest.approx(float(want), rel=1e-5)


# Queries


def test_queries_are_stripped_as_train_is(train):  # noqa: F811
    data = table(label=[0, 1, 1, 0], text=["a", "b", "c", "d"], page=[1, 2, 3, 4])
    trainer = train(with_vocabulary(bert), data, collator=padded())
    got = from_trainer(trainer, queries=data.select([2, 0]))
    assert got["queries"].column_names == got["train"].column_names
    assert "page" not in got["queries"].column_names
    assert got["queries"]["text"][:] == ["c", "a"]
    listed = from_trainer(trainer, queries=data.select([2, 0]).to_list())
    one, other = (got["collate_fn"]([*found["queries"]]) for found in (got, listed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "queries" not in from_trainer(trainer)
    scores = fi.attribute(**got, progress=False)
    # what is asked is row 2, then row 0; this model is untrained, so that rows of one label tie within the noise floor
    assert scores.share[[0, 1], [2, 0]] == pytest.approx(1, rel=1e-3)
    assert (np.sign(scores.values) == [[-1, 1, 1, -1], [1, -1, -1, 1]]).all()


@pytest.mark.parametrize(
    ("queries", "told"),
    [
        ("test", "only iterates"),
        ([{"text": "a"}], "Tokenise"),
        (datasets.Dataset.from_dict({"text": ["a"]}), "Tokenise"),
        (datasets.DatasetDict({"test": table(label=[0] * 4)}), r"Choose one, like \['test'\]"),
        ({"input_ids": IDS[0], "label": 1}, "Put one example into a list"),
        (iter([1]), "only iterates"),
    ],
)
def test_queries_of_another_kind_are_refused(train, queries, told):  # noqa: F811
    with pytest.raises(DataError, match=told) as caught:
        from_trainer(train(with_vocabulary(bert), table(label=[0] * 4), collator=padded()), queries=queries)
    assert caught.value.where == "from_trainer: queries"


# What people see


def test_texts_and_the_tokenizer_stay_for_reports(train, tmp_path):  # noqa: F811
    words = tokenizer()
    texts = ["hi you", "be kind", "i am a bot", "bye you"]
    data = datasets.Dataset.from_list(
        [{"text": text, "label": row % 2, **words(text)} for row, text in enumerate(texts)]
    )
    trainer = train(with_vocabulary(bert), data, collator=padded())
    trainer.processing_class = words
    got = from_trainer(trainer, queries=data.select([2]))
    scores = fi.attribute(**got, progress=False)
    scores.report(tmp_path / "page.html")
    assert all(text in (tmp_path / "page.html").read_text() for text in texts)
    knowing = padded()
    for collator, known in ((lambda rows: padded()(rows), None), (knowing, knowing.tokenizer)):
        bare = from_trainer(train(with_vocabulary(bert), data.remove_columns("text"), collator=collator))
        assert examples(bare["train"], collate_fn=bare["collate_fn"]).tokenizer is known, "the collator may know it"
    trainer.train_dataset = data.remove_columns("text")
    bare = from_trainer(trainer)
    assert examples(bare["train"], collate_fn=bare["collate_fn"]).tokenizer is words
    trainer.processing_class = types.SimpleNamespace(tokenizer=words, image_processor=None)
    assert from_trainer(trainer)["collate_fn"].tokenizer is words


# Models in wrappers


class Halved(nn.Module):
    """A model whose forward is patched twice."""

    def forward(self, x):
        return x / 2


def test_a_forward_in_mixed_precision_is_read_without_it(train):  # noqa: F811
    accelerate = pytest.importorskip("accelerate")
    model = with_vocabulary(bert).eval()
    trainer = train(model, table(label=[0, 1, 1, 0]), collator=padded())
    want = from_trainer(trainer)
    batch = want["collate_fn"]([want["train"][row] for row in range(4)])
    with torch.no_grad():
        exact = want["task"].loss(model, batch)
    accelerate.state.AcceleratorState._reset_state(True)
    prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    assert prepared is model
    assert "forward" in vars(model)
    got = from_trainer(trainer)
    with torch.no_grad():
        assert not torch.equal(want["task"].loss(model, batch), exact), "mixed precision rounds"
        assert torch.equal(got["task"].loss(got["model"], batch), exact)
    assert "forward" in vars(model), "the trainer's model stays as it is"
    assert got["model"] is not model
    assert all(one is other for one, other in zip(got["model"].parameters(), model.parameters(), strict=True))
    scores = fi.attribute(**got, queries=got["train"].select([0]), progress=False)
    assert np.isfinite(scores.values).all()
    assert model.training is False
    accelerate.state.AcceleratorState._reset_state(True)


def test_a_forward_that_was_patched_before_stays_patched():
    model = Halved()
    assert in_full_precision(model) is model
    before = types.MethodType(lambda self, x: x / 3, model)
    model.forward = before
    model._original_forward, model.forward = before, lambda x: before(x).bfloat16()
    assert in_full_precision(model)(torch.tensor(1.0)) == torch.tensor(1.0) / 3
    plain = Halved()
    plain._original_forward, plain.forward = plain.forward, lambda x: x.bfloat16()
    assert in_full_precision(plain)(torch.tensor(1.0)) == 0.5


def test_a_model_in_shards_is_refused(train):  # noqa: F811
    trainer = train(with_vocabulary(bert), table(label=[0] * 4), collator=padded())
    trainer.model = type("DeepSpeedEngine", (nn.Module,), {})()
    with pytest.raises(SettingError, match="in shards"):
        from_trainer(trainer)


def test_a_parallel_model_is_taken_out(train):  # noqa: F811
    model = with_vocabulary(bert)
    trainer = train(model, table(label=[0] * 4), collator=padded())
    trainer.model = nn.DataParallel(model)
    assert from_trainer(trainer)["model"] is model


# Losses and collators that are not what they look like


class Weighted(transformers.BertForSequenceClassification):
    """A classifier with a loss of its own inside its forward."""

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        found = super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=None if found.loss is None else 3 * found.loss,
                                                                      logits=found.logits)  # fmt: skip


def test_a_model_with_a_loss_of_its_own_is_refused_by_what_it_gives(train):  # noqa: F811
    torch.manual_seed(0)
    model = Weighted(transformers.BertConfig(vocab_size=24, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                             intermediate_size=8))  # fmt: skip
    with pytest.raises(SettingError, match="from Weighted itself"):
        from_trainer(train(model, table(label=[0, 1, 1, 0]), collator=padded()))


def test_rows_without_labels_and_labels_of_another_kind_are_refused(train):  # noqa: F811
    with pytest.raises((DataError, TaskError), match="label"):
        from_trainer(train(with_vocabulary(bert), table(), collator=padded()))
    with pytest.raises((DataError, TaskError), match="shape"):
        from_trainer(train(with_vocabulary(lambda: bert(num_labels=3, problem_type="regression")), table(label=[0.5] * 4),
                           collator=padded()))  # fmt: skip
    with pytest.raises(SettingError, match="label_smoothing_factor"):
        from_trainer(train(with_vocabulary(lambda: bert(num_labels=1)), table(label=[0.5] * 4), collator=padded(),
                           label_smoothing_factor=0.1))  # fmt: skip


class Draws:
    """A collator that draws, under a name that does not say so."""

    def __call__(self, rows):
        batch = padded()(rows)
        return {**batch, "input_ids": torch.where(torch.rand(batch["input_ids"].shape) < 0.5, 1, batch["input_ids"])}


class Flattens:
    """A collator that joins all rows into one."""

    def __call__(self, rows):
        ids = torch.tensor([token for row in rows for token in row["input_ids"]])[None]
        return {"input_ids": ids, "labels": ids.clone()}


def test_a_collator_that_draws_is_found_by_what_it_does(train):  # noqa: F811
    state = torch.get_rng_state()
    with pytest.raises(SettingError, match="Draws, which draws"):
        from_trainer(train(with_vocabulary(bert), table(label=[0, 1, 1, 0]), collator=Draws()))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("collator", [Flattens(), transformers.DataCollatorWithFlattening()])
def test_a_collator_that_joins_rows_into_one_is_refused(train, collator):  # noqa: F811
    with pytest.raises(SettingError, match="into 1"):
        from_trainer(train(with_vocabulary(gpt), table(), collator=collator))


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_masking_at_random_is_refused_by_name(train, kind):  # noqa: F811
    words = tokenizer()
    words.add_special_tokens({"mask_token": "<end>"})
    collator = transformers.DataCollatorForLanguageModeling(words, mlm=True)
    model = with_vocabulary(gpt if kind.startswith("GPT") else lambda: bert(kind))
    with pytest.raises(SettingError, match="mlm=True"):
        from_trainer(train(model, table(), collator=collator))


def test_rows_that_cannot_be_joined_are_an_error_of_ours(train):  # noqa: F811
    with pytest.raises(DataError, match="data_collator"):
        from_trainer(
            train(with_vocabulary(bert), table(label=[0, 1, 1, 0]), collator=transformers.default_data_collator)
        )


def test_rows_are_not_changed_by_a_collator_that_takes_them_apart(train):  # noqa: F811
    data = table(label=[0, 1, 1, 0]).to_list()
    before = copy.deepcopy(data)

    def takes(rows):
        labels = [row.pop("label") for row in rows]
        return {**padded()(rows), "labels": torch.tensor(labels)}

    from_trainer(train(with_vocabulary(bert), data, collator=takes))
    assert data == before


# trl


class SFTTrainer(transformers.Trainer):
    """What trl's does: rows of its own, kept for its collator; the model's loss, computed another way."""

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels", "completion_mask"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class Completion:
    """A collator that makes labels of a mask, as trl's did."""

    def __call__(self, rows):
        labels = [[token if counts else -100 for token, counts in zip(row["input_ids"], row["completion_mask"], strict=True)]
                  for row in rows]  # fmt: skip
        return transformers.DataCollatorForTokenClassification(tokenizer())(
            [{"input_ids": row["input_ids"], "labels": label} for row, label in zip(rows, labels, strict=True)]
        )


def test_a_fine_tuning_trainer_counts_what_it_trains_on(train):  # noqa: F811
    data = table(completion_mask=[[0] * (len(row) - 2) + [1, 1] for row in IDS], page=[1, 2, 3, 4])
    model = with_vocabulary(gpt)
    trainer = train(model, data, collator=Completion(), kind=SFTTrainer)
    got = from_trainer(trainer, queries=data.select([0]))
    assert "completion_mask" in got["train"].column_names
    assert "page" not in got["train"].column_names
    assert trainer._signature_columns is None, "nothing is changed"
    batch = got["collate_fn"]([got["train"][row] for row in range(4)])
    assert got["task"].count(batch).tolist() == [2, 2, 2, 2]
    trainer.args.loss_type = "dft"
    with pytest.raises(SettingError, match=r"SFTTrainer\.compute_loss"):
        from_trainer(trainer)


@pytest.mark.parametrize("kind", ["messages", "prompt and completion"])
@pytest.mark.filterwarnings("ignore")
def test_trl_itself_where_it_is_installed(tmp_path, kind):
    trl = pytest.importorskip("trl")
    words = tokenizer(MARKED if kind == "messages" else PLAIN)
    ask, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi you"}
    rows = [{"messages": [ask, answer]}] * 3 if kind == "messages" else [{"prompt": "hi ", "completion": "bye you"}] * 3
    settings = trl.SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=16,
                             assistant_only_loss=kind == "messages")  # fmt: skip
    trainer = trl.SFTTrainer(with_vocabulary(gpt), args=settings, train_dataset=datasets.Dataset.from_list(rows),
                             processing_class=words)  # fmt: skip
    got = from_trainer(trainer, queries=trainer.train_dataset.select([0]))
    batch = got["collate_fn"]([got["train"][0]])
    counted = [words.convert_ids_to_tokens(int(token)) for token in batch["labels"][0] if token >= 0]
    assert counted[:2] == (["hi", "you"] if kind == "messages" else ["bye", "you"])
    assert np.isfinite(fi.attribute(**got, progress=False).values).all()
    assert "trl" in sys.modules
