import pytest
import torch
from cases import NAMES, QUICK, attribute, case, feed, gradient, pusher
from close import assert_close
from test_parameters import Mlp, lora
from torch import nn

import forwardinf as fi
from forwardinf.perturb.norms import Ruler
from forwardinf.perturb.parameters import select

TO_1E6 = "a length rule is kept to 1e-6; what is measured from rounded float32 weights to 1e-4"


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("patterns", [None, "some"])
def test_a_plain_length_is_the_norm_of_the_change_over_the_norm_of_what_moves(name, patterns):
    model = case(name).model
    chosen = select(model, None if patterns is None else (list(dict(model.named_parameters()))[3],))
    change = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for n, p in chosen.items()}
    ruler = Ruler(model, chosen)
    want = flat(change.values()).norm() / flat(chosen.values()).norm()
    assert_close(ruler.relative(change, 0.5), 0.5 * want, rtol=1e-6, why="summed in float64")
    step = ruler.step_for(change, 0.03)
    assert_close(ruler.relative(change, step), 0.03, rtol=1e-6, why="the length rule")


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("length", [1e-3, 0.03, 0.3])
@pytest.mark.parametrize("toward", ["ascent", "descent"])
def test_the_length_asked_for_is_the_length_of_the_weights_that_are_lent(name, length, toward):
    given = case(name, torch.float64)
    reader = feed(given, given.queries)
    pushing = pusher(given, fi.Perturbation(length=length, toward=toward), reader)
    push = pushing.push(pushing.check([0], 0, skip=False))
    before = flat(pushing.parameters[n] for n in push.sides[0])
    got = (flat(push.sides[0].values()) - before).norm() / flat(pushing.parameters.values()).norm()
    assert_close(got, length, rtol=1e-6, why="the length rule, float64")
    assert_close(push.length, length, rtol=1e-6, why="and so it is reported")


def dense(model):
    """Return the effective weight of every adapted layer, made by hand from the factors."""
    found = []
    for module in model.modules():
        if hasattr(module, "lora_A"):
            whole = module.base_layer.weight.detach().double().clone()
            for name in module.active_adapters:
                a, b = module.lora_A[name].weight.detach().double(), module.lora_B[name].weight.detach().double()
                whole += module.scaling[name] * b @ a
            found.append(whole)
    return found


@pytest.mark.parametrize("trained", [True, False], ids=["B moved", "B zero"])
@pytest.mark.parametrize("patterns", [None, ("*lora*", "*.out.*"), ("*",)], ids=["adapter", "and a layer", "all"])
def test_an_adapters_length_is_that_of_the_effective_weights(trained, patterns):
    torch.manual_seed(0)
    model = lora(Mlp(), lora_alpha=6)
    if trained:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    model.double()
    data = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    given = case("cnn")
    given.model, given.train, given.queries = model, data, (data[0][:1], data[1][:1])
    plain = [n for n, _ in model.named_parameters() if "lora" not in n and "base_layer.weight" not in n]
    for length in (0.01, 0.2):
        rule = fi.Perturbation(length=length, parameters=patterns)
        pushing = pusher(given, rule)
        query = pushing.check([0], 0, skip=False)
        push = pushing.push(query)
        others = [n for n in plain if n in pushing.parameters]
        before, kept = dense(model), {n: model.get_parameter(n).detach().clone() for n in others}
        live = dict(model.named_parameters())
        originals = {n: live[n].detach().clone() for n in push.sides[0]}
        with torch.no_grad():
            for n, tensor in push.sides[0].items():
                live[n].copy_(tensor)
        squares = sum(float((a - b).square().sum()) for a, b in zip(dense(model), before, strict=True))
        squares += sum(float((live[n] - kept[n]).square().sum()) for n in others)
        with torch.no_grad():
            for n, tensor in originals.items():
                live[n].copy_(tensor)
        size = sum(float(m.base_layer.weight.square().sum()) for m in model.modules() if hasattr(m, "lora_A"))
        size += sum(float(kept[n].square().sum()) for n in others)
        assert_close((squares / size) ** 0.5, length, rtol=1e-6, why="the length rule, float64")
        assert_close(push.length, length, rtol=1e-6, why="and so it is reported")


def test_an_adapter_is_attributed_and_given_back():
    torch.manual_seed(0)
    model = lora(Mlp())
    data = torch.randn(30, 6), torch.arange(30) % 3
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimiser.step()
    optimiser.zero_grad()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = case("cnn")
    given.model, given.train, given.queries = model, data, (data[0][:2], data[1][:2])
    scores = attribute(given)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    names = list(select(model, None))
    want = torch.stack([
        gradient(model, given.task.loss(model, (data[0][i : i + 1], data[1][i : i + 1])), names) for i in range(30)
    ])  # fmt: skip
    assert_close(scores.values, want[:2] @ want.T, rtol=2e-2, why="float32 differences at a relative length of 1e-4")
    assert_close(scores.share[[0, 1], [0, 1]], [1.0, 1.0], rtol=2e-2, why="float32 differences")
