"""Bad input gets an error of ours that says where, and leaves nothing half-written: each case through the front door.

What takes more than a call is elsewhere: killed runs, full disks and damaged folders in test_resume.py, draws that cannot be
keyed in test_laws.py, files and forms of data in core/test_load_*.py.
"""

import math

import numpy as np
import pytest
import torch

import forwardinf as fi

NAN, INF = math.nan, math.inf


def call(train=None, queries=None, *, task=None, model=None, tmp_path=None, **settings):
    torch.manual_seed(0)
    x, y = torch.randn(8, 2), torch.tensor([0, 1] * 4)
    fi.attribute(
        torch.nn.Linear(2, 2) if model is None else model,
        (x, y) if train is None else train(x, y),
        (x[:2], y[:2]) if queries is None else queries(x, y),
        task=task or fi.Classification(),
        progress=False,
        output_dir=tmp_path / "run",
        **settings,
    )


def spoilt(x, y, value):
    x = x.clone()
    x[3, 0] = value
    return x, y


def broken(value):
    model = torch.nn.Linear(2, 2)
    model.weight.data[0, 0] = value
    return model


class OnlyIterates:
    def __iter__(self):
        return iter([])


CASES = {
    "nan in a training row": (fi.TaskError, "place 3 in the batch: expected a finite", {"train": lambda x, y: spoilt(x, y, NAN)}),
    "infinity in a training row": (fi.TaskError, "place 3 in the batch", {"train": lambda x, y: spoilt(x, y, INF)}),
    "a model that holds nan": (fi.TaskError, "finite number, got nan", {"model": broken(NAN)}),
    "a mean-reduced loss": (fi.TaskError, "one number for all", {"task": lambda model, batch: model(batch[0]).mean()}),
    "a loss of another shape": (fi.TaskError, "shape", {"task": lambda model, batch: model(batch[0])}),
    "a complex loss": (fi.TaskError, "real numbers", {"task": lambda model, batch: model(batch[0])[:, 0] * 1j}),
    "a loss that is no tensor": (fi.TaskError, "NoneType", {"task": lambda model, batch: None}),
    "a loss that forgets the model": (fi.QueryError, "zero gradient", {"task": lambda model, batch: batch[0][:, 0] ** 2}),
    "data that only iterates": (fi.DataError, "only iterates", {"train": lambda x, y: OnlyIterates()}),
    "no training example": (fi.DataError, "at least one example", {"train": lambda x, y: (x[:0], y[:0])}),
    "no query": (fi.DataError, "at least one example", {"queries": lambda x, y: (x[:0], y[:0])}),
    "columns of unequal length": (fi.DataError, "equal first dimensions", {"train": lambda x, y: (x, y[:4])}),
    "no ids": (fi.DataError, "expected 8", {"ids": []}),
    "an id twice": (fi.DataError, "'a' for the second time", {"ids": list("abcdefga")}),
    "an empty id": (fi.DataError, "position 1", {"ids": ["a", "", *"cdefgh"]}),
    "a query id twice": (fi.DataError, "queries ids", {"query_ids": ["a", "a"]}),
    "a label that the model does not have": (fi.TaskError, "got 7", {"train": lambda x, y: (x, 7 * y)}),
    "labels that are no class numbers": (fi.TaskError, "class numbers", {"train": lambda x, y: (x, y.float())}),
    "a pattern that matches nothing": (fi.SettingError, "weight, bias", {"perturbation": {"parameters": "layer*"}}),
    "an unknown setting": (fi.SettingError, "'length'", {"perturbation": {"lenght": 0.1}}),
    "an unknown direction": (fi.SettingError, "'plain'", {"perturbation": {"direction": "plian"}}),
    "a length out of range": (fi.SettingError, "length", {"perturbation": {"length": INF}}),
    "a batch of none": (fi.SettingError, "batch_size", {"batch_size": 0}),
    "an unknown engine": (fi.SettingError, "'forward'", {"engine": "foward"}),
    "a model without data": (fi.ModelError, "meta device", {"model": torch.nn.Linear(2, 2, device="meta")}),
    "no model": (fi.ModelError, "torch.nn.Module", {"model": lambda x: x}),
    "no task": (fi.SettingError, "task", {"task": "classification"}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input_is_an_error_of_ours_and_leaves_no_scores(name, tmp_path):
    kind, told, given = CASES[name]
    with pytest.raises(kind) as caught:
        call(**given, tmp_path=tmp_path)
    error = caught.value
    assert told in str(error)
    assert error.where
    assert error.expected
    assert error.got
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("scores/**/*.parquet"))
    assert not (tmp_path / "run" / "done.json").exists()


def test_a_file_where_a_folder_should_be_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("mine")
    x, y = torch.eye(2), torch.tensor([0, 1])
    with pytest.raises(fi.FileError, match="folder"):
        fi.attribute(torch.nn.Linear(2, 2), (x, y), (x, y), task=fi.Classification(), output_dir=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_where_the_cache_should_be_is_told_once_and_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    torch.manual_seed(0)
    x, y, model = torch.eye(2), torch.tensor([0, 1]), torch.nn.Linear(2, 2)
    want, *found = (
        fi.attribute(model, (x, y), (x, y), task=fi.Classification(), progress=False, cache_dir=folder)
        for folder in (tmp_path / "fine", tmp_path / "file", tmp_path / "file")
    )
    assert all(np.array_equal(got.values, want.values) for got in found)
    told = [record.getMessage() for record in caplog.records if "nothing is kept between calls" in record.getMessage()]
    assert len(told) == 1
    assert str(tmp_path / "file") in told[0]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_gradient_that_is_zero_is_found_before_any_reading(tmp_path):
    def task(model, batch):
        return (model(batch[0]) * batch[0]).sum(1)

    with pytest.raises(fi.QueryError, match="query 1"):
        call(queries=lambda x, y: (torch.stack([x[0], 0 * x[0]]), y[:2]), task=task, tmp_path=tmp_path)
    assert not list(tmp_path.rglob("scores/**/*.parquet"))
