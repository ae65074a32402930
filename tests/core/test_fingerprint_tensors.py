import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import forwardinf as fi
from forwardinf.core.fingerprint import digest, model_digest, notes_on, row_digest, untold
from forwardinf.core.hasher import Unknowable


class Opaque(Tensor):
    """Weights in a form of their own: they can be multiplied with, and nothing else (torchao's, quantised, behave so)."""

    @staticmethod
    def __new__(cls, whole, scale):
        return Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype, requires_grad=False)

    def __init__(self, whole, scale):
        self._hide(whole, scale)

    def _hide(self, whole, scale):
        self.whole, self.scale = whole, scale

    def plain(self):
        return self.whole.to(self.scale.dtype) * self.scale

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in ("detach", "clone", "alias", "_to_copy"):
            return cls(*args[0].parts())
        if name == "t":
            return args[0].plain().t()
        if name in ("addmm", "mm", "linear"):
            return func(*[given.plain() if isinstance(given, Opaque) else given for given in args], **(kwargs or {}))
        raise NotImplementedError(f"{cls.__name__}: {func.__name__}")

    def parts(self):
        return self.whole, self.scale


class Flattened(Opaque):
    """The same, with its parts named as torch asks for them."""

    def _hide(self, whole, scale):
        self._parts = {"one": whole, "other": scale}

    def parts(self):
        return tuple(self._parts.values())

    def plain(self):
        return self.one.to(self.other.dtype) * self.other

    one = property(lambda self: self._parts["one"])
    other = property(lambda self: self._parts["other"])

    def __tensor_flatten__(self):
        return ["one", "other"], {"bits": 8}


class Dequantised(Opaque):
    """The same, without attributes that are tensors."""

    def _hide(self, whole, scale):
        self._make = lambda: (whole, scale)

    def parts(self):
        return self._make()

    def plain(self):
        whole, scale = self._make()
        return whole.to(scale.dtype) * scale

    def dequantize(self):
        return self.plain()


class Shut(Dequantised):
    """The same, and no way to its values at all."""

    def dequantize(self):
        raise NotImplementedError("no")


def adapted(kind, seed=0):
    """A frozen weight of this kind under an adapter that moves."""
    torch.manual_seed(seed)
    weight = torch.randn(3, 6)
    scale = weight.abs().amax(1, keepdim=True) / 127

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(kind((weight / scale).round().to(torch.int8), scale), requires_grad=False)
            self.A, self.B = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            return nn.functional.linear(x, self.w) + x @ self.A.T @ self.B.T

    return Net()


KINDS = [Opaque, Flattened, Dequantised]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_class_of_their_own_are_told_by_what_they_hold(kind):
    assert model_digest(adapted(kind)) == model_digest(adapted(kind))
    other = adapted(kind)
    other.w.parts()[0][0, 0] += 1  # one number of the frozen weight
    assert model_digest(other) != model_digest(adapted(kind))
    assert untold(other) == []


def test_weights_that_cannot_be_read_never_have_the_same_digest_and_a_note_says_so(caplog):
    model = adapted(Shut)
    assert untold(model) == ["w"]
    assert notes_on(model) == ["w cannot be told from another: nothing kept of this model is used again"]
    assert model_digest(model) != model_digest(model)
    assert "nothing kept of this model is used again" in caplog.text
    with pytest.raises(Unknowable, match="Shut, which cannot be read"):
        digest(model.w)


@pytest.mark.parametrize("kind", [*KINDS, Shut])
def test_scores_over_a_frozen_weight_of_a_class_of_its_own_are_those_over_its_values(kind):
    x, y = torch.randn(12, 6), torch.randint(0, 3, (12,))
    model = adapted(kind)
    plain = adapted(kind)
    plain.w = nn.Parameter(model.w.plain(), requires_grad=False)
    got, want = (
        fi.attribute(each, (x, y), (x[:2], y[:2]), task=fi.Classification(), perturbation=fi.Perturbation(),
                     engine="forward", batch_size=4, progress=False)
        for each in (model, plain)
    )  # fmt: skip
    assert abs(got.values - want.values).max() <= 2 * want.noise_floor.max()
    assert any("cannot be told" in note for note in got.notes) == (kind is Shut)


def test_nothing_is_believed_of_a_model_that_cannot_be_told_from_another():
    x, y = torch.randn(12, 6), torch.randint(0, 3, (12,))
    settings = {"task": fi.Classification(), "perturbation": fi.Perturbation(), "progress": False, "batch_size": 4}
    one, other = adapted(Shut, seed=0), adapted(Shut, seed=1)
    other.A, other.B = one.A, one.B
    first = fi.attribute(one, (x, y), (x[:2], y[:2]), **settings).baseline
    second = fi.attribute(other, (x, y), (x[:2], y[:2]), **settings).baseline
    assert abs(first - second).max() > 1e-3


class Coloured(Tensor):
    """Plain values, with something beside them."""


def coloured(space, values=(1.0, 2.0)):
    found = torch.tensor(values).as_subclass(Coloured)
    found.space = space
    return found


def test_what_a_tensor_subclass_holds_beside_its_values_counts():
    assert row_digest(coloured("hsv")) == row_digest(coloured("hsv"))
    assert row_digest(coloured("hsv")) != row_digest(coloured("rgb"))
    assert row_digest(coloured("hsv")) != row_digest(coloured("hsv", (1.0, 3.0)))
    plain = torch.ones(2).as_subclass(Coloured)
    assert row_digest(plain) == row_digest(torch.ones(2)), "nothing beside it: the same content"


def with_state(weights, absmax):
    found = nn.Parameter(torch.tensor(weights, dtype=torch.uint8).as_subclass(Coloured), requires_grad=False)
    found.state = type("State", (), {})()
    found.state.absmax = torch.tensor(absmax)
    found._is_loaded = absmax  # a flag of a loader
    return found


def test_packed_weights_count_with_the_scales_beside_them_and_not_with_a_loaders_flags():
    def model(weights, absmax):
        found = nn.Module()
        found.w = with_state(weights, absmax)
        return found

    same = model([1, 2], [3.0])
    same.w._is_loaded = "another"
    assert model_digest(model([1, 2], [3.0])) == model_digest(same)
    assert model_digest(model([1, 2], [3.0])) != model_digest(model([1, 2], [4.0]))
    assert model_digest(model([1, 2], [3.0])) != model_digest(model([1, 3], [3.0]))


def inference():
    with torch.inference_mode():
        return nn.Linear(3, 2)


def with_buffer(buffer):
    model = nn.Linear(3, 2)
    model.register_buffer("extra", buffer)
    return model


ODD_MODELS = {
    "made in inference mode": inference,
    "float8": lambda: nn.Linear(3, 2).to(torch.float8_e4m3fn),
    "complex": lambda: nn.Linear(3, 2, dtype=torch.complex64),
    "quantised": lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2))),
    "sparse": lambda: with_buffer(torch.eye(3).to_sparse()),
    "sparse rows": lambda: with_buffer(torch.eye(3).to_sparse_csr()),
    "nested": lambda: with_buffer(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    "jagged": lambda: with_buffer(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)),
    "expanded": lambda: with_buffer(torch.ones(1).expand(5)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ODD_MODELS)
def test_odd_weights_can_be_told(what):
    torch.manual_seed(0)
    one = ODD_MODELS[what]()
    torch.manual_seed(0)
    assert model_digest(one) == model_digest(ODD_MODELS[what]())
    torch.manual_seed(1)
    assert model_digest(one) != model_digest(ODD_MODELS[what]())
    assert untold(one) == []


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_large_sparse_tensor_is_told_by_what_it_stores():
    place = torch.tensor([[0, 999_999], [5, 6]])
    one = torch.sparse_coo_tensor(place, torch.tensor([1.0, 2.0]), (10**6, 10**6))  # 3.6 TiB if it were written out
    other = torch.sparse_coo_tensor(place, torch.tensor([1.0, 3.0]), (10**6, 10**6))
    assert digest(one) == digest(one.clone()) != digest(other)
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]), (2, 2))
    assert digest(twice) == digest(twice.coalesce())


def test_a_lazy_layer_that_has_not_run_is_refused_and_told_how_to_get_its_weights():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(fi.ModelError, match="a lazy layer that has not run yet") as caught:
        fi.attribute(nn.LazyLinear(2), (x, y), (x[:1], y[:1]), task=fi.Classification())
    assert "Run the model" in caught.value.do
    assert untold(nn.LazyLinear(2)) == ["weight", "bias"]


def test_flattened_parts_have_the_same_digest_in_every_process():
    script = (
        "import sys; sys.path[:0] = ['tests/core']; import test_fingerprint_tensors as t; "
        "print(t.model_digest(t.adapted(t.Flattened)))"
    )
    there = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120,
                           env={**os.environ, "PYTHONHASHSEED": "12345"}).stdout.split()[-1]  # fmt: skip
    assert there == model_digest(adapted(Flattened))
