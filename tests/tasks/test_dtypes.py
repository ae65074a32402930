import copy
import logging

import numpy as np
import pytest
import torch
from close import assert_close, assert_within
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import forwardinf as fi
from forwardinf.tasks.dtypes import find_cast, floats
from forwardinf.tasks.task import FunctionTask

N = 12
BROUGHT = "brought to the model's"


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


class Named(nn.Module):
    """The same model with a keyword."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.inner = net(dtype)

    def forward(self, x):
        return self.inner(x)


DRAW = np.random.default_rng(0)
X, Y = DRAW.standard_normal((N, 4)), DRAW.integers(0, 3, N)


def attribute(train, queries, model=None, **settings):
    settings = {"task": fi.Classification(), "perturbation": fi.Perturbation(), "engine": "factored", "batch_size": 4,
                "progress": False, **settings}  # fmt: skip
    return fi.attribute(model or net(), train, queries, **settings)


def casts(scores):
    return [note for note in scores.notes if BROUGHT in note]


WIDE = {
    "columns": lambda x, y: (x, y),
    "tensors": lambda x, y: (torch.from_numpy(x), torch.from_numpy(y)),
    "rows": lambda x, y: [(row, int(label)) for row, label in zip(x, y, strict=True)],
    "a loader": lambda x, y: DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=5),
    "a mapping": lambda x, y: {"x": x, "label": y},
    "rows of mappings": lambda x, y: [{"x": row, "label": int(label)} for row, label in zip(x, y, strict=True)],
}


@pytest.mark.parametrize("form", WIDE)
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_numbers_of_another_dtype_are_brought_to_the_models_in_every_form_with_one_note(form, dtype):
    x, model = X.astype(dtype), Named() if "mapping" in form else net()
    fits = x.astype("float32")
    want = attribute((fits, Y), (fits[:2], Y[:2]))
    got = attribute(WIDE[form](x, Y), WIDE[form](x[:2], Y[:2]), copy.deepcopy(model))
    column = "x" if "mapping" in form else "0"
    assert casts(got) == [f"{name}: column {column} ({dtype}) {BROUGHT} float32" for name in ("train", "queries")]
    assert casts(want) == []
    assert_close(got.values, want.values, rtol=1e-5, why="the same numbers, joined in another place")
    assert_close(got.baseline, want.baseline, rtol=1e-6, why="the same numbers, joined in another place")


def test_a_wide_model_gets_wide_numbers_and_a_narrow_one_narrow_ones():
    x = X.astype("float32")
    got = attribute((x, Y), (X[:2], Y[:2]), net(torch.float64))
    want = attribute((x.astype("float64"), Y), (X[:2], Y[:2]), net(torch.float64))
    assert casts(got) == [f"train: column 0 (float32) {BROUGHT} float64"]
    assert_close(got.values, want.values, rtol=1e-12, why="the same numbers")
    narrow = attribute(
        (x, Y), (x[:2], Y[:2]), net(torch.bfloat16), perturbation=fi.Perturbation(length=0.3), engine="forward"
    )
    assert casts(narrow) == [f"{name}: column 0 (float32) {BROUGHT} bfloat16" for name in ("train", "queries")]


@pytest.mark.parametrize("call", [fi.self_influence, fi.memorized])
def test_other_calls_note_it_too(call):
    found = call(net(), (np.tile(X, (2, 1)), np.tile(Y, 2)), task=fi.Classification())
    assert casts(found) == [f"train: column 0 (float64) {BROUGHT} float32"]


def test_whole_numbers_stay_whole():
    ids = torch.arange(N)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(N, 4), nn.Linear(4, 3)

        def forward(self, ids, more):
            return self.out(self.words(ids) + more)

    got = attribute((ids, X, Y), (ids[:2], X[:2], Y[:2]), Words(), engine="forward")
    assert casts(got)[0] == f"train: column 1 (float64) {BROUGHT} float32"


# -- what already works stays as it is ---------------------------------------------------------------------------------


class Dates(nn.Module):
    """Takes wide numbers, and needs them: seconds since 1970 fit float32 to two minutes."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(1, 3)

    def forward(self, seconds):
        return self.out((seconds - 1_700_000_000).float())


def test_a_model_that_takes_wide_numbers_itself_is_given_them():
    seconds = 1_700_000_000 + DRAW.random((N, 1))
    got = attribute((seconds, Y), (seconds[:2], Y[:2]), Dates())
    assert casts(got) == []
    after = attribute(((seconds - 1_700_000_000).astype("float32"), Y), ((seconds[:2] - 1_700_000_000).astype("float32"), Y[:2]),
                      nn.Sequential(*[module for module in Dates().modules() if isinstance(module, nn.Linear)]))  # fmt: skip
    assert np.ptp(got.baseline[Y[0] == Y]) > 0, "seconds apart are told apart"
    assert after.values.shape == got.values.shape


def test_targets_are_left_alone_where_only_inputs_need_it():
    targets = X.sum(1)
    kept = []

    def task(model, batch):
        kept.append(batch[1].dtype)
        return (model(batch[0])[:, 0] - batch[1]).square()

    got = attribute((X, targets), (X[:2], targets[:2]), task=task, engine="forward")
    assert set(kept) == {torch.float64}
    assert casts(got)[0] == f"train: column 0 (float64) {BROUGHT} float32"
    assert casts(attribute((X.astype("f4"), targets), (X[:2].astype("f4"), targets[:2]), task=task)) == []


def test_a_target_is_cast_too_where_the_loss_cannot_be_differentiated_otherwise():
    class Strict(torch.autograd.Function):
        @staticmethod
        def forward(ctx, output, target):
            ctx.save_for_backward(output, target)
            return (output - target).square()

        @staticmethod
        def backward(ctx, back):
            output, target = ctx.saved_tensors
            if output.dtype != target.dtype:
                raise RuntimeError("Found dtype Double but expected Float")
            return 2 * back * (output - target), None

    def task(model, batch):
        return Strict.apply(model(batch[0])[:, 0], batch[1])

    targets = X.sum(1)
    got = attribute((X, targets), (X[:2], targets[:2]), task=task, engine="forward")
    assert casts(got)[0] == f"train: column 0 (float64), column 1 (float64) {BROUGHT} float32"
    want = attribute((X.astype("f4"), targets.astype("f4")), (X[:2].astype("f4"), targets[:2].astype("f4")), task=task,
                     engine="forward")  # fmt: skip
    assert_within(got.values, want.values, atol=want.noise_floor, why="the same numbers")


def test_a_labels_meaning_is_not_changed_for_classification():
    with pytest.raises(fi.TaskError, match=r"class numbers, got torch.float64"):
        attribute((X, Y.astype("f8")), (X[:2], Y[:2].astype("f8")))


def test_of_several_dtypes_in_a_model_the_one_that_works_is_taken():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.inner = net(torch.float64)

        def forward(self, x):
            return self.inner(x).float() * self.scale

    got = attribute((X.astype("f4"), Y), (X[:2].astype("f4"), Y[:2]), Mixed(), engine="forward")
    assert casts(got)[0] == f"train: column 0 (float32) {BROUGHT} float64"


def test_nothing_is_tried_where_all_fits_or_there_is_nothing_to_cast():
    def never(batch):
        raise AssertionError("tried")

    task = FunctionTask(lambda model, batch: None)
    assert find_cast(net(), task, (torch.ones(2, 4), torch.zeros(2)), never) is None
    assert find_cast(net(), task, (torch.ones(2, dtype=torch.int64), ["text"]), never) is None
    assert find_cast(nn.Linear(2, 2, dtype=torch.complex64), task, torch.ones(2), never) is None


def test_where_no_cast_helps_the_first_reading_says_what_is_wrong():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        attribute((X[:, :3], Y), (X[:2, :3], Y[:2]))


def test_the_model_is_given_back_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attribute((X, Y), (X[:2], Y[:2]), model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_floats_are_found_wherever_they_are():
    batch = {"x": torch.ones(1), "more": [torch.ones(1), (torch.ones(1).int(), torch.ones(1).double())], "text": ["a"]}
    assert [path for path, _ in floats(batch)] == ["x", "more.0", "more.1.1"]


def test_a_note_is_logged_and_names_a_few_columns_of_many(caplog):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(9, 3)

        def forward(self, **columns):
            return self.out(torch.stack(list(columns.values()), 1))

    columns = {f"c{n}": DRAW.random(N) for n in range(9)}
    with caplog.at_level(logging.INFO, "forwardinf"):
        attribute(
            {**columns, "label": Y}, {**{name: values[:2] for name, values in columns.items()}, "label": Y[:2]}, Wide()
        )
    assert (
        "train: column c0 (float64), column c1 (float64), column c2 (float64), column c3 (float64) and 5 more"
        in caplog.text
    )
