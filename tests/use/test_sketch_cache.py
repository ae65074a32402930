"""Kept sketches and whitenings: the same bytes after a kill, checked before they are used, and an offer only."""

import errno
import fcntl
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import forwardinf as fi
from forwardinf.core.pieces import Pieces
from forwardinf.use import sketch_cache as kept_rows
from forwardinf.use.response_files import ResponseFiles
from forwardinf.use.sketch import bytes_of, compared, side_of
from forwardinf.use.sketch_cache import KeptRows
from forwardinf.use.whitening import Kept, Whitening

OPERATIONS = ("mkdir", "open", "fsync", "chmod", "link", "unlink", "replace")
ROWS = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))


class Killed(BaseException):
    """The process is gone: nothing that comes after happens either."""


class Dying:
    """Counts file operations; from the chosen one on, none happens any more."""

    def __init__(self, monkeypatch, at):
        self.at, self.count = at, 0
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, real):
        def operation(*args, **settings):
            self.count += 1
            if self.count > self.at:
                raise Killed
            return real(*args, **settings)

        return operation


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*") if not path.name.startswith(".")}


def rows(folder, made=None, notes=None, change=0.0):
    def make(places, advance):
        if made is not None:
            made.append(list(places))
        return ROWS[list(places)] + change

    return KeptRows(folder, make, 5, torch.float32, ([] if notes is None else notes).append)


def sketched(folder):
    kept = rows(folder)
    found = kept.take(range(9), range(8, -1, -1), lambda done: None)
    Whitening(found, 1.0, kept.kept(range(9)))
    return found


def indexed(folder):
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(3, 2), torch.randn(6, 3), torch.tensor([0, 1] * 3)
    given = {"task": fi.Classification(), "batch_size": 4, "progress": False}
    index = fi.ProbeIndex.build(folder, model, (x[:4], y[:4]), probes=4, **given)
    index.append(model, (x[4:], y[4:]), **given)
    index.query(model, (x[:1], y[:1]), task=fi.Classification(), progress=False)
    return index.responses()


@pytest.mark.parametrize("build", [sketched, indexed])
def test_a_build_that_is_killed_before_any_file_operation_goes_on_with_the_same_bytes(tmp_path, monkeypatch, build):
    monkeypatch.setattr(kept_rows, "PIECE", 4)
    monkeypatch.setattr("forwardinf.use.response_files.ROWS", 2)
    whole = build(tmp_path / "whole")
    want = contents(tmp_path / "whole")
    with monkeypatch.context() as patched:
        operations = Dying(patched, 10**9)
        build(tmp_path / "counted")
    assert operations.count > 30
    assert contents(tmp_path / "counted") == want
    for at in range(operations.count):
        folder = tmp_path / f"killed-{at}"
        with monkeypatch.context() as patched:
            Dying(patched, at)
            with pytest.raises(Killed):
                build(folder)
        assert contents(folder).items() <= want.items() if folder.exists() else True
        assert torch.equal(build(folder), whole)
        assert contents(folder) == want, f"killed before operation {at + 1}"


def test_a_full_disk_is_our_error_and_the_same_call_goes_on(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        with pytest.raises(fi.FileError, match="room to write"):
            indexed(tmp_path / "index")
        notes = []
        found = rows(tmp_path / "rows", notes=notes).take(range(9), range(9), lambda done: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(found, ROWS)  # a cache is an offer
    assert "not kept for the next call" in notes[0]
    assert torch.isfinite(indexed(tmp_path / "index")).all()


def test_two_builds_at_once_share_what_either_has_put(tmp_path, monkeypatch):
    monkeypatch.setattr("forwardinf.use.response_files.ROWS", 2)
    whole, want = indexed(tmp_path / "whole"), contents(tmp_path / "whole")
    put, others = ResponseFiles.put, []

    def late(files, tile, values):
        if not others:
            others.append("begun")
            monkeypatch.setattr(ResponseFiles, "put", put)
            for file in (tmp_path / "whole").iterdir():  # another build does it all while this one reads a tile
                if file.name.startswith(("tile", "probes")):
                    shutil.copy(file, files.pieces.folder)
        put(files, tile, values)

    monkeypatch.setattr(ResponseFiles, "put", late)
    assert torch.equal(indexed(tmp_path / "index"), whole)
    assert contents(tmp_path / "index") == want


def test_what_is_put_first_stays_and_what_is_damaged_is_replaced(tmp_path, monkeypatch):
    pieces = Pieces(tmp_path)
    assert pieces.put("a", {"x": torch.ones(2)}, {"n": 1})
    assert not pieces.put("a", {"x": torch.zeros(2)})
    assert pieces.get("a").tensors["x"].tolist() == [1, 1]
    content = pieces.path("a").read_bytes()
    for at in range(0, len(content), 7):
        pieces.path("a").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert Pieces(tmp_path).get("a") is None, f"byte {at}"
    assert pieces.get("a") is None
    assert pieces.put("a", {"x": torch.zeros(2)})
    assert Pieces(tmp_path).get("a").tensors["x"].tolist() == [0, 0]

    def refused(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    assert pieces.put("b", {"x": torch.ones(1)})
    assert not pieces.put("b", {"x": torch.zeros(1)})


def test_kept_rows_are_checked_and_stale_or_damaged_ones_are_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_rows, "PIECE", 4)
    nothing, made, notes = (lambda done: None), [], []
    rows(tmp_path, made).take(range(9), range(9), nothing)
    assert [len(places) for places in made] == [4, 4, 1]
    made.clear()
    assert torch.equal(rows(tmp_path, made, notes).take([1, 8], [1, 8], nothing), ROWS[[1, 8]])
    assert sum(map(len, made)) == 3  # two of a piece of four, one of a piece of one
    assert not notes
    file = sorted(tmp_path.glob("rows-*"))[0]
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert torch.equal(rows(tmp_path, made, notes).take(range(9), range(9), nothing), ROWS)
    assert "damaged" in notes.pop()
    assert not notes
    changed = rows(tmp_path, made, notes, change=0.01).take(range(9), range(9), nothing)
    assert torch.equal(changed, ROWS + 0.01)
    assert "3 of 3 kept pieces of sketches are not what the model gives now" in notes[0]
    with pytest.raises(fi.ModelError, match="example 0"):
        rows(None, change=float("nan")).take(range(9), range(9), nothing)


@pytest.mark.parametrize("shape", [(30, 8), (12, 40)])
def test_a_kept_whitening_is_used_where_it_belongs_to_the_rows_and_made_anew_where_not(tmp_path, monkeypatch, shape):
    train = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    notes = []
    kept = Kept(Pieces(tmp_path), "x", notes.append)
    want = compared(train, train[:2], "whitened", 0.3)
    first = compared(train, train[:2], "whitened", 0.3, kept=kept)
    before = contents(tmp_path)
    assert {name.split("-")[0] for name in before} == {"products", "factor"}
    with monkeypatch.context() as patched:
        patched.setattr(torch.linalg, "cholesky", None)
        again = compared(train, train[:2], "whitened", 0.3, kept=kept)
    assert torch.equal(first.scores, want.scores)
    assert torch.equal(again.scores, want.scores)
    with monkeypatch.context() as patched:
        patched.setattr(Whitening, "_products", None)
        other = compared(train, train[:2], "whitened", 0.7, kept=kept)  # only the factor is made
    assert torch.equal(other.scores, compared(train, train[:2], "whitened", 0.7).scores)
    assert contents(tmp_path) == before
    moved = train.clone()
    moved[3] += 1
    ridge = Whitening(moved, 0.3).ridge
    Pieces(tmp_path).put(f"factor-x-whitened-{ridge:.12g}", {"matrix": Whitening(train, 0.3)._root})
    found = compared(moved, moved[:2], "whitened", 0.3, kept=kept)
    assert torch.equal(found.scores, compared(moved, moved[:2], "whitened", 0.3).scores)
    assert any("does not belong to the rows" in note for note in notes)


def test_no_file_stays_open_and_no_damping_leaves_one(tmp_path):
    indexed(tmp_path / "index")
    index = fi.ProbeIndex(tmp_path / "index")
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(3, 2), torch.randn(6, 3), torch.tensor([0, 1] * 3)
    open_files, there = len(list(Path("/proc/self/fd").iterdir())), contents(tmp_path / "index")
    for damping in np.linspace(0.1, 2, 20):
        index.query(model, (x[:1], y[:1]), task=fi.Classification(), damping=float(damping), progress=False)
    assert len(list(Path("/proc/self/fd").iterdir())) <= open_files
    assert contents(tmp_path / "index") == there


def test_a_cap_on_memory_narrows_sketches_or_is_refused():
    small = dict(torch.nn.Linear(100, 100).named_parameters())
    assert side_of("t", small, 2000) == 64
    for memory in (2**28, 2**25, 2**23, 2**21):
        side = side_of("t", small, 2000, memory=memory)
        width = side**2 + min(100, 4 * side)
        assert bytes_of(2000, width) <= memory
    with pytest.raises(fi.SettingError, match="at least"):
        side_of("t", small, 2000, memory=10**4)
    with pytest.raises(fi.SettingError, match="side=64"):
        side_of("t", small, 2000, side=64, memory=2**21)
    for wrong in (0, 1.5, True):
        with pytest.raises(fi.SettingError, match="whole number"):
            side_of("t", small, 2000, side=wrong)


def test_half_written_files_of_killed_builds_are_swept_and_those_of_others_are_not(tmp_path):
    for name in (".a.part", ".b.part"):
        Path(tmp_path / name).write_bytes(b"")
    with open(tmp_path / ".b.part", "rb") as writing:  # noqa: PTH123 - as another process has it while it writes
        fcntl.flock(writing, fcntl.LOCK_EX)
        Pieces(tmp_path).sweep()
    assert [path.name for path in tmp_path.iterdir()] == [".b.part"]
