import re
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from close import assert_close
from torch import nn
from torch.utils.data import default_collate

import forwardinf as fi
from forwardinf.tasks.task import FunctionTask, as_task

SAME = "float64 from the same float32 logits on"
B, C = 5, 3
X = torch.randn(B, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 1, 0])
Pair = namedtuple("Pair", "x y")


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.fixture
def net():
    return seeded(lambda: nn.Linear(4, C))


class Output:
    def __init__(self, logits):
        self.logits = logits


class Wrapped(nn.Module):
    """A model that takes keywords and gives its logits in some form."""

    def __init__(self, form=lambda logits: logits):
        super().__init__()
        self.inner, self.form = seeded(lambda: nn.Linear(4, C)), form

    def forward(self, x, shift=None):
        logits = self.inner(x)
        return self.form(logits if shift is None else logits + shift)


def reference(logits, label, **settings):
    return F.cross_entropy(logits.double(), label, reduction="none", **settings)


# -- classification ----------------------------------------------------------------------------------------------------

BATCHES = {
    "a tuple": (X, Y),
    "a list": [X, Y],
    "a named tuple": Pair(X, Y),
    "a mapping with labels": {"x": X, "labels": Y},
    "a mapping with a label": {"x": X, "label": Y},
    "a mapping with other columns": {"x": X, "label": Y, "name": ["a"] * B, "weight": torch.ones(B)},
    "labels in a column": (X, Y[:, None]),
    "labels of another dtype": (X, Y.to(torch.uint8)),
}


@pytest.mark.parametrize("form", BATCHES)
def test_classification_reads_a_batch_in_every_form(form):
    model = Wrapped()
    got = fi.Classification().loss(model, BATCHES[form])
    assert_close(got, reference(model(X), Y), rtol=1e-14, why=SAME)
    assert got.dtype == torch.float64


def test_a_tuple_of_three_is_two_inputs_and_a_label():
    model = Wrapped()
    shift = torch.randn(B, C)
    got = fi.Classification().loss(model, (X, shift, Y))
    assert_close(got, reference(model(X, shift), Y), rtol=1e-14, why=SAME)


TAKES = {
    "names": ({"a": X, "b": Y}, {"inputs": "a", "label": "b"}),
    "positions": ((Y, X), {"inputs": 1, "label": 0}),
    "functions": ((Y, [X]), {"inputs": lambda batch: batch[1][0], "label": lambda batch: batch[0]}),
    "attributes": (Pair(X, Y), {"inputs": "x", "label": "y"}),
    "a nested mapping": ({"a": {"x": X}, "b": Y}, {"inputs": "a", "label": "b"}),
}


@pytest.mark.parametrize("take", TAKES)
def test_inputs_and_label_may_be_found_by(take):
    batch, settings = TAKES[take]
    model = Wrapped()
    assert_close(fi.Classification(**settings).loss(model, batch), reference(model(X), Y), rtol=1e-14, why=SAME)


OUTPUTS = {
    "logits attribute": (Output, None),
    "a mapping with logits": (lambda logits: {"logits": logits, "other": 1}, None),
    "a tuple whose first is the logits": (lambda logits: (logits, "state"), None),
    "a position": (lambda logits: ("state", logits), 1),
    "a key": (lambda logits: {"y": logits}, "y"),
    "an attribute": (lambda logits: Pair(None, logits), "y"),
    "a function": (lambda logits: [[logits]], lambda output: output[0][0]),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_logits_are_found_in(output):
    form, where = OUTPUTS[output]
    model = Wrapped(form)
    want = reference(model.inner(X), Y)
    assert_close(fi.Classification(logits=where).loss(model, (X, Y)), want, rtol=1e-14, why=SAME)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 3.0]), [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_and_smoothing_are_those_of_torch(net, weight, smoothing):
    got = fi.Classification(weight=weight, label_smoothing=smoothing).loss(net, (X, Y))
    wide = None if weight is None else torch.as_tensor(weight).double()
    assert_close(got, reference(net(X), Y, weight=wide, label_smoothing=smoothing), rtol=1e-12, why=SAME)


def test_a_label_of_minus_100_counts_nothing(net):
    got = fi.Classification().loss(net, (X, torch.tensor([0, -100, 1, 1, 0])))
    assert got[1] == 0
    assert (got[[0, 2, 3, 4]] > 0).all()


BINARY = {
    "a column of logits": (lambda: nn.Linear(4, 1), Y.clamp_max(1)),
    "flat logits": (lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), Y.clamp_max(1)),
    "real labels": (lambda: nn.Linear(4, 1), Y.clamp_max(1).float()),
    "labels in a column": (lambda: nn.Linear(4, 1), Y.clamp_max(1).float()[:, None]),
    "labels that are true or false": (lambda: nn.Linear(4, 1), Y > 0),
}


@pytest.mark.parametrize("form", BINARY)
def test_binary_is_minus_log_p_of_yes_or_no_whichever_way_it_comes(form):
    make, label = BINARY[form]
    model = seeded(make)
    z, yes = model(X).double().flatten(), label.flatten().double()
    want = F.binary_cross_entropy_with_logits(z, yes, reduction="none")
    task = fi.Classification(binary=True)
    assert_close(task.loss(model, (X, label)), want, rtol=1e-14, why=SAME)
    assert torch.equal(task.logits(model, (X, label)).argmax(1), (z > 0).long())
    margin = fi.Classification(binary=True, query="margin").measure(model, (X, label))
    assert_close(margin, torch.where(yes > 0, z, -z), rtol=1e-12, why="the log-odds of yes are the logit")


def test_the_weight_of_a_binary_task_is_that_of_yes():
    model = seeded(lambda: nn.Linear(4, 1))
    label = Y.clamp_max(1)
    got = fi.Classification(binary=True, weight=torch.tensor(3.0)).loss(model, (X, label))
    plain = fi.Classification(binary=True).loss(model, (X, label))
    assert_close(got, torch.where(label == 1, 3 * plain, plain), rtol=1e-12, why=SAME)


def test_a_query_is_asked_by_its_label_unless_told_otherwise(net):
    task = fi.Classification()
    assert_close(task.measure(net, (X, Y)), -task.loss(net, (X, Y)), rtol=1e-15, why="minus the loss, exactly")
    assert not task.asks


def test_a_query_may_be_asked_by_what_the_model_predicts(net):
    task = fi.Classification(query="predicted")
    assert task.asks
    for batch in ((X, Y), [X, Y], {"x": X, "labels": Y}, (X, Y[:, None])):
        model = Wrapped() if isinstance(batch, dict) else net
        filled = task.ask(model, batch)
        want = -reference(model(X), model(X).argmax(1))
        assert_close(task.measure(model, filled), want, rtol=1e-14, why=SAME)
    assert torch.equal(Y, torch.tensor([0, 2, 1, 1, 0])), "the user's labels are left alone"


def test_predicted_finds_its_label_by_name_or_position_but_not_by_function(net):
    swapped = fi.Classification(inputs=1, label=0, query="predicted")
    assert torch.equal(swapped.ask(net, (Y, X))[0], net(X).argmax(1))
    named = fi.Classification(inputs="a", label="b", query="predicted")
    assert torch.equal(named.ask(net, {"a": X, "b": Y})["b"], net(X).argmax(1))
    with pytest.raises(fi.SettingError, match="label= as a name or position"):
        fi.Classification(label=lambda batch: batch[1], inputs=0, query="predicted").ask(net, (X, Y))


def test_a_query_may_be_asked_by_its_margin(net):
    p = torch.softmax(net(X).double(), 1).gather(1, Y[:, None]).squeeze(1)
    got = fi.Classification(query="margin").measure(net, (X, Y))
    assert_close(got, torch.log(p / (1 - p)), rtol=1e-10, why="1 − p loses digits in the reference")


def test_a_query_may_be_asked_by_a_contrast_of_two_classes(net):
    logits = net(X).double()
    got = fi.Classification(query=("contrast", 2, 0)).measure(net, (X, Y))
    assert_close(got, logits[:, 2] - logits[:, 0], rtol=1e-15, why="the same subtraction")


BAD_SETTINGS = {
    "query misspelt": ({"query": "predicte"}, "Did you mean 'predicted'?"),
    "query a contrast without classes": ({"query": "contrast"}, "query="),
    "query a contrast of one class": ({"query": ("contrast", 1)}, "query="),
    "smoothing one": ({"label_smoothing": 1.0}, "in [0, 1)"),
    "smoothing negative": ({"label_smoothing": -0.1}, "in [0, 1)"),
    "smoothing of yes and no": ({"label_smoothing": 0.1, "binary": True}, "0 with binary=True"),
}


@pytest.mark.parametrize("bad", BAD_SETTINGS)
def test_a_classification_setting_out_of_range_is_refused(bad):
    settings, message = BAD_SETTINGS[bad]
    with pytest.raises(fi.SettingError, match=re.escape(message)):
        fi.Classification(**settings)


BAD_BATCHES = {
    "a label too high": ({}, (X, Y + 1), "class numbers from 0 to 2 (or -100: not counted), got 3", "from 0"),
    "a label below 0": ({}, (X, Y - 1), "class numbers from 0 to 2 (or -100: not counted), got -1", "from 0"),
    "real labels": ({}, (X, Y.float()), "class numbers, got torch.float32", "fi.Regression()"),
    "one-hot labels": ({}, (X, F.one_hot(Y)), "one class number for each of 5 examples, got shape (5, 3)", "argmax"),
    "too few labels": ({}, (X, Y[:4]), "one class number for each of 5 examples, got shape (4,)", ""),
    "labels as text": ({}, (X, ["a"] * B), "a tensor of class numbers, got a list", "label="),
    "no label": ({}, {"x": X}, "a key 'labels' or 'label', got keys ['x']", "label="),
    "inputs alone": ({}, X, "(inputs, label) or a mapping with 'labels', got Tensor", "label="),
    "a label that is not there": ({"label": "y"}, {"x": X}, "'y' in it, got keys ['x'] without it", "query='predicted'"),
    "a position that is not there": ({"label": 7}, (X, Y), "7 in it, got tuple without it", ""),
    "logits that are not there": ({"logits": "out"}, (X, Y), "'out' in it, got Tensor without it", ""),
    "too few weights": ({"weight": torch.ones(2)}, (X, Y), "3 weights, one for each class, got shape (2,)", ""),
    "yes and no of three logits": ({"binary": True}, (X, Y), "one logit and one label for each example, got 15 logits", ""),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_a_batch_that_does_not_fit_classification_says_what_is_wrong(net, bad):
    settings, batch, message, do = BAD_BATCHES[bad]
    with pytest.raises(fi.TaskError, match=re.escape(message)) as caught:
        fi.Classification(**settings).loss(net if not isinstance(batch, dict) else Wrapped(), batch)
    assert do in caught.value.do


def test_a_contrast_of_classes_that_are_not_there_says_which_there_are(net):
    with pytest.raises(fi.TaskError, match=r"classes from 0 to 2, got \('contrast', 0, 9\)"):
        fi.Classification(query=("contrast", 0, 9)).measure(net, (X, Y))


def test_the_margin_of_a_label_that_is_not_counted_is_refused(net):
    with pytest.raises(fi.TaskError, match=r"a class to ask the margin of, got -100"):
        fi.Classification(query="margin").measure(net, (X, torch.full((B,), -100)))


def test_logits_of_another_shape_are_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (3, 2)))
    with pytest.raises(fi.TaskError, match=r"logits of shape \(B, C\), got \(5, 3, 2\)"):
        fi.Classification().loss(model, (X, Y))


def test_an_output_without_logits_is_refused():
    model = Wrapped(lambda logits: {"scores": logits})
    with pytest.raises(fi.TaskError, match=r"model output: expected a tensor or .logits, got dict") as caught:
        fi.Classification().loss(model, (X, Y))
    assert "logits=" in caught.value.do


# -- tasks of one's own ------------------------------------------------------------------------------------------------


class Absolute(fi.Task):
    """The one in the docstring."""

    unit = "absolute error"

    def loss(self, model, batch):
        inputs, target = batch
        return (model(inputs).squeeze(1) - target).abs()


def test_a_task_of_ones_own_needs_a_loss_alone():
    model, target = seeded(lambda: nn.Linear(4, 1)), torch.randn(B)
    want = (model(X).squeeze(1) - target).abs()
    task = Absolute()
    assert torch.equal(task.loss(model, (X, target)), want)
    assert torch.equal(task.measure(model, (X, target)), -want)
    assert torch.equal(task.count((X, target)), torch.ones(B, dtype=torch.int64))
    assert task.ask(model, (X, target))[0] is X
    assert task.whole() is task
    assert (task.parts(X[0]), task.packed, task.asks) == (1, False, False)
    rate = fi.Perturbation()
    scores = fi.attribute(model, (X, target), (X[:1], target[:1]), task=task, perturbation=rate, progress=False)
    assert scores.unit == "absolute error"
    assert_close(scores.share[0, :1], torch.ones(1), rtol=1e-2, why="a copy has share 1, by differences in float32")


def test_a_task_without_a_loss_or_logits_says_which_method_is_missing(net):
    with pytest.raises(NotImplementedError, match="Task must define loss"):
        fi.Task().loss(net, (X, Y))
    with pytest.raises(fi.TaskError, match="Absolute: expected logits"):
        Absolute().logits(net, (X, Y))


def test_a_function_is_a_task_with_its_own_unit_and_version(net):
    def loss(model, batch):
        return reference(model(batch[0]), batch[1])

    loss.unit, loss.version = "bits", 3
    task = as_task(loss)
    assert isinstance(task, FunctionTask)
    assert (task.unit, task.version) == ("bits", 3)
    assert_close(task.loss(net, (X, Y)), reference(net(X), Y), rtol=1e-15, why="the same function")
    assert as_task(task) is task
    assert as_task(lambda model, batch: batch).unit == "loss"


NOT_TASKS = {
    "a loss module": (nn.CrossEntropyLoss(), "CrossEntropyLoss", "fi.Classification()"),
    "a loss module without reduction": (nn.MSELoss(reduction="none"), "MSELoss", "fi.Regression()"),
    "a loss class": (nn.CrossEntropyLoss, "CrossEntropyLoss", "fi.Classification()"),
    "a loss function": (F.cross_entropy, "cross_entropy", "fi.Classification()"),
    "a task's class": (fi.Classification, "the class Classification", "Write Classification()."),
    "another class": (dict, "<class 'dict'>", ""),
    "a name": ("classification", "'classification'", ""),
    "None": (None, "None", ""),
    "a number": (3, "3", ""),
}


@pytest.mark.parametrize("bad", NOT_TASKS)
def test_what_is_no_task_is_refused(bad):
    task, got, do = NOT_TASKS[bad]
    with pytest.raises(fi.SettingError) as caught:
        as_task(task)
    assert got in caught.value.got
    assert do in caught.value.do
    assert caught.value.where == "task"


# -- joining and sizing ------------------------------------------------------------------------------------------------


def test_rows_are_joined_as_torch_joins_them_but_for_lists_of_numbers():
    task = fi.Classification()
    rows = [{"x": X[row], "label": int(Y[row]), "name": str(row)} for row in range(B)]
    ours, torchs = task.collate(rows), default_collate(rows)
    assert torch.equal(ours["x"], torchs["x"])
    assert torch.equal(ours["label"], torchs["label"])
    assert ours["name"] == torchs["name"]
    lists = task.collate([{"x": X[row].tolist(), "label": int(Y[row])} for row in range(B)])
    assert torch.equal(lists["x"], X)
    pairs = task.collate([(X[row].tolist(), int(Y[row])) for row in range(B)])
    assert torch.equal(pairs[0], X)
    nested = task.collate([([[1.0, 2.0], [3.0, 4.0]], 0)])
    assert nested[0].shape == (1, 2, 2)
    named = task.collate([Pair(X[row], Y[row]) for row in range(B)])
    assert torch.equal(named.y, Y)
