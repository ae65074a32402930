import os
import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from forwardinf.core.errors import DataError, SettingError
from forwardinf.tasks.sequences import SequenceClassification
from forwardinf.tasks.trainer import from_trainer

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
pytest.importorskip("accelerate", reason="transformers.Trainer needs it")
tasks = pytest.importorskip("forwardinf.tasks.text")

# peft 0.21 asks transformers 5.23 for a property that transformers renames
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SMALL = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
         "max_position_embeddings": 16}  # fmt: skip


def bert(kind="BertForSequenceClassification", **settings):
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**SMALL, **settings))


def gpt():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def rows():
    ids = [[1, 2, 3, 4], [5, 6, 7, 8], [2, 4, 6, 8]]
    return datasets.Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * 4] * 3, "label": [0, 1, 0], "title": ["a", "b", "c"]}
    )


def texts():
    return rows().remove_columns("label").add_column("labels", rows()["input_ids"][:])


@pytest.fixture
def train(tmp_path):
    def make(model, data=None, *, kind=transformers.Trainer, collator=transformers.default_data_collator, **settings):
        own = {name: settings.pop(name) for name in ("compute_loss_func",) if name in settings}
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, per_device_train_batch_size=2, **settings
        )
        return kind(model=model, args=arguments, train_dataset=data, data_collator=collator, **own)

    return make


def test_a_classifier_comes_with_its_data_collator_and_task(train):
    model = bert()
    trainer = train(model, rows())
    got = from_trainer(trainer)
    assert list(got) == ["model", "train", "task", "collate_fn"]
    assert got["model"] is model
    assert sorted(got["train"].column_names) == ["attention_mask", "input_ids", "label", "title"], (
        "texts stay, for people"
    )
    assert sorted(got["collate_fn"]([got["train"][0]])) == ["attention_mask", "input_ids", "labels"]
    assert trainer.train_dataset.column_names == rows().column_names
    assert type(got["task"]) is SequenceClassification


def test_the_losses_are_those_the_trainer_trains_on(train):
    model = bert().eval()
    for smoothing in (0.0, 0.1):
        trainer = train(model, rows(), label_smoothing_factor=smoothing)
        got = from_trainer(trainer)
        batch = got["collate_fn"]([got["train"][row] for row in range(3)])
        with torch.no_grad():
            want = trainer.compute_loss(model, dict(batch))
            each = got["task"].loss(model, batch)
        assert each.shape == (3,)
        torch.testing.assert_close(each.mean().float(), want, rtol=1e-5, atol=1e-6)  # float32, sums in another order


def test_batches_equal_those_of_the_trainer(train):
    trainer = train(bert(), rows(), train_sampling_strategy="sequential", dataloader_pin_memory=False)
    got = from_trainer(trainer)
    ours = DataLoader(got["train"], batch_size=2, collate_fn=got["collate_fn"])
    pairs = list(zip(ours, trainer.get_train_dataloader(), strict=True))
    assert len(pairs) == 2
    for one, other in pairs:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_language_models_get_their_tasks(train):
    assert type(from_trainer(train(gpt(), texts()))["task"]) is tasks.CausalLM
    assert type(from_trainer(train(t5(), texts()))["task"]) is tasks.Seq2Seq
    collator = transformers.DataCollatorForLanguageModeling
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), pad_token="a")
    assert from_trainer(train(gpt(), texts(), collator=collator(tokenizer, mlm=False)))["train"].num_rows == 3


def test_a_subclass_of_a_known_model_and_an_adapter_on_it_are_known(train):
    peft = pytest.importorskip("peft")

    class Own(transformers.GPT2LMHeadModel):
        pass

    assert type(from_trainer(train(Own(gpt().config), texts()))["task"]) is tasks.CausalLM
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(gpt(), settings)
    got = from_trainer(train(model, texts()))
    assert got["model"] is model
    assert type(got["task"]) is tasks.CausalLM
    assert sorted(got["train"].column_names) == ["attention_mask", "input_ids", "labels", "title"]


def test_a_compiled_model_is_taken_out_of_its_wrapper(train):
    model = bert()
    got = from_trainer(train(torch.compile(model, backend="eager"), rows()))
    assert got["model"] is model
    assert sorted(got["train"].column_names) == ["attention_mask", "input_ids", "label", "title"]


def test_columns_are_kept_where_the_trainer_keeps_them(train):
    got = from_trainer(train(bert(), rows(), remove_unused_columns=False))
    assert "title" in got["train"].column_names


def test_columns_of_other_datasets_are_dropped_by_the_collator(train):
    got = from_trainer(train(bert(), rows().add_column("page", [7, 8, 9]).to_list()))
    assert got["train"][0]["page"] == 7
    assert sorted(got["collate_fn"](got["train"])) == ["attention_mask", "input_ids", "labels"]
    assert got["collate_fn"](got["train"])["input_ids"].shape == (3, 4)


# Refusals


@pytest.mark.parametrize("thing", [None, 3, nn.Linear(2, 1)])
def test_something_else_is_refused(thing):
    with pytest.raises(SettingError, match=r"transformers\.Trainer"):
        from_trainer(thing)


def test_something_like_a_trainer_and_a_trainer_without_data_are_refused(train):
    class Like:
        model, train_dataset = nn.Linear(2, 1), [1, 2]

    for thing in (Like(), train(bert())):
        with pytest.raises(SettingError, match=r"transformers\.Trainer"):
            from_trainer(thing)


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForQuestionAnswering", "BertModel"])
def test_a_model_without_a_ready_task_is_refused(train, kind):
    with pytest.raises(SettingError, match=kind):
        from_trainer(train(bert(kind), rows()))


def test_label_smoothing_of_a_language_model_is_refused(train):
    with pytest.raises(SettingError, match="label_smoothing_factor"):
        from_trainer(train(gpt(), texts(), label_smoothing_factor=0.1))


def test_a_loss_of_ones_own_is_refused(train):
    class Own(transformers.Trainer):
        def compute_loss(self, *args, **settings):
            return 2 * super().compute_loss(*args, **settings)

    with pytest.raises(SettingError, match=r"Own\.compute_loss"):
        from_trainer(train(bert(), rows(), kind=Own))
    with pytest.raises(SettingError, match="compute_loss_func"):
        from_trainer(train(bert(), rows(), compute_loss_func=lambda outputs, labels, **_: outputs.logits.sum()))


def test_a_masking_collator_is_refused(train):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), pad_token="a", mask_token="b")
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=True)
    with pytest.raises(SettingError, match="mlm=True"):
        from_trainer(train(gpt(), texts(), collator=collator))


class RandomCutMix:
    def __call__(self, examples):
        return transformers.default_data_collator(random.sample(examples, len(examples)))


class Around:
    def __init__(self):
        self.inner = RandomCutMix()

    def __call__(self, examples):
        return self.inner(examples)


def mixup_collate(examples):
    return RandomCutMix()(examples)


@pytest.mark.parametrize("collator", [RandomCutMix(), Around(), mixup_collate])
def test_a_mixing_collator_is_refused(train, collator):
    with pytest.raises(SettingError, match="same batch every time"):
        from_trainer(train(bert(), rows(), collator=collator))


def test_data_that_only_iterates_is_refused(train):
    with pytest.raises(DataError, match="only iterates"):
        from_trainer(train(bert(), rows().to_iterable_dataset(), max_steps=1))


def test_data_without_a_column_for_the_model_is_refused(train):
    with pytest.raises(DataError, match="Tokenise"):
        from_trainer(train(bert(), datasets.Dataset.from_dict({"text": ["a", "b"]})))


def _tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
