"""The baseline is read once, and used again only where it would come out the same."""

import shutil
import threading

import numpy as np
import pytest
import torch
from cases import QUERIES, ROWS, Cnn, attribute, case, one_by_one
from safetensors.numpy import load_file, save_file
from torch import nn

import forwardinf as fi
from forwardinf.read import reproduce as believe
from forwardinf.read.forward import ForwardEngine

SEEN = []


def counted(model):
    """Count the examples that go through a model."""
    model.register_forward_pre_hook(lambda module, inputs: SEEN.append(len(inputs[0])))
    return model


@pytest.fixture
def given():
    found = case("cnn")
    counted(found.model)
    attribute(found, engine="forward")  # finds batch size and layout, and reads the baseline
    return found


def read_again(given, **settings):
    """Return whether a call read the baseline; by what it says, held against what went through the model."""
    SEEN.clear()
    scores = attribute(given, engine="forward", **settings)  # a check of the layers would be counted too
    known = scores.plan["baseline"] == "cached"
    readings = len(scores.query_ids) * len(scores.ids)
    others = len(scores.query_ids) * (len(scores.query_ids) + 8)  # their losses, gradients, rises, and each other's
    others += believe.ROWS  # what is kept has to reproduce itself
    assert readings < sum(SEEN) <= readings + others if known else sum(SEEN) >= readings + len(scores.ids)
    return not known


def test_the_second_call_reads_no_baseline(given):
    assert not read_again(given)
    assert not read_again(given, perturbation=fi.Perturbation(length=0.01)), "whatever the perturbation"
    assert not read_again(given, queries=(given.queries[0][:1], given.queries[1][:1])), "whatever the queries"


def test_a_cached_baseline_gives_the_same_scores(given, cache, tmp_path):
    cached = attribute(given)
    shutil.copytree(cache / "tuning", tmp_path / "tuning")  # the same plan: layout and batch size change the last bits
    fresh = attribute(given, cache_dir=tmp_path)
    assert cached.plan["baseline"] == "cached"
    assert fresh.plan["baseline"] == "read"
    assert np.array_equal(cached.baseline, fresh.baseline)
    assert np.array_equal(cached.values, fresh.values)
    assert np.array_equal(cached.noise_floor, fresh.noise_floor)


@pytest.mark.parametrize("what", ["one pixel", "one label", "order", "fewer"])
def test_other_data_is_read(given, what):
    images, labels = given.train[0].clone(), given.train[1].clone()
    if what == "one pixel":
        images[17, 0, 3, 3] += 1e-3
    elif what == "one label":
        labels[17] = (labels[17] + 1) % 10
    elif what == "order":
        images, labels = images.flip(0), labels.flip(0)
    else:
        images, labels = images[:-1], labels[:-1]
    assert read_again(given, train=(images, labels))
    assert not read_again(given)


@pytest.mark.parametrize("what", ["a weight", "a buffer", "dtype", "architecture"])
def test_another_model_is_read(given, what):
    other = counted(Cnn())
    other.load_state_dict(given.model.state_dict())
    if what == "a weight":
        with torch.no_grad():
            other.head.bias[3] += 1e-6
    elif what == "a buffer":
        other.register_buffer("scale", torch.ones(()))
    elif what == "dtype":
        double = given.double()
        assert read_again(double)
        return
    else:
        other.drop = nn.Identity()
    assert read_again(given, model=other)


def test_an_equal_model_is_not_read_again(given):
    other = counted(Cnn()).train()
    other.load_state_dict(given.model.state_dict())
    other.requires_grad_(False).conv1.requires_grad_(True)
    assert not read_again(given, model=other), "flags are not content"


def test_other_batches_threads_seeds_and_tasks_are_read(given):
    assert read_again(given, batch_size=10)
    assert read_again(given, seed=1)
    assert read_again(given, task=fi.Classification(label_smoothing=0.1))
    torch.set_num_threads(2)
    try:
        assert read_again(given)
    finally:
        torch.set_num_threads(1)
    assert not read_again(given)


def test_a_functions_code_and_constants_count(given):
    def one(scale):
        return lambda model, batch: (
            scale * torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        )

    assert read_again(given, task=one(1.0))
    assert not read_again(given, task=one(1.0)), "the same code again"
    assert read_again(given, task=one(2.0)), "another constant in its closure"


def test_a_task_whose_code_cannot_be_told_is_never_reused(given):
    class Opaque(fi.Classification):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    assert read_again(given, task=Opaque())
    assert read_again(given, task=Opaque())


def baselines(cache):
    return sorted((cache / "baselines").glob("*.safetensors"))


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "foreign", "headless", "no number"])
def test_a_damaged_cache_file_is_read_again_and_mended(given, cache, damage):
    (path,) = baselines(cache)
    want, whole = attribute(given), path.read_bytes()
    content = load_file(path)
    losses = {"losses": np.zeros(ROWS)}
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "noise":
        path.write_bytes(bytes(range(256)) * 8)
    elif damage == "foreign":
        save_file(losses, path, metadata={"format": "forwardinf.baseline/3", "floor": "1.0", "root_floor": "1.0"})
    elif damage == "headless":
        save_file(losses, path)
    else:
        save_file(losses, path, metadata={"format": "forwardinf.baseline/2", "floor": "much", "root_floor": "1"})
    assert read_again(given)
    assert np.array_equal(load_file(baselines(cache)[0])["losses"], content["losses"]), "mended"
    assert np.array_equal(attribute(given).values, want.values)


def test_the_cache_can_be_off_or_elsewhere(given, cache, monkeypatch, tmp_path):
    before = baselines(cache)
    monkeypatch.setenv("FORWARDINF_CACHE", "off")
    assert read_again(given)
    assert read_again(given)
    assert baselines(cache) == before
    assert read_again(given, cache_dir=tmp_path)
    assert len(baselines(tmp_path)) == 1
    assert not read_again(given, cache_dir=tmp_path)


def test_rows_fetched_one_by_one_have_a_baseline_too(given):
    rows = one_by_one(given.train)
    assert read_again(given, train=rows)
    assert not read_again(given, train=rows)


def test_candidates_have_a_baseline_of_their_own(given):
    chosen = [[0, 1, 2]] * QUERIES
    first = attribute(given, candidates=chosen)
    assert first.plan["baseline"] == "read"
    assert attribute(given, candidates=chosen).plan["baseline"] == "cached"
    assert attribute(given, candidates=[[0, 1, 3]] * QUERIES).plan["baseline"] == "read"
    assert np.isnan(first.baseline[3:]).all()
    assert np.isfinite(first.baseline[:3]).all()


def test_an_exact_pass_leaves_the_baseline(monkeypatch, tmp_path):
    given = case("cnn")
    apart = attribute(given, engine="forward")

    def read(*_):
        raise AssertionError("a pass of its own")

    monkeypatch.setattr(ForwardEngine, "losses", read)
    scores = attribute(given, engine="factored", output_dir=tmp_path / "run", cache_dir=tmp_path / "cache")
    assert scores.plan["baseline"] == "with the scores"
    assert np.allclose(
        scores.baseline, apart.baseline, atol=4 * float(apart.noise_floor.max() * apart.step.max()) + 1e-5
    )
    assert np.array_equal(fi.load_scores(tmp_path / "run").baseline, scores.baseline)
    again = attribute(given, engine="factored", cache_dir=tmp_path / "cache")
    assert again.plan["baseline"] == "cached"
    assert np.array_equal(again.baseline, scores.baseline)
    assert np.array_equal(again.values, scores.values)
