from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from close import assert_close
from torch import nn

import forwardinf as fi
from forwardinf.data.examples import examples
from forwardinf.data.frames import as_table

N = 12
DRAW = np.random.default_rng(0)
FEATURES = ["age", "income", "height"]
X, Y = DRAW.standard_normal((N, 3)).astype("f4"), DRAW.integers(0, 2, N)
FRAME = pd.DataFrame(X, columns=FEATURES).assign(label=Y)
STACKED = fi.Classification(inputs=lambda batch: torch.stack([batch[name] for name in FEATURES], 1))


class Quacking:
    """What a data frame of another library looks like (polars and its kin)."""

    def __init__(self, frame):
        self.frame, self.columns = frame, list(frame.columns)

    def __len__(self):
        return len(self.frame)

    def __getitem__(self, name):
        return self.frame[name]

    def to_arrow(self):
        return pa.Table.from_pandas(self.frame, preserve_index=False)

    def to_numpy(self):
        return self.frame.to_numpy()


class Interchanging:
    """One that only speaks the common protocol."""

    def __init__(self, frame):
        self.frame = frame

    def __len__(self):
        return len(self.frame)

    def __dataframe__(self, **settings):
        return pa.Table.from_pandas(self.frame, preserve_index=False).__dataframe__(**settings)


def attribute(train, queries, task=STACKED, **settings):
    torch.manual_seed(0)
    settings = {"perturbation": fi.Perturbation(), "engine": "factored", "progress": False, "batch_size": 4, **settings}
    return fi.attribute(nn.Linear(3, 2), train, queries, task=task, **settings)


@pytest.fixture(scope="module")
def want():
    return attribute((X, Y), (X[:3], Y[:3]), fi.Classification())


FORMS = {
    "pandas": lambda frame: frame,
    "an Arrow table": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "a record batch": lambda frame: pa.RecordBatch.from_pandas(frame, preserve_index=False),
    "a frame of another library": Quacking,
    "a frame by the common protocol": Interchanging,
    "polars": lambda frame: pytest.importorskip("polars").from_pandas(frame),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_a_frame_of_numbers_is_named_columns_in_memory(form, want):
    make = FORMS[form]
    got = attribute(make(FRAME), make(FRAME[:3]))
    assert examples(make(FRAME)).sliced
    assert_close(got.values, want.values, rtol=1e-6, why="the same numbers")
    assert not [note for note in got.notes if "brought" in note]


@pytest.mark.parametrize("form", ["pandas", "a frame of another library", "polars"])
def test_text_in_a_frame_stays_text_and_may_be_the_ids(form, want):
    make = FORMS[form]
    frame = FRAME.assign(name=[f"row {row}" for row in range(N)])
    got = attribute(make(frame), make(frame[:3]), ids="name", query_ids="name")
    assert_close(got.values, want.values, rtol=1e-5, why="the same numbers, joined row by row")
    assert got.ids[:2] == ["row 0", "row 1"]
    assert examples(make(frame))[0]["name"] == "row 0"


def test_an_index_with_a_name_is_a_column_and_one_without_is_left_out():
    named = FRAME.set_axis(pd.Index([f"p{row}" for row in range(N)], name="patient"))
    assert attribute(named, named[:3], ids="patient").ids[0] == "p0"
    assert set(examples(FRAME.iloc[::-1])[0]) == {*FEATURES, "label"}
    assert examples(FRAME.iloc[::-1])[0]["label"] == Y[-1]


KINDS = {
    "float64": lambda frame: frame.astype(dict.fromkeys(FEATURES, "float64")),
    "Float32": lambda frame: frame.astype(dict.fromkeys(FEATURES, "Float32")),
    "Int64 labels": lambda frame: frame.astype({"label": "Int64"}),
    "int8 labels": lambda frame: frame.astype({"label": "int8"}),
    "Arrow's own": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "read-only": lambda frame: pd.DataFrame({name: np.broadcast_to(frame[name], (1, N))[0] for name in frame}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_any_kind_of_number_are_read(kind, want):
    frame = KINDS[kind](FRAME)
    assert_close(attribute(frame, frame[:3]).values, want.values, rtol=1e-6, why="the same numbers")
    pair = (frame[FEATURES], frame["label"])
    got = attribute(pair, (X[:3], Y[:3]), fi.Classification())
    assert_close(got.values, want.values, rtol=1e-6, why="the same numbers")


PAIRS = {
    "a frame and a series": lambda frame: (frame[FEATURES], frame["label"]),
    "a frame and an array": lambda frame: (frame[FEATURES], frame["label"].to_numpy()),
    "a mapping of both": lambda frame: {"input": frame[FEATURES], "label": frame["label"]},
    "a frame and a series of another library": lambda frame: (Quacking(frame[FEATURES]), pa.array(frame["label"])),
}


@pytest.mark.parametrize("form", PAIRS)
def test_a_frame_beside_a_series_is_the_matrix_of_its_columns(form, want):
    task = fi.Classification(inputs="input" if "mapping" in form else 0, label="label" if "mapping" in form else 1)
    got = attribute(PAIRS[form](FRAME), PAIRS[form](FRAME[:3]), task)
    assert_close(got.values, want.values, rtol=1e-6, why="the same numbers")


def test_columns_of_numbers_and_truth_values_make_a_matrix_of_numbers():
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]})
    (x,) = examples((frame,)).few([0, 1])
    assert x.tolist() == [[1.0, 0.5, 1.0], [2.0, 1.5, 0.0]]


def test_labels_in_another_column_are_found_by_the_tasks_rule(want):
    frame = FRAME.rename(columns={"label": "died"})
    task = fi.Classification(inputs=STACKED.inputs, label="died")
    assert_close(attribute(frame, frame[:3], task).values, want.values, rtol=1e-6, why="the same numbers")


def test_cells_may_hold_lists():
    frame = pd.DataFrame({"x": list(X), "label": Y})
    got = attribute(frame, frame[:3], fi.Classification(inputs="x"))
    assert got.values.shape == (3, N)


def test_a_task_with_a_collate_of_its_own_gets_rows():
    class Own(fi.Classification):
        def collate(self, rows):
            return torch.tensor([[row[name] for name in FEATURES] for row in rows]), torch.tensor(
                [row["label"] for row in rows]
            )

    frame = FRAME.assign(when=pd.Timestamp("2020-01-01"), note=[None, *["x"] * (N - 1)])  # which it does not look at
    assert attribute(frame, frame[:3], Own()).values.shape == (3, N)


BAD = {
    "nan": (lambda f: f.assign(age=[np.nan, *f["age"][1:]]), "train, column 'age', row 0: expected a value, got none"),
    "a missing text": (lambda f: f.assign(n=["x"] * 5 + [None] + ["x"] * 6), "column 'n', row 5: expected a value"),
    "a missing whole number": (lambda f: f.assign(label=pd.array([1, None] * 6, dtype="Int64")), "column 'label', row 1"),
    "two of one name": (lambda f: pd.concat([f, f[["age"]]], axis=1), "one column of each name, got 'age' twice"),
    "an index of a column's name": (lambda f: f.set_index(pd.Index(range(N), name="age")), "got 'age' twice"),
    "mixed types": (lambda f: f.assign(n=[1, *["x"] * (N - 1)]), "columns of one type each.*column n"),
    "dates": (lambda f: f.assign(n=pd.Timestamp("2020-01-01")), "column 'n': expected numbers or text, got dates or times"),
    "durations": (lambda f: f.assign(n=pd.Timedelta("1D")), "column 'n': expected numbers or text, got dates or times"),
    "decimals": (lambda f: f.assign(n=[Decimal(1)] * N), "column 'n': expected numbers or text, got decimal"),
    "objects": (lambda f: f.assign(n=[torch.ones(2)] * N), "columns of one type each.*column n"),
    "sparse": (lambda f: f.assign(n=pd.arrays.SparseArray([0.0] * N)), "columns of one type each.*Sparse"),
    "no rows": (lambda f: f[:0], "expected at least one example"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_frame_that_cannot_be_read_is_refused_by_column_and_row(what):
    make, message = BAD[what]
    with pytest.raises(fi.DataError, match=message) as caught:
        attribute(make(FRAME), FRAME[:3])
    assert caught.value.where.startswith("train")
    assert caught.value.expected
    assert caught.value.got


MATRICES = {
    "nan": (lambda f: f.assign(age=[np.nan, *f["age"][1:]]), "train, column 0, column 'age', row 0: expected a value"),
    "categories": (
        lambda f: f.assign(age=pd.Categorical(["u", "v"] * 6)),
        r"column 'age'.*got a column of category.*cat.codes",
    ),
    "text": (lambda f: f.assign(age=["u"] * N), "column 'age': expected numbers"),
    "dates": (lambda f: f.assign(age=pd.Timestamp("2020-01-01")), "column 'age': expected numbers"),
    "two of one name, one of text": (
        lambda f: f.assign(age=["u"] * N)[["age", "age"]],
        "column 'age': expected numbers",
    ),
}


@pytest.mark.parametrize("what", MATRICES)
def test_a_frame_beside_a_series_must_be_numbers(what):
    make, message = MATRICES[what]
    frame = make(FRAME)
    names = FEATURES if "income" in frame else list(frame)
    with pytest.raises(fi.DataError, match=message):
        attribute(
            (frame if "income" not in frame else frame[names], FRAME["label"]), (X[:3], Y[:3]), fi.Classification()
        )


def test_a_lazy_frame_is_told_to_be_collected():
    class Lazy:
        columns = FEATURES

        def collect(self):
            return FRAME

    with pytest.raises(fi.DataError, match=r"Call .collect\(\) first"):
        attribute(Lazy(), FRAME[:3])


def test_what_is_no_frame_is_none():
    assert as_table([1, 2], "train") is None
    assert as_table({"a": 1}, "train") is None


def test_whole_numbers_beyond_64_bits_are_no_column_of_numbers():
    assert not examples(pd.DataFrame({"a": np.array([2**63], dtype=np.uint64)})).sliced
    assert examples(pd.DataFrame({"a": np.array([2**62], dtype=np.uint64)})).few([0])["a"].dtype == torch.int64
