import os
import random
import time
from collections import deque, namedtuple
from dataclasses import dataclass, field
from functools import cached_property

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from close import assert_close
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

import forwardinf as fi
from forwardinf.core.fingerprint import row_digest
from forwardinf.data.examples import examples

N = 9
torch.manual_seed(0)
X, Y = torch.randn(N, 4), torch.randint(3, (N,))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x)


def attribute(train, queries=None, model=None, **settings):
    settings = {"task": fi.Classification(), "batch_size": 4, "progress": False, "engine": "forward", "cache_dir": None,
                "perturbation": fi.Perturbation(), **settings}  # fmt: skip
    return fi.attribute(
        model or Named(), train, ({"x": X[:2], "label": Y[:2]}) if queries is None else queries, **settings
    )


# -- rows that draw, of Hugging Face datasets --------------------------------------------------------------------------

DRAWS = {
    "python": lambda: random.gauss(0, 1),
    "numpy": lambda: float(np.random.randn()),
    "torch": lambda: float(torch.randn(())),
}


def jittered(draw):
    def transform(batch):
        return {"x": [torch.tensor(row) + DRAWS[draw]() for row in batch["x"]], "label": batch["label"]}

    return transform


class Own(Dataset):
    """The same rows and draws as a torch dataset."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return N

    def __getitem__(self, row):
        return {"x": torch.tensor(X.tolist()[row]) + DRAWS[self.draw](), "label": int(Y[row])}


def hub(**more):
    return datasets.Dataset.from_dict({"x": X.tolist(), "label": Y.tolist(), **more})


def set_in_place(draw):
    data = hub()
    data.set_transform(jittered(draw))
    return data


HUB = {
    "with_transform": lambda draw: hub().with_transform(jittered(draw)),
    "set_transform": set_in_place,
    "a selection": lambda draw: hub().with_transform(jittered(draw)).select(range(N)),
    "a Subset": lambda draw: Subset(hub().with_transform(jittered(draw)), range(N)),
    "joined": lambda draw: ConcatDataset(
        [hub().with_transform(jittered(draw)).select(r) for r in (range(4), range(4, N))]
    ),
    "a loader": lambda draw: DataLoader(hub().with_transform(jittered(draw)), batch_size=3, shuffle=True),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("form", HUB)
def test_a_random_transform_of_a_hub_dataset_is_seeded_as_that_of_a_torch_dataset(form, draw):
    want = attribute(Own(draw)).baseline
    assert_close(attribute(HUB[form](draw)).baseline, want, rtol=1e-6, why="the same draws")
    assert abs(want - attribute(hub()).baseline).max() > 1e-2


def test_workers_and_other_batches_see_the_same_draws():
    data = hub().with_transform(jittered("torch"))
    want = attribute(data).baseline
    assert_close(attribute(data, num_workers=2).baseline, want, rtol=1e-12, why="the same batches")
    assert_close(attribute(data, batch_size=7).baseline, want, rtol=1e-6, why="float32 losses in other batches")


def test_queries_may_draw_too():
    data = hub().with_transform(jittered("torch"))
    assert attribute(hub(), data.select(range(2)), query_ids=["a", "b"]).values.shape == (2, N)


@pytest.mark.parametrize("where", ["ids", "query_ids"])
def test_what_a_row_draws_belongs_to_the_id_that_is_given(where):
    names = [f"row {row}" for row in range(N)]
    given = {"ids": names} if where == "ids" else {"query_ids": names}
    scores = attribute(Own("torch"), Own("torch"), **given)
    got = scores.baseline if where == "ids" else scores.query_baseline
    rows = examples(Own("torch"))
    rows.label_with(names)
    want = [nn.functional.cross_entropy(Named()(rows[row]["x"]), Y[row]).item() for row in range(N)]
    assert_close(got, want, rtol=1e-5, why="float32 losses in other batches")


def test_rows_without_a_transform_are_read_many_at_a_time():
    asked = []

    class Counted(datasets.Dataset):
        def __getitems__(self, rows):
            asked.append(len(rows))
            return super().__getitems__(rows)

    data = hub()
    data.__class__ = Counted
    attribute(data)
    assert max(asked) > 1


@pytest.mark.parametrize("kind", ["arrow", "pandas", "polars", "numpy", "torch", None])
def test_hub_datasets_of_every_format_are_rows(kind):
    if kind == "polars":
        pytest.importorskip("polars")
    want = attribute(hub()).baseline
    assert_close(attribute(hub().with_format(kind)).baseline, want, rtol=1e-6, why="the same numbers")
    few = hub(more=["a"] * N).with_format(kind, columns=["x", "label"])
    assert set(examples(few)[0]) == {"x", "label"}


def test_ids_are_a_column_below_the_transform_and_the_transform_is_not_asked():
    called = []

    def transform(batch):
        called.append(len(batch["x"]))
        return {"x": [torch.tensor(row) for row in batch["x"]], "label": batch["label"]}

    rows = examples(hub(name=[f"n{row}" for row in range(N)]).with_transform(transform))
    rows.label_with("name")
    assert rows.ids == [f"n{row}" for row in range(N)]
    assert not called


@pytest.mark.parametrize("data", [lambda: hub(name=list("abcdefghi")),
                                  lambda: pa.table({"x": X.tolist(), "name": list("abcdefghi")})])  # fmt: skip
def test_ids_by_name_read_the_column_and_no_row(data, monkeypatch):
    rows = examples(data())
    monkeypatch.setattr(type(rows), "__getitem__", lambda *_: pytest.fail("a row was read"))
    rows.label_with("name")
    assert rows.ids == list("abcdefghi")


def test_a_column_that_only_the_transform_makes_may_be_the_ids():
    rows = examples(hub().with_transform(lambda batch: {"key": [str(row[0]) for row in batch["x"]]}))
    rows.label_with("key")
    assert rows.ids == [str(row[0]) for row in X.tolist()]


# -- rows that are objects ---------------------------------------------------------------------------------------------

VOCABULARY = {f"word {number}": number for number in range(20_000)}


@dataclass
class Row:
    x: torch.Tensor
    y: int

    def text(self):
        return [word for word, number in VOCABULARY.items() if number == self.y]


@dataclass(slots=True)
class Slim:
    x: torch.Tensor
    y: int


class Private:
    """Slots, one of them under a name of its own."""

    __slots__ = ("__y", "x")

    def __init__(self, x, y):
        self.x, self.__y = x, y

    y = property(lambda self: self.__y)


Pair = namedtuple("Pair", "x y")


class Keyed(dict):
    """A mapping with something beside its items."""

    x, y = property(lambda self: self["x"]), property(lambda self: self.beside)

    def __init__(self, x, y):
        super().__init__(x=x)
        self.beside = y


KINDS = [Row, Slim, Private, Pair, Keyed]


def joined(rows):
    return {"x": torch.stack([row.x for row in rows]), "label": torch.tensor([row.y for row in rows])}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_be_objects_of_any_class(kind):
    rows = [kind(X[row], int(Y[row])) for row in range(N)]
    want = attribute({"x": X, "label": Y})
    got = attribute(rows, rows[:2], collate_fn=joined)
    assert_close(got.baseline, want.baseline, rtol=1e-6, why="the same numbers")


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_what_it_holds(kind):
    assert row_digest(kind(X[0], 1)) == row_digest(kind(X[0].clone(), 1))
    assert row_digest(kind(X[0], 1)) != row_digest(kind(X[0], 2))
    assert row_digest(kind(X[0], 1)) != row_digest(kind(X[1], 1))


def test_rows_of_attrs_and_of_graphs_are_what_they_hold():
    attrs = pytest.importorskip("attrs")
    kind = attrs.make_class("Kind", ["x", "y"], slots=True)
    assert row_digest(kind(X[0], 1)) == row_digest(kind(X[0], 1)) != row_digest(kind(X[0], 2))
    data = pytest.importorskip("torch_geometric.data")
    assert row_digest(data.Data(x=X)) == row_digest(data.Data(x=X.clone())) != row_digest(data.Data(x=X + 1))


def test_the_code_of_a_class_is_told_once_however_many_rows_there_are():
    rows = examples([Row(X[0], row) for row in range(300)], collate_fn=joined)
    once = time.process_time()
    row_digest(Row(X[0], 0))
    once = time.process_time() - once
    began = time.process_time()
    rows.seal(range(300), lambda done: None, None)
    for _ in rows.batches(range(300), 32):
        pass
    assert time.process_time() - began < 3 * once + 0.5, "600 rows, each with a class of 20,000 words"


def test_a_class_whose_code_changed_is_another_one_in_the_next_call():
    def sealed():
        return examples([Row(X[0], 1)], collate_fn=joined).seal(range(1), lambda done: None, None)

    before, method = sealed(), Row.text
    try:
        Row.text = lambda self: [str(self.y)]
        assert sealed() != before
    finally:
        Row.text = method
    assert sealed() == before


@dataclass
class Lazy:
    x: torch.Tensor
    y: int
    kept: list = field(default_factory=list)

    @cached_property
    def norm(self):
        return float(self.x.norm())


def test_what_a_cached_property_leaves_in_a_row_is_no_change_of_it():
    def join(rows):
        assert all(row.norm > 0 for row in rows)
        return joined(rows)

    rows = [Lazy(X[row], int(Y[row])) for row in range(N)]
    assert attribute(rows, rows[:2], collate_fn=join).values.shape == (2, N)
    assert "norm" in vars(rows[0])


def test_what_else_a_row_keeps_for_later_is_a_change_and_the_error_says_what_to_do():
    def join(rows):
        for row in rows:
            row.kept.append(1)
        return joined(rows)

    rows = [Lazy(X[row], int(Y[row])) for row in range(N)]
    with pytest.raises(fi.DataError, match=r"row 0 .* other content") as caught:
        attribute(rows, rows[:2], collate_fn=join)
    assert "cached_property" in caught.value.do


class Node:
    def __init__(self, number):
        self.number, self.near = number, []


def web(size=40):
    nodes = [Node(number) for number in range(size)]
    for node in nodes:
        node.near = nodes  # each knows all: more ways through them than could ever be walked
    return nodes


def test_objects_that_know_one_another_come_to_an_end():
    began = time.process_time()
    one, other = web(), web()
    assert row_digest(one[0]) == row_digest(other[0])
    other[-1].number = -1
    assert row_digest(one[0]) != row_digest(other[0])
    assert time.process_time() - began < 1


def test_one_object_twice_and_two_copies_are_the_same_content():
    one, copy = Row(X[0], 1), Row(X[0].clone(), 1)
    assert row_digest([one, one]) == row_digest([one, copy]) != row_digest([one, Row(X[0], 2)])


def test_a_reference_back_to_what_holds_it_is_fine():
    import weakref

    class Part:
        pass

    def whole(y):
        row = Row(X[0], y)
        row.part = Part()
        row.part.parent = weakref.ref(row)
        return row

    assert row_digest(whole(1)) == row_digest(whole(1)) != row_digest(whole(2))


def test_a_row_of_more_parts_than_any_example_has_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("forwardinf.core.hasher.MOST_PARTS", 1000)
    with pytest.raises(fi.DataError, match=r"train, row 0.*more than 1,000 parts"):
        attribute([{"x": X[0], "label": 1, "all": list(range(2000))}], collate_fn=lambda rows: rows)
    deep = [1]
    for _ in range(60):
        deep = [deep, deep]
    with pytest.raises(fi.DataError, match="more than 1,000 parts"):
        attribute([{"x": X[0], "label": 1, "all": deep}], collate_fn=lambda rows: rows)


def test_ids_may_be_an_attribute_of_objects():
    rows = examples([Row(X[row], row + 5) for row in range(3)], collate_fn=joined)
    rows.label_with("y")
    assert rows.ids == [5, 6, 7]


# -- datasets that misbehave -------------------------------------------------------------------------------------------


class Called(Dataset):
    def __init__(self, give, size=N):
        self.give, self.size = give, size

    def __len__(self):
        return self.size

    def __getitem__(self, row):
        return self.give(row)


def good(row):
    return {"x": X[row], "label": int(Y[row])}


def raises(row):
    return good(row) if row != 5 else 1 / 0


SHAPES = iter(range(10_000))

BAD = {
    "raises": (lambda: Called(raises), "train, row 5: expected an example.*ZeroDivisionError: division by zero"),
    "gives None": (lambda: Called(lambda row: None if row == 5 else good(row)), "train, row 5: expected an example, got None"),
    "holds None": (lambda: [good(row) if row != 5 else None for row in range(N)], "train, row 5: expected an example, got None"),
    "says it is longer": (lambda: Called(good, N + 3), f"train, row {N}: expected an example, as its length is 12, got Index"),
    "other shapes each time": (lambda: Called(lambda row: {"x": X[row, : 2 + next(SHAPES) % 2], "label": 0}),
                               "train, row 0.*expected the same content as at the first reading"),
    "a negative length": (lambda: Called(good, -1), "train: expected a dataset with a length, got ValueError"),
    "a length that fails": (lambda: Called(good, None), "train: expected a dataset with a length, got TypeError"),
    "rows of other columns": (lambda: [good(row) if row != 5 else {"y": 1} for row in range(N)], "is not in every row"),
    "ragged rows": (lambda: [{"x": torch.ones(4 + (row == 1)), "label": 0} for row in range(N)],
                    r"joining 2 examples .*column 'x' holds Tensor of sizes \(4,\), \(5,\)"),
    "a value missing in a row": (lambda: [{"x": X[row], "label": None if row == 1 else 1} for row in range(N)],
                                 "joining row 1 into a batch.*column 'label': a missing value"),
    "an object in a column": (lambda: [{"x": X[row], "label": 1, "more": Row(X[0], 1)} for row in range(N)],
                              "joining row 0 into a batch.*column 'more' holds Row"),
    "a picture that is none": (lambda: datasets.Dataset.from_dict({"x": [{"bytes": b"no", "path": None}], "label": [0]})
                               .cast_column("x", datasets.Image()), "train, row 0: expected an example, got UnidentifiedImage"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_that_misbehaves_is_an_error_of_ours_that_names_the_row(what, workers):
    make, message = BAD[what]
    with pytest.raises(fi.DataError, match=message) as caught:
        attribute(make(), num_workers=workers)
    assert len(str(caught.value)) < 700
    assert "Traceback" not in str(caught.value)


def test_a_worker_that_dies_is_an_error_of_ours():
    def give(row):
        return good(row) if torch.utils.data.get_worker_info() is None else os._exit(3)

    with pytest.raises(fi.DataError, match="worker processes that live") as caught:
        attribute(Called(give), num_workers=1)
    assert "num_workers=0" in caught.value.do


def test_rows_are_never_asked_for_by_negative_position_and_a_length_that_is_too_short_is_believed():
    asked = []
    attribute(Called(lambda row: (asked.append(row), good(row))[1], 5))
    assert set(asked) == set(range(5))


def test_running_out_of_memory_is_not_the_datas_fault():
    with pytest.raises(MemoryError):
        attribute(Called(lambda row: (_ for _ in ()).throw(MemoryError())))


def test_a_collate_that_fails_names_the_first_row_it_does_not_take():
    def join(rows):
        return joined([Pair(row["x"], 1 // (row["label"] != 7)) for row in rows])

    rows = [{"x": X[row], "label": 7 if row == 6 else 1} for row in range(N)]
    with pytest.raises(fi.DataError, match=r"joining row 6 into a batch.*ZeroDivisionError"):
        attribute(rows, collate_fn=join)


# -- arrays in odd places ----------------------------------------------------------------------------------------------


def mapped(folder, mode):
    (folder / "x.dat").write_bytes(X.numpy().tobytes())
    return np.memmap(folder / "x.dat", dtype="f4", mode=mode, shape=(N, 4))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_mapped_file_is_read_without_being_copied_whole_or_written_to(tmp_path, mode):
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    if mode == "r":  # a model that writes to its input would end the process, were batches not copies
        got = attribute((mapped(tmp_path, "r"), Y), (X[:2].clone(), Y[:2]), model)
        assert_close(got.baseline, attribute((X.clone(), Y), (X[:2].clone(), Y[:2]),
                     nn.Sequential(nn.ReLU(), model[1])).baseline, rtol=1e-6, why="the same numbers")  # fmt: skip
    whole = mapped(tmp_path, mode)
    rows = examples((whole, Y))
    assert rows._form.columns[0].data_ptr() == whole.ctypes.data
    assert rows.seal(range(N), lambda done: None, None) == examples((X, Y)).seal(range(N), lambda done: None, None)
    assert np.array_equal(np.fromfile(tmp_path / "x.dat", dtype="f4"), X.flatten().numpy())


ODD = {
    "wants a gradient": lambda: X.clone().requires_grad_(),
    "not contiguous": lambda: X.t().contiguous().t(),
    "made in inference mode": lambda: inference(X),
    "expanded": lambda: X[:1].expand(N, 4),
}


def inference(x):
    with torch.inference_mode():
        return x.clone()


@pytest.mark.parametrize("what", ODD)
def test_tensors_of_any_kind_are_read(what):
    x = ODD[what]()
    with torch.no_grad():
        plain = torch.stack([row.clone() for row in x.detach()])
    want = attribute((plain, Y), (plain[:2], Y[:2]), nn.Linear(4, 3).requires_grad_())
    for train in ((x, Y), [(row, int(label)) for row, label in zip(x, Y, strict=True)], deque(zip(x, Y, strict=True))):
        model = Named()
        got = attribute(train, (plain[:2], Y[:2]), model)
        again = attribute((plain, Y), (plain[:2], Y[:2]), Named())
        assert_close(got.baseline, again.baseline, rtol=1e-6, why="the same numbers")
    assert want.values.shape == (2, N)


REFUSED = {
    "meta": (lambda: X.to("meta"), "expected data, got the meta device"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(4)] * N, layout=torch.jagged), "got a nested tensor"),
    "masked": (
        lambda: np.ma.masked_array(X.numpy(), mask=X.numpy() > 0),
        "expected a value in every place, got a masked array",
    ),
    "complex": (
        lambda: X.numpy() + 0j,
        "got an array of complex64. A model that takes complex numbers: pass torch.from_numpy",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", REFUSED)
def test_columns_without_plain_numbers_are_refused(what):
    make, message = REFUSED[what]
    with pytest.raises(fi.DataError, match=message):
        attribute((make(), Y))


def test_a_masked_array_without_gaps_is_an_array():
    x = np.ma.masked_array(X.numpy(), mask=False)
    assert_close(attribute((x, Y), (X[:2], Y[:2])).baseline, attribute((X, Y), (X[:2], Y[:2])).baseline, rtol=1e-12,
                 why="the same numbers")  # fmt: skip


def test_a_file_name_where_data_should_be_is_told_how_to_read_it():
    with pytest.raises(fi.DataError, match=r"fi.load_data\(\.\.\.\)"):
        attribute("train.csv")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_data_on_another_device_than_the_model_is_brought_there():
    want = attribute((X, Y), (X[:2], Y[:2]))
    got = attribute((X.cuda(), Y.cuda()), (X[:2].cuda(), Y[:2].cuda()))
    assert_close(got.baseline, want.baseline, rtol=1e-5, why="another device")
