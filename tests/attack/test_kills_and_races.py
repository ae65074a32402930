"""A run folder under kills before every file operation, equal calls at once, and calls that start over beside another."""

import contextlib
import errno
import os
import sys
import threading
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import forwardinf as fi
from forwardinf import method
from forwardinf.core import files
from forwardinf.core.files import once, sweep, write_table
from forwardinf.job import settle as settling
from forwardinf.read.plan import make_plan
from forwardinf.score.damage import damages
from forwardinf.score.store import SCORES, Folder

ALL = bool(os.environ.get("FORWARDINF_ALL_ATTACKS"))  # a kill before every file operation, not before some

torch.manual_seed(0)
X, Y = torch.randn(24, 4), torch.randint(0, 3, (24,))
MODEL, OTHER, THIRD = (nn.Linear(4, 3) for _ in range(3))
EVENTS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "tempfile.mkstemp"}


class Killed(BaseException):
    pass


class Killer:
    """An audit hook: before so many file operations under a folder the process is dead, and does nothing any more."""

    def __init__(self):
        self.under, self.left, self.count = None, None, 0
        sys.addaudithook(self)

    def __call__(self, event, args):
        if self.under is None or not self.counts(event, args):
            return
        self.count += 1
        if self.left is not None and self.count > self.left:
            raise Killed

    def counts(self, event, args):
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return False
        elif event not in EVENTS:
            return False
        return any(str(arg).startswith(self.under) for arg in args if isinstance(arg, str | bytes | os.PathLike))

    @contextlib.contextmanager
    def watching(self, folder, left=None):
        self.under, self.left, self.count = str(folder), left, 0
        try:
            yield
        finally:
            self.under = None


KILLER = Killer()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """A kill of the process loses nothing that was written: only a power cut does."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def call(folder, cache="off", **settings):
    rule = fi.Perturbation("plain", length=0.01, two_sided=True)
    settings = {"perturbation": rule, "batch_size": 12, "shard_rows": 12, "engine": "forward", **settings}
    return fi.attribute(settings.pop("model", MODEL), (X, Y), (X[:1], Y[:1]), task=fi.Classification(), output_dir=folder,
                        cache_dir=cache, progress=False, **settings)  # fmt: skip


def content(folder):
    """Return the bytes of every table, and which files there are."""
    tables = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return tables, names


def killed_everywhere(tmp_path, step, **settings):
    """Kill a call before every ``step``-th file operation, make it again, and compare with one that was left alone."""
    with KILLER.watching(tmp_path / "whole"):
        want = call(tmp_path / "whole", **settings)
    operations, whole = KILLER.count, content(tmp_path / "whole")
    assert operations > 40
    for left in range(0, operations, step):
        folder = tmp_path / f"run-{left}"
        with KILLER.watching(folder, left), pytest.raises(Killed):
            call(folder, **settings)
        got = call(folder, **settings)
        assert content(folder) == whole, left
        assert np.array_equal(got.values, want.values), left
        assert np.array_equal(fi.load_scores(folder).values, want.values), left


def test_killed_before_any_file_operation_and_made_again_it_is_the_same_run(tmp_path):
    killed_everywhere(tmp_path, 1 if ALL else 11)


def test_the_same_over_checkpoints(tmp_path):
    killed_everywhere(tmp_path, 1 if ALL else 43, checkpoints=[OTHER.state_dict(), THIRD.state_dict()], shard_rows=24)


def test_the_same_where_another_run_is_started_over(tmp_path):
    want = call(tmp_path / "whole", seed=1)
    with KILLER.watching(tmp_path / "count"):
        call(tmp_path / "count")
        before = KILLER.count
        call(tmp_path / "count", seed=1, overwrite=True)
    for left in range(before, KILLER.count, 1 if ALL else 37):
        folder = tmp_path / f"run-{left}"
        call(folder)
        with KILLER.watching(folder, left - before), pytest.raises(Killed):
            call(folder, seed=1, overwrite=True)
        assert np.array_equal(call(folder, seed=1, overwrite=True).values, want.values)
        assert content(folder) == content(tmp_path / "whole"), left


# -- at once -----------------------------------------------------------------------------------------------------------


def elsewhere(do):
    """Do something in another process, and wait for it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            do()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def meanwhile(monkeypatch, owner, name, do, turn=1):
    """Let another process do something when a function is called for the so-manieth time, before it does its work."""
    plain, left = getattr(owner, name), [turn]

    def instead(*args, **given):
        left[0] -= 1
        if left[0] == 0:
            elsewhere(do)
        return plain(*args, **given)

    monkeypatch.setattr(owner, name, instead)


@pytest.mark.parametrize("moment", ["claim", "write_plan", "write_entries", "finish"])
def test_a_second_call_follows_the_plan_that_is_there(tmp_path, monkeypatch, moment):
    """Both are left to settle how many examples are read at a time, and settle it differently."""
    size = [24]
    monkeypatch.setattr(settling, "make_plan", lambda *args, **given: sized(make_plan(*args, **given), size[0]))

    def other():
        size[0] = 7
        found = call(tmp_path / "run", batch_size="auto", shard_rows="auto")
        np.save(tmp_path / "other.npy", found.values)

    meanwhile(monkeypatch, Folder, moment, other)
    mine = call(tmp_path / "run", batch_size="auto", shard_rows="auto")
    assert mine.plan["shard_rows"] == (7 if moment in ("claim", "write_plan") else 24)
    assert np.isfinite(mine.values).all()
    assert np.array_equal(np.load(tmp_path / "other.npy"), mine.values)
    assert np.array_equal(fi.load_scores(tmp_path / "run").values, mine.values)


def sized(plan, size):
    return replace(plan, batch_size=size, shard_rows=size)


@pytest.mark.parametrize("moment", ["write_entries", "finish", "write_base"])
def test_a_call_whose_folder_is_started_over_writes_nothing_into_it_any_more(tmp_path, monkeypatch, moment):
    want = call(tmp_path / "whole", seed=1)
    meanwhile(monkeypatch, Folder, moment, lambda: call(tmp_path / "run", seed=1, overwrite=True))
    with pytest.raises(fi.FileError, match="another call has started over"):
        call(tmp_path / "run")
    assert np.array_equal(fi.load_scores(tmp_path / "run").values, want.values)
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def test_a_call_never_returns_the_numbers_of_the_run_that_took_its_place(tmp_path, monkeypatch):
    other = fi.Perturbation("plain", length=0.02, two_sided=True)
    meanwhile(monkeypatch, method, "scores_of", lambda: call(tmp_path / "run", perturbation=other, overwrite=True))
    with pytest.raises(fi.FileError, match="another call has started over"):
        call(tmp_path / "run")
    assert damages(tmp_path / "run") == []


def test_a_file_that_was_being_written_when_the_folder_was_started_over_does_not_land_in_it(tmp_path, monkeypatch):
    want = call(tmp_path / "whole", seed=1)
    meanwhile(monkeypatch, files, "_place", lambda: call(tmp_path / "run", seed=1, overwrite=True), turn=8)
    with pytest.raises(fi.FileError, match="another call has started over"):
        call(tmp_path / "run")
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert np.array_equal(fi.load_scores(tmp_path / "run").values, want.values)


def test_many_threads_put_one_file_and_one_of_them_wins(tmp_path):
    wins = []
    start = threading.Barrier(8)

    def put(number):
        start.wait()
        if once(tmp_path / "run.json", lambda part: part.write_text(str(number) * 9)):
            wins.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert (tmp_path / "run.json").read_text() == str(wins[0]) * 9
    assert len(wins) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_disk_without_hard_links_will_do(tmp_path, monkeypatch):
    def none(*paths):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    want = call(tmp_path / "linked")
    monkeypatch.setattr(os, "link", none)
    assert np.array_equal(call(tmp_path / "run").values, want.values)
    assert content(tmp_path / "run") == content(tmp_path / "linked")
    assert not once(tmp_path / "run" / "run.json", lambda part: part.write_text("mine"))
    test_many_threads_put_one_file_and_one_of_them_wins(tmp_path / "threads")


def test_sweeping_leaves_what_a_neighbour_is_writing(tmp_path):
    (tmp_path / ".dead.part").write_text("half")
    with files.written(tmp_path / "file") as part:
        part.write_text("whole")
        sweep(tmp_path)
        assert part.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- nothing is made up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["scores", "cross", "uncertainty"])
def test_rows_that_were_never_read_are_refused_and_not_nan(tmp_path, table):
    call(tmp_path / "run")
    path = sorted((tmp_path / "run" / table).rglob("*.parquet"))[-1]
    short = pq.read_table(path, partitioning=None).slice(0, 1).to_pydict()
    write_table(path, short, SCORES)  # whole, with a checksum of its own, but of fewer rows
    for read in (lambda: call(tmp_path / "run"), lambda: fi.load_scores(tmp_path / "run")):
        with pytest.raises(fi.FileError, match=path.name):
            read()
    path.unlink()
    with pytest.raises(fi.FileError, match=path.name):
        fi.load_scores(tmp_path / "run")


def test_a_file_of_another_plan_is_refused(tmp_path):
    call(tmp_path / "run")
    call(tmp_path / "other", shard_rows=24)
    (tmp_path / "run" / "done.json").unlink()
    for name in ("base/s-00000.parquet", "scores/b-00000/s-00000.parquet"):
        kept = (tmp_path / "run" / name).read_bytes()
        (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
        with pytest.raises(fi.FileError, match=r"s-00000\.parquet"):
            call(tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(kept)


def test_a_folder_that_the_model_does_not_reproduce_is_another_run(tmp_path):
    scale = [1.0]
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, given, out: out * scale[0])
    call(tmp_path / "run", model=model)
    scale[0] = 3.0
    for finished in (True, False):
        with pytest.raises(fi.RunMismatch, match="losses: kept"):
            call(tmp_path / "run", model=model)
        if finished:
            (tmp_path / "run" / "done.json").unlink()
    assert np.isfinite(call(tmp_path / "run", model=model, overwrite=True).values).all()
