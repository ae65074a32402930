"""Bits that rot in a run folder: never another number; refused by file, named by ``forwardinf check``, mended by ``--repair``."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

import forwardinf as fi
from forwardinf.score.damage import damages, remove
from forwardinf.view.cli import main

torch.manual_seed(0)
X, Y = torch.randn(24, 4), torch.randint(0, 3, (24,))
MODEL, OTHER, THIRD = (nn.Linear(4, 3) for _ in range(3))


def call(folder, **settings):
    settings = {"perturbation": fi.Perturbation("plain", length=0.01, two_sided=True), **settings}
    return fi.attribute(MODEL, (X, Y), (X[:2], Y[:2]), task=fi.Classification(), output_dir=folder, cache_dir="off",
                        batch_size=12, shard_rows=12, engine="forward", progress=False, **settings)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, call(folder)


def everything(scores):
    names = ("values", "cross", "uncertainty", "baseline", "query_baseline", "rise", "length", "step", "noise_floor")
    return {name: np.asarray(getattr(scores, name)) for name in names}


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".parquet", ".json"))


def flip(path, draw):
    raw = bytearray(path.read_bytes())
    raw[draw.integers(len(raw))] ^= 1 << int(draw.integers(8))
    path.write_bytes(raw)


def zeros(path, draw):
    raw = bytearray(path.read_bytes())
    start = int(draw.integers(len(raw)))
    raw[start : start + 64] = bytes(len(raw[start : start + 64]))
    path.write_bytes(raw)


def cut(path, draw):
    path.write_bytes(path.read_bytes()[: int(draw.integers(path.stat().st_size))])


@pytest.mark.parametrize("harm", [flip, zeros, cut], ids=lambda harm: harm.__name__)
def test_a_damaged_file_gives_an_error_that_names_it_or_the_same_numbers(finished, tmp_path, harm):
    folder, want = tmp_path / "run", everything(finished[1])
    shutil.copytree(finished[0], folder)
    draw, said, tried = np.random.default_rng(1), [], 0
    for path in files(folder):
        whole = path.read_bytes()
        for _ in range(3):
            harm(path, draw)
            tried += 1
            try:
                for name, found in everything(fi.load_scores(folder)).items():
                    np.testing.assert_array_equal(found, want[name], err_msg=f"{path.name} {name}")
            except fi.FileError as error:
                said.append(str(error))
            path.write_bytes(whole)
    assert len(said) > tried / 2
    assert all(str(folder) in one for one in said)


@pytest.mark.parametrize("name", ["scores", "uncertainty", "cross", "base", "train.parquet", "queries.parquet", "done.json",
                                  "plan.json"])  # fmt: skip
@pytest.mark.parametrize("harm", [flip, None], ids=["flipped", "missing"])
def test_check_names_what_is_damaged_and_repairing_reads_just_that_again(finished, tmp_path, name, harm):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = {path: path.read_bytes() for path in files(folder)}
    path = folder / name
    path = sorted(path.glob("**/*.parquet"))[-1] if path.is_dir() else path
    assert damages(folder) == []
    if harm is None:
        path.unlink()
    else:
        raw = bytearray(path.read_bytes())
        raw[40:60] = bytes(20)
        path.write_bytes(raw)
    found = damages(folder)
    if harm is None and name in ("done.json", "plan.json"):
        assert found == [] or name == "plan.json"
    else:
        assert [damage.file for damage in found] == [path.relative_to(folder).as_posix()]
        assert found[0].again
    remove(folder, found)
    scores = call(folder)
    assert np.array_equal(scores.values, finished[1].values)
    assert damages(folder) == []
    same = [one for one in before if one.suffix == ".parquet" and one.read_bytes() == before[one]]
    assert len(same) == sum(one.suffix == ".parquet" for one in before), "the same bytes"


def test_a_damaged_checkpoint_is_found_from_above(tmp_path):
    want = call(tmp_path / "run", checkpoints=[OTHER, THIRD])
    path = tmp_path / "run/checkpoint-001/scores/b-00000/s-00001.parquet"
    flip(path, np.random.default_rng(3))
    raw = bytearray(path.read_bytes())
    raw[60] ^= 1
    path.write_bytes(raw)
    found = damages(tmp_path / "run")
    assert [damage.file for damage in found] == ["checkpoint-001/scores/b-00000/s-00001.parquet"]
    assert "checkpoint-001/uncertainty/b-00000/s-00001.parquet" in found[0].again
    remove(tmp_path / "run", found)
    assert np.array_equal(call(tmp_path / "run", checkpoints=[OTHER, THIRD]).values, want.values)
    assert damages(tmp_path / "run") == []


def test_the_command_line_says_it_and_ends_with_1(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)

    def check(*words):
        monkeypatch.setattr(sys, "argv", ["forwardinf", "check", str(folder), *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    assert check()[0] == 0
    path = folder / "cross/b-00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    code, out, _ = check("--json")
    assert code == 1
    assert json.loads(out)[0]["file"] == "cross/b-00000.parquet"
    code, _, err = check("--repair")
    assert code == 0, err
    assert "make the same Python call again" in err
    assert not path.exists()
    assert np.array_equal(call(folder).values, finished[1].values)
    (folder / "run.json").write_text("{")
    code, _, err = check("--repair")
    assert code == 1
    assert "Start over with overwrite=True" in err
    assert path.exists(), "nothing is removed where nothing can be repaired"
    assert np.array_equal(call(folder, overwrite=True).values, finished[1].values)
