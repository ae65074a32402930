"""What a GPU needs around a model, as far as a CPU can tell: recurrent layers without cuDNN, and an allocator kept small."""

import pytest
import torch
from torch import nn

from forwardinf.core import memory
from forwardinf.models import surroundings
from forwardinf.models.borrowed import borrowed


class Noted(nn.GRU):
    seen: list

    def forward(self, *given):
        self.seen.append(torch.backends.cudnn.enabled)
        if len(self.seen) == 3:
            raise ValueError("third")
        return super().forward(*given)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.recurrent = nn.Linear(2, 2), Noted(2, 2)
        self.recurrent.seen = []

    def forward(self, x):
        self.before = torch.backends.cudnn.enabled
        return self.recurrent(self.inner(x))[0]


def test_recurrent_layers_on_a_gpu_are_read_without_cudnn_and_nothing_else_is(monkeypatch):
    model, x = Model(), torch.randn(1, 3, 2)
    monkeypatch.setattr(surroundings, "_on_gpu", lambda module: True)
    with borrowed(model) as lent:
        lent(x)
        assert lent.before
        assert torch.backends.cudnn.enabled
    model(x)
    assert model.recurrent.seen == [False, True]
    with borrowed(model) as lent, pytest.raises(ValueError, match="third"):
        lent(x)
    assert torch.backends.cudnn.enabled
    assert not model.recurrent._forward_pre_hooks
    assert not model.recurrent._forward_hooks


def test_on_a_cpu_nothing_is_put_around_them():
    model = Model()
    with borrowed(model):
        assert not model.recurrent._forward_pre_hooks


GIB = 2**30


@pytest.mark.parametrize(("used", "reserved", "given_back"), [
    (GIB, 1.5 * GIB, 0), (GIB, 3 * GIB, 1), (10 * GIB, 19 * GIB, 0), (10 * GIB, 21 * GIB, 1),
])  # fmt: skip
def test_what_the_allocator_holds_beyond_what_is_in_use_is_bounded(monkeypatch, used, reserved, given_back):
    calls = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(1))
    memory.trim(torch.device("cpu"))
    assert not calls
    memory.trim(torch.device("cuda"))
    assert len(calls) == given_back


def test_batches_are_told_apart_by_their_shapes():
    one, other = (
        {"input_ids": torch.ones(2, 3), "labels": torch.ones(2)},
        {"input_ids": torch.ones(2, 4), "labels": torch.ones(2)},
    )
    assert memory.sizes(one) == memory.sizes({name: tensor + 1 for name, tensor in one.items()}) != memory.sizes(other)
    assert memory.sizes((one, "text")) != memory.sizes((other, "text"))
