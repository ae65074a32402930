"""Responses to shared probes, against gradients by autograd; features, against hooks by hand."""

import pytest
import torch
import torch.nn.functional as F
from cases import case, feed, gradient, gradients
from close import assert_close
from torch import nn

import forwardinf as fi
from forwardinf.data.examples import examples
from forwardinf.perturb.parameters import select
from forwardinf.tasks.feed import Asks, Feed
from forwardinf.use.features import features, find_layers
from forwardinf.use.responses import Probes, responses, responses_each


def test_as_many_probes_as_weights_give_the_gradients_themselves():
    given = case("cnn", torch.float64)
    parameters = select(given.model, None)
    found = responses(feed(given), parameters, Probes(parameters, 10**9))
    want = gradients(given, given.train, given.task.loss)
    assert_close(found.values, want, rtol=1e-5, why="kept in float32")
    assert_close(found.square, want.square().sum(1), rtol=1e-5, why="squares of float32")
    one = responses(feed(given), parameters, Probes(parameters, 10**9), ask=lambda m, b: given.task.logits(m, b)[:, 3])
    assert_close(one.values, gradients(given, given.train, lambda m, b: given.task.logits(m, b)[:, 3]), rtol=1e-5,
                 why="kept in float32")  # fmt: skip


def test_inner_products_of_few_probes_are_those_of_gradients_but_for_chance():
    given = case("resnet")
    parameters = select(given.model, None)
    exact = gradients(given, given.train, given.task.loss)
    want = exact @ exact.T
    errors = []
    for count in (256, 1024):
        found = responses(feed(given), parameters, Probes(parameters, count, seed=1)).values.double()
        size = exact.norm(dim=1)
        errors.append(float(((found @ found.T - want) / (size[:, None] * size)).square().mean().sqrt()))
    assert errors[0] < 2 / 256**0.5  # relative to the lengths: about 1/√M
    assert errors[1] < 0.75 * errors[0]


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_several_things_asked_of_one_forward_have_their_own_gradients(name, monkeypatch):
    given = case(name, torch.float64)
    parameters, passes = select(given.model, None), []
    asks = Asks(
        lambda m, b: (lambda out: [given.task._judged(b, out), out[:, 3], out.square().sum(1)])(given.task.logits(m, b))
    )
    given.model.register_forward_hook(lambda *_: passes.append(1))
    reader, probes = feed(given), [Probes(parameters, 10**9), Probes(parameters, 10**9), None]
    responses_each(reader, parameters, asks, probes)  # looks at the model
    passes.clear()
    loss, logit, power = responses_each(reader, parameters, asks, probes)
    assert len(passes) == -(-40 // 64)
    for found, ask in ((loss, given.task.loss), (logit, lambda m, b: given.task.logits(m, b)[:, 3]),
                       (power, lambda m, b: given.task.logits(m, b).square().sum(1))):  # fmt: skip
        want = gradients(given, given.train, ask)
        assert_close(found.square, want.square().sum(1), rtol=1e-5, why="float32")
        if found is not power:
            assert_close(found.values, want, rtol=1e-5, why="kept in float32")
    assert power.values.shape == (40, 0)


def test_several_things_asked_of_a_model_that_is_read_one_by_one():
    given = case("cnn", torch.float64)

    class Company(nn.Module):  # a parameter used in a way that is not known: autograd's own gradient
        def __init__(self, inner):
            super().__init__()
            self.inner, self.power = inner, nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, x):
            return self.inner(x.abs() ** self.power)

    model = Company(given.model).eval()
    parameters = select(model, None)
    reader = Feed(model, given.task, examples((given.train[0][:7], given.train[1][:7])), torch.device("cpu"))
    asks = Asks(lambda m, b: (lambda out: [given.task._judged(b, out), out[:, 3]])(given.task.logits(m, b)))
    found = responses_each(reader, parameters, asks, [Probes(parameters, 10**9)] * 2)
    for one, ask in zip(found, (lambda out, y: F.cross_entropy(out, y), lambda out, y: out[0, 3]), strict=True):
        want = torch.stack([
            gradient(model, ask(model(x[None]), y[None])[None]) for x, y in zip(*(part[:7] for part in given.train), strict=True)
        ])  # fmt: skip
        assert_close(one.values, want, rtol=1e-5, why="kept in float32")


def test_a_layer_that_is_not_known_is_read_by_autograd():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 10)

        def forward(self, x):
            return self.head(self.rnn(x.squeeze(1))[0][:, -1])

    torch.manual_seed(0)
    model, given = Recurrent().eval(), case("cnn")
    rows = (given.train[0][:5], given.train[1][:5])
    parameters = select(model, None)
    found = responses(
        Feed(model, given.task, examples(rows), torch.device("cpu")), parameters, Probes(parameters, 10**9)
    )
    want = torch.stack(
        [gradient(model, F.cross_entropy(model(x[None]), y[None])[None]) for x, y in zip(*rows, strict=True)]
    )
    assert_close(found.values, want, rtol=1e-4, why="float32")
    assert model.rnn.weight_hh_l0.requires_grad


def test_features_are_what_enters_the_second_and_the_last_layer():
    given = case("cnn")
    rows = feed(given)
    assert find_layers(rows) == {"early": "conv2", "last": "head"}
    found = features(rows, 7, lambda done: None)
    assert_close(found["input"], given.train[0].flatten(1), rtol=1e-7, why="the inputs as they are")
    x = F.avg_pool2d(F.gelu(given.model.conv1(given.train[0])), 2)
    assert_close(found["early"], x.flatten(1).detach(), rtol=1e-5, why="batches of another size")
    assert found["last"].shape == (40, 32)
    assert not any(module._forward_pre_hooks for module in given.model.modules())


def test_features_of_text_do_not_depend_on_padding():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.inner, self.head = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, input_ids, attention_mask):
            kept = attention_mask[..., None].float()
            return self.head(torch.relu((self.inner(self.words(input_ids)) * kept).sum(1) / kept.sum(1)))

    def padded(extra):
        ids = torch.tensor([[4, 5, 6], [7, 8, 0]])
        mask = (ids > 0).long()
        return {
            "input_ids": F.pad(ids, (0, extra)),
            "attention_mask": F.pad(mask, (0, extra)),
            "labels": torch.tensor([0, 1]),
        }

    torch.manual_seed(0)
    model = Bag().eval()
    short, long = (features(Feed(model, fi.Classification(), examples(padded(extra)), torch.device("cpu")), 8, lambda d: None)
                   for extra in (0, 5))  # fmt: skip
    assert set(short) == {"input", "early", "last"}
    for name in short:
        assert_close(long[name], short[name], rtol=1e-6, why="padding does not count")
