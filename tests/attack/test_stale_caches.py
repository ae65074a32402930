"""What is kept is reused after the task has become another one, by ways that a digest of its code cannot see."""

import enum
import functools
import os
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import attribute as quiet
from cases import case
from torch import nn

import forwardinf as fi
from forwardinf.core.cache_files import read_kept, write_kept

torch.manual_seed(0)
X, Y = torch.randn(60, 6), torch.randint(0, 3, (60,))
DIAGONAL = fi.Perturbation("diagonal")


def weigh(out, labels, scale):
    return scale * F.cross_entropy(out * scale, labels, reduction="none")


class Base(fi.Task):
    unit = "nats"

    def loss(self, model, batch):
        return weigh(model(batch[0]), batch[1], self.scale())


class Mode(enum.Enum):
    soft, hard = 1.0, 3.0


class Config:
    scale = 1.0

    def __init__(self):
        self.scale = 1.0


class Lookup(dict):
    """A mapping whose answer is not its content."""

    factor = 1.0

    def __missing__(self, key):
        return self.factor


def helper():
    module = types.ModuleType("helper_of_a_task")
    module.SCALE = 1.0
    sys.modules["helper_of_a_task"] = module
    return module


def asked():
    return sys.modules["helper_of_a_task"].SCALE


class ByHelper(Base):
    def scale(self):
        import helper_of_a_task

        return helper_of_a_task.SCALE


class BySet(Base):
    flags = {"soft"}  # noqa: RUF012

    def scale(self):
        return 3.0 if "hard" in self.flags else 1.0


class ByEnum(Base):
    mode = Mode.soft

    def scale(self):
        return self.mode.value


class ByDtype(Base):
    dtype = torch.float32

    def scale(self):
        return 3.0 if self.dtype == torch.float64 else 1.0


class ByPartial(Base):
    weigh = functools.partial(max, 1.0, 0.0)

    def scale(self):
        return self.weigh()


class ByObject(Base):
    config = Config()

    def scale(self):
        return self.config.scale


class ByCachedProperty(Base):
    @functools.cached_property
    def factor(self):
        return asked()

    def scale(self):
        return self.factor


class ByLruCache(Base):
    @functools.lru_cache  # noqa: B019
    def factor(self):
        return asked()

    def scale(self):
        return self.factor()


class ByStatic(Base):
    @staticmethod
    def factor():
        return asked()

    def scale(self):
        return self.factor()


class ByGradient(Base):
    """The same losses, other gradients."""

    def loss(self, model, batch):
        out = model(batch[0])
        return weigh(out.detach() + asked() * (out - out.detach()), batch[1], 1.0)


def by_environment(model, batch):
    return weigh(model(batch[0]), batch[1], float(os.environ.get("TEMPERATURE", "1")))


def by_closure():
    config = Lookup()
    return lambda model, batch: weigh(model(batch[0]), batch[1], config["scale"])


def hooked(model):
    factor = [1.0]
    model.register_forward_hook(lambda module, given, out: out * factor[0])
    return lambda: factor.__setitem__(0, 3.0)


def ways(monkeypatch, model):
    """Return {name: (task, what makes it another one)}."""
    module = helper()

    def change():
        monkeypatch.setattr(module, "SCALE", 3.0)

    return {
        "helper module": lambda: (ByHelper(), change),
        "set": lambda: (BySet(), lambda: monkeypatch.setattr(BySet, "flags", {"hard"})),
        "Enum": lambda: (ByEnum(), lambda: monkeypatch.setattr(ByEnum, "mode", Mode.hard)),
        "dtype": lambda: (ByDtype(), lambda: monkeypatch.setattr(ByDtype, "dtype", torch.float64)),
        "partial": lambda: (
            ByPartial(),
            lambda: monkeypatch.setattr(ByPartial, "weigh", functools.partial(max, 3.0, 0.0)),
        ),
        "object": lambda: (ByObject(), lambda: monkeypatch.setattr(ByObject.config, "scale", 3.0)),
        "cached_property": lambda: (ByCachedProperty(), change),
        "lru_cache": lambda: (ByLruCache(), lambda: (change(), ByLruCache.factor.cache_clear())),
        "staticmethod": lambda: (ByStatic(), change),
        "gradients alone": lambda: (ByGradient(), change),
        "environment": lambda: (by_environment, lambda: monkeypatch.setenv("TEMPERATURE", "3")),
        "closure": lambda: (by_closure(), lambda: monkeypatch.setattr(Lookup, "factor", 3.0)),
        "forward hook": lambda: (fi.Classification(), hooked(model)),
    }


WAYS = list(ways(pytest.MonkeyPatch(), nn.Identity()))


def scores(model, task, cache, **settings):
    return fi.attribute(model, (X, Y), (X[:2], Y[:2]), task=task, perturbation=DIAGONAL, batch_size=20, engine="forward",
                        cache_dir=cache, progress=False, **settings)  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_a_task_that_has_become_another_one_gets_numbers_of_its_own(name, tmp_path, monkeypatch):
    model = nn.Linear(6, 3)
    task, change = ways(monkeypatch, model)[name]()
    first = scores(model, task, tmp_path)
    again = scores(model, task, tmp_path)
    assert again.plan["baseline"] == "cached"
    assert np.array_equal(again.values, first.values)
    assert again.notes == first.notes
    change()
    if name == "cached_property":
        task = ByCachedProperty()
    got, want = scores(model, task, tmp_path), scores(model, task, "off")
    assert not np.allclose(got.values, first.values, rtol=0.1, atol=0)
    np.testing.assert_allclose(got.values, want.values, rtol=1e-3, atol=1e-4 * np.abs(want.values).max())
    np.testing.assert_allclose(got.baseline, want.baseline, rtol=1e-6)
    made_anew = [note for note in got.notes if "made anew" in note]
    assert not made_anew or "gives other numbers now" in made_anew[0]
    assert scores(model, task, tmp_path).plan["baseline"] == "cached", "and kept again"


def test_hold_does_not_go_on_from_products_of_other_gradients(tmp_path, monkeypatch):
    module, model = helper(), nn.Linear(6, 3)

    def call(cache):
        return fi.attribute(model, (X, Y), (X[:2], Y[:2]), task=ByGradient(), perturbation="hold", batch_size=20,
                            engine="forward", cache_dir=cache, progress=False)  # fmt: skip

    first = call(tmp_path)
    assert np.array_equal(call(tmp_path).values, first.values)
    monkeypatch.setattr(module, "SCALE", 3.0)
    got, want = call(tmp_path), call("off")
    np.testing.assert_allclose(got.values, want.values, rtol=1e-3, atol=1e-3 * np.abs(want.values).max())
    assert any("fits/" in note or "gives other numbers" in note for note in got.notes)


def test_a_trunk_is_read_again_where_a_hook_before_the_cut_answers_otherwise(tmp_path):
    given, factor = case("cnn"), [1.0]
    given.model.conv1.register_forward_hook(lambda module, inputs, out: out * factor[0])
    settings = {"perturbation": fi.Perturbation(parameters="head.*", length=0.01), "engine": "trunk"}
    quiet(given, **settings, cache_dir=tmp_path)
    factor[0] = 2.0
    (kept,) = (tmp_path / "baselines").iterdir()
    kept.unlink()  # so that only the trunk itself can tell
    got, want = (quiet(given, **settings, cache_dir=where) for where in (tmp_path, tmp_path / "new"))
    np.testing.assert_allclose(got.values, want.values, rtol=1e-3, atol=1e-4 * np.abs(want.values).max())
    assert any("made anew" in note for note in got.notes)


def test_one_class_alone_is_noticed_in_data_sorted_by_class(tmp_path, monkeypatch):
    module, order = helper(), Y.argsort()
    data = (X[order], Y[order])

    class OneClass(fi.Task):
        unit = "nats"

        def loss(self, model, batch):
            own = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
            return torch.where(batch[1] == 1, own * asked(), own)

    model = nn.Linear(6, 3)

    def call():
        return fi.attribute(model, data, (X[:1], Y[:1]), task=OneClass(), perturbation=fi.Perturbation(), batch_size=20,
                            engine="forward", cache_dir=tmp_path, progress=False)  # fmt: skip

    call()
    monkeypatch.setattr(module, "SCALE", 1.5)
    assert call().plan["baseline"] == "read"


@pytest.mark.parametrize("seed", range(3))
def test_a_cache_with_flipped_bits_is_made_anew_with_a_note(seed, tmp_path):
    model = nn.Linear(6, 3)
    want = scores(model, fi.Classification(), tmp_path)
    draw = np.random.default_rng(seed)
    for path in [*(tmp_path / "baselines").iterdir(), *(tmp_path / "fits").iterdir()]:
        raw = bytearray(path.read_bytes())
        raw[draw.integers(len(raw))] ^= 1 << int(draw.integers(8))
        path.write_bytes(raw)
    got = scores(model, fi.Classification(), tmp_path)
    assert np.array_equal(got.values, want.values)
    assert np.array_equal(got.baseline, want.baseline)
    assert any("damaged: made anew" in note for note in got.notes), got.notes
    assert scores(model, fi.Classification(), tmp_path).notes == want.notes


def test_every_flipped_bit_of_a_kept_file_is_noticed(tmp_path):
    path = tmp_path / "kept.safetensors"
    write_kept(
        path, {"losses": torch.arange(3.0, dtype=torch.float64)}, {"floor": 0.5, "root_floor": 0.25}, "forwardinf.x/1"
    )
    whole, missed = path.read_bytes(), []
    for bit in range(0, 8 * len(whole), 7):  # every byte, one bit or two of it
        raw = bytearray(whole)
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        found = read_kept(path, "forwardinf.x/1")
        if found is not None and (found[1]["floor"] != 0.5 or found[0]["losses"].tolist() != [0.0, 1.0, 2.0]):
            missed.append(bit)
    assert missed == []
