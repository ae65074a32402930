import pytest
import torch
from cases import NAMES, ROWS, Decoder, attribute, case, feed, gradient, gradients
from close import assert_close

import forwardinf as fi
from forwardinf.core.per_example import per_example_gradients
from forwardinf.perturb.select import select
from forwardinf.read.per_example import self_products


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["plain", "sign"])
def test_self_products_are_the_gradients_own(name, direction):
    given = case(name, torch.float64)
    want = gradients(given, given.train, given.task.loss)
    want = want.square().sum(1) if direction == "plain" else want.abs().sum(1)
    found = fi.self_influence(given.model, given.train, task=given.task, direction=direction, progress=False)
    assert_close(found.values, want, rtol=1e-9, why="float64; one example at a time both here and there")
    assert_close(found.loss, feed(given).losses(range(ROWS), 8), rtol=1e-9, why="float64 in other batches")
    assert list(found.ids) == list(range(ROWS))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_come_one_by_one_in_order(name):
    given = case(name, torch.float64)
    rows, parameters = [7, 3, 20], select(given.model, None)
    want = gradients(given, given.train, given.task.loss)[rows]
    found = list(per_example_gradients(feed(given), rows, parameters))
    got = torch.stack([torch.cat([g[n].flatten() if n in g else torch.zeros(p.numel(), dtype=torch.float64)
                                  for n, p in parameters.items()]) for g, _ in found])  # fmt: skip
    assert_close(got, want, rtol=1e-9, why="float64")


def test_a_pattern_confines_the_product():
    given = case("cnn", torch.float64)
    found = fi.self_influence(given.model, given.train, task=given.task, parameters="head.*", progress=False)
    names = ["head.weight", "head.bias"]
    model = given.model.eval()
    want = [float(gradient(model, given.task.loss(model, (given.train[0][i : i + 1], given.train[1][i : i + 1])), names)
                  .square().sum()) for i in range(ROWS)]  # fmt: skip
    assert_close(found.values, want, rtol=1e-9, why="float64")


def test_documents_packed_in_a_row_have_gradients_of_their_own():
    torch.manual_seed(0)
    model = Decoder().double().eval()
    rows = [torch.tensor([5, 6, 2, 7, 8, 9, 2, 4]), torch.tensor([3, 3, 2, 9])]
    task = fi.CausalLM(documents=2)
    given = case("transformer")
    given.model, given.train, given.task = model, rows, task
    found = list(per_example_gradients(feed_of(given), [0, 1], select(model, None)))
    assert len(found) == 5
    whole = fi.CausalLM().loss(model, {"input_ids": rows[0][None]})
    want = gradient(model, whole)
    names = list(select(model, None))
    got = sum(torch.cat([g[n].flatten() if n in g else torch.zeros(model.get_parameter(n).numel(), dtype=torch.float64)
                         for n in names]) for g, _ in found[:3])  # fmt: skip
    assert_close(got, want, rtol=1e-9, why="the documents' losses add up to the row's")


def feed_of(given):
    found = feed(given)
    found.examples.seal(range(len(given.train)), lambda done: None, given.task.parts)
    return found


def test_the_linear_score_of_a_training_example_with_itself_is_its_self_influence():
    given = case("resnet", torch.float64)
    scores = attribute(given, queries=tuple(column[:4] for column in given.train))
    found = fi.self_influence(given.model, given.train, task=given.task, progress=False)
    assert_close(scores.values[range(4), range(4)], found.values[:4], rtol=1e-3, why="float64, one-sided at 1e-6")


def test_the_model_is_given_back():
    given = case("resnet")
    given.model.train()
    given.model.head.bias.requires_grad_(False)
    kept = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    state = torch.get_rng_state()
    fi.self_influence(given.model, given.train, task=given.task, progress=False)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in given.model.state_dict().items())
    assert all(module.training for module in given.model.modules())
    assert not given.model.head.bias.requires_grad
    assert all(parameter.grad is None for parameter in given.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_direction_may_work_in_place():
    given = case("cnn", torch.float64)
    parameters = select(given.model, None)
    values, *_ = self_products(
        feed(given), range(5), parameters, lambda g: {n: t.zero_() for n, t in g.items()}, lambda n: None
    )
    assert not values.any()
