"""Where inputs and labels are in a batch, queries that have none, and batches of every make."""

import re
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import assert_close
from torch import nn

import forwardinf as fi
from forwardinf.tasks.batches import batch_size, has_label, inputs_in, label_in, with_label

B, C = 5, 3
X = torch.randn(B, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 1, 0])
Pair = namedtuple("Pair", "x y")


@dataclass
class Graph:
    """A batch that is an object of a class, as graphs are: more nodes than graphs."""

    x: torch.Tensor
    y: torch.Tensor | None
    num_graphs: int = B


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(4, C)


class Keyword(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


# -- inputs, labels, and labels put in their place ---------------------------------------------------------------------

PARTS = {  # (batch, inputs, label) → what is fed
    "a tuple": ((X, Y), None, None),
    "the label first": ((Y, X), None, 0),
    "the label counted from the end": ((Y, X), None, -2),
    "a named tuple": (Pair(X, Y), None, None),
    "a named tuple by name": (Pair(X, Y), None, "y"),
    "inputs by position": ((Y, X), 1, 0),
    "a mapping": ({"x": X, "target": Y}, "x", "target"),
    "an object": (Graph(X, Y), "x", "y"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_label_can_be_found_and_another_put_in_its_place(name):
    batch, inputs, label = PARTS[name]
    assert inputs_in(batch, inputs, label, "here") is X
    assert has_label(batch, label)
    assert label_in(batch, label) is Y
    other = with_label(batch, label, Y + 1)
    assert torch.equal(label_in(other, label), Y + 1)
    assert inputs_in(other, inputs, label, "here") is X
    assert label_in(batch, label) is Y, "the user's batch is left alone"


def test_a_column_that_label_names_is_not_fed_to_the_model():
    fed = inputs_in({"x": X, "target": Y, "label": Y}, None, "target", "here")
    assert list(fed) == ["x"]
    assert len(inputs_in((X, X, Y), None, None, "here")) == 2


ALONE = {  # (batch, inputs, label): what is fed is X
    "a tensor": (X, None, None),
    "a tuple of one": ((X,), None, None),
    "a list of one": ([X], None, None),
    "a tensor where tuples have the label first": (X, 1, 0),
    "a tensor where tuples have the label last": (X, 0, 1),
    "an object": (Graph(X, None), "x", "y"),
}


@pytest.mark.parametrize("name", ALONE)
def test_inputs_alone_get_the_predicted_label_where_tuples_have_theirs(net, name):
    batch, inputs, label = ALONE[name]
    task = fi.Classification(inputs=inputs, label=label, query="predicted")
    assert task.lacks(batch)
    filled = task.ask(net, batch)
    assert torch.equal(label_in(filled, label), net(X).argmax(1))
    assert not task.lacks(filled)
    want = -F.cross_entropy(net(X).double(), net(X).argmax(1), reduction="none")
    assert_close(task.measure(net, filled), want, rtol=1e-12, why="float64 logits")


def test_a_tensor_cannot_be_given_a_label_by_name(net):
    with pytest.raises(fi.TaskError, match="a mapping, whose label goes under 'y'"):
        fi.Classification(label="y", query="predicted").ask(net, X)


# -- queries without labels --------------------------------------------------------------------------------------------

TRAIN = (torch.randn(12, 4, generator=torch.Generator().manual_seed(2)), torch.arange(12) % C)
QUERIES = {
    "a tensor": (TRAIN, X, {}),
    "a tuple of one": (TRAIN, (X,), {}),
    "an array": (TRAIN, X.numpy(), {}),
    "rows": ([(x, int(y)) for x, y in zip(*TRAIN, strict=True)], list(X), {}),
    "a mapping": ({"x": TRAIN[0], "labels": TRAIN[1]}, {"x": X}, {}),
    "rows that are mappings": (
        [{"x": x, "t": y} for x, y in zip(*TRAIN, strict=True)],
        [{"x": x} for x in X],
        {"label": "t"},
    ),
}


@pytest.mark.parametrize("perturbation", [fi.Perturbation(), "finite"])
@pytest.mark.parametrize("form", QUERIES)
def test_queries_without_labels_are_those_whose_label_is_what_is_predicted(net, form, perturbation):
    train, queries, how = QUERIES[form]
    model = Keyword(net)
    call = {"perturbation": perturbation, "progress": False, "engine": "forward", "batch_size": 4}
    got = fi.attribute(model, train, queries, task=fi.Classification(query="predicted", **how), **call)
    told = (X, net(X).argmax(1))
    want = fi.attribute(model, TRAIN, told, task=fi.Classification(query="predicted"), **call)
    assert_close(got.values, want.values, rtol=1e-6, why="the same queries")
    assert_close(got.query_baseline, want.query_baseline, rtol=1e-6, why="the same queries")
    assert_close(got.cross, want.cross, rtol=1e-6, why="queries read as rows go by the label first predicted")
    assert np.isfinite(got.cross).all()


def test_a_contrast_needs_no_label_either(net):
    task = fi.Classification(query=("contrast", 2, 0))
    got = fi.attribute(net, TRAIN, X, task=task, perturbation=fi.Perturbation(), progress=False)
    want = fi.attribute(net, TRAIN, (X, Y), task=task, perturbation=fi.Perturbation(), progress=False)
    assert_close(got.values, want.values, rtol=1e-6, why="the same queries")


def test_where_a_label_is_needed_its_absence_is_said(net):
    for query in ("label", "margin"):
        with pytest.raises(fi.TaskError, match=re.escape("query='predicted'")):
            fi.attribute(net, TRAIN, X, task=fi.Classification(query=query), progress=False)
    with pytest.raises(fi.TaskError, match=r"expected \(inputs, label\)"):
        fi.attribute(net, TRAIN[0], X, task=fi.Classification(query="predicted"), progress=False)


def test_training_rows_must_have_labels_also_where_queries_need_none(net):
    with pytest.raises(fi.TaskError, match="'labels' or 'label'"):
        fi.attribute(Keyword(net), {"x": TRAIN[0]}, {"x": X}, task=fi.Classification(query="predicted"), progress=False)


# -- sizes -------------------------------------------------------------------------------------------------------------

SIZED = {
    "a tensor": X,
    "an array": X.numpy(),
    "a tuple": (X, Y),
    "a mapping": {"name": "a", "x": X},
    "a nested mapping": {"a": {"x": X}},
    "a list of tensors": [X, Y],
    "a tuple of a list of texts": (["a"] * B,),
    "a number before a tensor": (torch.tensor(1.0), X),
    "a mapping that begins with an empty one": {"a": {}, "x": X},
    "an object that says its number": Graph(torch.randn(17, 2), Y),
    "an object of tensors": dataclass(type("Row", (), {"__annotations__": {"x": torch.Tensor}}))(X),
}


@pytest.mark.parametrize("form", SIZED)
def test_a_batch_is_as_large_as_it_says_or_as_its_first_tensor(form):
    assert batch_size(SIZED[form]) == B


@pytest.mark.parametrize("batch", [{"a": 1}, 3, torch.tensor(1.0), (), Pair])
def test_a_batch_without_a_tensor_has_no_size(batch):
    with pytest.raises(fi.TaskError, match="a tensor somewhere in it"):
        batch_size(batch)


class Opaque:
    """A batch that nobody but its user can look into."""

    def __init__(self, rows):
        self.inside = {"x": torch.cat([row["x"] for row in rows]), "y": [row["y"] for row in rows]}


@pytest.mark.parametrize("perturbation", [fi.Perturbation(), fi.Perturbation(rise=0.2)])
def test_a_bare_function_may_have_batches_of_any_make(net, perturbation):
    def loss(model, batch):
        return F.cross_entropy(model(batch.inside["x"]), torch.tensor(batch.inside["y"]), reduction="none")

    rows = [{"x": x[None], "y": int(y)} for x, y in zip(*TRAIN, strict=True)]
    call = {"perturbation": perturbation, "progress": False, "engine": "forward", "batch_size": 4}
    got = fi.attribute(net, rows, rows[:2], task=loss, collate_fn=Opaque, **call)

    def plain(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    want = fi.attribute(net, TRAIN, tuple(column[:2] for column in TRAIN), task=plain, **call)
    assert_close(got.values, want.values, rtol=1e-5, why="the same function")
