import pytest
import torch
from cases import NAMES, QUERIES, ROWS, Decoder, attribute, case, crossed, feed, gradient, gradients, take
from close import assert_close
from given import Packed, Strange
from torch import nn

import forwardinf as fi
from forwardinf.gradients.per_example import per_example_gradients
from forwardinf.job.options import Options
from forwardinf.job.self_influence import prepare_self
from forwardinf.perturb.parameters import select
from forwardinf.perturb.self_influence import Own
from forwardinf.read.self_influence import OwnEngine, self_products


@pytest.mark.parametrize(("name", "direction"), crossed(["plain", "sign"], unet=["plain"]))
def test_self_products_are_the_gradients_own(name, direction):
    given = case(name, torch.float64)
    want = gradients(given, given.train, given.task.loss)
    want = want.square().sum(1) if direction == "plain" else want.abs().sum(1)
    found = fi.self_influence(given.model, given.train, task=given.task, direction=direction, progress=False)
    assert_close(found.values, want, rtol=1e-9, why="float64; one example at a time both here and there")
    assert_close(found.loss, feed(given).losses(range(ROWS), 8), rtol=1e-9, why="float64 in other batches")
    assert list(found.ids) == list(range(ROWS))
    assert not found.notes


def slow(given, rule, train=None):
    """Return gᵢᵀPgᵢ one example at a time, P applied to each gradient."""
    job = prepare_self(given.model.eval(), given.train if train is None else train, task=given.task, perturbation=rule,
                       ids=None, collate_fn=None,
                       options=Options(cache_dir=None, progress=False, batch_size=8))  # fmt: skip
    return self_products(job.feed, range(len(job.feed.examples)), job.parameters, job.direction, lambda n: None)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("FORWARDINF_CACHE", "off")


@pytest.mark.parametrize(("name", "direction"), crossed(["diagonal", "kfac", "ekfac", "gfim", "hold"], unet=["ekfac"]))
def test_fast_self_influence_equals_the_slow_one_under_every_direction(name, direction):
    given = case(name, torch.float64)
    given.train = take(
        given.train, range(10 if direction == "hold" or name == "unet" else ROWS)
    )  # the slow way takes two passes for each
    rule = fi.Perturbation(direction, fisher="empirical" if name == "unet" else "true")
    want, losses = slow(given, rule)
    found = fi.self_influence(given.model, given.train, task=given.task, direction=rule, progress=False)
    assert not any("one example at a time" in note and "read" in note[:5] for note in found.notes), found.notes
    # the curvature is fitted in other batches, and hold takes a difference of two large numbers
    assert_close(found.values, want, rtol=1e-7, why="float64; another order, and curvature fitted in other batches")
    assert_close(found.loss, losses, rtol=1e-9, why="float64 in other batches")


@pytest.mark.parametrize("direction", ["plain", "sign", "diagonal", "ekfac"])
@pytest.mark.parametrize("tied", [False, True])
def test_uncommon_layers_are_taken_too(tied, direction):
    given = Strange(tied)
    want, _ = slow(given, fi.Perturbation(direction))
    found = fi.self_influence(given.model, given.train, task=given.task, direction=direction, progress=False)
    assert_close(found.values, want, rtol=1e-8, why="float64, fitted in other batches")
    assert "gru" in found.notes[-1]
    assert "one example at a time" in found.notes[-1]


def test_what_a_watched_batch_brings_is_taken_even_where_layers_are_strange():
    given = Strange(tied=True)
    chosen = select(given.model, None)
    engine = OwnEngine(feed(given), chosen, Own(), 4)
    values, _ = engine.read(range(9))
    assert_close(values, slow(given, fi.Perturbation())[0], rtol=1e-9, why="float64")
    assert engine.forwards == 9


def test_documents_are_read_one_by_one_and_it_says_so():
    given = Packed()
    want, losses = slow(given, fi.Perturbation())
    found = fi.self_influence(given.model, given.train, task=given.task, progress=False)
    assert_close(found.values, want, rtol=1e-9, why="float64")
    assert_close(found.loss, losses, rtol=1e-9, why="float64")
    assert "several documents" in found.notes[-1]


def test_conjugate_gradients_have_no_short_way():
    given = case("cnn", torch.float64)
    found = fi.self_influence(given.model, tuple(c[:3] for c in given.train), task=given.task, direction="cg",
                              parameters="head.*", progress=False)  # fmt: skip
    assert "'cg' does not apply to factors" in found.notes[-1]
    assert (found.values > 0).all()


def test_a_float32_model_and_a_batch_size_of_its_own():
    given = case("resnet")
    want = fi.self_influence(case("resnet", torch.float64).model, case("resnet", torch.float64).train, task=given.task,
                             progress=False)  # fmt: skip
    for size in (1, 7, 64):
        found = fi.self_influence(given.model, given.train, task=given.task, batch_size=size, progress=False)
        assert_close(found.values, want.values, rtol=1e-4, why="float32 gradients")


def test_scores_divided_by_both_lengths_are_cosines():
    given = case("transformer").with_copies()
    for direction in ("plain", "diagonal", "hold"):
        scores = attribute(given, engine="factored", perturbation=fi.Perturbation(direction))
        own = fi.self_influence(given.model, given.train, task=given.task, direction=direction, progress=False)
        cosine = scores.cosine(own)
        assert abs(cosine).max() <= 1 + 1e-3
        assert_close(cosine[range(QUERIES), range(ROWS, ROWS + QUERIES)], [1.0] * QUERIES, rtol=1e-3,
                     why="a copy's direction is the query's own; float32")  # fmt: skip
    with pytest.raises(fi.SettingError, match="another direction"):
        scores.cosine(fi.self_influence(given.model, given.train, task=given.task, progress=False))


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


class Scaled(nn.Module):
    """A layer and a single number."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.layer(x) * self.scale


@pytest.mark.parametrize("direction", ["plain", "sign", "diagonal", "kfac", "ekfac", "gfim", "hold"])
def test_a_single_number_acts_on_itself_as_any_parameter(direction):
    torch.manual_seed(0)
    model, data = Scaled().double(), (torch.randn(12, 4).double(), torch.arange(12) % 3)
    found = fi.self_influence(model, data, task=fi.Classification(), direction=direction, progress=False)
    rule = fi.Perturbation(direction)
    asked = fi.attribute(
        model, data, data, task=fi.Classification(), perturbation=rule, engine="factored", progress=False
    )
    assert_close(found.values, asked.rise, rtol=1e-6, why="the score of an example asked about itself")
