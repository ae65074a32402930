"""Disks that are full, closed or odd, paths that no system holds, and files that unfold to more than they say."""

import gzip
import io
import json
import logging
import os
import socket
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import forwardinf as fi
from forwardinf.core import bounds, cache, files
from forwardinf.models.weights import load_state
from forwardinf.view import bounded_yaml
from forwardinf.view.cli import main
from forwardinf.view.config import read_config


def attribute(**given):
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(4, 3), torch.randn(12, 4), torch.arange(12) % 3
    return fi.attribute(
        model, (x, y), (x[:2], y[:2]), task=fi.Classification(), perturbation="plain", progress=False, **given
    )


# A cache is optional


def closed(path):
    path.mkdir()
    path.chmod(0o500)
    return path


def loop(path):
    path.symlink_to(path)
    return path


def a_file(path):
    path.write_text("here")
    return path


def odd_inside(path):
    path.mkdir()
    for kind in cache.KINDS:
        (path / kind).write_text("no folder")
    return path


@pytest.mark.parametrize(
    "odd", [a_file, odd_inside, lambda path: Path("/proc/none"), lambda path: Path("/dev/full/cache")]
)
def test_an_odd_cache_is_done_without_and_said_once(tmp_path, odd, caplog):
    want, folder = attribute(cache_dir="off").values, odd(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert np.array_equal(attribute(cache_dir=folder).values, want)
    assert sum("nothing is kept" in line for line in caplog.messages) <= 1, "once in a process"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_cache_is_done_without(tmp_path):
    attribute(cache_dir=closed(tmp_path / "cache"))


def full(monkeypatch, where):
    """Make every file of ours that is put in place below a folder find the disk full."""

    def refusing(real):
        def put(source, target):
            if str(target).startswith(str(where)):
                raise OSError(28, "No space left on device")
            return real(source, target)

        return put

    monkeypatch.setattr(Path, "replace", refusing(Path.replace))
    monkeypatch.setattr(os, "link", refusing(os.link))


def test_a_full_cache_is_done_without_and_a_full_output_is_our_error(tmp_path, monkeypatch, caplog):
    want = attribute(cache_dir="off").values
    full(monkeypatch, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(attribute(cache_dir=tmp_path / "cache").values, want)
    assert sum("nothing is kept" in line for line in caplog.messages) == 1
    with pytest.raises(fi.FileError):
        attribute(output_dir=tmp_path / "out", cache_dir="off")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".parquet", ".safetensors")]


def test_the_cache_is_pruned_to_its_limit_the_least_used_first(tmp_path, monkeypatch):
    for number in range(5):
        path = tmp_path / "baselines" / f"{number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 1000)
        os.utime(path, (number + 1, number + 1))
    (tmp_path / "mine.txt").write_bytes(b"y" * 9000)
    (tmp_path / "baselines" / "new.safetensors").write_bytes(b"x" * 1000)
    monkeypatch.setenv("FORWARDINF_CACHE_LIMIT", str(3000 / 2**30))
    assert cache.usable(tmp_path) == tmp_path
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"mine.txt", "new.safetensors", "3.safetensors", "4.safetensors"}
    monkeypatch.setenv("FORWARDINF_CACHE_LIMIT", "a lot")
    with pytest.raises(fi.SettingError, match="GiB"):
        cache.limit()


def test_the_command_says_what_is_kept_and_removes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path))
    attribute()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["forwardinf", "cache", "--json", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return json.loads(capsys.readouterr().out)

    found = call()
    assert found["folder"] == str(tmp_path)
    assert found["kept"]["baselines"]["files"] == 1
    assert found["bytes"] > 0
    assert call("--prune", "--limit", "0")["bytes"] == 0


# Paths


PATHS = {
    "a NUL": "a\0b", "too long": "x" * 300, "far too long": "/".join(["x" * 200] * 30), "bytes": b"folder", "empty": "",
    "a number": 7, "half a character": "\udcff\ud800", "below a file": "/dev/null/x", "closed": "/proc/1/none/x",
}  # fmt: skip


@pytest.mark.parametrize("kind", [*PATHS, "a loop of links"])
@pytest.mark.parametrize(
    "into", ["output_dir", "cache_dir", "report", "model", "weights", "data", "scores", "checkpoints"]
)
def test_a_path_that_cannot_be_is_our_error(tmp_path, kind, into):
    given = loop(tmp_path / "loop") if kind == "a loop of links" else PATHS[kind]
    if into == "cache_dir" and kind in ("below a file", "closed", "empty"):
        return  # a cache is optional; nothing named is nothing asked
    calls = {
        "output_dir": lambda: attribute(output_dir=given), "cache_dir": lambda: attribute(cache_dir=given),
        "report": lambda: attribute().report(given), "model": lambda: fi.load_model(given), "data": lambda: fi.load_data(given),
        "weights": lambda: fi.load_model("torch.nn:Flatten", weights=given), "scores": lambda: fi.load_scores(given),
        "checkpoints": lambda: attribute(checkpoints=[given]),
    }  # fmt: skip
    with pytest.raises(fi.Error):
        calls[into]()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link to a device"])
def test_a_report_replaces_no_device(tmp_path, kind):
    path = tmp_path / "there"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "device":
        path = Path("/dev/null")
    else:
        path.symlink_to("/dev/null")
    before = path.lstat().st_mode
    with pytest.raises(fi.FileError, match="a device, a pipe"):
        attribute().report(path)
    with pytest.raises(fi.FileError, match="a device, a pipe"):
        files.write_json(path, {})
    assert path.lstat().st_mode == before


def test_surrogates_in_ids_and_texts_reach_files_and_pages(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(3, 4), torch.arange(3)
    ids = ["a\ud800", "b", "\udfffc"]
    scores = fi.attribute(torch.nn.Linear(4, 3), (x, y), (x[:1], y[:1]), task=fi.Classification(), ids=ids, query_ids=["\ud801"],
                          output_dir=tmp_path / "out", progress=False)  # fmt: skip
    assert sorted(fi.load_scores(tmp_path / "out").ids) == sorted(ids)
    assert scores.report(tmp_path / "r.html").stat().st_size > 0


# Bombs


LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
YAML = {
    "billion laughs": LAUGHS, "itself": "a: &a [*a]\n", "large": "a: " + "x" * 2**21, "deep": "a: " + "[" * 5000,
    "deep maps": "".join(" " * n + "a:\n" for n in range(900)), "a long number": "a: " + "9" * 9000,
    "a tag": "a: !!python/object/apply:os.system [x]", "many keys": "{" * 200_000, "surrogates": 'a: "\\ud800"',
}  # fmt: skip


@pytest.mark.parametrize("kind", YAML)
def test_a_yaml_bomb_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "config.yaml"
    path.write_text(YAML[kind])
    with pytest.raises(fi.Error):
        read_config(path)


def test_what_a_configuration_needs_is_read():
    assert bounded_yaml.load("a: &x [1, 2]\nb: *x\nc: 1e-3\n") == {"a": [1, 2], "b": [1, 2], "c": "1e-3"}
    assert bounded_yaml.load("") is None


def test_a_configuration_without_end_is_not_read_to_its_end():
    with pytest.raises(fi.FileError):
        read_config(Path("/dev/zero"))


DEEP = {
    "open": "[" * 100_000, "maps": '{"a":' * 100_000 + "1" + "}" * 100_000, "lists": "[" * 100_000 + "]" * 100_000,
    "a row": '{"a": ' + "[" * 200 + "]" * 200 + "}",
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_deep_json_crashes_nothing(tmp_path, kind, name):
    path = tmp_path / name
    path.write_text(DEEP[kind])
    with pytest.raises(fi.Error):
        fi.load_data(path)


def test_brackets_in_text_are_not_depth(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": '\\"[{' * 500}) + "\n")
    assert fi.load_data(path)["text"].to_pylist() == ['\\"[{' * 500]


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_deep_settings_crash_nothing(tmp_path, name):
    (tmp_path / name).write_text('{"a":' + "[" * 200_000)
    with pytest.raises(fi.FileError):
        fi.load_model(tmp_path)


@pytest.fixture
def small(monkeypatch):
    """Limits that a test can reach in a moment."""
    monkeypatch.setattr(bounds, "ALWAYS", 2**20)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.json.gz"])
def test_a_gzip_bomb_is_refused(tmp_path, small, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"a": 1}\n' + b" " * 2**25))
    with pytest.raises(fi.FileError, match="unfolds"):
        fi.load_data(path)


def npz(path, parts):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def npy(array, shape=None):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": array.dtype.str, "fortran_order": False,
                                                  "shape": array.shape if shape is None else shape})  # fmt: skip
    return buffer.getvalue() + array.tobytes()


def test_an_npz_bomb_and_headers_that_lie_are_refused(tmp_path, small):
    bomb = npz(
        tmp_path / "bomb.npz", {"x.npy": npy(np.zeros(2**22, np.float32)), "y.npy": npy(np.zeros(2**22, np.int64))}
    )
    with pytest.raises(fi.FileError, match="unfolds"):
        fi.load_data(bomb)
    for shape in [(10**15,), (2**40, 2**40), (10**9, 10**9), (-1,)]:
        with pytest.raises(fi.FileError):
            fi.load_data(npz(tmp_path / "lie.npz", {"x.npy": npy(np.zeros(4, np.float32), shape)}))
    good = npz(tmp_path / "good.npz", {"x.npy": npy(np.zeros((4, 2), np.float32)), "y.npy": npy(np.zeros(4, np.int64))})
    assert len(fi.load_data(good)[0]) == 4


def test_a_parquet_bomb_is_refused(tmp_path, small):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": pa.array(np.zeros(2**22, np.int64))}), path, compression="zstd")
    assert path.stat().st_size < 2**16
    with pytest.raises(fi.FileError, match="unfolds"):
        fi.load_data(path)


TEXT = "x" * 2**20
REPEATED = {
    "texts": [TEXT] * 200,
    "bytes": [TEXT.encode()] * 200,
    "messages": [[{"role": "user", "content": TEXT}]] * 200,
    "maps": pa.array([[("key", TEXT)]] * 200, pa.map_(pa.string(), pa.string())),
}


@pytest.mark.parametrize("kind", REPEATED)
def test_one_text_named_by_every_row_is_counted_as_often(tmp_path, small, kind):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": REPEATED[kind], "b": range(200)}), path, compression="zstd")
    assert path.stat().st_size < 2**16
    with pytest.raises(fi.FileError, match="unfolds"):
        fi.load_data(path)


def test_labels_named_by_many_rows_are_read(tmp_path, small):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["good", "bad"] * 5000, "label": [0, 1] * 5000}), path)
    assert fi.load_data(path)["text"][:2].to_pylist() == ["good", "bad"]


def test_a_bomb_of_weights_is_refused(tmp_path, small):
    torch.save({"weight": torch.zeros(2**22), "bias": torch.zeros(2)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        parts = {part.filename: plain.read(part) for part in plain.infolist()}
    with pytest.raises(fi.FileError, match="unfolds"):
        load_state(torch.nn.Linear(2, 2), npz(tmp_path / "bomb.pt", parts))
    whole = (tmp_path / "plain.pt").read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:-30], whole.replace(b"PK\x01\x02", b"PK\x01\x03")):
        (tmp_path / "cut.pt").write_bytes(cut)
        with pytest.raises(fi.FileError):
            load_state(torch.nn.Linear(2, 2), tmp_path / "cut.pt")


def test_a_fifo_is_not_waited_for(tmp_path):
    """Data and weights that are pipes: refused, or read to the end of what comes; never waited for without end."""
    for name in ("x.npz", "w.safetensors", "x.jsonl"):
        os.mkfifo(tmp_path / name)
    done = []

    def ask():
        for call in (lambda: fi.load_data(tmp_path / "x.npz"), lambda: fi.load_data(tmp_path / "x.jsonl"),
                     lambda: fi.load_model("torch.nn:Flatten", weights=tmp_path / "w.safetensors")):  # fmt: skip
            with pytest.raises(fi.Error):
                call()
        done.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(20)
    assert done
