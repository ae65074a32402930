import json
import os
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forwardinf as fi
from forwardinf.core.files import check_format, once, read_json, read_table, sweep, write_json, write_table, written

FORMAT = "forwardinf.thing/2"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
)
root = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- whole or absent ---------------------------------------------------------------------------------------------------


def test_a_file_is_moved_into_place_when_the_block_ends_well(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with written(path) as part:
        part.write_text("new")
        assert not path.exists()
        assert part.parent == path.parent
    assert path.read_text() == "new"
    assert names(path.parent) == ["file"]


def fail_half_way(path, error):
    with written(path) as part:
        part.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyError("a"), KeyboardInterrupt(), SystemExit()])
@pytest.mark.parametrize("old", [None, "old"])
def test_after_any_error_the_file_is_what_it_was_and_nothing_else_is_left(tmp_path, error, old):
    path = tmp_path / "file"
    if old:
        path.write_text(old)
    with pytest.raises(type(error)):
        fail_half_way(path, error)
    assert names(tmp_path) == (["file"] if old else [])
    assert not old or path.read_text() == old


def test_a_full_disk_says_so_and_what_to_do(tmp_path):
    with pytest.raises(fi.FileError, match="No space left") as caught:
        fail_half_way(tmp_path / "file", OSError(28, "No space left on device"))
    assert caught.value.do == "Free space, then resume."
    assert names(tmp_path) == []


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "ordinary").write_text("")
    write_json(tmp_path / "ours", {})
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


@root
def test_a_folder_that_may_not_be_written_is_an_error_of_ours(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises((fi.FileError, PermissionError)):
        write_json(tmp_path / "file", {})


# -- JSON --------------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_what_is_written_as_json_is_read_back(tmp_path, content):
    path = tmp_path / "file.json"
    write_json(path, {**content, "format": FORMAT})
    assert read_json(path, FORMAT, what="a thing") == {**content, "format": FORMAT}


def test_json_is_readable_by_people(tmp_path):
    write_json(tmp_path / "a", {"name": "é"})
    assert (tmp_path / "a").read_text(encoding="utf-8").startswith('{\n  "name": "é",\n  "checksum": "')


DAMAGED = {
    "empty": b"",
    "truncated": b'{"format": "forwardinf.th',
    "not text": b"\xff\xfe\x00",
    "zeros": b"\x00" * 20,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_json_file_is_refused(tmp_path, damage):
    (tmp_path / "a").write_bytes(DAMAGED[damage])
    with pytest.raises(fi.FileError, match="expected a thing, got a damaged file") as caught:
        read_json(tmp_path / "a", FORMAT, what="a thing")
    assert "overwrite=True" in caught.value.do


@pytest.mark.parametrize("foreign", [{}, [], "text", 1, {"format": "other/1"}, {"format": None}, {"format": "forwardinf.thing"},
                                     {"format": "forwardinf.thing/x"}, {"format": "forwardinf.thing/-1"}])  # fmt: skip
def test_json_that_is_not_ours_is_refused(tmp_path, foreign):
    (tmp_path / "a").write_text(json.dumps(foreign))
    with pytest.raises(fi.FileError, match="It is not ours"):
        read_json(tmp_path / "a", FORMAT, what="a thing")


def test_a_missing_file_names_its_folder(tmp_path):
    with pytest.raises(fi.FileError, match=r"expected a thing, got no a\.json") as caught:
        read_json(tmp_path / "a.json", FORMAT, what="a thing")
    assert caught.value.where == str(tmp_path)


def test_an_older_format_is_read_and_a_newer_one_refused():
    for version in ("1", "2"):
        check_format(Path("a"), f"forwardinf.thing/{version}", FORMAT, what="a thing")
    with pytest.raises(fi.FileError, match=r"expected forwardinf.thing/2 or older, got forwardinf.thing/3") as caught:
        check_format(Path("a"), "forwardinf.thing/3", FORMAT, what="a thing")
    assert "upgrade" in caught.value.do


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_table_is_read_back_and_equal_columns_give_equal_bytes(tmp_path):
    columns = {"row": [0, 1], "loss": [0.5, None]}
    write_table(tmp_path / "a.parquet", columns, FORMAT)
    write_table(tmp_path / "b.parquet", dict(columns), FORMAT)
    assert read_table(tmp_path / "a.parquet", FORMAT, what="a thing").to_pydict() == columns
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_table_is_refused(tmp_path, keep):
    path = tmp_path / "a.parquet"
    write_table(path, {"row": list(range(100))}, FORMAT)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(fi.FileError, match="got a damaged file") as caught:
        read_table(path, FORMAT, what="a thing")
    assert "resume" in caught.value.do


def test_a_table_that_is_not_ours_or_newer_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"row": [1]}), path)
    with pytest.raises(fi.FileError, match="not ours"):
        read_table(path, FORMAT, what="a thing")
    write_table(path, {"row": [1]}, "forwardinf.thing/3")
    with pytest.raises(fi.FileError, match="newer forwardinf"):
        read_table(path, FORMAT, what="a thing")


# -- one winner, no litter ---------------------------------------------------------------------------------------------


def test_only_the_first_of_two_makes_a_file(tmp_path):
    path = tmp_path / "new" / "run.json"
    assert once(path, lambda part: part.write_text("first"))
    assert not once(path, lambda part: part.write_text("second"))
    assert path.read_text() == "first"
    assert names(path.parent) == ["run.json"]


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def fail(part):
        part.write_text("half")
        raise KeyError

    with pytest.raises(KeyError):
        once(tmp_path / "run.json", fail)
    assert names(tmp_path) == []


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_way_of_a_folder_is_an_error_of_ours(tmp_path, inside):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(fi.FileError, match="expected a folder that can be written") as caught:
        once(tmp_path / "file" / inside / "run.json", lambda part: part.write_text(""))
    assert caught.value.do == "Choose another folder."
    assert (tmp_path / "file").read_text() == "mine"


def test_sweeping_removes_our_own_leftovers_and_nothing_else(tmp_path):
    mine = [tmp_path / "scores" / ".s-0.parquet.abc.part", tmp_path / ".run.json.x.part"]
    theirs = [tmp_path / "draft.part", tmp_path / ".hidden", tmp_path / "scores" / "s-0.parquet"]
    for path in (*mine, *theirs):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    sweep(tmp_path)
    assert not any(path.exists() for path in mine)
    assert all(path.exists() for path in theirs)
