"""Labels that are none are refused by their value, through every task that takes labels."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import assert_close
from torch import nn

import forwardinf as fi
from forwardinf.tasks.labels import answers, class_numbers, weights

B, C = 6, 4
X = torch.randn(B, 3, generator=torch.Generator().manual_seed(0))
YES = torch.tensor([0, 1, 1, 0, 1, 0])
MANY = torch.randint(0, 2, (B, C), generator=torch.Generator().manual_seed(1))


def model(wide):
    torch.manual_seed(0)
    return nn.Linear(3, wide)


def at(labels, value):
    """Return labels as numbers with a fraction, one of them another value."""
    changed = labels.double()
    changed.view(-1)[4] = value
    return changed


NEITHER = {
    "-1": (at(YES, -1), at(MANY, -1), "-1", "(y + 1) / 2"),
    "2": (YES + 1, MANY + 1, "2", "y - 1"),
    "a count": (at(YES, 7), at(MANY, 7), "7", "fi.Regression()"),
    "-100": (at(YES, -100), at(MANY, -100), "-100", ""),
    "nan": (at(YES, math.nan), at(MANY, math.nan), "nan", ""),
    "infinity": (at(YES, math.inf), at(MANY, math.inf), "inf", ""),
}


@pytest.mark.parametrize("name", NEITHER)
def test_a_label_that_is_neither_yes_nor_no_is_refused_by_its_value(name):
    one, several, value, do = NEITHER[name]
    for task, wide, label in ((fi.Classification(binary=True), 1, one), (fi.MultiLabel(), C, several)):
        for ask in (task.loss, task.measure):
            with pytest.raises(fi.TaskError, match=rf"0, 1 or a share between them, got {value}\.") as caught:
                ask(model(wide), (X, label))
            assert do in caught.value.do
    with pytest.raises(fi.TaskError, match=f"got {value}"):
        fi.attribute(model(1), (X, one), (X[:1], YES[:1]), task=fi.Classification(binary=True), progress=False)


def test_a_missing_label_among_many_is_told_how_to_be_left_out():
    for value, told in ((-100, "MultiLabel(ignore=-100)"), (-1, "ignore=-1"), (math.nan, "ignore=float('nan')")):
        with pytest.raises(fi.TaskError, match=re.escape(told)):
            fi.MultiLabel().loss(model(C), (X, at(MANY, value)))


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_answers_may_be_of_any_kind(kind):
    z = model(C)(X).double()
    want = F.binary_cross_entropy_with_logits(z, MANY.double(), reduction="none").mean(1)
    assert_close(fi.MultiLabel().loss(model(C), (X, MANY.to(kind))), want, rtol=1e-12, why="float64 logits")
    z = model(1)(X).double().flatten()
    want = F.binary_cross_entropy_with_logits(z, YES.double(), reduction="none")
    got = fi.Classification(binary=True).loss(model(1), (X, YES.to(kind)))
    assert_close(got, want, rtol=1e-12, why="float64 logits")


def test_a_share_between_yes_and_no_is_a_label():
    soft = torch.rand(B, generator=torch.Generator().manual_seed(2))
    want = F.binary_cross_entropy_with_logits(model(1)(X).double().flatten(), soft.double(), reduction="none")
    got = fi.Classification(binary=True).loss(model(1), (X, soft))
    assert_close(got, want, rtol=1e-12, why="float64 logits")
    with pytest.raises(fi.TaskError, match="a class to ask the margin of, got a share"):
        fi.Classification(binary=True, query="margin").measure(model(1), (X, soft))


@pytest.mark.parametrize("ignore", [-1, -100, math.nan])
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5, 3.0]])
def test_labels_that_are_missing_add_nothing_and_the_others_count_as_ever(ignore, weight):
    gone = torch.rand(B, C, generator=torch.Generator().manual_seed(3)) < 0.4
    gone[0] = True
    label = MANY.double().masked_fill(gone, ignore)
    task, net = fi.MultiLabel(ignore=ignore, weight=weight), model(C)
    wide = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    each = F.binary_cross_entropy_with_logits(net(X).double(), MANY.double(), pos_weight=wide, reduction="none")
    got = task.loss(net, (X, label))
    assert_close(got, torch.where(gone, 0.0, each).mean(1), rtol=1e-12, why="float64 logits")
    assert got[0] == 0
    found = task.predicted(net, (X, label))
    (grad,) = torch.autograd.grad(found.drawn(found.output, 0).sum(), found.output)
    assert torch.equal(grad == 0, gone)
    scores = fi.attribute(net, (X, label), (X[1:3], label[1:3]), task=task, progress=False)
    assert (scores.values[:, 0] == 0).all()
    with pytest.raises(fi.TaskError, match="got 7"):
        task.loss(net, (X, at(MANY, 7)))


@pytest.mark.parametrize("ignore", [0, 1, 0.5, True, "none"])
def test_a_value_that_is_a_label_cannot_mark_what_is_missing(ignore):
    with pytest.raises(fi.SettingError, match=r"MultiLabel\(ignore=\)"):
        fi.MultiLabel(ignore=ignore)


WEIGHTS = {"a list": list, "a tuple": tuple, "an array": np.array, "a tensor": torch.tensor}


@pytest.mark.parametrize("form", WEIGHTS)
def test_weights_may_come_in_any_form_wherever_they_are_taken(form):
    plain = [1.0, 2.0, 0.5, 3.0]
    given, wide = WEIGHTS[form](plain), torch.tensor(plain, dtype=torch.float64)
    labels, z = YES * 3, model(C)(X).double()
    got = fi.Classification(weight=given).loss(model(C), (X, labels))
    assert_close(got, F.cross_entropy(z, labels, weight=wide, reduction="none"), rtol=1e-12, why="float64 logits")
    got = fi.MultiLabel(weight=given).loss(model(C), (X, MANY))
    want = F.binary_cross_entropy_with_logits(z, MANY.double(), pos_weight=wide, reduction="none").mean(1)
    assert_close(got, want, rtol=1e-12, why="float64 logits")
    maps, pixels = torch.randint(0, C, (2, 3, 3)), nn.Conv2d(3, C, 1)
    images = torch.randn(2, 3, 3, 3)
    got = fi.Segmentation(weight=given).loss(pixels, (images, maps))
    want = F.cross_entropy(pixels(images).double(), maps, weight=wide, reduction="none").sum((1, 2))
    assert_close(got, want, rtol=1e-12, why="float64 logits")


@pytest.mark.parametrize("bad", ["two", [1.0, -1.0], [1.0, math.nan], [[1.0]], [1.0, None]])
def test_weights_that_are_none_are_refused(bad):
    for make in (fi.Classification, fi.MultiLabel, fi.Segmentation, fi.TokenClassification):
        with pytest.raises(fi.SettingError, match=r"weight=\): expected finite numbers"):
            make(weight=bad)


def test_weights_of_another_number_of_classes_are_refused():
    with pytest.raises(fi.TaskError, match="4 weights, one for each class"):
        fi.MultiLabel(weight=[1.0, 2.0]).loss(model(C), (X, MANY))
    with pytest.raises(fi.TaskError, match="one weight, that of yes"):
        fi.Classification(binary=True, weight=torch.ones(B)).loss(model(1), (X, YES))
    assert weights(None, "here") is None


ODD = {
    "real numbers": (YES.float(), "class numbers, got torch.float32", "fi.Regression()"),
    "one-hot, whole": (F.one_hot(YES, C), "got shape (6, 4)", "argmax(1)"),
    "one-hot, real": (F.one_hot(YES, C).float(), "got shape (6, 4)", "argmax(1)"),
    "complex": (YES.to(torch.complex64), "class numbers, got torch.complex64", ""),
    "text": (["a"] * B, "got a list", "label="),
    "one for all": (torch.tensor(1), "got shape ()", ""),
    "beyond the classes": (YES + C, "from 0 to 3 (or -100: not counted), got 4", "from 0"),
}


@pytest.mark.parametrize("name", ODD)
def test_labels_that_are_no_class_numbers_say_what_they_are(name):
    label, told, do = ODD[name]
    with pytest.raises(fi.TaskError, match=re.escape(told)) as caught:
        fi.Classification().loss(model(C), (X, label))
    assert do in caught.value.do


def test_true_and_false_are_the_classes_1_and_0():
    got = fi.Classification().loss(model(2), (X, YES.bool()))
    assert_close(got, fi.Classification().loss(model(2), (X, YES)), rtol=1e-15, why="the same labels")


def test_a_number_that_is_not_counted_may_be_any():
    label = torch.tensor([[0, 1, 255], [2, 255, 1]])
    assert class_numbers(label, (2, 3), 3, ignore=255).tolist() == [[0, 1, -100], [2, -100, 1]]
    assert class_numbers(label, (2, 3), 256, ignore=1).tolist() == [[0, -100, 255], [2, 255, -100]]
    with pytest.raises(fi.TaskError, match="got -100"):
        class_numbers(label.masked_fill(label == 255, -100), (2, 3), 3, ignore=255)
    with pytest.raises(fi.TaskError, match="say ignore_index=255"):
        class_numbers(label, (2, 3), 3, each="pixel")


def test_one_logit_cannot_be_one_class_of_several():
    with pytest.raises(fi.TaskError, match="at least two classes") as caught:
        fi.Classification().loss(model(1), (X, 0 * YES))
    assert "binary=True" in caught.value.do
    with pytest.raises(fi.TaskError, match="one logit and one label for each example, got 12 logits"):
        fi.Classification(binary=True).loss(model(2), (X, F.one_hot(YES)))
    with pytest.raises(fi.TaskError, match=r"MultiLabel: expected logits of shape \(B, C\), got \(6,\)"):
        fi.MultiLabel().loss(nn.Sequential(model(1), nn.Flatten(0)), (X, YES))
    assert answers(YES, (B,), "here").dtype == torch.float64


def test_targets_must_be_numbers():
    for target in (["a"] * B, torch.zeros(B, 1, dtype=torch.complex64)):
        with pytest.raises(fi.TaskError, match="targets as a tensor of numbers"):
            fi.Regression().loss(model(1), (X, target))
    with pytest.raises(fi.TaskError, match="a finite number, got nan"):
        fi.attribute(
            model(1), (X, at(YES, math.nan).float()), (X[:1], YES[:1].float()), task=fi.Regression(), progress=False
        )
