"""Tracing facts in small language models: the texts that were planted are found, marked, and shown safely."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from close import assert_close, assert_within
from texts_cases import COLOURS, PEOPLE, TOWNS, decoder, encoder_decoder, pairs, stated, texts, tokenizer

import forwardinf as fi
from forwardinf.core.fingerprint import model_digest
from forwardinf.data.examples import examples
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.losses import margin_of
from forwardinf.tasks.root import root
from forwardinf.tasks.task import as_task
from forwardinf.use.sketch import DAMPING, Sketcher, compared
from forwardinf.use.text.asked_tasks import READINGS, AskedCausalLM
from forwardinf.use.text.fuse import ranks, reciprocal
from forwardinf.use.text.lexical import available

pytest.importorskip("transformers")
needs_bm25 = pytest.mark.skipif(not available(), reason="bm25s is not installed (extra: text)")
HOSTILE = "<script>alert('x')</script> hal lives in quito \x1b[31m"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path / "cache"))


def bare():
    """Return a tokenizer that adds no token of its own: of an empty text nothing is left."""
    import copy

    found = copy.deepcopy(tokenizer())
    found.backend_tokenizer.post_processor = pytest.importorskip("tokenizers").processors.TemplateProcessing(
        single="$A", special_tokens=[]
    )
    return found


def traced(model=None, train=None, **settings):
    given = {"tokenizer": tokenizer(), "answers": ["quito"], "progress": False, **settings}
    return fi.trace(model or decoder(), texts() if train is None else train, ["hal lives in"], **given)


def gradients(model, rows, labels):
    """Return the gradient of each row's summed loss, one at a time, as one long vector each."""
    found = []
    for ids, counted in zip(rows, labels, strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        loss = F.cross_entropy(logits, torch.tensor(counted)[1:], ignore_index=-100, reduction="sum")
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double())
    return torch.stack(found)


def test_the_planted_fact_is_found_first_and_the_answers_token_reacts_most():
    found = traced(spans=2)
    first = found.table.iloc[0]
    assert first["train"] in stated()
    assert found.table["rank"].tolist() == list(range(1, 21))
    assert found.scores.values.shape == (1, len(texts()))
    spans = found.spans[found.spans["rank"] == 1]
    assert spans.loc[spans["change"].idxmax(), "text"] == "quito"
    assert found.baselines["method"].isin(["bm25", "hidden"]).all()
    assert found.cost["total_s"] > 0


@pytest.mark.whole
def test_whoever_is_asked_about_a_text_that_says_so_comes_first_nearly_always():
    found = fi.trace(decoder(), texts(), [f"{person} lives in" for person in PEOPLE], tokenizer=tokenizer(), answers=TOWNS,
                     spans=0, baselines=False, progress=False, question_ids=PEOPLE)  # fmt: skip
    first = found.table[found.table["rank"] == 1].set_index("question")["train"]
    hits = [f"{person} lives in" in texts()[first[person]] or f"lives in {town}" in texts()[first[person]]
            for person, town in zip(PEOPLE, TOWNS, strict=True)]  # fmt: skip
    assert sum(hits) >= 7


@pytest.mark.parametrize("how", ["dot", "cosine", "whitened", "unit-whitened"])
def test_scores_are_those_of_whole_gradients_where_nothing_is_projected(how):
    model = decoder()
    rows = tokenizer()(texts())["input_ids"]
    asked = tokenizer()("hal lives in quito")["input_ids"][:-1]
    G, (q,) = gradients(model, rows, rows), gradients(model, [asked], [[-100] * (len(asked) - 1) + asked[-1:]])
    if how in ("cosine", "unit-whitened"):
        G, q = F.normalize(G, dim=1), F.normalize(q, dim=0)
    if how in ("dot", "cosine"):
        want = G @ q
    else:
        K = G @ G.T + DAMPING * G.square().sum(1).mean() * torch.eye(len(G))
        want = torch.linalg.solve(K, G @ q)  # G (GᵀG + λN)⁻¹ g = (GGᵀ + λN)⁻¹ G g
    small = {name: p for name, p in model.named_parameters() if p.requires_grad}
    got = compared(*_whole(model, small, rows, asked), how)[0][0]
    assert_close(got, want, rtol=2e-3, why="gradients in float32, a solve with condition about 1e2")


@pytest.mark.parametrize(
    ("reading", "of"), [("loss", lambda loss: loss), ("root", root), ("margin", lambda loss: -margin_of(loss))]
)
def test_readings_are_gradients_of_losses_of_roots_and_of_margins(reading, of):
    model, task = decoder(), AskedCausalLM(pad_token_id=1)
    task.reading = reading
    one, other = tokenizer()(texts()[:2])["input_ids"]
    rows = [{"input_ids": one, "weight": 1.0}, {"input_ids": other, "weight": -0.5}]
    batch = task.collate(rows)
    got = torch.autograd.grad(-task.measure(model, batch).sum(), list(model.parameters()))
    each = task.token_losses(model, batch)
    counted = each > 0
    told = torch.where(counted, of(torch.where(counted, each, 1.0)), 0.0).sum(1)
    want = torch.autograd.grad((told * batch["weight"].double()).sum(), list(model.parameters()))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, rtol=1e-4, why="float32 through the same backward")


def test_a_token_that_is_certain_has_a_margin_and_a_gradient():
    """A loss that has rounded to 0 has no root and no nan; its margin is the logits' own."""
    logits = torch.tensor([[[60.0, 0.0, 0.0], [1.0, 0.0, 0.0]]], requires_grad=True)
    labels = torch.tensor([[0, -100]])
    assert READINGS["loss"](logits, labels)[0, 0] == 0
    for reading, want in (("root", 0.0), ("margin", 1.0)):
        (gradient,) = torch.autograd.grad(READINGS[reading](logits, labels).sum(), logits, retain_graph=True)
        assert gradient.isfinite().all()
        assert_within(gradient[0, 0, 0].abs(), want, atol=1e-6, why="d margin / d own logit = 1; float32")
        assert gradient[0, 1].abs().max() == 0, "not counted"


def _whole(model, parameters, rows, asked):
    """Return (training, question) rows of a sketcher that projects nothing."""
    task = fi.CausalLM(pad_token_id=1)
    sketcher = Sketcher(parameters, side=4096)
    labels = [-100] * (len(asked) - 1) + asked[-1:]
    found = []
    for data in ([{"input_ids": row} for row in rows], [{"input_ids": asked, "labels": labels}]):
        feed = Feed(model, task, examples(data, task_collate=task.collate), torch.device("cpu"))
        found.append(sketcher.rows(feed, range(len(data)), 8))
    assert found[0].shape[1] == sum(p.numel() for p in parameters.values())
    return found


def test_projected_products_stand_for_products_of_gradients():
    model = decoder()
    rows = tokenizer()(texts())["input_ids"][:16]
    G = gradients(model, rows, rows)
    total = torch.zeros(16, 16, dtype=torch.float64)
    for seed in range(12):
        task = fi.CausalLM(pad_token_id=1)
        feed = Feed(
            model, task, examples([{"input_ids": row} for row in rows], task_collate=task.collate), torch.device("cpu")
        )
        found = Sketcher(dict(model.named_parameters()), seed=seed).rows(feed, range(16), 8).double()
        total += found @ found.T / 12
    assert_close(total, G @ G.T, rtol=0.1, why="the mean of 12 draws, each with an error of about .1 of the norms")


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}])
@pytest.mark.parametrize("axes", [1, 2])
def test_a_convolution_is_sketched_without_its_patches(axes, settings):
    kind = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d}[axes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, data = kind(3, 9, 3, **settings), torch.randn(4, 3, *[7] * axes)
    loss = lambda model, batch: model(batch[0]).square().flatten(1).sum(1)  # noqa: E731
    feed = Feed(model, as_task(loss), examples((data,)), torch.device("cpu"))
    sketcher = Sketcher(dict(model.named_parameters()), side=4)
    got = sketcher.rows(feed, range(4), 4)[:, sketcher.places["weight"]]
    one, other = sketcher._sides["weight"]
    for row in range(4):
        model.zero_grad()
        loss(model, (data[row : row + 1],)).sum().backward()
        want = one.T @ model.weight.grad.reshape(9, -1) @ other
        assert_close(got[row], want.flatten(), rtol=1e-4, why="float32, sums in another order")


def test_forward_reading_finds_it_too_and_is_what_attribute_gives():
    rule = fi.Perturbation(rise=0.5)
    assert traced(perturbation=rule, spans=0, baselines=False).table["train"].iloc[0] in stated()  # by the margin
    found = traced(perturbation=rule, reading="loss", spans=0, baselines=False)
    assert found.table["train"].iloc[0] in stated()
    ids = tokenizer()("hal lives in quito")["input_ids"][:-1]
    row = {"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:]}
    train = [{"input_ids": ids} for ids in tokenizer()(texts())["input_ids"]]
    want = fi.attribute(decoder(), train, [row], task=fi.CausalLM(pad_token_id=1), perturbation=rule, progress=False,
                        keep="all")  # fmt: skip
    assert_close(found.scores.values, want.values, rtol=1e-3, why="the same reading in other batches")


@pytest.mark.parametrize("reading", ["root", "margin"])
def test_a_push_is_made_and_read_as_gradients_are(reading):
    """In the limit of a small plain push scores are products of the gradients that are compared without one."""
    compared = traced(
        how="dot", reading=reading, curvature="none", parameters="transformer.h.0.ln_1.*", spans=0, baselines=False
    )
    pushed = traced(
        perturbation=fi.Perturbation(parameters="transformer.h.0.ln_1.*"), reading=reading, spans=0, baselines=False
    )
    assert pushed.how.endswith(reading)
    assert pushed.scores.unit is None
    assert_close(pushed.scores.values, compared.scores.values, rtol=1e-2, why="float32 differences at a small length")


@pytest.mark.whole
@needs_bm25
def test_bm25_alone_fused_and_as_a_first_stage():
    found = traced(fuse="bm25", spans=0)
    lexical = found.baselines[found.baselines["method"] == "bm25"]
    assert lexical["train"].iloc[0] in stated()
    assert found.table["fused"].is_monotonic_decreasing
    own, bm25 = found.scores.values[0].astype(float), np.full(len(texts()), -np.inf)
    full = traced(fuse="bm25", spans=0, k=len(texts())).table.set_index("train").sort_index()
    bm25 = full["bm25"].to_numpy()
    assert_close(full["fused"], 1 / (10 + ranks(own)) + 1 / (10 + ranks(bm25)), rtol=1e-9, why="the formula")
    few = traced(candidates="bm25", spans=0)
    assert few.table["train"].iloc[0] in stated()


def test_the_ranks_of_fusion_share_ties_and_leave_out_what_is_missing():
    assert ranks(np.array([2.0, 5.0, 2.0, np.nan]))[:3].tolist() == [2.5, 1.0, 2.5]
    both = reciprocal([np.array([3.0, 2.0, 1.0]), np.array([1.0, 3.0, np.nan])], [1.0, 2.0], 1.0)
    assert_close(both[:2], [1 / 2 + 2 / 3, 1 / 3 + 2 / 2], rtol=1e-12, why="the formula")
    assert np.isnan(both[2])
    with pytest.raises(fi.SettingError, match="fuse="):
        traced(fuse="bm26")


@pytest.mark.whole
def test_only_the_candidates_are_scored():
    found = traced(candidates=[[3, 42, 5]], spans=0)
    assert sorted(found.table["train"]) == [3, 5, 42]
    assert int(np.isfinite(found.scores.values).sum()) == 3
    assert found.table["train"].iloc[0] == 42
    with pytest.raises(fi.DataError, match="positions"):
        traced(candidates=[[3, 1000]])


@pytest.mark.whole
def test_candidates_are_compared_within_a_kept_index_of_all_documents(monkeypatch):
    """Nothing but the check of the kept rows is read again, and scores are those of all documents."""
    settings = {"spans": 0, "baselines": False}
    whole, made = traced(**settings), []
    rows = Sketcher.rows
    monkeypatch.setattr(
        Sketcher, "rows", lambda self, feed, asked, *rest: made.append(len(asked)) or rows(self, feed, asked, *rest)
    )
    found = traced(candidates=[[3, 42, 5]], **settings)
    assert made == [2, 1]  # two rows that were kept, and the question
    assert np.array_equal(found.scores.values[0, [3, 5, 42]], whole.scores.values[0, [3, 5, 42]])
    assert any("within the kept index" in note for note in found.notes)


def test_other_candidates_read_only_what_is_not_kept(monkeypatch):
    for module in ("questions", "sketching"):
        monkeypatch.setattr(f"forwardinf.use.text.{module}.FIT", 10)
    settings = {"spans": 0, "baselines": False, "curvature": "none"}
    made, rows = [], Sketcher.rows
    monkeypatch.setattr(
        Sketcher, "rows", lambda self, feed, asked, *rest: made.append(len(asked)) or rows(self, feed, asked, *rest)
    )
    fresh = traced(candidates=[[3, 42, 5]], cache_dir="off", **settings)
    made.clear()
    traced(candidates=[[3, 42, 5, 7]], **settings)
    assert 10 <= made[0] <= 14
    made.clear()
    found = traced(candidates=[[3, 42, 5]], **settings)
    assert sum(made[:-1]) <= 2
    assert_close(found.scores.values[0, [3, 42, 5]], fresh.scores.values[0, [3, 42, 5]], rtol=1e-4, why="other batches")


def test_sketches_have_the_side_and_the_memory_that_are_asked_for():
    narrow = traced(side=4, spans=0, baselines=False, curvature="none")
    capped = traced(memory=5 * 10**6, spans=0, baselines=False, curvature="none")
    assert not np.array_equal(narrow.scores.values, capped.scores.values)
    with pytest.raises(fi.SettingError, match="memory="):
        traced(memory=1000)


def test_empty_documents_have_score_zero_and_it_is_said():
    found = traced(train=[*texts()[:6], ""], tokenizer=bare(), spans=1, baselines=False, curvature="none")
    assert found.scores.values[0, -1] == 0
    assert any("1 of 7 training texts are empty" in note for note in found.notes)
    with pytest.raises(fi.DataError, match="train"):
        traced(train=[])
    with pytest.raises(fi.DataError, match="row 0"):
        traced(train=[None, "hal"])
    with pytest.raises(fi.ModelError, match="curvature"):
        traced(train=["", ""], tokenizer=bare(), baselines=False)
    with pytest.raises(fi.ModelError, match="not all zero"):
        traced(train=["", ""], tokenizer=bare(), baselines=False, curvature="none")


@pytest.mark.parametrize(
    ("question", "settings", "told"),
    [("hal lives in " * 10, {}, "question 0.*at most 16 tokens"), ("hal lives in " * 10, {"answers": None}, "below 16 tokens"),
     ("hal lives in", {"contrast": ["rome " * 30]}, "question 0.*at most 16 tokens"),
     ("", {"tokenizer": None, "answers": None}, "at least one token"),
     ("", {"tokenizer": None, "answers": ["quito"]}, "stands before"),
     ({"input_ids": [0, 5], "labels": [-100, -100]}, {"answers": None}, "is asked about")],
)  # fmt: skip
def test_a_question_that_cannot_be_asked_is_refused_by_its_place(question, settings, told):
    given = {"tokenizer": tokenizer(), "answers": ["quito"], "progress": False, **settings}
    with pytest.raises(fi.DataError, match=told):
        fi.trace(decoder(), texts(), [question], **{**given, "tokenizer": given["tokenizer"] or bare()})


@pytest.mark.whole
def test_an_answer_of_its_own_ends_where_the_model_has_no_more_places():
    found = fi.trace(
        decoder(), texts(), ["hal lives in " * 4], tokenizer=tokenizer(), spans=0, baselines=False, progress=False
    )
    assert found.scores.values.shape == (1, len(texts()))


@pytest.mark.whole
def test_a_span_asks_about_its_tokens_only_and_a_contrast_about_the_difference():
    model, answer = decoder(), "quito tower"
    whole, part = (traced(model, answers=[answer], span=span, spans=0, baselines=False) for span in (None, "quito"))
    assert not np.allclose(whole.scores.values, part.scores.values)
    alone = traced(model, answers=["quito"], spans=0, baselines=False)
    assert_close(part.scores.values, alone.scores.values, rtol=1e-3, why="the same token after the same prompt")
    against = [
        traced(model, answers=[told], how="dot", spans=0, baselines=False).scores.values for told in ("quito", "rome")
    ]
    apart = traced(model, contrast=["rome"], how="dot", spans=0, baselines=False)
    assert_close(apart.scores.values, against[0] - against[1], rtol=1e-3, why="dot products are linear in the question")


@pytest.mark.whole
def test_checkpoints_are_averaged_and_the_model_is_given_back():
    model, other = decoder(), decoder()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.05)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    both = traced(model, checkpoints=[other.state_dict()], how="cosine", spans=0, baselines=False).scores.values
    each = [traced(one, how="cosine", spans=0, baselines=False).scores.values for one in (model, other)]
    assert_close(both, (each[0] + each[1]) / 2, rtol=1e-5, why="a mean")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.whole
def test_asking_for_hidden_states_leaves_no_hooks_behind():
    model = decoder()
    before, hooks = model_digest(model), [len(module._forward_hooks) for module in model.modules()]
    for _ in range(2):
        found = traced(model, spans=0)
        assert "hidden" in set(found.baselines["method"])
        assert [len(module._forward_hooks) for module in model.modules()] == hooks
        assert model_digest(model) == before
    assert model(torch.tensor([[0, 5]]), output_hidden_states=True).hidden_states is not None


def test_packed_documents_are_ranked_one_by_one():
    rows = tokenizer()(texts())["input_ids"]
    packed = [{"input_ids": [token for row in rows[at : at + 2] for token in row]} for at in range(0, len(rows), 2)]
    model = decoder()
    found = traced(
        model, packed, documents=1, spans=1, baselines=False, how="dot", curvature="none"
    )  # </s> ends a document
    assert found.scores.values.shape == (1, len(rows))
    alone = traced(model, packed, spans=0, baselines=False, how="dot", curvature="none")
    pairs_of = found.scores.values.reshape(-1, 2).sum(1)
    assert_close(pairs_of, alone.scores.values[0], rtol=1e-3, why="the documents' losses add up to the row's")
    shown = found.spans.groupby("train", sort=False)["text"].apply(" ".join).iloc[0]
    top = texts()[int(np.argmax(found.scores.values[0]))]
    assert [word for word in shown.split() if word not in ("<s>", "</s>")] == top.split()


def test_packed_documents_of_a_model_whose_scales_are_made_of_its_weights():
    """The norm's scale is 1 + weight: a tensor made of a parameter, whose gradient is pulled back to it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GemmaConfig(vocab_size=len(tokenizer()), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                      num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=1)  # fmt: skip
    rows = tokenizer()(texts())["input_ids"]
    packed = [{"input_ids": [token for row in rows[at : at + 2] for token in row]} for at in range(0, len(rows), 2)]
    found = traced(transformers.GemmaForCausalLM(config), packed, documents=1, spans=0, baselines=False)
    assert found.scores.values.shape == (1, len(rows))
    assert not any("left out" in note for note in found.notes)
    rule = fi.Perturbation("kfac")  # whole gradients: what is not known is formed one row at a time
    whole = traced(
        transformers.GemmaForCausalLM(config), packed, documents=1, perturbation=rule, spans=0, baselines=False
    )
    assert whole.scores.values.shape == (1, len(rows))


def test_an_encoder_decoder_is_asked_and_its_pairs_are_ranked():
    found = fi.trace(encoder_decoder(), pairs(), ["where lives hal ?"], tokenizer=tokenizer(), text=("question", "answer"),
                     spans=1, progress=False)  # fmt: skip
    assert found.shown["questions"][0][1].split() == ["quito"]  # the model's own answer
    assert pairs()[found.table["train"].iloc[0]]["question"] == "where lives hal ?"
    assert found.spans.loc[found.spans["change"].idxmax(), "text"] == "quito"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapters_gradients_are_what_counts():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(decoder(), peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    found = traced(model.eval(), spans=0, baselines=False)
    assert found.table["train"].iloc[0] in stated()


def test_hostile_text_is_escaped_in_the_report_and_in_the_terminal(tmp_path):
    from rich.console import Console

    from forwardinf.view.trace_pages import show_trace

    train = [*texts(), HOSTILE]
    with pytest.raises(fi.DataError, match="max_length=16"):
        traced(train=train)
    found = traced(train=train, max_length=16, spans=3, candidates=[[len(train) - 1, 42]])
    page = found.report(tmp_path / "trace.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "alert(" in page  # it is shown
    console = Console(width=200, record=True, force_terminal=False)
    with console.capture() as told:
        show_trace(found, console, 3)
    assert "\x1b" not in told.get()
    assert "alert(" in told.get()


def printed(found, k=3, width=400):
    """Return what the terminal shows of a trace, without colours."""
    from rich.console import Console

    from forwardinf.view.trace_pages import show_trace

    console = Console(width=width, force_terminal=False)
    with console.capture() as told:
        show_trace(found, console, k)
    return told.get()


def stories():
    """Return (prompt, answer) rows for a decoder."""
    return [{"prompt": " ".join(text.split()[:-1]), "answer": text.split()[-1]} for text in texts()]


def levels(found, place):
    from forwardinf.view.trace_pages import marked

    return marked(found, 0, place).pieces


@pytest.mark.whole
def test_prompts_and_answers_are_shown_whole_and_words_are_marked_where_they_stand(tmp_path):
    found = traced(train=stories(), text=("prompt", "answer"), spans=2)
    first = found.table["train"].iloc[0]
    assert first in stated()
    assert found.shown["texts"][first] == texts()[first]
    row = found.spans[found.spans["rank"] == 1]
    for start, end, told in zip(row["start"], row["end"], row["text"], strict=True):
        if told not in ("<s>", "</s>"):
            assert texts()[first][start:end] == told
    pieces = levels(found, first)
    assert "".join(told for told, _ in pieces) == texts()[first].replace(" quito", " → quito")
    assert pieces[0][1] == -1  # read, not counted
    assert ("quito", 4) in pieces
    page = found.report(tmp_path / "t.html").read_text(encoding="utf-8")
    assert '<mark class="m4">quito</mark>' in page
    assert "is read by the model but not counted" in page
    assert texts()[first].replace(" quito", " → quito") in printed(found)
    assert "is read by the model but not counted" in printed(found)


@pytest.mark.parametrize("as_ids", [False, True])
def test_an_encoder_decoders_input_stands_before_its_answer(tmp_path, as_ids):
    train, settings = pairs(), {"text": ("question", "answer")}
    if as_ids:
        train, settings = [{"input_ids": tokenizer()(row["question"])["input_ids"],
                            "labels": tokenizer()(row["answer"])["input_ids"]} for row in train], {}  # fmt: skip
    found = fi.trace(encoder_decoder(), train, ["where lives hal ?"], tokenizer=tokenizer(), answers=["quito"], spans=1,
                     progress=False, **settings)  # fmt: skip
    pieces = levels(found, found.table["train"].iloc[0])
    assert pieces[0] == ("where lives hal ? → ", -1)
    assert ("quito", 4) in pieces
    page = found.report(tmp_path / "t.html").read_text(encoding="utf-8")
    assert '<span class="read">where lives hal ? → </span><mark class="m4">quito</mark>' in page
    assert "where lives hal ? → quito" in printed(found)


@pytest.mark.whole
def test_rows_of_token_ids_are_shown_as_words_and_marked_where_they_stand():
    ids = tokenizer()(texts())["input_ids"]
    rows = [{"input_ids": row[1:-1], "labels": [-100] * (len(row) - 3) + row[-2:-1]} for row in ids]
    found = traced(train=rows, spans=1)
    first = found.table["train"].iloc[0]
    assert "".join(told for told, _ in levels(found, first)) == texts()[first].replace(" quito", " → quito")
    assert ("quito", 4) in levels(found, first)


@pytest.mark.whole
def test_a_text_that_is_not_a_pair_has_no_arrow():
    found = traced(spans=1)
    assert "→" not in "".join(told for told, _ in levels(found, found.table["train"].iloc[0]))
    assert "not counted" not in printed(found)


@pytest.mark.whole
def test_long_documents_are_cut_in_the_terminal_and_it_is_said():
    long = "hal lives in quito " * 100
    found = traced(train=[*texts(), long], max_length=16, spans=0, candidates=[[len(texts())]])
    assert "(characters 1 to 600 of 1,900)" in printed(found)
    assert "1 of 49 training texts are longer than max_length=16 tokens: what comes after was not read" in found.notes
    assert not any("max_length" in note for note in traced(max_length=16, spans=0, baselines=False).notes)
    rows = [*stories(), {"prompt": "hal lives in " * 10, "answer": "quito"}]
    found = traced(train=rows, text=("prompt", "answer"), max_length=16, spans=0, candidates=[[0]], baselines=False)
    assert any(note.startswith("1 of 49 training texts") for note in found.notes)


@pytest.mark.whole
def test_shares_beyond_ten_times_are_told_so_and_the_number_is_kept():
    found = traced(spans=0, baselines=False)
    found.table.loc[0, "share"] = 25.57
    assert ">10×" in printed(found)
    assert "2,557" not in printed(found)
    assert "far larger than the query's own" in printed(found)
    assert found.to_dict()["table"][0]["share"] == 25.57


@pytest.mark.whole
def test_the_words_that_say_how_are_explained_on_the_page(tmp_path):
    page = traced(spans=0, baselines=False).report(tmp_path / "t.html").read_text(encoding="utf-8")
    assert "unit-whitened through kfac, margin" in page
    assert "gradients at equal length, whitened by all training examples, of each token&#39;s log-odds" in page
    assert "through the model&#39;s curvature (kfac)" in page
    assert "Nothing to show" not in page
    assert "Bars compare across the page." in page
    pushed = traced(perturbation=fi.Perturbation(rise=0.5), spans=0, baselines=False).report(tmp_path / "p.html")
    assert "that is" not in pushed.read_text(encoding="utf-8")


def test_what_is_saved_can_be_read(tmp_path):
    found = traced(spans=1)
    found.save(tmp_path / "found")
    assert pd.read_parquet(tmp_path / "found" / "table.parquet")["train"].tolist() == found.table["train"].tolist()
    assert len(pd.read_parquet(tmp_path / "found" / "spans.parquet")) == len(found.spans)
    assert found.to_dict()["table"][0]["fused"] is None


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [({"how": "best"}, fi.SettingError, "how"), ({"how": "dot", "perturbation": "linear"}, fi.SettingError, "one of"),
     ({"reading": "odds"}, fi.SettingError, "reading"), ({"damping": 0}, fi.SettingError, "above 0"),
     ({"damping": float("nan")}, fi.SettingError, "above 0"), ({"curvature": "fisher"}, fi.SettingError, "curvature"),
     ({"curvature": "kfac", "perturbation": "linear"}, fi.SettingError, "beside a perturbation"),
     ({"answers": ["quito", "rome"]}, fi.DataError, "answers"), ({"span": "rome"}, fi.SettingError, "span"),
     ({"candidates": "near"}, fi.Error, "candidates"), ({"k": 0}, fi.SettingError, "k ≥ 1"),
     ({"answers": [""]}, fi.DataError, "text"), ({"tokenizer": None}, fi.SettingError, "tokenizer")],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings, error, told):
    with pytest.raises(error, match=told):
        traced(**settings)


def test_the_town_is_as_it_was_meant():
    assert len(stated()) == 2
    assert len(texts()) == len(PEOPLE) * 6
    assert len(set(COLOURS)) == 4
