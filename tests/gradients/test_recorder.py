"""The watched forward stands for all per-example gradients at once: against autograd, one example at a time."""

import gc

import pytest
import torch
from cases import case, crossed, feed
from close import assert_close
from torch import nn

import forwardinf as fi
from forwardinf.gradients.layer_uses import Lookup, Outer
from forwardinf.gradients.per_example import factored, per_example_gradients, recorder_of
from forwardinf.perturb.parameters import select

B = 6
SAME = "float64, the same sum in another order"
IDS = torch.randint(3, 20, (B, 7), generator=torch.Generator().manual_seed(0))


class Given:
    def __init__(self, model, train, task=None):
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.model, self.train, self.task = model.double().eval(), train, task or fi.Classification()


def compare(given, size=B):
    """Return (uses, recorder) after comparing every parameter's gradient of every example with autograd's."""
    reader, chosen = feed(given), select(given.model, None)
    wanted = list(per_example_gradients(reader, range(B), chosen))
    seen, found, losses, count = [], {}, [], len(wanted)
    for units, values, uses in factored(reader, range(B), chosen, size):
        losses += values.tolist()
        for use in uses:
            seen.append(use)
            whole = found.setdefault(use.name, torch.zeros(count, *use.shape, dtype=torch.float64))
            whole[list(units)] += use.gradient().double()
    assert losses == pytest.approx([loss for _, loss in wanted], rel=1e-12)
    scale = max(g.abs().max() for grads, _ in wanted for g in grads.values())
    for name, parameter in chosen.items():
        want = torch.stack([grads.get(name, torch.zeros_like(parameter)) for grads, _ in wanted])
        assert_close(found.get(name, torch.zeros_like(want)) / scale + 1, want / scale + 1, rtol=1e-12, why=SAME)
    return seen, recorder_of(reader, chosen)


@pytest.mark.parametrize(("name", "size"), crossed([1, 4, B], unet=[4]))
def test_every_case_of_the_laws(name, size):
    assert compare(case(name, torch.float64), size)[1].reason == ""


def images(*shape):
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(1)).double(), torch.arange(B) % 3


CONV2 = {
    "plain": {}, "strided": {"stride": 2}, "padded": {"padding": (1, 2)}, "dilated": {"dilation": 2},
    "grouped": {"groups": 2}, "depthwise": {"groups": 4}, "same": {"padding": "same", "dilation": (1, 2)},
    "valid": {"padding": "valid"}, "no bias": {"bias": False}, "all": {"stride": (2, 1), "padding": 1, "groups": 2},
}  # fmt: skip


@pytest.mark.parametrize("settings", CONV2.values(), ids=CONV2)
def test_convolutions(settings):
    layer = nn.Conv2d(4, 4, **{"kernel_size": 3, **settings})
    layers = layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    assert compare(Given(nn.Sequential(*layers), images(4, 7, 8)))[1].reason == ""


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2}, {"padding": "same"}], ids=str
)
def test_convolutions_of_sequences(settings):
    layers = nn.Conv1d(4, 4, 3, **settings), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
    assert compare(Given(nn.Sequential(*layers), images(4, 9)))[1].reason == ""


NORMS = {
    "layer": nn.LayerNorm([4, 5, 5]), "layer over the last axis": nn.LayerNorm(5), "rms": nn.RMSNorm(5),
    "batch": nn.BatchNorm2d(4), "group": nn.GroupNorm(2, 4), "no bias": nn.LayerNorm(5, bias=False),
}  # fmt: skip


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_normalisations(norm):
    layers = nn.Conv2d(2, 4, 1), norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(100, 3)
    assert compare(Given(nn.Sequential(*layers), images(2, 5, 5)))[1].reason == ""


class Everything(nn.Module):
    """Positions as a table cut to length, a token in front, fused attention, a bag, scales, weights used twice."""

    def __init__(self):
        super().__init__()
        self.embed, self.bag = nn.Embedding(20, 8, padding_idx=4), nn.EmbeddingBag(20, 8)
        self.place, self.first = nn.Parameter(torch.empty(16, 8)), nn.Parameter(torch.empty(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.scale, self.shift = nn.Parameter(torch.empty(8)), nn.Parameter(torch.empty(8))
        self.head = nn.Linear(8, 8)
        self.out = nn.Parameter(torch.empty(8, 3))

    def forward(self, ids):
        x = self.embed(ids) + self.place[: ids.shape[1]]
        x = self.blocks(torch.cat([self.first.expand(len(x), -1, -1), x], 1)).mean(1)
        x = self.head(self.head(x) + self.bag(ids))  # the same weight twice
        return (self.scale * x + self.shift) @ self.out


def test_a_model_that_uses_parameters_in_every_way():
    seen, recorder = compare(Given(Everything(), (IDS, torch.arange(B) % 3)))
    assert recorder.reason == ""
    assert sum(use.name == "head.weight" for use in seen) == 2


def transformers_models():
    transformers = pytest.importorskip("transformers")
    small = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    end = {"bos_token_id": 0, "eos_token_id": 1}
    labelled = [{"input_ids": row, "labels": torch.tensor(n % 2)} for n, row in enumerate(IDS)]
    pictures = [{"pixel_values": p, "labels": torch.tensor(n % 2)} for n, p in enumerate(images(3, 8, 8)[0])]
    gpt2 = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16, **end)
    vit = transformers.ViTConfig(**{**small, "image_size": 8, "patch_size": 4})
    return {
        "gpt2": (transformers.GPT2LMHeadModel(gpt2), IDS, fi.CausalLM()),
        "llama": (transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, **end)), IDS, fi.CausalLM()),
        "bert": (transformers.BertForSequenceClassification(transformers.BertConfig(**small)), labelled, None),
        "vit": (transformers.ViTForImageClassification(vit), pictures, None),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit"])
def test_models_of_transformers(name):
    assert compare(Given(*transformers_models()[name]))[1].reason == ""


def test_tied_weights_are_used_as_a_table_and_as_a_matrix():
    given = Given(*transformers_models()["gpt2"])
    kinds = {type(use) for use in compare(given)[0] if use.name == "transformer.wte.weight"}
    assert kinds == {Lookup, Outer}


def test_as_many_positions_as_examples_are_not_mistaken_for_class_numbers():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(B, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head((self.table(torch.arange(B)) * x[..., None]).mean(1))

    assert compare(Given(Positions(), images(B)))[1].reason == ""


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(20, 8), nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, ids):
        return self.head(self.cell(self.embed(ids))[0][:, -1])


def test_a_use_that_is_not_known_is_named_and_left_to_autograd():
    recorder = compare(Given(Recurrent(), (IDS, torch.arange(B) % 3)))[1]
    lstm = ["cell.weight_ih_l0", "cell.weight_hh_l0", "cell.bias_ih_l0", "cell.bias_hh_l0"]
    assert recorder.odd == dict.fromkeys(lstm, "used by lstm()")
    assert "lstm" in recorder.told()
    prelu = Given(nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3)), images(5))
    assert compare(prelu)[1].odd == {"1.weight": "used by prelu()"}


def test_the_model_and_its_flags_are_left_alone():
    given = Given(Everything(), (IDS, torch.arange(B) % 3))
    given.model.head.weight.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad, p.grad) for name, p in given.model.named_parameters()}
    list(factored(feed(given), range(B), select(given.model, None), B))
    for name, parameter in given.model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert (parameter.requires_grad, parameter.grad) == before[name][1:]


def test_a_batch_leaves_nothing_for_the_garbage_collector():
    given = case("transformer")  # its normalisations keep what they were fed

    def tensors():
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        counts = []
        for _ in range(3):
            for _ in factored(feed(given), range(8), select(given.model, None), 4):
                pass
            counts.append(tensors())
    finally:
        gc.enable()
    assert counts[2] <= counts[1]
