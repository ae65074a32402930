import re

import numpy as np
import pytest
import torch
from close import assert_close, assert_within
from tiny import EOS, V, make, read, texts
from torch.utils.data import TensorDataset

import forwardinf as fi
from forwardinf.data.padding import say_uncounted

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
FLOAT32 = "one float32 forward of another batch or another order of additions"


def prompted(rows, seed=0):
    """Rows whose first two tokens are a prompt that is not counted."""
    return [
        {
            "input_ids": row,
            "labels": torch.cat([torch.full((2,), -100), row[2:]]),
            "attention_mask": torch.ones_like(row),
        }
        for row in texts(rows, seed=seed)
    ]


@torch.no_grad()
def sum_of_hugging_face(model, row, counted):
    """The model's own loss of one row (a mean over its counted tokens) times their number."""
    batch = {name: value[None] for name, value in row.items()}
    return float(model(**batch).loss) * counted


# -- decoders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_decoders_loss_is_the_models_own_times_the_counted_tokens(name, dtype):
    model, task = make(name).to(dtype), fi.CausalLM()
    rows = prompted(5)
    want = [sum_of_hugging_face(model, row, int((row["labels"][1:] != -100).sum())) for row in rows]
    got = torch.cat([read(task, model, task.collate([row])) for row in rows])
    assert_close(got, torch.tensor(want), rtol=1e-5, why="the model takes its loss in float32")
    assert task.count(task.collate(rows)).tolist() == [len(row["input_ids"]) - 2 for row in rows]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_without_labels_every_token_but_the_padding_counts(name):
    model, task, rows = make(name), fi.CausalLM(), texts(5)
    want = [sum_of_hugging_face(model, {"input_ids": row, "labels": row}, len(row) - 1) for row in rows]
    assert_close(read(task, model, task.collate(rows)), torch.tensor(want), rtol=1e-5, why=FLOAT32)
    assert task.count(task.collate(rows)).tolist() == [len(row) - 1 for row in rows]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_on_either_side_changes_no_loss(name, side):
    model, task = make(name).double(), fi.CausalLM(padding_side=side)
    for rows in (texts(6), prompted(6)):
        alone = torch.cat([read(task, model, task.collate([row])) for row in rows])
        together = read(task, model, task.collate(rows))
        assert_close(together, alone, rtol=1e-9, why="float64; masked positions add exact zeros or exp(-large)")


def test_padding_with_the_end_token_changes_no_loss_either():
    model, rows = make("llama").double(), texts(6)
    alone = torch.cat([read(fi.CausalLM(), model, fi.CausalLM().collate([row])) for row in rows])
    for side in ("right", "left"):
        task = fi.CausalLM(pad_token_id=EOS, padding_side=side)
        assert_close(read(task, model, task.collate(rows)), alone, rtol=1e-9, why="float64; masked out")


def test_positions_that_are_given_are_kept():
    model, task = make("gpt2").double(), fi.CausalLM()
    row = texts(1)[0]
    shifted = {"input_ids": row, "position_ids": torch.arange(len(row)) + 5}
    want = sum_of_hugging_face(model, shifted | {"labels": row}, len(row) - 1)
    assert_close(read(task, model, task.collate([shifted])), [want], rtol=1e-6, why="the model's own loss is float32")
    assert abs(float(read(task, model, task.collate([row]))) - want) > 1e-3 * want


def test_a_row_without_counted_tokens_has_loss_and_score_zero():
    model, task, rows = make("llama"), fi.CausalLM(), prompted(4)
    rows[1]["labels"] = torch.full_like(rows[1]["labels"], -100)
    assert read(task, model, task.collate(rows))[1] == 0
    assert task.count(task.collate(rows))[1] == 0
    scores = fi.attribute(model, rows, rows[:1], task=task, progress=False)
    assert (scores.values[:, 1] == 0).all()
    assert (scores.values[:, [0, 2, 3]] != 0).all()


def test_a_row_of_one_token_has_nothing_to_predict():
    task = fi.CausalLM()
    batch = task.collate([torch.tensor([5]), torch.tensor([5, 6, 7])])
    assert read(task, make("llama"), batch)[0] == 0
    assert task.count(batch).tolist() == [0, 2]


def test_an_empty_row_among_others_has_loss_zero():
    task = fi.CausalLM()
    batch = task.collate([{"input_ids": [], "labels": []}, {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}])
    assert batch["input_ids"].dtype == torch.int64
    found = read(task, make("llama"), batch)
    assert found[0] == 0
    assert_close(found[1:], read(task, make("llama"), task.collate([[5, 6, 7]])), rtol=1e-5, why=FLOAT32)


def test_an_answers_margin_is_the_sum_of_log_odds_of_its_counted_tokens():
    model, rows = make("llama").double(), prompted(3)
    task = fi.CausalLM(query="margin")
    batch = task.collate(rows)
    with torch.no_grad():
        p = torch.log_softmax(
            model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1], -1
        ).exp()
        labels = batch["labels"][:, 1:]
        own = p.gather(2, labels.clamp_min(0)[..., None]).squeeze(2)
        want = ((own / (1 - own)).log() * (labels != -100)).sum(1)
        assert_close(task.measure(model, batch), want, rtol=1e-9, why="float64; 1 − p loses digits")
        assert_close(
            fi.CausalLM().measure(model, batch), -fi.CausalLM().loss(model, batch), rtol=1e-15, why="minus the loss"
        )


def test_columns_of_equal_length_need_no_collate():
    model, ids = make("llama"), torch.randint(3, V, (6, 7))
    for train, queries in (((ids,), (ids[:1],)), ({"input_ids": ids}, {"input_ids": ids[:1]}), (ids, ids[:1])):
        scores = fi.attribute(model, train, queries, task=fi.CausalLM(), progress=False)
        assert scores.values.shape == (1, 6)
        assert_close(scores.share[0, :1], torch.ones(1), rtol=2e-2, why="a copy has share 1, by differences in float32")


@pytest.mark.parametrize("bare", [torch.tensor([5, 6, 7]), {"input_ids": torch.tensor([5, 6, 7])}])
def test_one_text_passed_bare_is_told_to_go_into_a_list(bare):
    with pytest.raises(fi.TaskError, match=r"rows of token ids: a batch \(B, T\), got shape") as caught:
        fi.attribute(make("llama"), texts(3), bare, task=fi.CausalLM(), progress=False)
    assert "[test[0]]" in caught.value.do


@pytest.mark.parametrize(
    "settings", [{"query": "label"}, {"padding_side": "lft"}, {"documents": True}, {"documents": 1.5}]
)
def test_a_setting_of_a_decoders_task_that_is_not_known_is_refused(settings):
    with pytest.raises(fi.SettingError, match=rf"CausalLM\({next(iter(settings))}=\)"):
        fi.CausalLM(**settings)


def test_a_model_that_adds_tokens_of_its_own_is_refused():
    class Longer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make("llama")

        def forward(self, input_ids, attention_mask=None):
            return self.inner(torch.cat([input_ids[:, :1], input_ids], 1)).logits

    with pytest.raises(fi.TaskError, match="CausalLM: expected logits of shape"):
        read(fi.CausalLM(), Longer(), fi.CausalLM().collate(texts(2)))


IDS = torch.randint(3, V, (6, 7), generator=torch.Generator().manual_seed(0))
TUPLES = {
    "ids, mask, labels": (IDS, torch.ones_like(IDS), IDS),
    "ids, labels": (IDS, IDS),
    "pairs already shifted": (IDS[:, :-1], IDS[:, 1:]),
}


@pytest.mark.parametrize("kind", [fi.CausalLM, fi.Seq2Seq])
@pytest.mark.parametrize("form", TUPLES)
def test_columns_that_do_not_say_what_they_are_are_refused_in_every_form(form, kind):
    model = make("llama" if kind is fi.CausalLM else "t5")
    columns = TUPLES[form]
    rows = [tuple(column[row] for column in columns) for row in range(6)]
    for data in (columns, rows, [list(row) for row in rows], TensorDataset(*columns)):
        with pytest.raises(fi.TaskError, match="mapping"):
            fi.attribute(model, data, data if data is columns else rows[:1], task=kind(), progress=False)
    for batch in (columns, list(columns)):
        with pytest.raises(fi.TaskError, match="mapping"):
            kind().loss(model, batch)


def test_pairs_already_shifted_are_told_how_they_would_be_a_mapping():
    model, whole = make("llama"), IDS
    with pytest.raises(fi.TaskError, match=re.escape("{'input_ids': [*x, y[-1]]}")):
        read(fi.CausalLM(), model, (whole[:, :-1], whole[:, 1:]))
    x, y = whole[0, :-1], whole[0, 1:]
    with torch.no_grad():
        logits = model(x[None]).logits[0].double()
    want = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
    got = read(fi.CausalLM(), model, fi.CausalLM().collate([{"input_ids": [*x, y[-1]]}]))
    assert_close(got, want[None], rtol=1e-6, why=FLOAT32)


def test_a_dataset_of_ids_alone_is_read_as_ids():
    got = fi.attribute(make("llama"), TensorDataset(IDS), IDS[:1], task=fi.CausalLM(), progress=False)
    want = fi.attribute(make("llama"), IDS, IDS[:1], task=fi.CausalLM(), progress=False)
    assert_close(got.baseline, want.baseline, rtol=1e-6, why="the same rows")
    assert fi.CausalLM(documents=EOS).parts((torch.tensor([3, EOS, 4]),)) == 2


WRONG = {
    "ids that are no whole numbers": (IDS.float(), "whole numbers, got torch.float32"),
    "labels of another shape": ({"input_ids": IDS, "labels": IDS[:, 0]}, "one for each of the input_ids"),
    "labels beyond the vocabulary": ({"input_ids": IDS, "labels": IDS + V}, "from 0 to 22"),
    "labels below 0": ({"input_ids": IDS, "labels": IDS - 50}, "from 0 to 22 (or -100: not counted), got"),
    "no ids": ({"labels": IDS}, "'input_ids', got keys ['labels']"),
}


@pytest.mark.parametrize("name", WRONG)
def test_ids_and_labels_that_are_none_are_refused(name):
    batch, told = WRONG[name]
    with pytest.raises(fi.TaskError, match=re.escape(told)):
        fi.CausalLM().loss(make("llama"), batch)


def test_a_class_of_a_text_is_no_label_of_its_tokens():
    rows = [{"input_ids": row, "label": number % 2} for number, row in enumerate(texts(3))]
    plain = fi.CausalLM().collate(texts(3))
    got = read(fi.CausalLM(), make("llama"), fi.CausalLM().collate(rows))
    assert_close(got, read(fi.CausalLM(), make("llama"), plain), rtol=1e-12, why="the same texts")


# -- nothing to predict ------------------------------------------------------------------------------------------------

NOTHING = {
    "no token": [],
    "one token": [5],
    "no token, as a mapping": {"input_ids": [], "labels": []},
    "only padding": {"input_ids": [0, 0, 0], "attention_mask": [0, 0, 0]},
    "only padding, labelled": {"input_ids": [0, 0, 0], "attention_mask": [0, 0, 0], "labels": [4, 4, 4]},
    "no label that counts": {"input_ids": [5, 6, 7], "labels": [-100] * 3},
}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_with_nothing_to_predict_has_loss_score_and_count_0(name, what, side, caplog):
    say_uncounted.cache_clear()
    task, model, row = fi.CausalLM(padding_side=side), make(name), NOTHING[what]
    alone = task.collate([row, row])
    loss = task.loss(model, alone)
    assert loss.tolist() == [0, 0]
    assert task.count(alone).tolist() == [0, 0]
    loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    others = [{key: one[key] for key in row} for one in prompted(3)] if isinstance(row, dict) else texts(3)
    scores = fi.attribute(model, [others[0], row, *others[1:]], others[:1], task=task, progress=False)
    assert scores.values[0, 1] == 0
    assert scores.baseline[1] == 0
    assert np.isfinite(scores.values).all()
    assert (scores.values[0, [0, 2, 3]] != 0).all()
    assert caplog.text.count("rows in which no token is counted") == 1


def test_a_text_of_padding_leaves_no_nan_in_a_model_that_divides_by_its_mask():
    class Means(torch.nn.Module):
        """Each token sees the mean of what is not masked so far."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.out = torch.nn.Embedding(V, 8), torch.nn.Linear(8, V)

        def forward(self, input_ids, attention_mask):
            mask = attention_mask[..., None]
            return self.out((self.table(input_ids) * mask).cumsum(1) / mask.cumsum(1))

    task, rows = fi.CausalLM(), [*texts(3), torch.tensor([], dtype=torch.int64)]
    scores = fi.attribute(Means(), rows, rows[:1], task=task, perturbation=fi.Perturbation(), progress=False)
    assert np.isfinite(scores.values).all()
    assert scores.values[0, 3] == 0


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("answer", [[], [-100, -100]])
def test_an_answer_of_nothing_has_loss_score_and_count_0(name, answer):
    task, model, row = fi.Seq2Seq(), make(name), {"input_ids": [5, 6], "labels": answer}
    alone = task.collate([row])
    assert read(task, model, alone).tolist() == [0]
    assert task.count(alone).tolist() == [0]
    rows = [{"input_ids": one.tolist(), "labels": one[:2].tolist()} for one in texts(3)]
    scores = fi.attribute(model, [rows[0], row, *rows[1:]], rows[:1], task=task, progress=False)
    assert scores.values[0, 1] == 0
    assert np.isfinite(scores.values).all()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_question_of_nothing_is_one_token_of_padding_whatever_stands_beside_it(name):
    task, model = fi.Seq2Seq(), make(name).double()
    empty, long = {"input_ids": [], "labels": [5, 6]}, {"input_ids": list(range(3, 12)), "labels": [7]}
    alone = read(task, model, task.collate([empty]))
    assert torch.isfinite(alone).all()
    assert alone[0] > 0
    together = read(task, model, task.collate([empty, long]))
    assert_close(together[:1], alone, rtol=1e-9, why="float64; masked out")


# -- documents inside rows ---------------------------------------------------------------------------------------------


def packed_rows():
    """Rows of 3, 1 and 2 documents; each ends with the end token."""
    documents = [torch.cat([text, torch.tensor([EOS])]) for text in texts(6, 2, 5)]
    groups = [documents[:3], documents[3:4], documents[4:]]
    return [
        {
            "input_ids": torch.cat(group),
            "position_ids": torch.cat([torch.arange(len(one)) for one in group]),
            "doc": torch.cat([torch.full((len(one),), 7 * number + 1) for number, one in enumerate(group)]),
        }
        for group in groups
    ]


def only(rows, *names):
    return [{name: row[name] for name in ("input_ids", *names)} for row in rows]


BY = {
    "the end token": (EOS, lambda rows: only(rows)),
    "positions that restart": ("position_ids", lambda rows: only(rows, "position_ids")),
    "a column of numbers": ("doc", lambda rows: only(rows, "doc")),
}


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("side", ["right", "left"])
def test_documents_losses_add_up_to_the_rows(by, side):
    how, chosen = BY[by]
    rows, model = chosen(packed_rows()), make("llama").double()
    task = fi.CausalLM(documents=how, pad_token_id=EOS, padding_side=side)
    assert [task.parts(row) for row in rows] == [3, 1, 2]
    batch = task.collate(rows)
    found = read(task, model, batch)
    assert found.shape == (6,)
    whole = read(task.whole(), model, batch)
    summed = torch.stack([part.sum() for part in found.split([3, 1, 2])])
    assert_close(summed, whole, rtol=1e-12, why="the same tokens, added in another order")
    alone = torch.cat([read(task, model, task.collate([row])) for row in rows])
    assert_close(found, alone, rtol=1e-9, why="float64; padding is masked out")


def test_a_documents_loss_is_that_of_its_own_tokens():
    row, model = only(packed_rows())[0], make("llama").double()
    with torch.no_grad():
        logits = model(row["input_ids"][None]).logits[0, :-1]
    each = torch.nn.functional.cross_entropy(logits, row["input_ids"][1:], reduction="none")
    number = torch.cat([torch.zeros(1), (row["input_ids"][:-1] == EOS).cumsum(0)]).long()[1:]
    want = torch.zeros(3, dtype=torch.float64).index_add(0, number, each)
    task = fi.CausalLM(documents=EOS)
    assert_close(read(task, model, task.collate([row])), want, rtol=1e-12, why="the same tokens, float64")


@pytest.mark.parametrize("by", BY)
def test_documents_are_the_training_examples_of_an_attribution(by):
    how, chosen = BY[by]
    rows, model = chosen(packed_rows()), make("llama").double()
    task = fi.CausalLM(documents=how)
    queries = texts(2, seed=5) if "position" not in by else only(packed_rows(), "position_ids")[1:2]
    names = [f"document {n}" for n in range(6)]
    settings = {
        "task": task,
        "progress": False,
        "batch_size": 2,
        "perturbation": fi.Perturbation(),
        "engine": "forward",
    }
    scores = fi.attribute(model, rows, queries, ids=names, **settings)
    assert scores.ids == names
    assert scores.values.shape == (len(queries), 6)
    whole = fi.attribute(model, rows, queries, **(settings | {"task": task.whole()}))
    summed = np.stack([part.sum(1) for part in np.split(scores.values.astype(float), [3, 4], axis=1)], axis=1)
    assert_close(summed, whole.values, rtol=1e-4, why="float32 scores of float64 differences")
    assert_close(scores.baseline[3:4], whole.baseline[1:2], rtol=1e-12, why="a row of one document is that document")
    few = fi.attribute(model, rows, queries, candidates=[[5, 0]] * len(queries), **settings)
    assert np.isnan(few.values[:, [1, 2, 3, 4]]).all()
    assert_within(few.values[:, [0, 5]], scores.values[:, [0, 5]], atol=4 * scores.noise_floor, why="other batches")


def test_a_row_without_a_token_is_one_document_of_nothing():
    task, rows = fi.CausalLM(documents=EOS), [torch.tensor([3, EOS, 4]), torch.tensor([], dtype=torch.int64)]
    assert [task.parts(row) for row in rows] == [2, 1]
    loss = read(task, make("llama"), task.collate(rows))
    assert loss.shape == (3,)
    assert loss[2] == 0
    assert (loss[:2] > 0).all()


def test_a_mask_of_true_and_false_is_a_mask():
    batch, task = fi.CausalLM().collate(texts(3)), fi.CausalLM()
    true = batch | {"attention_mask": batch["attention_mask"].bool()}
    got = read(task, make("gpt2"), true)
    assert_close(got, read(task, make("gpt2"), batch), rtol=1e-6, why="the same mask")


def test_ids_for_rows_do_not_fit_documents():
    with pytest.raises(fi.DataError, match="train ids: expected 6, one for each example, got 3"):
        fi.attribute(make("llama"), only(packed_rows()), texts(1), task=fi.CausalLM(documents=EOS), ids=list("abc"),
                     progress=False)  # fmt: skip


def test_packed_queries_stay_rows():
    rows = only(packed_rows())
    scores = fi.attribute(make("llama"), rows, rows[:2], task=fi.CausalLM(documents=EOS), progress=False)
    assert scores.values.shape == (2, 6)
    assert scores.cross.shape == (2, 2)


def test_where_documents_cannot_be_told_apart_it_is_rows_and_says_so_once(caplog):
    from forwardinf.tasks.text import _say_rows

    _say_rows.cache_clear()
    task, rows = fi.CausalLM(documents="chapter"), only(packed_rows())
    scores = fi.attribute(make("llama"), rows, texts(1), task=task, progress=False)
    assert scores.values.shape == (1, 3)
    assert caplog.text.count("no column 'chapter' in the training rows: each row is read as one document") == 1


def test_documents_of_plain_lists_are_found_by_the_end_token():
    task = fi.CausalLM(documents=EOS)
    assert [task.parts(row) for row in ([3, 4], [3, EOS], [3, EOS, 4], [EOS, EOS, 3], [EOS])] == [1, 1, 2, 3, 1]


def test_a_subclass_keeps_what_its_queries_are_asked():
    class Doubled(fi.CausalLM):
        def measure(self, model, batch):
            return 2 * super().measure(model, batch)

    model, rows = make("llama").double(), texts(4)
    rate = fi.Perturbation()
    plain = fi.attribute(model, rows, rows[:1], task=fi.CausalLM(), perturbation=rate, progress=False)
    doubled = fi.attribute(model, rows, rows[:1], task=Doubled(), perturbation=rate, progress=False)
    assert_close(doubled.values, 2 * plain.values, rtol=1e-4, why="linear in the query's gradient; float32 values")


# -- encoder-decoders --------------------------------------------------------------------------------------------------


def pairs(rows, seed=0):
    asked, answers = texts(rows, seed=seed), texts(rows, 2, 6, seed=seed + 1)
    return [{"input_ids": one, "labels": other} for one, other in zip(asked, answers, strict=True)]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoders_loss_is_the_models_own_times_the_counted_tokens(name):
    model, task, rows = make(name), fi.Seq2Seq(), pairs(5)
    rows[2]["labels"][0] = -100
    want = [sum_of_hugging_face(model, row, int((row["labels"] != -100).sum())) for row in rows]
    assert_close(read(task, model, task.collate(rows)), torch.tensor(want), rtol=1e-5, why=FLOAT32)
    assert task.count(task.collate(rows)).tolist() == [int((row["labels"] != -100).sum()) for row in rows]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_padding_of_question_and_answer_changes_no_loss(name):
    model, task, rows = make(name).double(), fi.Seq2Seq(), pairs(6)
    alone = torch.cat([read(task, model, task.collate([row])) for row in rows])
    assert_close(read(task, model, task.collate(rows)), alone, rtol=1e-9, why="float64; masked out")


def test_an_encoder_decoder_can_be_attributed_and_finds_the_copy():
    rows = pairs(8)
    scores = fi.attribute(make("t5"), rows, rows[3:4], task=fi.Seq2Seq(), progress=False)
    assert_close(scores.share[0, 3:4], torch.ones(1), rtol=2e-2, why="a copy has share 1, by differences in float32")


def test_what_an_encoder_decoders_task_needs_is_said():
    with pytest.raises(fi.TaskError, match="Seq2Seq: expected a batch with 'input_ids' and 'labels'"):
        read(fi.Seq2Seq(), make("t5"), fi.Seq2Seq().collate(texts(2)))
    with pytest.raises(fi.TaskError, match="Seq2Seq: expected decoder_input_ids in the batch"):
        read(fi.Seq2Seq(), make("llama"), fi.Seq2Seq().collate(pairs(2)))


# -- adapters ----------------------------------------------------------------------------------------------------------


def adapted(model):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(model, config)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return wrapped


def test_an_adapter_has_the_models_own_loss_and_moves_alone():
    model, task, rows = adapted(make("llama")), fi.CausalLM(), prompted(5)
    want = [sum_of_hugging_face(model.eval(), row, int((row["labels"][1:] != -100).sum())) for row in rows]
    assert_close(read(task, model, task.collate(rows)), torch.tensor(want), rtol=1e-5, why=FLOAT32)
    scores = fi.attribute(model, rows, rows[:1], task=task, progress=False, perturbation={"length": 0.02})
    assert scores.values[0, 0] > 0
    assert_close(scores.length, [0.02], rtol=1e-2, why="the ruler measures the product BA to 1e-6; float32 weights")


def test_an_adapter_may_have_documents_and_an_answer_to_give():
    rows = only(packed_rows())
    scores = fi.attribute(adapted(make("llama")), rows, rows[:1], task=fi.CausalLM(documents=EOS), progress=False)
    assert scores.values.shape == (1, 6)


def test_an_adapter_on_an_encoder_decoder_still_shifts_the_labels():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    rows = pairs(3)
    wrapped = peft.get_peft_model(make("t5"), config).eval()
    want = [sum_of_hugging_face(wrapped, row, len(row["labels"])) for row in rows]
    assert_close(read(fi.Seq2Seq(), wrapped, fi.Seq2Seq().collate(rows)), torch.tensor(want), rtol=1e-5, why=FLOAT32)
