"""The forward engine where memory runs out: a model that raises what torch raises, above some batch size."""

import copy
import json

import numpy as np
import pytest
import torch
from cases import QUERIES, ROWS, attribute, case, feed
from close import assert_close, assert_within

import forwardinf as fi
from forwardinf.core.errors import ModelError, TaskError
from forwardinf.core.memory import out_of_memory
from forwardinf.job.baseline import Before
from forwardinf.read.forward import ForwardEngine

SAME = "the same losses, read in other batches"


class Room:
    """Room for ``limit`` examples at a time, from the start or (``later``) once the weights have moved.

    Kept beside the model, in a hook: what it has seen is no part of the model, whose digest must stay what it is.
    """

    def __init__(self, model, limit, *, later=False, message="CUDA out of memory. Tried to allocate 2.00 GiB"):
        self.limit, self.message, self.stop_after, self.sizes = limit, message, None, []
        self.calm = model.head.bias.detach().clone() if later else None
        model.register_forward_pre_hook(lambda module, inputs: self.enter(module, len(inputs[0])))

    def enter(self, model, rows):
        if self.calm is not None and torch.equal(model.head.bias, self.calm):
            return
        if rows > self.limit:
            raise RuntimeError(self.message)
        self.sizes.append(rows)
        if self.stop_after is not None and len(self.sizes) > self.stop_after:
            raise KeyboardInterrupt


def tight(given, limit, **settings):
    """Return a fresh copy of the model with that much room, and the room."""
    model = copy.deepcopy(given.model)
    return model, Room(model, limit, **settings)


MESSAGES = [
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    "MPS backend out of memory",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_the_engine_halves_until_it_fits_and_gives_the_same_losses(message):
    given = case("cnn")
    want = feed(given).losses(range(ROWS), 4)
    given.model, _ = tight(given, 5, message=message)
    told, seen = [], []
    engine = ForwardEngine(feed(given), 32, told.append)
    got = engine.losses(range(ROWS), seen.append)
    assert_within(got, want, atol=1e-6, why=SAME)
    assert told == [16, 8, 4]
    assert engine.batch_size == 4
    assert sum(seen) == ROWS, "progress goes back with the batch"
    assert engine.forwards == ROWS


def test_not_even_one_example_fits():
    given = case("cnn")
    given.model, _ = tight(given, 0)
    with pytest.raises(ModelError, match="room for one example"):
        ForwardEngine(feed(given), 4).losses(range(ROWS))


def test_other_errors_are_not_taken_for_a_full_memory():
    given = case("cnn")
    given.model, _ = tight(given, 5, message="mat1 and mat2 shapes cannot be multiplied")
    told = []
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        ForwardEngine(feed(given), 32, told.append).losses(range(ROWS))
    assert not told
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.cuda.OutOfMemoryError("x"))
    assert not out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("batch_size", ["auto", 32, 7, 1])
def test_a_model_that_takes_few_at_a_time_is_attributed_as_any(batch_size):
    given = case("cnn")
    base = attribute(given)
    scores = attribute(given, model=tight(given, 5)[0], batch_size=batch_size)
    assert scores.plan["batch_size"] <= 5
    assert_within(scores.values, base.values, atol=6 * np.maximum(base.noise_floor, scores.noise_floor), why=SAME)


def test_a_model_with_no_room_at_all_is_refused_as_ours(tmp_path):
    given = case("cnn")
    for batch_size in ("auto", 8):
        with pytest.raises(fi.ModelError, match="room for one example"):
            attribute(given, model=tight(given, 0)[0], batch_size=batch_size, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_on_the_way_writes_a_revision_that_holds_from_there_on(tmp_path):
    given = case("cnn")
    base = attribute(given, batch_size=16, shard_rows=20)
    model, room = tight(given, 5, later=True)
    scores = attribute(given, model=model, batch_size=16, shard_rows=20, output_dir=tmp_path)
    assert_within(scores.values, base.values, atol=6 * np.maximum(base.noise_floor, scores.noise_floor), why=SAME)
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert kept["batch_size"] == 16
    # unit 0 is the queries' own rows (3 fit), unit 1 the first shard
    assert kept["revisions"] == [[1, 8], [1, 4]]
    assert scores.plan["revisions"] == [[1, 8], [1, 4]]
    assert any("4 examples at a time from unit 1 on" in note for note in scores.notes)
    assert fi.load_scores(tmp_path).plan["revisions"] == [[1, 8], [1, 4]]
    assert max(room.sizes[QUERIES:]) <= 4


@pytest.mark.whole
def test_a_resumed_run_follows_the_revision(tmp_path):
    given = case("cnn")
    settings = {"batch_size": 16, "shard_rows": 20, "output_dir": tmp_path / "run"}
    whole = attribute(given, model=tight(given, 5, later=True)[0], **settings | {"output_dir": tmp_path / "whole"})
    model, room = tight(given, 5, later=True)
    room.stop_after = 12
    with pytest.raises(KeyboardInterrupt):
        attribute(given, model=model, **settings)
    assert sorted(p.name for p in (tmp_path / "run").rglob("s-*.parquet"))
    room.sizes.clear()
    room.stop_after = None
    scores = attribute(given, model=model, **settings)
    assert max(room.sizes) <= 4, "no second lesson"
    assert scores.plan["revisions"] == whole.plan["revisions"]
    assert np.array_equal(scores.values, whole.values), "bytes are equal under equal revisions"


def test_memory_that_runs_out_during_the_baseline_writes_a_revision_too(tmp_path, monkeypatch):
    given = case("cnn")
    (model, room), read = tight(given, 10**9), Before.read

    def crowded(*args):
        room.limit = 5
        read(*args)
        room.limit = 10**9

    monkeypatch.setattr(Before, "read", crowded)
    scores = attribute(given, model=model, batch_size=16, output_dir=tmp_path)
    assert scores.plan["revisions"]


def test_a_mean_reduced_or_misshapen_or_infinite_loss_is_refused_and_says_where():
    given = case("cnn")

    def refuse(function, match):
        with pytest.raises(fi.TaskError, match=match):
            attribute(given, task=function)

    def losses(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    refuse(lambda model, batch: losses(model, batch).mean(), "one number for all.*reduction='none'")
    refuse(lambda model, batch: losses(model, batch)[:, None], r"shape \(20,\)")
    refuse(lambda model, batch: losses(model, batch)[:-1], r"shape \(20,\)")
    refuse(lambda model, batch: losses(model, batch).tolist(), "tensor")
    images = given.train[0].clone()
    images[23] = float("inf")
    with pytest.raises(TaskError, match="train, rows from 20, place 3 in the batch: expected a finite number, got nan"):
        attribute(given, train=(images, given.train[1]))


def test_readings_are_float64_on_the_cpu_and_keep_no_graph():
    given = case("cnn")
    got = ForwardEngine(feed(given), 7).losses(range(5, 19))
    assert got.dtype == torch.float64
    assert not got.requires_grad
    assert not got.is_inference()
    assert_close(got, feed(given).losses(range(ROWS), ROWS)[5:19], rtol=1e-6, why="float32 in other batches")
