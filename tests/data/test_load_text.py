"""Texts as they come: half a surrogate pair, NUL, bytes, nothing at all, megabytes. None of it may end in a raw traceback."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import forwardinf as fi
from forwardinf.data.load import load_data
from forwardinf.data.tokenise import tokenised


class Bytes:
    """A tokenizer that takes text and nothing else, as those written in Rust do."""

    def __call__(self, text, truncation=False, max_length=None):
        return {"input_ids": list(text.encode())[:max_length], "attention_mask": [1] * len(text.encode()[:max_length])}


def write(folder, content, name="rows.jsonl"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


READ = {
    "a whole surrogate pair": (r'{"text": "a \ud83d\ude00"}', "a 😀"),
    "NUL": (r'{"text": "a \u0000 b"}', "a \0 b"),
    "nothing": ('{"text": ""}', ""),
    "blanks": ('{"text": " \\n\\t "}', " \n\t "),
    "two megabytes": ('{"text": "' + "ab " * 700_000 + '"}', "ab " * 700_000),
    "a byte order mark before it": ('\ufeff{"text": "a"}', "a"),
}


@pytest.mark.parametrize("what", READ)
def test_odd_texts_are_read_and_tokenised_as_they_are(tmp_path, what):
    line, text = READ[what]
    path = write(tmp_path, line + "\n")
    assert load_data(path)["text"].to_pylist() == [text]
    row = load_data(path, tokenizer=Bytes())[0]
    assert row["input_ids"] == list(text.encode())
    assert len(load_data(path, tokenizer=Bytes(), max_length=2)[0]["input_ids"]) == min(2, len(text.encode()))


REFUSED = {
    "half a surrogate pair": r'{"text": "a \ud800"}',
    "half a surrogate pair, as bytes": b'{"text": "a \xed\xa0\x80"}',
    "bytes that are no UTF-8": b'{"text": "a \xff"}',
    "NUL outside of text": b"\x00",
    "a bare text": '"text"',
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("before", [b"", b'{"text": "fine"}\n'])
def test_a_line_that_is_no_row_of_text_is_named(tmp_path, what, before):
    line = REFUSED[what] if isinstance(REFUSED[what], bytes) else REFUSED[what].encode()
    with pytest.raises(fi.DataError) as caught:
        load_data(write(tmp_path, before + line + b"\n"))
    assert f"rows.jsonl, line {2 if before else 1}: expected one JSON object a line" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000], ids=["brackets without end", "braces without end"])
@pytest.mark.parametrize("before", ["", '{"text": "fine"}\n'])
def test_a_line_that_nests_without_end_is_named(tmp_path, line, before):
    told = f"rows.jsonl, line {2 if before else 1}: expected values nested at most 64 deep"
    with pytest.raises(fi.FileError, match=told):
        load_data(write(tmp_path, before + line + "\n"))


NOT_TEXT = {
    "missing": ('{"text": null}', "text, got None"),
    "a number": ('{"text": 3}', "text, got 3"),
    "a list": ('{"text": ["a"]}', r"text, or messages \[{role, content}, …\] in every row, got \['a'\]"),
}


@pytest.mark.parametrize("what", NOT_TEXT)
def test_what_is_no_text_is_refused_by_file_column_and_row(tmp_path, what):
    line, got = NOT_TEXT[what]
    with pytest.raises(fi.DataError, match=rf"rows.jsonl, column 'text', row 0: expected {got}"):
        load_data(write(tmp_path, line + "\n"), tokenizer=Bytes())


def test_a_label_that_is_no_number_is_refused_by_file_column_and_row(tmp_path):
    path = write(tmp_path, '{"text": "a", "label": 1}\n{"text": "b", "label": null}\n')
    with pytest.raises(fi.DataError, match=r"rows.jsonl, column 'label', row 1: expected the number of its class"):
        load_data(path, tokenizer=Bytes())


def broken_text():
    """Return a text column of Arrow that holds a byte which is no UTF-8, as other writers' files do."""
    offsets = pa.py_buffer(b"\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00")
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff")])


def test_a_parquet_file_with_text_that_is_none_is_refused_by_file_and_column(tmp_path):
    pq.write_table(pa.table({"n": [1, 2], "text": broken_text()}), tmp_path / "rows.parquet")
    with pytest.raises(fi.DataError, match=r"rows.parquet, column 'text': expected values of its type.*UTF8"):
        load_data(tmp_path / "rows.parquet")


def test_a_parquet_file_of_bytes_where_text_should_be_is_refused(tmp_path):
    pq.write_table(pa.table({"text": pa.array([b"a", b"\xff"])}), tmp_path / "rows.parquet")
    with pytest.raises(fi.DataError, match=r"rows.parquet, column 'text', row 0: expected text, got b'a'"):
        load_data(tmp_path / "rows.parquet", tokenizer=Bytes())


def test_a_table_with_text_that_is_none_names_the_row():
    table = pa.table({"label": [0, 1], "text": broken_text()})
    with pytest.raises(fi.DataError, match="train, row 1: expected an example, got UnicodeDecodeError"):
        fi.attribute(torch.nn.Linear(1, 2), table, table, task=fi.Classification(), progress=False)


def test_a_text_that_the_tokenizer_does_not_take_names_the_row():
    rows = [{"text": "a"}, {"text": "b \ud800"}]
    with pytest.raises(fi.DataError, match=r"rows.jsonl, column 'text', row 1: expected text that the tokenizer takes"):
        tokenised(rows, Bytes(), source="rows.jsonl")


TEXTS = ["good", "", "a \0 b", "x" * 100_000, "b \ud800"]


def test_rows_of_text_that_the_model_does_not_read_may_hold_anything():
    rows = [{"x": torch.ones(3) * n, "label": n % 2, "text": text, "raw": text.encode("utf-8", "surrogatepass")}
            for n, text in enumerate(TEXTS)]  # fmt: skip
    task = fi.Classification(inputs="x")
    assert fi.attribute(torch.nn.Linear(3, 2), rows, rows[:1], task=task, progress=False).values.shape == (
        1,
        len(TEXTS),
    )


IDS = ["\ud800", "a\0b", "x" * 100_000, "plain"]


@pytest.mark.parametrize("folder", [False, True])
def test_ids_of_any_text_reach_every_result(tmp_path, folder):
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    scores = fi.attribute(torch.nn.Linear(3, 2), (x, y), (x[:1], y[:1]), task=fi.Classification(), ids=IDS, query_ids=["\udfff"],
                          output_dir=tmp_path / "run" if folder else None, progress=False)  # fmt: skip
    assert set(scores.top(4)["train"]) == set(IDS)
    assert list(scores.bottom(1)["query"]) == ["\udfff"]
    assert list(scores.to_pandas().index) == IDS
    scores.by_train([0, 1, 0, 1])
    scores.report(tmp_path / "report.html")
    scores.save(tmp_path / "saved")
    for place in ("saved", "run") if folder else ("saved",):
        assert fi.load_scores(tmp_path / place).ids == IDS
    own = fi.self_influence(torch.nn.Linear(3, 2), (x, y), task=fi.Classification(), ids=IDS)
    assert list(own.to_pandas().index) == IDS
