import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forwardinf as fi
from forwardinf.core.files import write_table
from forwardinf.score.store import SCORES, TRAIN, Folder, id_column, plain_ids

TEXT = st.text(st.characters())
IDS = st.lists(st.integers(), unique=True) | st.lists(TEXT, unique=True) | st.lists(st.integers() | TEXT, unique=True)


@given(IDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_ids_of_any_kind_survive_a_file(tmp_path, ids):
    path = tmp_path / "ids.parquet"
    write_table(path, {"id": id_column(ids)}, TRAIN)
    back = plain_ids(path, "id", TRAIN)
    assert back == ids
    assert [type(value) for value in back] == [type(value) for value in ids]


ENTRIES = st.dictionaries(
    st.integers(0, 5), st.dictionaries(st.integers(0, 50), st.floats(-9, 9, width=32), max_size=8), min_size=1
)


@given(ENTRIES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_entries_survive_a_file(tmp_path, found):
    folder = Folder(Path(tempfile.mkdtemp(dir=tmp_path)))  # a file is put where none is
    entries = [
        (query, np.array(sorted(rows), np.int64), np.array([rows[row] for row in sorted(rows)], np.float32))
        for query, rows in sorted(found.items())
    ]
    folder.write_entries("scores/b-00000/s-00000.parquet", entries)
    back = list(folder.entries(folder.names("scores/b-*/s-*.parquet")))
    want = [entry for entry in entries if len(entry[1])]
    assert [query for query, _, _ in back] == [query for query, _, _ in want]
    for (_, rows, scores), (_, want_rows, want_scores) in zip(back, want, strict=True):
        np.testing.assert_array_equal(rows, want_rows)
        np.testing.assert_array_equal(scores, want_scores)


def test_a_folder_belongs_to_the_first_that_claims_it(tmp_path):
    folder = Folder(tmp_path / "run")
    assert not folder.claim({"model": "a"}, {}, overwrite=False)
    assert folder.claim({"model": "a"}, {}, overwrite=False)
    with pytest.raises(fi.RunMismatch, match="model: kept 'a', now 'b'") as caught:
        folder.claim({"model": "b"}, {}, overwrite=False)
    assert caught.value.differs == {"model": ("a", "b")}
    assert not folder.claim({"model": "b"}, {}, overwrite=True)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(fi.FileError, match="a folder with other files"):
            Folder(tmp_path).claim({}, {}, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_leaves_what_others_put_beside_a_run(tmp_path):
    folder = Folder(tmp_path / "run")
    folder.claim({"model": "a"}, {}, overwrite=False)
    folder.write_entries("scores/b-00000/s-00000.parquet", [(0, np.array([0]), np.array([1.0], np.float32))])
    folder.event("started")
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "scores" / "mine.txt").write_text("mine")
    folder.claim({"model": "b"}, {}, overwrite=True)
    left = sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())
    assert left == ["notes.txt", "run.json", "scores/mine.txt"]


def test_a_table_without_our_columns_is_refused(tmp_path):
    write_table(tmp_path / "a.parquet", {"query": [0]}, SCORES)
    with pytest.raises(fi.FileError, match="expected columns query, row, score"):
        list(Folder(tmp_path).entries(["a.parquet"]))


def test_what_replays_a_run_comes_back_from_run_json(tmp_path):
    folder = Folder(tmp_path / "run")
    folder.claim({}, {}, overwrite=False, config="model: é\n")
    (folder.path / "config.yaml").unlink()  # a kill came before it
    assert Folder(folder.path).replayed()["config"] == "model: é\n"
    assert (folder.path / "config.yaml").read_text(encoding="utf-8") == "model: é\n"


def test_another_run_that_asks_for_a_taken_folder_does_not_leave_its_configuration_there(tmp_path):
    folder = Folder(tmp_path / "run")
    folder.claim({"model": "a"}, {}, overwrite=False)
    with pytest.raises(fi.RunMismatch):
        Folder(folder.path).claim({"model": "b"}, {}, overwrite=False, config="model: b")
    assert not (folder.path / "config.yaml").exists()
