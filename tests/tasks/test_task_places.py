"""One class for each token or pixel: losses of torch and of transformers' own models, counts, queries, drawn labels, refusals."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import assert_close
from tiny import make, read, texts, transformers
from torch import nn

import forwardinf as fi
from forwardinf.data import noise
from forwardinf.data.padding import say_uncounted

C = 4
SAME = "float64 from the same float32 logits on"
FLOAT32 = "one float32 forward of another batch"


# -- tokens ------------------------------------------------------------------------------------------------------------


def tagged(rows, seed=0):
    """Rows whose tokens have classes, some of them (pieces of words) not counted."""
    draw = torch.Generator().manual_seed(seed + 10)
    found = []
    for ids in texts(rows, seed=seed):
        labels = torch.randint(0, C, (len(ids),), generator=draw)
        labels[1::3] = -100
        found.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return found


def counted(row):
    return sum(label != -100 for label in row["labels"])


def test_a_taggers_loss_is_the_models_own_times_the_counted_tokens():
    model, task, rows = make("tagger"), fi.TokenClassification(), tagged(6)
    batch = task.collate(rows)
    with torch.no_grad():
        want = [
            float(model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss) * counted(row)
            for row in rows
        ]
    assert_close(read(task, model, batch), torch.tensor(want), rtol=1e-5, why="the model takes its loss in float32")
    assert task.count(batch).tolist() == [counted(row) for row in rows]
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert task.unit == "nats"


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_loss_of_a_tagger(side):
    model, task, rows = make("tagger").double(), fi.TokenClassification(padding_side=side), tagged(6)
    for row in rows:
        row["position_ids"] = list(range(len(row["input_ids"])))
    alone = torch.cat([read(task, model, task.collate([row])) for row in rows])
    assert_close(read(task, model, task.collate(rows)), alone, rtol=1e-9, why="float64; masked out")


@pytest.mark.parametrize("column", ["labels", "label", "ner_tags"])
def test_labels_are_padded_with_what_is_not_counted_whatever_their_column(column):
    rows = [{"input_ids": row["input_ids"], column: row["labels"]} for row in tagged(4)]
    task = fi.TokenClassification(label=None if column in ("labels", "label") else column)
    got = read(task, make("tagger"), task.collate(rows))
    want = read(fi.TokenClassification(), make("tagger"), fi.TokenClassification().collate(tagged(4)))
    assert_close(got, want, rtol=1e-12, why="the same rows")


def test_a_tagger_is_asked_its_labels_what_it_predicts_or_its_margins():
    model, rows = make("tagger"), tagged(4)
    batch = fi.TokenClassification().collate(rows)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach().double()
    labels, gone = batch["labels"], batch["labels"] == -100
    with torch.no_grad():
        got = fi.TokenClassification().measure(model, batch)
        each = F.cross_entropy(logits.mT, labels, reduction="none")
        assert_close(got, -each.sum(1), rtol=1e-6, why=FLOAT32)
        task = fi.TokenClassification(query="predicted")
        filled = task.ask(model, batch)
        assert torch.equal(filled["labels"], logits.argmax(-1).masked_fill(gone, -100))
        each = F.cross_entropy(logits.mT, logits.argmax(-1), reduction="none").masked_fill(gone, 0)
        assert_close(task.measure(model, filled), -each.sum(1), rtol=1e-6, why=FLOAT32)
        p = logits.softmax(-1).gather(2, labels.clamp_min(0)[..., None]).squeeze(2)
        margins = (p / (1 - p)).log().masked_fill(gone, 0).sum(1)
        got = fi.TokenClassification(query="margin").measure(model, batch)
        assert_close(got, margins, rtol=1e-5, why="1 − p loses digits in the reference")


@pytest.mark.parametrize("perturbation", ["linear", "finite", fi.Perturbation()])
def test_a_tagger_is_attributed_and_finds_the_copy_and_queries_need_no_labels(perturbation):
    rows = tagged(12)
    call = {"perturbation": perturbation, "progress": False}
    scores = fi.attribute(make("tagger"), rows, rows[3:5], task=fi.TokenClassification(), **call)
    assert_close(
        scores.share[[0, 1], [3, 4]], torch.ones(2), rtol=2e-2, why="a copy has share 1, by differences in float32"
    )
    assert scores.unit == "nats"
    task = fi.TokenClassification(query="predicted")
    bare = [{"input_ids": row["input_ids"]} for row in rows[3:5]]
    got = fi.attribute(make("tagger"), rows, bare, task=task, **call)
    model = make("tagger")
    with torch.no_grad():
        told = [model(torch.tensor([row["input_ids"]])).logits.argmax(-1)[0].tolist() for row in bare]
    told = [row | {"labels": labels} for row, labels in zip(bare, told, strict=True)]
    want = fi.attribute(make("tagger"), rows, told, task=fi.TokenClassification(), **call)
    assert_close(got.values, want.values, rtol=2e-3, why="the same queries, by differences in float32")
    assert_close(got.query_baseline, want.query_baseline, rtol=1e-4, why="the same queries; other batches")


def test_linear_scores_of_a_tagger_are_products_of_its_gradients():
    model, task, rows = make("tagger").double(), fi.TokenClassification(weight=[1.0, 2.0, 0.5, 1.0]), tagged(6)
    chosen = dict(model.named_parameters())

    def gradient(row):
        loss = task.loss(model, task.collate([row])).sum()
        found = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
        return torch.cat([torch.zeros(p.numel()).double() if g is None else g.flatten()
                          for p, g in zip(chosen.values(), found, strict=True)])  # fmt: skip

    want = torch.stack([gradient(row) for row in rows])
    for engine in ("forward", "factored"):
        scores = fi.attribute(
            model, rows, rows[:2], task=task, perturbation=fi.Perturbation(), engine=engine, progress=False
        )
        assert_close(scores.values, want[:2] @ want.T, rtol=1e-4, why="float32 scores of float64 differences")


NOTHING = {
    "no token": {"input_ids": [], "labels": []},
    "no label that counts": {"input_ids": [5, 6], "labels": [-100, -100]},
    "only padding": {"input_ids": [0, 0], "labels": [1, 1], "attention_mask": [0, 0]},
}


@pytest.mark.parametrize("what", NOTHING)
def test_a_text_without_a_token_that_counts_has_loss_score_and_count_0(what, caplog):
    say_uncounted.cache_clear()
    model, task, row = make("tagger"), fi.TokenClassification(), NOTHING[what]
    batch = task.collate([row])
    loss = task.loss(model, batch)
    assert loss.tolist() == [0]
    assert task.count(batch).tolist() == [0]
    loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    others = [
        one | ({"attention_mask": [1] * len(one["input_ids"])} if "attention_mask" in row else {}) for one in tagged(3)
    ]
    scores = fi.attribute(model, [others[0], row, *others[1:]], others[:1], task=task, progress=False)
    assert scores.values[0, 1] == 0
    assert np.isfinite(scores.values).all()
    assert caplog.text.count("rows in which no token is counted") == 1


TOKENS = {
    "labels of words": ([{"input_ids": [5, 6, 7], "labels": [1, 2]}], "one for each of its 3 tokens, got 2"),
    "one label for all": ([{"input_ids": [5, 6, 7], "labels": 1}], "3 tokens, got one number"),
    "words": ([{"tokens": ["a", "b"], "labels": [1, 2]}], "'input_ids', got keys ['labels', 'tokens']"),
    "a tuple": ([([5, 6], [1, 2])], "a mapping that says what is what"),
    "a class that is none": ([{"input_ids": [5, 6], "labels": [1, C]}], f"from 0 to {C - 1} (or -100: not counted), got {C}"),
    "real labels": ([{"input_ids": [5, 6], "labels": [1.0, 2.0]}], "class numbers, got torch.float32"),
    "no labels": ([{"input_ids": [5, 6]}], "a key 'labels' or 'label'"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
def test_rows_that_do_not_fit_a_tagger_say_what_is_wrong(name):
    rows, told = TOKENS[name]
    task = fi.TokenClassification()
    with pytest.raises(fi.TaskError, match=re.escape(told)):
        task.loss(make("tagger"), task.collate(rows))


def test_other_models_are_no_taggers():
    rows = tagged(3)
    batch = fi.TokenClassification().collate(rows)
    with pytest.raises(fi.TaskError, match=r"logits of shape \(B, T, C\), got \(3, 3\)"):
        fi.TokenClassification().loss(make("bert"), batch)

    class Turned(nn.Module):
        def forward(self, input_ids):
            return torch.zeros(3, 99, input_ids.shape[1])

    with pytest.raises(fi.TaskError, match="one class number for each token"):
        fi.TokenClassification().loss(Turned(), batch)


# -- pixels ------------------------------------------------------------------------------------------------------------


def net(stride=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, stride=stride), nn.Tanh(), nn.Conv2d(6, C, 1))


def scenes(rows, seed=0, ignore=-100):
    draw = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, C, (rows, 6, 8), generator=draw)
    maps[torch.rand(rows, 6, 8, generator=draw) < 0.3] = ignore
    return torch.randn(rows, 3, 6, 8, generator=draw), maps


@pytest.mark.parametrize("ignore", [-100, 255, 0])
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5, 3.0]])
@pytest.mark.parametrize("channel", [False, True])
def test_the_loss_of_pixels_is_that_of_torch_summed_and_its_count_kept(ignore, weight, channel):
    images, maps = scenes(5, ignore=ignore)
    model, task = net(), fi.Segmentation(ignore_index=ignore, weight=weight)
    wide = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    want = F.cross_entropy(model(images).double(), maps, weight=wide, ignore_index=ignore, reduction="none").sum((1, 2))
    given = maps[:, None] if channel else maps
    assert_close(task.loss(model, (images, given)), want, rtol=1e-12, why=SAME)
    assert torch.equal(task.count((images, given)), (maps != ignore).sum((1, 2)))
    got = task.loss(model, [images, given])
    assert_close(got, want, rtol=1e-12, why=SAME)


def test_a_pixel_may_be_of_a_volume():
    volume, maps = torch.randn(2, 3, 4, 4, 4), torch.randint(0, C, (2, 4, 4, 4))
    model = nn.Conv3d(3, C, 1)
    want = F.cross_entropy(model(volume).double(), maps, reduction="none").sum((1, 2, 3))
    assert_close(fi.Segmentation().loss(model, (volume, maps)), want, rtol=1e-12, why=SAME)


def test_an_image_without_a_pixel_that_counts_has_loss_and_score_0():
    images, maps = scenes(6)
    maps[1] = -100
    scores = fi.attribute(net(), (images, maps), (images[:1], maps[:1]), task=fi.Segmentation(), progress=False)
    assert scores.values[0, 1] == 0
    assert scores.baseline[1] == 0
    assert fi.Segmentation().count((images, maps))[1] == 0
    assert (scores.values[0, [0, 2, 3]] != 0).all()


@pytest.mark.parametrize("perturbation", ["linear", "finite", fi.Perturbation()])
def test_images_are_attributed_by_their_pixels_and_queries_need_no_maps(perturbation):
    images, maps = scenes(12, ignore=255)
    call = {"perturbation": perturbation, "progress": False}
    told = fi.Segmentation(ignore_index=255)
    scores = fi.attribute(net(), (images, maps), (images[3:5], maps[3:5]), task=told, **call)
    assert_close(
        scores.share[[0, 1], [3, 4]], torch.ones(2), rtol=2e-2, why="a copy has share 1, by differences in float32"
    )
    task = fi.Segmentation(ignore_index=255, query="predicted")
    got = fi.attribute(net(), (images, maps), images[3:5], task=task, **call)
    with torch.no_grad():
        best = net()(images[3:5]).argmax(1)
    want = fi.attribute(net(), (images, maps), (images[3:5], best), task=told, **call)
    assert_close(got.values, want.values, rtol=2e-3, why="the same queries, by differences in float32")
    filled = task.ask(net(), (images[:2], maps[:2]))
    assert torch.equal(filled[1] == 255, maps[:2] == 255), "where maps do not count, predictions do not either"
    margin = fi.Segmentation(ignore_index=255, query="margin").measure(net(), (images, maps))
    p = net()(images).double().softmax(1).gather(1, maps.masked_fill(maps == 255, 0)[:, None])[:, 0]
    assert_close(
        margin, (p / (1 - p)).log().masked_fill(maps == 255, 0).sum((1, 2)), rtol=1e-9, why="1 − p loses digits"
    )


def segformer():
    config = transformers.SegformerConfig(
        num_labels=C, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3],
        strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.SegformerForSemanticSegmentation(config).eval()


def test_logits_smaller_than_the_maps_are_refused_or_brought_to_their_size_as_transformers_does():
    draw = torch.Generator().manual_seed(0)
    images, maps = torch.randn(3, 3, 16, 24, generator=draw), torch.randint(0, C, (3, 16, 24), generator=draw)
    maps[:, :3] = 255
    model, batch = segformer(), {"pixel_values": images, "labels": maps}
    with pytest.raises(
        fi.TaskError, match=re.escape("logits at the labels' size (16, 24), got logits of size (8, 12)")
    ) as caught:
        fi.Segmentation(ignore_index=255).loss(model, batch)
    assert "upsample=True" in caught.value.do
    task = fi.Segmentation(ignore_index=255, upsample=True)
    counts = task.count(batch)
    with torch.no_grad():
        want = [float(model(images[[n]], labels=maps[[n]]).loss) * int(counts[n]) for n in range(3)]
        assert_close(task.loss(model, batch), torch.tensor(want), rtol=1e-5, why="the model takes its loss in float32")
    scores = fi.attribute(model, batch, {name: value[:1] for name, value in batch.items()}, task=task, progress=False)
    assert_close(scores.share[0, :1], torch.ones(1), rtol=2e-2, why="a copy has share 1")
    with pytest.raises(fi.TaskError, match="queries with label maps"):
        fi.Segmentation(upsample=True, query="predicted").ask(model, {"pixel_values": images})


IMAGES, MAPS = scenes(2)
PIXELS = {
    "one map for all": (net(), (IMAGES, MAPS[0]), "one class number for each pixel"),
    "one-hot maps": (net(), (IMAGES, F.one_hot(MAPS.clamp_min(0), C).movedim(-1, 1)), "one class number for each pixel"),
    "real maps": (net(), (IMAGES, MAPS.float()), "class numbers, got torch.float32"),
    "maps of another size": (net(), (IMAGES, MAPS[:, :3]), "shape (2, 6, 8), got shape (2, 3, 8)"),
    "255 that is not said": (net(), (IMAGES, MAPS.masked_fill(MAPS < 0, 255)), "got 255. If 255 marks what does not count, say"),
    "one logit": (nn.Conv2d(3, 1, 1), (IMAGES, MAPS.clamp(0, 1)), "at least two classes, got one logit for each pixel"),
    "classes of whole images": (nn.Sequential(nn.Flatten(), nn.Linear(144, C)), (IMAGES, MAPS), "(B, C, H, W), got (2, 4)"),
    "probabilities": (nn.Sequential(net(), nn.Softmax(1)), (IMAGES, MAPS), "the model ends in a softmax"),
    "text": (net(), (IMAGES, "maps"), "a tensor of class numbers, got a str"),
    "no maps": (net(), IMAGES, "(inputs, label)"),
}  # fmt: skip


@pytest.mark.parametrize("name", PIXELS)
def test_a_batch_that_does_not_fit_segmentation_says_what_is_wrong(name):
    model, batch, told = PIXELS[name]
    with pytest.raises(fi.TaskError, match=re.escape(told)), torch.no_grad():
        fi.Segmentation().loss(model, batch)


def test_one_logit_is_that_of_yes_where_logits_says_so():
    model, maps = nn.Conv2d(3, 1, 1), MAPS.clamp(0, 1)
    got = fi.Segmentation(logits=lambda z: torch.cat([0 * z, z], dim=1)).loss(model, (IMAGES, maps))
    want = F.binary_cross_entropy_with_logits(model(IMAGES)[:, 0].double(), maps.double(), reduction="none").sum((1, 2))
    assert_close(got, want, rtol=1e-12, why="log(1 + e^z) − yz, both ways")


def test_the_models_of_torchvision_say_where_their_logits_are():
    class Outs(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return {"out": self.inner(x), "aux": 2 * self.inner(x)}

    with pytest.raises(fi.TaskError, match=r"logits="):
        fi.Segmentation().loss(Outs(), (IMAGES, MAPS))
    want = fi.Segmentation().loss(net(), (IMAGES, MAPS))
    assert_close(fi.Segmentation(logits="out").loss(Outs(), (IMAGES, MAPS)), want, rtol=1e-12, why="the same logits")


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [fi.TokenClassification, fi.Segmentation])
def test_a_setting_that_is_not_known_is_refused(kind):
    with pytest.raises(fi.SettingError, match="Did you mean 'predicted'"):
        kind(query="predictd")
    with pytest.raises(fi.SettingError, match=r"ignore_index=\)"):
        fi.Segmentation(ignore_index=1.5)
    with pytest.raises(fi.SettingError, match=r"padding_side=\)"):
        fi.TokenClassification(padding_side="lft")


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5, 3.0]])
def test_drawn_gradients_of_places_have_the_hessian_of_the_loss_as_their_second_moment(weight):
    draws = 4000
    torch.manual_seed(0)
    model, task = nn.Conv2d(3, C, 1).double(), fi.Segmentation(weight=weight)
    image, maps = torch.randn(1, 3, 1, 2).double(), torch.tensor([[[1, -100]]])
    few = task.predicted(model, (image, maps))
    want = torch.autograd.functional.hessian(lambda out: few.loss(out).sum(), few.output.detach()).reshape(2 * C, 2 * C)
    found = task.predicted(model, (image.expand(draws, -1, -1, -1), maps.expand(draws, -1, -1)))
    assert_close(found.loss(found.output)[:1], task.loss(model, (image, maps)), rtol=1e-12, why="the same loss")
    output = found.output.detach().requires_grad_()
    (grad,) = torch.autograd.grad(found.drawn(output, 0).sum(), output)
    grad = grad.reshape(draws, -1)
    assert_close(grad.T @ grad / draws, want, rtol=0.12, why="Monte Carlo: 4,000 draws")


def test_a_row_draws_the_same_labels_in_any_batch():
    model, task, rows = make("tagger").double(), fi.TokenClassification(), tagged(4)
    keys = [bytes([place]) for place in range(4)]

    def drawn(places):
        found = task.predicted(model, task.collate([rows[place] for place in places]))
        with noise.belonging_to([keys[place] for place in places], 3):
            return found.drawn(found.output, 0)

    together = drawn(range(4)).detach()
    for place in range(4):
        assert_close(drawn([place]), together[place : place + 1], rtol=1e-9, why="float64, the same labels")


def test_uses_work_with_places_or_say_what_is_missing():
    rows = tagged(24)
    found = fi.leaks(make("tagger"), rows, rows[:3], task=fi.TokenClassification(), progress=False)
    best = found.table[found.table["rank"] == 1]
    assert best["train"].tolist() == [0, 1, 2]
    for use in (fi.mislabeled, fi.memorized):
        with pytest.raises(fi.TaskError, match="task TokenClassification: expected a classification"):
            use(make("tagger"), rows, task=fi.TokenClassification(), progress=False)
    images, maps = scenes(24)
    found = fi.leaks(net(), (images, maps), (images[:3], maps[:3]), task=fi.Segmentation(), progress=False)
    assert found.table[found.table["rank"] == 1]["train"].tolist() == [0, 1, 2]
    found = fi.self_influence(net(), (images, maps), task=fi.Segmentation(), progress=False)
    assert (found.values > 0).all()
