import gzip

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import forwardinf as fi
from forwardinf.data.load import load_data


def write(folder, content, name="rows.csv"):
    plain = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(gzip.compress(plain) if name.endswith(".gz") else plain)
    return folder / name


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.CSV", "rows.tsv", "rows.tsv.gz"])
def test_numbers_are_numbers_and_all_else_is_text(tmp_path, name):
    mark = "\t" if "tsv" in name else ","
    rows = [["age", "name", "score", "well", "when"], ["41", "Ann", "0.5", "true", "2020-01-31"],
            ["7", '"B, b\n""x"""', "-1e3", "false", "2020-02-01"]]  # fmt: skip
    table = load_data(write(tmp_path, "\n".join(mark.join(row) for row in rows), name))
    assert table.to_pylist() == [
        {"age": 41, "name": "Ann", "score": 0.5, "well": True, "when": "2020-01-31"},
        {"age": 7, "name": 'B, b\n"x"', "score": -1000.0, "well": False, "when": "2020-02-01"},
    ]


READ = {
    "a byte order mark": ("\ufeffa,b\n1,2\n", [{"a": 1, "b": 2}]),
    "windows' line ends": ("a,b\r\n1,2\r\n", [{"a": 1, "b": 2}]),
    "blank lines": ("a,b\n\n1,2\n\n", [{"a": 1, "b": 2}]),
    "no end of line": ("a,b\n1,2", [{"a": 1, "b": 2}]),
    "times of day": ("a\n10:00:00\n", [{"a": "10:00:00"}]),
    "a column that is not all numbers": ("a\n1\nx\n", [{"a": "1"}, {"a": "x"}]),
    "a missing number": ("a,b\n1,\n2,3\n", [{"a": 1, "b": None}, {"a": 2, "b": 3}]),
    "text that says it is missing": ("a,b\n1,NA\n2,x\n", [{"a": 1, "b": "NA"}, {"a": 2, "b": "x"}]),
    "NUL and emoji": ("a\n\x00z\n😀\n", [{"a": "\x00z"}, {"a": "😀"}]),
    "a name that is empty": (",b\n0,1\n", [{"": 0, "b": 1}]),
}


@pytest.mark.parametrize("what", READ)
def test_files_as_they_come_are_read(tmp_path, what):
    content, rows = READ[what]
    assert load_data(write(tmp_path, content)).to_pylist() == rows


def test_the_type_of_a_column_follows_from_all_of_its_rows(tmp_path):
    rows = ["1"] * 500_000 + ["x"]  # a first megabyte of numbers
    table = load_data(write(tmp_path, "a\n" + "\n".join(rows)))
    assert table["a"][0].as_py() == "1"
    assert table["a"][-1].as_py() == "x"


def test_a_very_long_text_is_one_cell(tmp_path):
    text = "word " * 400_000
    assert load_data(write(tmp_path, f'a,b\n"{text}",1\n')).to_pylist() == [{"a": text, "b": 1}]


REFUSED = {
    "a short row": ("a,b\n1,2\n1\n", "rows.csv", "Row #3: Expected 2 columns, got 1"),
    "a long row": ("a,b\n1,2,3\n", "rows.csv", "Row #2: Expected 2 columns, got 3"),
    "a quote that is not closed": ('a,b\n"x,2\n', "rows.csv", "Quote values that hold the separator"),
    "two columns of one name": ("a,a\n1,2\n", "rows.csv", "line 1: expected one column of each name, got 'a' twice"),
    "no names": ("1,2.5\n3,4\n", "rows.csv", "line 1: expected the names of the columns, got numbers"),
    "semicolons": ("a;b\n1;2\n", "rows.csv", "expected names between ',', got one name that holds ';'"),
    "commas in a .tsv": ("a,b\n1,2\n", "rows.tsv", "got one name that holds ','"),
    "latin-1": (b"a,b\n1,2\n1,\xe9\n", "rows.csv", "line 3: expected text in UTF-8"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "rows.csv", "line 1: expected text in UTF-8"),
    "names that are no text": (b"\xff,b\n1,2\n", "rows.csv", "line 1: expected text in UTF-8"),
    "too many columns": ("," * 100_001 + "\n", "rows.csv", "at most 100,000 columns"),
    "nothing": ("", "rows.csv", "at least one row"),
    "names only": ("a,b\n", "rows.csv", "at least one row"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_table_is_refused_by_file_and_line(tmp_path, what):
    content, name, message = REFUSED[what]
    with pytest.raises(fi.DataError) as caught:
        load_data(write(tmp_path, content, name))
    assert message in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("content", [b"no gzip", b"\x1f\x8b\x08\x00", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9]])
def test_a_damaged_archive_is_refused(tmp_path, content):
    (tmp_path / "rows.csv.gz").write_bytes(content)
    with pytest.raises((fi.FileError, fi.DataError), match=r"rows.csv.gz"):
        load_data(tmp_path / "rows.csv.gz")


def test_columns_rows_and_splits_apply(tmp_path):
    write(tmp_path, "a,b,c\n1,2,x\n3,4,y\n5,6,z\n", "train.csv")
    write(tmp_path, "a,b,c\n7,8,w\n", "test.csv")
    assert load_data(tmp_path, columns=["c", "a"], rows="1:").to_pylist() == [{"c": "y", "a": 3}, {"c": "z", "a": 5}]
    assert load_data(f"{tmp_path}:test").to_pylist() == [{"a": 7, "b": 8, "c": "w"}]
    assert load_data(f"{tmp_path / 'train.csv'}", rows="0:1").num_rows == 1
    with pytest.raises(fi.SettingError, match="'c'"):
        load_data(tmp_path / "train.csv", columns=["d"])


def test_a_list_beside_images_or_other_rows_is_not_taken_for_the_data(tmp_path):
    from PIL import Image

    for kind in "ab":
        (tmp_path / "images" / kind).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / kind / "0.png")
    write(tmp_path / "images", "file,label\n0.png,1\n", "labels.csv")
    assert type(load_data(tmp_path / "images")).__name__ == "ImageFolder"
    (tmp_path / "rows").mkdir()
    pq.write_table(load_data(write(tmp_path, "a\n1\n")), tmp_path / "rows" / "part.parquet")
    write(tmp_path / "rows", "b\n2\n", "notes.csv")
    assert load_data(tmp_path / "rows").column_names == ["a"]


def test_a_csv_file_is_the_data_of_a_call(tmp_path):
    torch.manual_seed(0)
    frame = pd.DataFrame(torch.randn(12, 3).double().numpy(), columns=list("abc")).assign(label=[0, 1] * 6)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    task = fi.Classification(inputs=lambda batch: torch.stack([batch[name] for name in "abc"], 1))
    table, model = load_data(tmp_path / "rows.csv"), nn.Linear(3, 2)
    got = fi.attribute(model, table, table.slice(0, 2), task=task, perturbation=fi.Perturbation(), progress=False)
    x, y = torch.tensor(frame[list("abc")].to_numpy()).float(), torch.tensor(frame["label"])
    want = fi.attribute(
        model, (x, y), (x[:2], y[:2]), task=fi.Classification(), perturbation=fi.Perturbation(), progress=False
    )
    assert abs(got.values - want.values).max() <= 1e-4 * abs(want.values).max() + 2 * want.noise_floor.max()
    assert any("column a (float64), column b (float64), column c (float64) brought" in note for note in got.notes)


def test_texts_of_a_csv_file_are_tokenised_like_those_of_any_table(tmp_path):
    class Letters:
        def __call__(self, text, **settings):
            return {"input_ids": [ord(letter) for letter in text]}

    rows = load_data(write(tmp_path, "text,label\nab,1\n,0\n"), tokenizer=Letters())
    assert list(rows) == [{"input_ids": [97, 98], "attention_mask": [1, 1], "text": "ab", "labels": 1},
                          {"input_ids": [], "attention_mask": [], "text": "", "labels": 0}]  # fmt: skip
    assert rows.notes == ["1 of 2 texts have no token"]
