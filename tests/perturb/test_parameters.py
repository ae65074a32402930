import pytest
import torch
from cases import Cnn, Decoder
from torch import nn

from forwardinf.core.errors import ModelError, SettingError
from forwardinf.perturb.parameters import select


def test_none_means_those_that_want_a_gradient():
    model = Cnn()
    model.conv1.weight.requires_grad_(False)
    assert list(select(model, None)) == ["conv1.bias", "conv2.weight", "conv2.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("patterns", "want"),
    [
        (("head.*",), ["head.weight", "head.bias"]),
        (("conv?.weight",), ["conv1.weight", "conv2.weight"]),
        (("*.bias", "head.*"), ["conv1.bias", "conv2.bias", "head.bias", "head.weight"]),
        (("conv1.weight",), ["conv1.weight"]),
        (("*",), [name for name, _ in Cnn().named_parameters()]),
        (("conv[12].bias",), ["conv1.bias", "conv2.bias"]),
    ],
)
def test_globs_over_names(patterns, want):
    assert list(select(Cnn(), patterns)) == want


def test_a_pattern_takes_frozen_parameters_too():
    model = Cnn().requires_grad_(False)
    assert list(select(model, ("head.*",))) == ["head.weight", "head.bias"]


def test_a_tied_parameter_comes_once():
    model = Decoder()
    chosen = select(model, None)
    assert len({id(p) for p in chosen.values()}) == len(chosen)
    assert "tokens.weight" in chosen
    assert "lm_head.weight" not in chosen


def test_a_pattern_that_matches_nothing_is_refused_and_shows_names():
    with pytest.raises(SettingError, match=r"'fc\.\*'.*Names look like: conv1.weight, conv1.bias"):
        select(Cnn(), ("head.*", "fc.*"))


def test_a_frozen_model_is_refused_with_the_way_out():
    with pytest.raises(ModelError, match=r"Perturbation\(parameters='\*'\)"):
        select(Cnn().requires_grad_(False), None)


def test_whole_number_parameters_do_not_move():
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.packed = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
            self.scale = nn.Parameter(torch.ones(3))

    assert list(select(Quantised(), ("*",))) == ["scale"]
    with pytest.raises(SettingError, match="floating-point"):
        select(Quantised(), ("packed",))


def lora(model, **settings):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["fc1", "fc2"], **settings))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


def test_of_a_peft_model_the_adapter_moves_trainable_or_not():
    model = lora(Mlp())
    trainable = list(select(model, None))
    assert len(trainable) == 4
    assert all("lora_" in name for name in trainable)
    model.requires_grad_(False)  # as it comes from PeftModel.from_pretrained
    assert list(select(model, None)) == trainable


def test_of_two_adapters_the_active_one_moves():
    peft = pytest.importorskip("peft")
    model = lora(Mlp())
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["fc1"]))
    model.requires_grad_(False)
    assert len(select(model, None)) == 4
    model.set_adapter("second")
    model.requires_grad_(False)
    assert all(".second." in name for name in select(model, None))
    assert len(select(model, None)) == 2
