import copy
import json
import os

import numpy as np
import pytest
import torch
from cases import attribute, case
from close import assert_close
from safetensors.torch import save_file
from torch import nn

import forwardinf as fi
from forwardinf.models.checkpoints import Checkpoints
from forwardinf.perturb.swap import lend, tensors_of

os.environ["HF_HUB_OFFLINE"] = "1"
OTHERS = 2


def others(model, count=OTHERS, size=0.1):
    """Return copies of a model, each with noise of its own on every floating tensor."""
    found = []
    for seed in range(count):
        draw = torch.Generator().manual_seed(seed)
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                noise = torch.randn(parameter.shape, generator=draw).to(parameter)
                parameter += size * parameter.abs().mean() * noise
        found.append(other)
    return found


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- what a checkpoint is ----------------------------------------------------------------------------------------------


def forms(other, tmp_path):
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    torch.save({f"module.{name}": value for name, value in other.state_dict().items()}, tmp_path / "w.pt")
    (tmp_path / "checkpoint-500").mkdir()
    save_file(other.state_dict(), tmp_path / "checkpoint-500" / "model.safetensors")
    return {
        "safetensors": str(tmp_path / "w.safetensors"), "weights only": tmp_path / "w.pt",
        "folder": tmp_path / "checkpoint-500", "state dict": other.state_dict(), "module": other,
    }  # fmt: skip


@pytest.mark.parametrize("form", ["safetensors", "weights only", "folder", "state dict", "module"])
def test_every_form_is_lent_and_taken_back_bit_for_bit(form, tmp_path):
    model = case("resnet").model
    (other,) = others(model, 1)
    for buffer in other.buffers():  # BatchNorm's statistics are a part of the state
        buffer.add_(1)
    given, before = forms(other, tmp_path)[form], bits(model)
    found = Checkpoints(model, [given])
    state = found.read(0)
    assert same(before, bits(model)), "reading gives the model back"
    with lend(tensors_of(model), state):
        assert same(bits(other), bits(model))
    assert same(before, bits(model))
    assert len(found) == 1


def test_only_what_a_checkpoint_changes_is_held():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    other = copy.deepcopy(model)
    nn.init.ones_(other[1].bias)
    assert set(Checkpoints(model, [other]).read(0)) == {"1.bias"}


def test_an_adapter_changes_nothing_but_the_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

    def adapted(seed):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        return peft.get_peft_model(copy.deepcopy(base), config)

    model, other = adapted(0), adapted(1)
    other.save_pretrained(tmp_path / "checkpoint-7")
    state = Checkpoints(model, [tmp_path / "checkpoint-7"]).read(0)
    assert state
    assert all("lora" in name for name in state)
    with lend(tensors_of(model), state):
        assert same(bits(other), bits(model))


def test_the_model_itself_stands_for_its_own_weights():
    model = nn.Linear(2, 1)
    found = Checkpoints(model, [others(model, 1)[0], model])
    assert found.read(1) == {}
    assert len(set(found.digests)) == 2


def test_reading_draws_nothing_from_the_callers_generators(tmp_path):
    model = nn.Linear(2, 1)
    given = forms(others(model, 1)[0], tmp_path)["folder"]
    state = torch.get_rng_state()
    Checkpoints(model, [given]).read(0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda m: [copy.deepcopy(m)], r"checkpoints\[0\].*same values.*put the model itself"),
        (lambda m: [m, others(m, 1)[0], others(m, 1)[0]], r"checkpoints\[2\].*the weights of checkpoints\[1\]"),
        (lambda m: [others(m, 1)[0], {"weight": torch.ones(1, 2)}], r"checkpoints\[1\].*missing: bias"),
        (lambda m: [{"weight": torch.ones(1, 2), "bias": torch.ones(1), "x": torch.ones(1)}], "1 unexpected: x"),
        (lambda m: [{"weight": torch.ones(1, 3), "bias": torch.ones(1)}], r"weight \[1, 3\], not \[1, 2\]"),
        (lambda m: ["nowhere.safetensors"], r"checkpoints\[0\], nowhere.safetensors: expected a checkpoint"),
        (lambda m: [3], "a path, a state dict or a module"),
        (lambda m: [], "an empty list"),
        (lambda m: "w.safetensors", "a list of paths"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(given, message):
    model = nn.Linear(2, 1)
    before = bits(model)
    with pytest.raises(fi.Error, match=message):
        Checkpoints(model, given(model))
    assert same(before, bits(model))


def test_a_state_that_is_no_tensor_cannot_be_lent():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            pass

    with pytest.raises(fi.ModelError, match="_extra_state"):
        Checkpoints(Counting(2, 1), [nn.Linear(2, 1)])


# -- attribute(checkpoints=) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_scores_are_the_mean_of_what_each_checkpoint_gives_alone(name):
    given = case(name)
    models = [given.model, *others(given.model)]
    before = bits(given.model)
    found = attribute(given, checkpoints=models)
    alone = [attribute(given, model=model) for model in models]
    values = np.stack([scores.values for scores in alone]).astype(np.float64)
    assert same(before, bits(given.model))
    assert_close(found.values, values.mean(0), rtol=1e-6, why="the same readings; scores are stored in float32")
    spread = values.std(0, ddof=1) / np.sqrt(len(models))
    assert_close(found.uncertainty, np.maximum(spread, found.noise_floor[:, None]), rtol=1e-6, why="float32")
    assert_close(found.rise, np.mean([scores.rise for scores in alone], 0), rtol=1e-9, why="the same readings")
    assert found.unit == alone[0].unit
    assert "mean of 3 checkpoints" in found.notes[-1]


def test_one_checkpoint_is_that_checkpoint_with_its_noise_floor():
    given = case("cnn")
    (other,) = others(given.model, 1)
    found, alone = attribute(given, checkpoints=[other.state_dict()]), attribute(given, model=other)
    assert np.array_equal(found.values, alone.values)
    assert_close(found.uncertainty, np.tile(alone.noise_floor[:, None], (1, 40)), rtol=1e-6, why="float32")


@pytest.fixture
def run(tmp_path):
    given = case("cnn")
    models = others(given.model)

    def again(**more):
        return attribute(given, output_dir=tmp_path / "run", cache_dir=tmp_path / "cache", checkpoints=models, **more)

    return again, tmp_path / "run", models


def test_a_run_folder_holds_each_checkpoint_and_the_whole(run):
    again, path, models = run
    found = again()
    assert {p.name for p in path.glob("checkpoint-*")} == {"checkpoint-000", "checkpoint-001"}
    kept = fi.load_scores(path)
    for name in ("values", "uncertainty", "rise", "cross", "noise_floor", "baseline", "length"):
        assert np.array_equal(getattr(kept, name), getattr(found, name), equal_nan=True), name
    assert (kept.kind, kept.unit, kept.notes, kept.status) == (found.kind, found.unit, found.notes, found.status)
    assert kept.made_from == found.made_from
    assert kept.top(3)["stability"].equals(found.top(3)["stability"])
    own = fi.load_scores(path / "checkpoint-001")
    alone = attribute(
        case("cnn"), model=models[1], cache_dir=path.parent / "cache"
    )  # the same layout, whatever the clock says
    assert np.array_equal(own.values, alone.values)


def test_the_same_call_returns_what_the_folder_holds(run):
    again, path, _ = run
    found = again()
    files = {p: p.read_bytes() for p in path.rglob("*.parquet")}
    once_more = again()
    assert np.array_equal(found.values, once_more.values)
    assert np.array_equal(found.uncertainty, once_more.uncertainty)
    assert once_more.cost["forwards"] < found.cost["forwards"] / 3
    assert files == {p: p.read_bytes() for p in path.rglob("*.parquet")}


def test_an_interrupted_run_goes_on_where_it_was(run, monkeypatch):
    again, path, _ = run
    want = again()
    for file in (path / "done.json", path / "queries.parquet", path / "train.parquet"):
        file.unlink()
    for name in ("done.json", "scores/b-00000/s-00000.parquet"):
        (path / "checkpoint-001" / name).unlink()
    first = (path / "checkpoint-000" / "done.json").stat().st_mtime_ns
    found = again()
    assert np.array_equal(found.values, want.values)
    assert (path / "checkpoint-000" / "done.json").stat().st_mtime_ns == first
    assert json.loads((path / "done.json").read_text())["notes"] == found.notes


def test_another_call_is_refused_unless_it_starts_over(run):
    again, path, models = run
    again()
    with pytest.raises(fi.RunMismatch, match="combine"):
        again(combine="standardized")
    with pytest.raises(fi.RunMismatch, match="perturbation"):
        again(perturbation=fi.Perturbation("sign"))
    models.pop()
    found = again(overwrite=True)
    assert len(found.made_from["model"]) == 1
    assert not (path / "checkpoint-001").exists()


@pytest.mark.parametrize("settings", [{"keep": 5}, {"combine": "median"}])
def test_what_cannot_be_combined_is_refused_before_anything_is_read(settings, tmp_path):
    given = case("cnn")
    with pytest.raises(fi.SettingError):
        attribute(given, checkpoints=others(given.model), output_dir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
