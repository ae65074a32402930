import logging
import random

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from close import assert_close, assert_within
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset, default_collate

import forwardinf as fi
from forwardinf.data import noise
from forwardinf.data.examples import examples

N = 9
SAME = "two runs, each the difference of two float32 readings; memory layout may differ"


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data(rows=N, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=draw), torch.randint(3, (rows,), generator=draw)


X, Y = data()
QUERIES = data(2, seed=2)


class Named(nn.Module):
    """The same model with a keyword: what rows that are mappings are fed to."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        return self.inner(x)


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], int(self.y[row])


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[0], Y[0])])


def attribute(train, queries=QUERIES, model=None, **settings):
    settings = {"task": fi.Classification(), "batch_size": 4, "progress": False, "engine": "forward",
                "perturbation": fi.Perturbation(), **settings}  # fmt: skip
    return fi.attribute(model or net(), train, queries, **settings)


def wanted():
    return attribute((X, Y))


def assert_same(got, want):
    assert_within(got.values, want.values, atol=4 * want.noise_floor, why=SAME)


def mapped(x=X, y=Y):
    return {"x": x, "label": y}


def joined(rows):
    return torch.stack([x for x, _ in rows]), torch.tensor([int(y) for _, y in rows])


def joined_mappings(rows):
    return {"x": torch.stack([row["x"] for row in rows]), "label": torch.tensor([int(row["label"]) for row in rows])}


TUPLES = {
    "a tuple of tensors": lambda x, y: (x, y),
    "a tuple of arrays": lambda x, y: (x.numpy(), y.numpy()),
    "a tuple of both": lambda x, y: (x.numpy(), y),
    "a list of tuples": lambda x, y: [(x[i], y[i]) for i in range(len(x))],
    "a list of lists": lambda x, y: [[x[i], int(y[i])] for i in range(len(x))],
    "a list of plain numbers": lambda x, y: [(x[i].tolist(), int(y[i])) for i in range(len(x))],
    "a TensorDataset": TensorDataset,
    "a map-style dataset": Rows,
    "a Subset": lambda x, y: torch.utils.data.Subset(Rows(x, y), range(len(x))),
    "a DataLoader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=2),
    "a DataLoader that shuffles": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True),
    "a DataLoader with a collate": lambda x, y: DataLoader(Rows(x, y), batch_size=2, collate_fn=joined),
}
MAPPINGS = {
    "a mapping of tensors": mapped,
    "a mapping of arrays": lambda x, y: {"x": x.numpy(), "label": y.numpy()},
    "a list of mappings": lambda x, y: [{"x": x[i], "label": y[i]} for i in range(len(x))],
    "a list of plain mappings": lambda x, y: [{"x": x[i].tolist(), "label": int(y[i])} for i in range(len(x))],
    "a datasets.Dataset": lambda x, y: datasets.Dataset.from_dict({"x": x.tolist(), "label": y.tolist()}),
    "a datasets.Dataset that gives tensors": lambda x, y: datasets.Dataset.from_dict(
        {"x": x.tolist(), "label": y.tolist()}
    ).with_format("torch"),
    "an Arrow table": lambda x, y: pa.table({"x": x.tolist(), "label": y.tolist()}),
    "an Arrow table in chunks": lambda x, y: pa.concat_tables(
        [pa.table({"x": x[at].tolist(), "label": y[at].tolist()}) for at in (slice(0, 1), slice(1, None))]
    ),
    "a DataLoader over mappings": lambda x, y: DataLoader(
        [{"x": x[i], "label": y[i]} for i in range(len(x))], batch_size=2, shuffle=True, collate_fn=joined_mappings
    ),
}


@pytest.mark.parametrize("form", TUPLES)
def test_every_form_of_pairs_gives_the_scores_of_a_tuple_of_tensors(form):
    made = TUPLES[form]
    got = attribute(made(X, Y), made(*QUERIES))
    assert got.ids == list(range(N))
    assert_same(got, wanted())
    assert_close(got.baseline, wanted().baseline, rtol=1e-6, why=SAME)


@pytest.mark.parametrize("form", MAPPINGS)
def test_every_form_of_mappings_gives_the_scores_of_a_tuple_of_tensors(form):
    made = MAPPINGS[form]
    got = attribute(made(X, Y), made(*QUERIES), model=Named())
    assert_same(got, wanted())


def test_train_and_queries_may_come_in_different_forms():
    got = attribute(TensorDataset(X, Y), [(QUERIES[0][0], int(QUERIES[1][0]))])
    assert_within(got.values, wanted().values[:1], atol=4 * wanted().noise_floor[:1], why=SAME)


def test_a_bare_tensor_is_rows_of_inputs_alone():
    task = lambda model, batch: model(batch).square().sum(1)  # noqa: E731
    got = attribute(X, QUERIES[0], task=task)
    assert_same(got, attribute(list(X), list(QUERIES[0]), task=task))


def test_a_shuffled_loader_is_read_in_index_order_and_says_so():
    scores = attribute(DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True))
    assert "train: the loader's dataset is read in index order (the loader shuffles)" in scores.notes
    assert "shuffles" not in " ".join(attribute(DataLoader(TensorDataset(X, Y), batch_size=3)).notes)


def test_a_loaders_sampler_does_not_hide_rows():
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, sampler=SubsetRandomSampler([1, 2]))
    assert attribute(loader).values.shape == (2, N)


def test_collate_fn_wins_over_the_loaders_own():
    called = []

    def mine(rows):
        called.append(len(rows))
        return joined(rows)

    loader = DataLoader(Rows(X, Y), batch_size=2, collate_fn=lambda rows: pytest.fail("the loader's own"))
    attribute(loader, collate_fn=mine, cache_dir=None)
    assert called


def test_worker_processes_change_nothing():
    got = attribute(Rows(X, Y), num_workers=2)
    assert_close(got.values, attribute(Rows(X, Y)).values, rtol=1e-12, why="the same batches; only fetched elsewhere")


# -- numbers in odd clothes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int16, np.int32, np.uint16, np.uint32, np.int64])
def test_labels_of_any_whole_dtype_are_class_numbers(dtype):
    y = (Y > 0).long()
    got = attribute((X, y.numpy().astype(dtype)), (QUERIES[0], (QUERIES[1] > 0).numpy().astype(dtype)))
    assert_close(got.values, attribute((X, y), (QUERIES[0], (QUERIES[1] > 0).long())).values, rtol=1e-12,
                 why="labels become int64 first")  # fmt: skip


def test_labels_in_a_column_of_their_own_dimension_are_class_numbers():
    got = attribute((X, Y[:, None]), (QUERIES[0], QUERIES[1][:, None]))
    assert_close(got.values, wanted().values, rtol=1e-12, why="flattened first")


ODD_ARRAYS = {
    "negative strides": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "column order": np.asfortranarray,
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "another byte order": lambda x: x.astype(">f4"),
    "read-only": lambda x: (lambda c: (c.setflags(write=False), c)[1])(x.copy()),
    "broadcast": lambda x: np.broadcast_to(x, (1, *x.shape))[0],
}


@pytest.mark.parametrize("odd", ODD_ARRAYS)
def test_arrays_of_any_layout_are_read(odd):
    got = attribute((ODD_ARRAYS[odd](X.numpy()), Y.numpy()))
    assert_same(got, wanted())


def test_labels_that_are_an_array_with_negative_strides_are_read():
    assert_close(
        attribute((X, Y.numpy()[::-1].copy()[::-1])).values, wanted().values, rtol=1e-12, why="the same numbers"
    )


def test_memory_mapped_arrays_are_read_and_not_written(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    mapped_rows = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_close(attribute((mapped_rows, Y)).values, wanted().values, rtol=1e-12, why="the same numbers")
    assert np.array_equal(np.load(tmp_path / "x.npy"), X.numpy())


def test_a_tensor_that_wants_a_gradient_is_read_without_it():
    x = X.clone().requires_grad_()
    assert_close(attribute((x, Y)).values, wanted().values, rtol=1e-12, why="the same numbers")
    assert x.grad is None


def test_one_training_example_and_more_queries_than_training_examples_are_fine():
    assert attribute((X[:1], Y[:1])).values.shape == (2, 1)
    assert attribute(QUERIES, (X, Y)).values.shape == (N, 2)


# -- rows that draw ----------------------------------------------------------------------------------------------------


class Draws(Dataset):
    """A random transform, from whichever generator."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return N

    def __getitem__(self, row):
        jitter = {"python": random.random, "numpy": np.random.rand, "torch": lambda: float(torch.rand(()))}[self.how]()
        return X[row] + jitter, int(Y[row])


@pytest.mark.parametrize("how", ["python", "numpy", "torch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_row_draws_is_the_same_at_every_reading_and_in_every_worker(how, workers):
    first = attribute(Draws(how), num_workers=workers, cache_dir=None)
    again = attribute(Draws(how), batch_size=5)
    assert_close(again.baseline, first.baseline, rtol=1e-6, why="float32 losses in other batches")
    assert not np.allclose(first.baseline, attribute((X, Y)).baseline, rtol=1e-3)
    other = attribute(Draws(how), seed=1)
    assert not np.allclose(first.baseline, other.baseline, rtol=1e-3)


def test_the_callers_generators_are_given_back():
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    attribute(Draws("torch"))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_draw_belongs_to_the_id_not_to_the_position():
    named = [f"row {row}" for row in range(N)]
    rows = examples(Draws("torch"), seed=0)
    rows.label_with(named)
    want = rows[3]
    rows = examples(torch.utils.data.Subset(Draws("torch"), [3]), seed=0)
    rows.label_with(["row 3"])
    assert torch.equal(rows[0][0], want[0])


class Restless(Dataset):
    """A row that is never the same: its generator is its own."""

    def __init__(self):
        self.draw = np.random.default_rng(0)

    def __len__(self):
        return N

    def __getitem__(self, row):
        return X[row] + (self.draw.random() if row == 5 else 0), int(Y[row])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_that_changes_between_readings_is_named(workers):
    with pytest.raises(fi.DataError, match=r"train, row 5 \(id 'f'\): expected the same content") as caught:
        attribute(Restless(), ids=list("abcdefghi"), num_workers=workers)
    assert "seed it from i" in caught.value.do


def test_a_tensor_written_to_during_the_run_is_found_out():
    x = X.clone()

    def scribbles(model, batch):
        out = torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        if len(batch[0]) > 1 and scribbles.armed:
            x[0] += 1
        return out

    scribbles.armed = False

    class Late(nn.Sequential):
        def forward(self, rows):
            scribbles.armed = self[0].weight.sum().item() != self.total
            return super().forward(rows)

    model = Late(*net())
    model.total = model[0].weight.sum().item()
    with pytest.raises(fi.DataError, match="train, rows 0 to 8: expected the same content as at the first reading"):
        attribute((x, Y), task=scribbles, model=model, perturbation=fi.Perturbation(length=0.1))


def test_a_collate_that_mixes_examples_is_refused():
    def mixup(rows):
        x, y = default_collate(rows)
        return x + torch.rand(()) * x.flip(0), y

    with pytest.raises(fi.DataError, match="collate_fn: expected the same batch for the same examples") as caught:
        attribute(Rows(X, Y), collate_fn=mixup)
    assert "MixUp" in caught.value.do


# -- ids ---------------------------------------------------------------------------------------------------------------

NAMES = [f"row {row}" for row in range(N)]
FORMS = {**TUPLES, **MAPPINGS}


@pytest.mark.parametrize("form", FORMS)
def test_ids_may_be_given_as_a_list_for_every_form(form):
    rows = examples(FORMS[form](X, Y))
    rows.label_with(NAMES)
    assert rows.ids == NAMES


WITH_COLUMN = {
    "a mapping of tensors": {"x": X, "key": torch.arange(10, 10 + N)},
    "a mapping of arrays": {"x": X.numpy(), "key": np.arange(10, 10 + N, dtype=np.uint8)},
    "a list of mappings": [{"x": X[row], "key": 10 + row} for row in range(N)],
    "a list of mappings of tensors": [{"x": X[row], "key": torch.tensor(10 + row)} for row in range(N)],
    "a datasets.Dataset": datasets.Dataset.from_dict({"x": X.tolist(), "key": list(range(10, 10 + N))}),
    "a datasets.Dataset that gives tensors": datasets.Dataset.from_dict(
        {"x": X.tolist(), "key": list(range(10, 10 + N))}
    ).with_format("torch"),
    "an Arrow table": pa.table({"x": X.tolist(), "key": list(range(10, 10 + N))}),
    "a DataLoader over mappings": DataLoader([{"x": X[row], "key": 10 + row} for row in range(N)], batch_size=2),
}


@pytest.mark.parametrize("form", WITH_COLUMN)
def test_ids_may_be_a_columns_name(form):
    rows = examples(WITH_COLUMN[form])
    rows.label_with("key")
    assert rows.ids == list(range(10, 10 + N))
    assert all(type(value) is int for value in rows.ids)


def test_ids_by_name_reach_the_result_for_train_and_queries():
    table = pa.table({"x": X.tolist(), "label": Y.tolist(), "name": NAMES})
    scores = attribute(table, table.slice(0, 2), model=Named(), ids="name", query_ids="name")
    assert scores.ids == NAMES
    assert scores.query_ids == NAMES[:2]


def test_a_missing_id_column_names_those_there_are():
    with pytest.raises(fi.DataError, match=r"train ids: expected a column of \['x', 'label'\], got 'name'"):
        attribute(pa.table({"x": X.tolist(), "label": Y.tolist()}), ids="name")
    with pytest.raises(fi.DataError, match=r"train ids: expected a column of \['x', 'label'\], got 'name'"):
        attribute(mapped(), ids="name")
    with pytest.raises(fi.DataError, match="train ids: expected rows that are mappings with 'name'") as caught:
        attribute((X, Y), ids="name")
    assert caught.value.do == "Pass ids as a list."


SEQUENCES = [np.arange(N), torch.arange(N), np.array(NAMES), range(N), iter(range(N)), dict.fromkeys(NAMES).keys()]


@pytest.mark.parametrize("values", SEQUENCES)
def test_ids_of_any_sequence_are_plain_numbers_and_text(values):
    rows = examples((X, Y))
    rows.label_with(values)
    assert rows.ids in (list(range(N)), NAMES)
    assert {type(value) for value in rows.ids} <= {int, str}


HOSTILE = ["", "a\nb", "\x00", "é", "𝔘", "x" * 10_000, "../../etc/passwd", "<script>", "NaN", "\ud800"]


def test_hostile_text_is_a_fine_id():
    rows = examples((X, Y))
    rows.label_with(HOSTILE[1:])
    assert rows.ids == HOSTILE[1:]


BAD_IDS = {
    "twice the same": ([1] * N, "position 1: expected unique values, got 1 for the second time"),
    "twice the same, once as an array's": ([1, np.int64(1), *range(2, N)], "position 1: expected unique values"),
    "empty text": (["", *NAMES[1:]], "position 0: expected text or a whole number, got ''"),
    "None": ([*NAMES[1:], None], "position 8: expected text or a whole number, got None"),
    "a fraction": ([*range(N - 1), 0.5], "position 8: expected text or a whole number, got 0.5"),
    "not a number": ([float("nan"), *range(N - 1)], "position 0: expected text or a whole number, got nan"),
    "bytes": ([b"a", *range(N - 1)], "position 0: expected text or a whole number, got b'a'"),
    "a tuple": ([(1,), *range(N - 1)], r"position 0: expected text or a whole number, got \(1,\)"),
    "a list": ([[1], *range(N - 1)], r"position 0: expected text or a whole number, got \[1\]"),
    "too few": (NAMES[1:], "train ids: expected 9, one for each example, got 8"),
    "too many": ([*NAMES, "more"], "train ids: expected 9, one for each example, got 10"),
    "a number": (5, "train ids: expected a list of ids, or a column's name, got 5"),
    "a mapping": ({1: 2}, "train ids: expected a list of ids, or a column's name"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_IDS)
def test_bad_ids_are_refused(bad):
    values, message = BAD_IDS[bad]
    with pytest.raises(fi.DataError, match=message):
        attribute((X, Y), ids=values)


def test_bad_query_ids_say_that_they_are_the_queries():
    with pytest.raises(fi.DataError, match="queries ids, position 1: expected unique values"):
        attribute((X, Y), query_ids=["a", "a"])


# -- refused -----------------------------------------------------------------------------------------------------------

BARE = {
    "unequal columns": (X, Y[:4]),
    "one example of a tuple": (X[0], Y[0]),
    "one example of a dataset": Rows(X, Y)[0],
    "one example with a plain label": (X[0], 2),
    "a mapping of unequal columns": {"x": X, "label": Y[:4]},
    "a mapping that is one example": {"x": X[0], "label": 1},
    "an empty tuple": (),
    "columns of numbers": (1, 2),
    "a mapping of lists": {"x": X.tolist(), "label": Y.tolist()},
}


@pytest.mark.parametrize("bare", BARE)
@pytest.mark.parametrize("which", ["train", "queries"])
def test_a_single_example_passed_bare_is_told_to_go_into_a_list(bare, which):
    given_data = {"train": (X, Y), "queries": QUERIES} | {which: BARE[bare]}
    with pytest.raises(fi.DataError, match=r"\[test\[0\]\]") as caught:
        attribute(given_data["train"], given_data["queries"])
    assert caught.value.where == which


STREAMS = {
    "an iterable dataset": Stream,
    "a loader over one": lambda: DataLoader(Stream(), batch_size=2),
    "a generator": lambda: (row for row in [(X[0], Y[0])]),
    "an iterator": lambda: iter([(X[0], Y[0])]),
    "a map": lambda: map(tuple, [(X[0], Y[0])]),
    "a zip": lambda: zip(X, Y, strict=True),
    "a set": lambda: {1, 2},
    "a Hugging Face stream": lambda: datasets.Dataset.from_dict({"x": X.tolist()}).to_iterable_dataset(),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_what_only_iterates_is_refused(stream):
    with pytest.raises(fi.DataError, match="which only iterates") as caught:
        attribute(STREAMS[stream]())
    assert "map-style" in caught.value.do


EMPTY = {
    "tensors": (X[:0], Y[:0]),
    "a list": [],
    "a table": pa.table({"x": pa.array([], pa.int64())}),
    "a dataset": Rows(X[:0], Y[:0]),
    "a tensor": X[:0],
}


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("which", ["train", "queries"])
def test_no_rows_are_refused(empty, which):
    given_data = {"train": (X, Y), "queries": QUERIES} | {which: EMPTY[empty]}
    with pytest.raises(fi.DataError, match=f"{which}: expected at least one example, got none"):
        attribute(given_data["train"], given_data["queries"])


class Sized:
    def __len__(self):
        return 3


class Picked:
    def __getitem__(self, row):
        return X[row], Y[row]


NOT_DATA = {
    "text": "train.csv",
    "bytes": b"12",
    "a number": 5,
    "None": None,
    "a module": net(),
    "an array of text": (X, np.array(["a"] * N)),
    "an array of objects": (X, np.array([None] * N, dtype=object)),
    "an array of complex numbers": (X.numpy().astype(np.complex64), Y),
    "an array of dates": (X, np.array(["2020-01-01"] * N, dtype="datetime64[D]")),
    "an array of records": (X, np.zeros(N, dtype=[("a", "i4")])),
    "a tensor without dimension": torch.tensor(1.0),
    "an array without dimension": np.array(1.0),
    "a sparse tensor": (X.to_sparse(), Y),
    "a dataset without length": Picked(),
    "a length without rows": Sized(),
    "a dictionary of datasets": datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1]})}),
    "a loader that does not batch": DataLoader(TensorDataset(X, Y), batch_size=None),
}


@pytest.mark.parametrize("bad", NOT_DATA)
def test_what_is_no_data_is_refused_with_what_came(bad):
    with pytest.raises(fi.DataError) as caught:
        attribute(NOT_DATA[bad])
    assert caught.value.where.startswith("train")
    assert caught.value.expected
    assert caught.value.got


def test_a_dictionary_of_datasets_is_told_how_to_choose_one():
    with pytest.raises(fi.DataError, match=r"Choose one, like data\['train'\]"):
        attribute(NOT_DATA["a dictionary of datasets"])


def test_rows_that_cannot_be_joined_say_so_and_name_collate_fn():
    with pytest.raises(
        fi.DataError, match=r"train: joining .* a collate that fits these examples, got RuntimeError"
    ) as caught:
        attribute([(torch.zeros(4), 0), (torch.zeros(5), 0)])
    assert "collate_fn" in caught.value.do


def test_a_row_whose_content_cannot_be_told_is_refused(tmp_path):
    with (
        (tmp_path / "open").open("w") as handle,
        pytest.raises(fi.DataError, match="train, row 0: expected tensors") as caught,
    ):
        attribute([(X[0], handle)])
    assert "TextIOWrapper" in caught.value.got


def test_a_row_may_carry_dates_and_other_plain_objects():
    import datetime
    import decimal
    import uuid

    rows = [{"x": X[row], "label": Y[row], "when": datetime.datetime(2020, 1, 1 + row), "cost": decimal.Decimal(row),
             "key": uuid.UUID(int=row)} for row in range(N)]  # fmt: skip
    assert attribute(rows, rows[:1], model=Named(), collate_fn=joined_mappings).values.shape == (1, N)


# -- Examples itself ---------------------------------------------------------------------------------------------------


@given(rows=st.lists(st.integers(0, N - 1), min_size=1), size=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_batches_hold_the_rows_asked_for_in_order(rows, size):
    for source in ((X, Y), Rows(X, Y), {"x": X}):
        found = list(examples(source).batches(rows, size))
        assert [row for piece, _ in found for row in piece] == rows
        first = torch.cat([batch["x"] if isinstance(batch, dict) else batch[0] for _, batch in found])
        assert torch.equal(first, X[torch.tensor(rows)])
        assert all(len(piece) == size for piece, _ in found[:-1])


def test_batches_of_tensors_are_slices_not_copies():
    (_, batch), *_ = examples((X, Y)).batches(range(4), 4)
    assert batch[0].data_ptr() == X.data_ptr()


def test_equal_content_has_equal_keys_in_every_form():
    columns, rows = examples((X, Y)), examples([(X[row], Y[row]) for row in range(N)])
    assert columns.keys([2, 2, 5]) == rows.keys([2, 2, 5])
    assert len(set(columns.keys(range(N)))) == N


def test_the_digest_of_the_data_depends_on_content_alone():
    def seal(source):
        return examples(source).seal(range(N), lambda done: None, None)

    assert seal((X, Y)) == seal((X.clone(), Y.clone())) == seal((X.numpy(), Y.numpy()))
    changed = X.clone()
    changed[3, 1] = torch.nextafter(changed[3, 1], torch.tensor(9.0))
    assert seal((X, Y)) != seal((changed, Y))
    assert seal((X, Y)) != seal((X, (Y + 1) % 3))
    assert seal(Rows(X, Y)) == seal(Rows(X.clone(), Y.clone()))
    assert seal(Rows(X, Y)) != seal(Rows(changed, Y))


def test_units_and_rows_translate_where_rows_hold_several():
    rows = examples([[1, 2], [3], [4, 5, 6]])
    rows.seal(range(3), lambda done: None, len)
    assert rows.units == 6
    assert rows.ids == list(range(6))
    assert rows.units_of(range(3)).tolist() == list(range(6))
    assert rows.units_of([2, 0]).tolist() == [3, 4, 5, 0, 1]
    assert rows.rows_of([0, 1, 5]) == [0, 2]
    assert rows.rows_of([2]) == [1]


def test_how_a_loader_is_read_is_logged(caplog):
    with caplog.at_level(logging.INFO, "forwardinf"):
        examples(DataLoader(TensorDataset(X, Y), shuffle=True))
    assert "read in index order" in caplog.text


def test_one_row_is_read_under_its_own_seed():
    with noise.own_state():
        noise.seed_all(noise.seed_of(0, 4))
        want = X[4] + torch.rand(())
    assert torch.equal(examples(Draws("torch"))[4][0], want)
