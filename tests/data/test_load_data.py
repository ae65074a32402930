import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from forwardinf.core.errors import DataError, FileError, MissingExtra, SettingError
from forwardinf.data.load import count_rows, load_data, select_rows, take_rows

os.environ["HF_HUB_OFFLINE"] = "1"
DATA = os.environ.get("FORWARDINF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FORWARDINF_DATA does not name the data folder")


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)


@pytest.fixture
def arrays(tmp_path, images):
    path = tmp_path / "arrays.npz"
    np.savez(path, x_train=images, y_train=np.arange(6, dtype=np.uint8), x_test=images[:2], y_test=np.array([7, 8]))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write_lines(path, rows):
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# Arrays


def test_grey_images_get_a_channel_and_are_scaled_and_labels_become_int64(arrays, images):
    x, y = load_data(arrays)
    assert x.shape == (6, 1, 5, 4)
    assert torch.equal(x[:, 0], torch.from_numpy(images).float() * (1 / 255))
    assert y.dtype == torch.int64
    assert y.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("ask", [lambda path: load_data(path, split="test"), lambda path: load_data(f"{path}:test")])
def test_a_split_is_selected_by_setting_or_suffix(arrays, ask):
    assert ask(arrays)[1].tolist() == [7, 8]


def test_splits_may_also_come_first_in_the_names(tmp_path):
    np.savez(tmp_path / "a.npz", train_x=np.zeros((3, 2)), test_x=np.ones((2, 2)))
    assert load_data(tmp_path / "a.npz:test")[0].tolist() == [[1, 1], [1, 1]]


def test_plain_names_beside_a_test_split_are_the_train_split(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3), x_test=np.ones(2))
    assert load_data(tmp_path / "a.npz")[0].tolist() == [0, 0, 0]


def test_without_splits_arrays_are_columns_in_file_order_and_columns_picks(tmp_path):
    np.savez(tmp_path / "a.npz", b=np.zeros((3, 2), np.float32), a=np.arange(3), c=np.ones(3, bool))
    assert [column.dtype for column in load_data(tmp_path / "a.npz")] == [torch.float32, torch.int64, torch.bool]
    assert [column.dtype for column in load_data(tmp_path / "a.npz", columns=["a", "b"])] == [
        torch.int64,
        torch.float32,
    ]


@pytest.mark.parametrize(("shape", "want"), [((2, 8, 8, 3), (2, 3, 8, 8)), ((2, 3, 8, 8), (2, 3, 8, 8)),
                                             ((2, 8, 8, 1), (2, 1, 8, 8)), ((2, 3, 4, 3), (2, 3, 4, 3))])  # fmt: skip
def test_channels_come_first(tmp_path, shape, want):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels)
    (x,) = load_data(tmp_path / "a.npz", scale=1)
    assert x.shape == want
    assert x.is_contiguous()
    assert torch.equal(x, torch.from_numpy(pixels if shape == want else pixels.transpose(0, 3, 1, 2)).float())


def test_mean_and_std_are_taken_channel_by_channel(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full((2, 3, 3, 3), 255, np.uint8))
    (x,) = load_data(tmp_path / "a.npz", mean=[0, 0.5, 1], std=[1, 0.5, 2])
    assert x[0, :, 0, 0].tolist() == pytest.approx([1, 1, 0])


def test_floats_stay_as_they_are_unless_a_dtype_is_given_and_foreign_byte_order_is_turned(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([[1.5]], ">f8"), y=np.array([3], ">i2"))
    x, y = load_data(tmp_path / "a.npz")
    assert (x.dtype, x.item(), y.dtype, y.item()) == (torch.float64, 1.5, torch.int64, 3)
    assert load_data(tmp_path / "a.npz", dtype="float32")[0].dtype == torch.float32


def test_rows_keeps_those_rows(arrays):
    assert load_data(arrays, rows="4,1")[1].tolist() == [4, 1]


def test_a_split_that_does_not_exist_is_refused_with_those_that_do(arrays):
    with pytest.raises(SettingError, match=r"'test', 'train'.*'tset'.*Did you mean 'test'"):
        load_data(f"{arrays}:tset")


def test_two_different_splits_are_refused(arrays):
    with pytest.raises(SettingError, match="one split"):
        load_data(f"{arrays}:test", split="train")


def test_a_split_of_a_file_without_splits_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(SettingError, match="no split"):
        load_data(tmp_path / "a.npz", split="test")


def test_an_unknown_column_is_refused(arrays):
    with pytest.raises(SettingError, match="'x', 'y'"):
        load_data(arrays, columns=["z"])


def test_a_column_that_is_not_a_list_is_refused(arrays):
    with pytest.raises(SettingError, match=r"\['x'\]"):
        load_data(arrays, columns="x")


def test_object_arrays_are_refused_without_unpickling(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(FileError, match="unpickled"):
        load_data(tmp_path / "a.npz")


def test_text_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array(["cat", "dog"]))
    with pytest.raises(DataError, match="numbers"):
        load_data(tmp_path / "a.npz")


@pytest.mark.parametrize("other", [np.zeros(4), np.float64(1)])
def test_columns_of_unequal_length_are_refused(tmp_path, other):
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=other)
    with pytest.raises(DataError, match="equal length"):
        load_data(tmp_path / "a.npz")


@pytest.mark.parametrize("setting", [{"scale": 2}, {"mean": 0.5}, {"std": 0.5}])
def test_image_settings_for_arrays_that_are_no_images_are_refused(tmp_path, setting):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 4)))
    with pytest.raises(SettingError, match="uint8"):
        load_data(tmp_path / "a.npz", **setting)


@pytest.mark.parametrize("setting", [{"mean": [1, 2]}, {"std": 0}, {"std": [1, 1]}, {"dtype": "int64"}, {"dtype": "f"}])
def test_image_settings_with_wrong_values_are_refused(arrays, setting):
    with pytest.raises(SettingError, match=next(iter(setting))):
        load_data(arrays, **setting)


def test_a_damaged_or_foreign_npz_is_refused(tmp_path, arrays):
    (tmp_path / "cut.npz").write_bytes(arrays.read_bytes()[:-40])
    (tmp_path / "flipped.npz").write_bytes(arrays.read_bytes().replace(b"\x93NUMPY", b"\x93NUMPX"))
    for name in ("cut.npz", "flipped.npz"):
        with pytest.raises(FileError, match="damaged"):
            load_data(tmp_path / name)


def test_an_empty_npz_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz")
    with pytest.raises((DataError, FileError)):
        load_data(tmp_path / "a.npz")


# Tables


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz"])
def test_json_lines_may_be_ragged_and_nested(tmp_path, name):
    rows = [{"text": "a", "facts": [1, 2]}, {"text": "b", "who": {"name": "c"}}]
    table = load_data(write_lines(tmp_path / name, rows))
    assert table.to_pylist() == [
        {"text": "a", "facts": [1, 2], "who": None},
        {"text": "b", "facts": None, "who": {"name": "c"}},
    ]


def test_a_json_array_reads_like_lines(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"a": 1}, {"b": 2}], indent=1))
    assert load_data(tmp_path / "rows.json").to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": 2}]


def test_text_that_looks_like_dates_stays_text(tmp_path):
    row = {"text": "2020-01-01", "more": ["2021-05-05T01:02:03"], "deep": {"day": "2020-01-01"}}
    assert load_data(write_lines(tmp_path / "rows.jsonl", [row, row])).to_pylist() == [row, row]


def test_a_line_longer_than_arrows_block_reads(tmp_path):
    table = load_data(write_lines(tmp_path / "rows.jsonl", [{"text": "x" * 3_000_000}, {"text": "y"}]))
    assert [len(text) for text in table["text"].to_pylist()] == [3_000_000, 1]


@pytest.mark.parametrize("bad", ['{"text": \n', "[1]\n", "plain\n"])
def test_a_line_that_is_not_an_object_is_named(tmp_path, bad):
    with pytest.raises(DataError, match="line 3"):
        load_data(write_lines(tmp_path / "rows.jsonl", [{"text": "a"}, "\n", bad, {"text": "b"}]))


def test_a_column_that_changes_its_type_is_refused(tmp_path):
    with pytest.raises(DataError, match="one type"):
        load_data(write_lines(tmp_path / "rows.jsonl", [{"a": 1}, {"a": "x"}]))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff\xfe"}\n')
    with pytest.raises(DataError, match="line 1"):
        load_data(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("rows", [[], ["\n\n"]])
def test_a_file_without_rows_is_refused(tmp_path, rows):
    with pytest.raises(DataError, match="at least one row"):
        load_data(write_lines(tmp_path / "rows.jsonl", rows))


def test_a_cut_gzip_file_is_refused(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl.gz", [{"a": index} for index in range(1000)])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileError, match="damaged"):
        load_data(path)


def test_parquet_reads_with_columns_and_rows(tmp_path):
    pq.write_table(pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]}), tmp_path / "rows.parquet")
    assert load_data(tmp_path / "rows.parquet").to_pydict() == {"a": [1, 2, 3], "b": ["x", "y", "z"]}
    assert load_data(tmp_path / "rows.parquet", columns=["b"], rows="1:").to_pydict() == {"b": ["y", "z"]}


def test_names_of_folders_do_not_become_columns(tmp_path):
    (tmp_path / "year=2020").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "year=2020/rows.parquet")
    assert load_data(tmp_path / "year=2020/rows.parquet").column_names == ["a"]


def test_a_folder_of_parquet_reads_sorted_and_by_split(tmp_path):
    for index in (1, 0):
        pq.write_table(pa.table({"a": [index]}), tmp_path / f"train-0000{index}-of-00002.parquet")
    pq.write_table(pa.table({"a": [9]}), tmp_path / "test-00000-of-00001.parquet")
    assert load_data(tmp_path)["a"].to_pylist() == [0, 1]
    assert load_data(f"{tmp_path}:test")["a"].to_pylist() == [9]
    with pytest.raises(SettingError, match="'test', 'train'"):
        load_data(f"{tmp_path}:dev")


def test_a_folder_with_a_folder_for_each_split_reads(tmp_path):
    for split, value in (("train", 1), ("test", 2)):
        (tmp_path / split).mkdir()
        write_lines(tmp_path / split / "part.jsonl", [{"a": value}])
    assert load_data(tmp_path, split="test")["a"].to_pylist() == [2]


def test_files_with_other_columns_in_one_folder_are_refused(tmp_path):
    write_lines(tmp_path / "corpus.jsonl", [{"a": 1}])
    write_lines(tmp_path / "queries.jsonl", [{"b": 1}])
    with pytest.raises(DataError, match="same columns"):
        load_data(tmp_path)


def test_files_with_other_types_in_one_folder_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="same columns"):
        load_data(tmp_path)


def test_an_unknown_table_column_and_a_damaged_parquet_are_refused(tmp_path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "rows.parquet")
    with pytest.raises(SettingError, match="Did you mean 'text'"):
        load_data(tmp_path / "rows.parquet", columns=["txet"])
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(FileError, match="damaged"):
        load_data(tmp_path / "rows.parquet")


# Text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]
    (folder / "vocab.txt").write_text("\n".join(words))
    made = transformers.BertTokenizer(str(folder / "vocab.txt"))
    made.save_pretrained(folder)
    return made


def test_a_tokenizer_gives_rows_of_ids_without_padding(tmp_path, tokenizer):
    rows = [{"id": "r1", "text": "a good film", "label": 1}, {"id": "r2", "text": "bad", "label": 0}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    data = load_data(path, tokenizer=tokenizer)
    assert len(data) == 2
    for row, want in zip(data, rows, strict=False):
        ids = tokenizer(want["text"])["input_ids"]
        assert row == {
            "text": want["text"],
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": want["label"],
        }
    assert len(data[0]["input_ids"]) > len(data[1]["input_ids"])
    assert load_data(path, tokenizer=tokenizer, columns=["id"])[1]["id"] == "r2"
    assert len(load_data(path, tokenizer=tokenizer, max_length=3)[0]["input_ids"]) == 3
    assert load_data(path, tokenizer=tokenizer, rows="1:2")[0]["labels"] == 0


def test_a_tokenizer_is_read_from_its_folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = write_lines(tmp_path / "rows.jsonl", [{"question": "a film"}])
    data = load_data(path, tokenizer=tmp_path / "tokenizer", text="question")
    assert data[0]["input_ids"] == tokenizer("a film")["input_ids"]
    assert "labels" not in data[0]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "a film"}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="tokenizer"):
        load_data(path, tokenizer=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"text": "a", "label": "good"}], {}, "number of its class"),
        ([{"text": "a"}, {"text": None}], {}, "row 1"),
        ([{"words": "a"}], {}, "'words'"),
        ([{"text": "a"}], {"columns": ["id"]}, "'text'"),
        ([{"text": "a"}], {"max_length": 0}, "max_length"),
    ],
)
def test_rows_that_cannot_be_tokenised_are_refused(tmp_path, tokenizer, rows, settings, message):
    with pytest.raises((DataError, SettingError), match=message):
        load_data(write_lines(tmp_path / "rows.jsonl", rows), tokenizer=tokenizer, **settings)


def test_text_settings_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(SettingError, match="tokenizer"):
        load_data(write_lines(tmp_path / "rows.jsonl", [{"text": "a"}]), max_length=3)


# Hugging Face


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["a film", "bad"], "label": [0, 1]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "both")
    datasets.DatasetDict({"left": rows, "right": rows}).save_to_disk(tmp_path / "odd")
    return tmp_path


def test_saved_datasets_read_by_split(saved):
    assert load_data(saved / "one")["text"][:] == ["a film", "bad"]
    assert len(load_data(saved / "both")) == 2
    data = load_data(f"{saved / 'both'}:test", columns=["label"])
    assert data.column_names == ["label"]
    assert data[0] == {"label": 1}
    assert load_data(saved / "one", rows="1,0")["label"][:] == [1, 0]


def test_a_saved_dataset_can_be_tokenised(saved, tokenizer):
    assert load_data(saved / "one", tokenizer=tokenizer)[1]["labels"] == 1


def test_a_split_that_must_be_named_is_refused_when_it_is_not(saved):
    with pytest.raises(SettingError, match="'left', 'right'"):
        load_data(saved / "odd")
    with pytest.raises(SettingError, match="no split"):
        load_data(saved / "one", split="test")
    with pytest.raises(SettingError, match="'text', 'label'"):
        load_data(saved / "one", columns=["id"])


def test_a_damaged_saved_dataset_is_refused(saved):
    (saved / "one/state.json").write_text("{}")
    with pytest.raises(FileError, match="damaged"):
        load_data(saved / "one")


def test_a_hub_id_that_cannot_be_had_is_refused():
    pytest.importorskip("datasets")
    with pytest.raises(FileError, match="the hub says"):
        load_data("nobody/nothing-of-this-name")


def test_without_datasets_the_extra_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"forwardinf\[hf\]"):
        load_data(saved / "one")


# Code


MODULE = """
import torch
def rows(count=2, split="train"):
    return [split] * count
def plain(**options):
    return (torch.arange(4), torch.arange(4))
def none():
    return None
def fixed(count):
    return list(range(count))
number = 3
"""


@pytest.fixture
def module(here):
    name = f"own_data_{abs(hash(str(here)))}"
    (here / f"{name}.py").write_text(MODULE)
    yield name
    sys.modules.pop(name, None)


def test_a_function_is_called_with_its_options_and_the_split(module):
    assert load_data(f"{module}:rows", count=3) == ["train"] * 3
    assert load_data(f"{module}:rows:test") == ["test", "test"]
    assert load_data(f"{module}:fixed", count=5, rows="1,3") == [1, 3]
    assert load_data(f"{module}:plain", rows="2:", anything=1)[0].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("rosw", {}, SettingError, "Did you mean 'rows'"),
        ("number", {}, SettingError, "a function"),
        ("none", {}, DataError, "None"),
        ("fixed", {"cuont": 1}, SettingError, "Did you mean 'count'"),
        ("fixed", {"count": 3, "split": "test"}, SettingError, "'count'"),
        ("rows", {"allow_code": False}, SettingError, "--allow-code"),
    ],
)
def test_a_function_that_does_not_fit_is_refused(module, name, settings, error, message):
    with pytest.raises(error, match=message):
        load_data(f"{module}:{name}", **settings)


def test_code_is_not_imported_where_it_is_not_allowed(here):
    (here / "boom_on_import.py").write_text("raise SystemExit('ran')")
    with pytest.raises(SettingError, match="needs no code"):
        load_data("boom_on_import:rows", allow_code=False)


def test_a_module_that_does_not_exist_is_refused(here):
    with pytest.raises(SettingError, match="no_such_module"):
        load_data("no_such_module:rows")


def test_an_error_inside_the_module_passes_through(here):
    (here / "needs_more.py").write_text("import not_installed_at_all")
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        load_data("needs_more:rows")


def test_a_folder_and_a_module_of_one_name_are_told_apart(here, monkeypatch):
    (here / "pets").mkdir()
    write_lines(here / "pets/test.jsonl", [{"a": 1}])
    with pytest.raises(SettingError, match=r"write \./pets:test"):  # the form alone tells what is code
        load_data("pets:test")
    monkeypatch.delitem(sys.modules, "pets")
    (here / "pets.py").write_text("def test(): return [2]")
    assert load_data("pets:test") == [2]
    assert load_data("./pets:test")["a"].to_pylist() == [1]


# Other specs


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.pkl", "a.pickle", "a.joblib"])
def test_files_that_would_be_unpickled_are_refused_whether_they_exist_or_not(tmp_path, name):
    for _ in range(2):
        with pytest.raises(FileError, match=r"numpy\.savez"):
            load_data(tmp_path / name)
        (tmp_path / name).write_bytes(b"\x80\x04.")


@pytest.mark.parametrize("name", ["missing.npz", "missing.jsonl.gz", "deep/missing", "missing.csv", "missing.npz:test"])
def test_a_missing_file_is_refused(tmp_path, name):
    with pytest.raises(FileError, match="nothing at this path"):
        load_data(f"{tmp_path}/{name}")


def test_a_kind_of_file_that_is_not_read_is_refused_with_the_forms(tmp_path):
    (tmp_path / "rows.txt").write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match="module:function"):
        load_data(tmp_path / "rows.txt")


def test_a_spec_of_no_form_is_refused_with_the_forms():
    with pytest.raises(SettingError, match=r"arrays\.npz.*hub id"):
        load_data("what is this?")


def test_a_setting_of_another_form_or_of_none_is_refused(arrays):
    with pytest.raises(SettingError, match="image_size"):
        load_data(arrays, image_size=8)
    with pytest.raises(SettingError, match="Did you mean 'columns'"):
        load_data(arrays, colums=["x"])


# Rows


@pytest.mark.parametrize(
    ("rows", "want"),
    [("0:3", [0, 1, 2]), ("-2:", [8, 9]), (":", list(range(10))), ("::4", [0, 4, 8]), ("1:9:3", [1, 4, 7]),
     ("3,5, 9", [3, 5, 9]), ("7", [7]), ([4, 2], [4, 2]), (np.array([1, 0]), [1, 0])],
)  # fmt: skip
def test_rows_are_slices_lists_or_positions(rows, want):
    assert select_rows(10, rows) == want


def test_rows_come_from_a_file_with_comments(tmp_path):
    (tmp_path / "ids.txt").write_text("# picked\n3\n\n1  # odd\n")
    assert select_rows(["a"] * 4, tmp_path / "ids.txt") == [3, 1]
    assert select_rows((torch.zeros(4), torch.zeros(4)), str(tmp_path / "ids.txt")) == [3, 1]
    assert select_rows(pa.table({"a": [1, 2, 3, 4]}), "1:") == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [("0:11", "11"), ("12:", "12"), ("-11:", "-11"), ("5:5", "at least one"), ("3,10", "10"), ("3,-1", "-1"),
     ("3,3", "3 twice"), ([], "at least one"), ([True], "True"), ([0.5], "0.5"), ("0:3:0", "no such file")],
)  # fmt: skip
def test_rows_that_do_not_exist_or_repeat_are_refused(rows, message):
    with pytest.raises((SettingError, FileError), match=message):
        select_rows(10, rows)


def test_a_line_of_the_file_that_is_no_position_is_named(tmp_path):
    (tmp_path / "ids.txt").write_text("3\nfive\n")
    with pytest.raises(DataError, match="line 2"):
        select_rows(10, tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text("3\n10\n")
    with pytest.raises(SettingError, match=r"ids\.txt.*10"):
        select_rows(10, tmp_path / "ids.txt")
    with pytest.raises(FileError, match="no such file"):
        select_rows(10, tmp_path / "other.txt")


# The data folder


@needs_data
@pytest.mark.data
def test_the_real_arrays_read():
    x, y = load_data(f"{DATA}/mnist/mnist.npz:test")
    assert (x.shape, x.min(), x.max(), y.dtype) == ((10000, 1, 28, 28), 0, 1, torch.int64)
    x, y = load_data(Path(DATA) / "fashion_mnist/fashion_mnist.npz", split="test")
    assert x.shape == (10000, 1, 28, 28)
    assert y.bincount().tolist() == [1000] * 10
    x, _, index = load_data(f"{DATA}/cifar10/cifar10_lossless_train0_3999.npz")
    assert x.shape == (4000, 3, 32, 32)
    assert (x[0, :, 0, 0] * 255).round().tolist() == [59, 62, 63]  # as its README says
    assert index.tolist() == list(range(4000))
    assert len(load_data(f"{DATA}/cifar10n/cifar10n.npz", columns=["worse_label", "clean_label"])) == 2


@needs_data
@pytest.mark.data
def test_jpegs_end_to_end_in_one_array_are_refused_with_a_way_out():
    with pytest.raises(DataError, match="module:function"):
        load_data(f"{DATA}/cifar10/cifar10_jpeg.npz")


@needs_data
@pytest.mark.data
def test_the_real_texts_read():
    assert [load_data(f"{DATA}/sst2:{split}").num_rows for split in ("train", "dev", "test")] == [6920, 872, 1821]
    assert load_data(f"{DATA}/trec6/train.jsonl.gz").column_names == ["text", "coarse", "fine"]
    assert load_data(f"{DATA}/facts_webnlg/queries.jsonl.gz")["proponents"][0].as_py()


# Rows of data in any form

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6)


def hub():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()})


class Plain:
    def __len__(self):
        return 6

    def __getitem__(self, row):
        return X[row], Y[row]


FORMS = {
    "columns": lambda: (X, torch.from_numpy(Y)),
    "an array": lambda: X,
    "a mapping": lambda: {"x": X, "y": Y},
    "a mapping of one column": lambda: {"x": X},
    "a list": lambda: [(X[row], Y[row]) for row in range(6)],
    "a table": lambda: pa.table({"x": X.tolist(), "y": Y}),
    "a data frame": lambda: pd.DataFrame({"a": X[:, 0], "y": Y}, index=list("uvwxyz")),
    "a frame and a series": lambda: (pd.DataFrame(X), pd.Series(Y, index=list("uvwxyz"))),
    "a hub dataset": hub,
    "a hub dataset with a transform": lambda: hub().with_transform(lambda batch: batch),
    "a hub dataset of tensors": lambda: hub().with_format("torch"),
    "a dataset": Plain,
    "a subset": lambda: torch.utils.data.Subset(Plain(), range(6)),
    "a loader": lambda: torch.utils.data.DataLoader(Plain(), batch_size=4, collate_fn=list),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_any_form_are_counted_and_taken_in_order(form):
    from forwardinf.data.examples import examples

    data = FORMS[form]()
    assert count_rows(data) == 6
    assert select_rows(data, "-2:") == [4, 5]
    taken = take_rows(data, [4, 1])
    assert type(taken) is type(data) or isinstance(taken, torch.utils.data.Subset)
    collate = {"collate_fn": list} if form.startswith(("a frame and", "an array")) else {}
    before, after = examples(data, **collate), examples(taken, **collate)
    assert len(after) == 2
    assert [after.keys([row]) for row in range(2)] == [before.keys([row]) for row in (4, 1)]
    if form == "a loader":
        assert taken.collate_fn is list


@pytest.mark.parametrize(
    "bad", [lambda: pytest.importorskip("datasets").DatasetDict(train=hub(), test=hub()), lambda: iter([1])]
)
def test_rows_of_what_is_no_one_dataset_are_refused(bad):
    with pytest.raises(DataError):
        count_rows(bad())
