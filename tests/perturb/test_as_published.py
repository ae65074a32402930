"""The published behaviour against a hand-written Adam step (torch.optim) on the doubled example, in training mode."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import QUERIES, ROWS, attribute, case, pusher
from close import assert_close
from torch import nn

import forwardinf as fi
from forwardinf.perturb.swap import lend, tensors_of


def by_hand(model, image, label, lr=5e-3):
    """One step of Adam up the loss, on the example twice, in training mode; the notebook halves the mean."""
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    images, labels = torch.cat([image, image]), torch.cat([label, label])
    loss = F.cross_entropy(model(images).double(), labels) / 2
    optimiser.zero_grad()
    (-loss).backward()
    optimiser.step()
    return model, float(loss.detach())


def hard(given):
    """Give the queries labels that are wrong, so that none is saturated."""
    return given.queries[0], (given.queries[1] + 1) % 10


def test_it_is_one_adam_step_in_training_mode_batchnorm_buffers_included():
    given = case("resnet")
    images, labels = hard(given)
    given.queries = images, labels
    pushing = pusher(given, fi.Perturbation.preset("as_published"))
    for row in range(QUERIES):
        query = pushing.check([row], row, skip=False)
        want, half = by_hand(given.model, images[row : row + 1], labels[row : row + 1])
        assert half > 5e-3
        assert query.status == "ok"
        moved = pushing.push(query).sides[0]
        live = tensors_of(given.model)
        with lend(live, moved):
            for name, tensor in tensors_of(want).items():
                assert torch.equal(live[name], tensor), name
        assert {name for name in moved if "running_mean" in name} == {
            n for n, _ in want.named_buffers() if "running_mean" in n
        }
        assert any("running_var" in name for name in moved)
        assert any("num_batches_tracked" in name for name in moved)


def test_its_scores_are_absolute_differences_read_in_eval_mode():
    given = case("resnet")
    given.queries = hard(given)
    scores = attribute(given, perturbation="as_published")
    for row in range(QUERIES):
        want, _ = by_hand(given.model, given.queries[0][row : row + 1], given.queries[1][row : row + 1])
        with torch.no_grad():
            after, before = (
                F.cross_entropy(m.eval()(given.train[0]).double(), given.train[1], reduction="none")
                for m in (want, copy.deepcopy(given.model))
            )
        assert_close(scores.values[row], (after - before).abs(), rtol=1e-4, why="float32, another batch size")
    assert not scores.signed
    assert scores.status == ["ok"] * QUERIES
    with pytest.raises(fi.SettingError, match="signed"):
        scores.share  # noqa: B018
    with pytest.raises(fi.SettingError, match="signed"):
        scores.bottom(1)
    best = scores.top(ROWS)
    for q in range(QUERIES):
        assert best[best["query"] == q]["score"].is_monotonic_decreasing


def sure(given):
    """Return a model that is sure of the queries: saturated, as the notebook's fully trained ones are."""
    with torch.no_grad():
        given.model.head.weight *= 30
        given.model.head.bias *= 30
        labels = given.model.eval()(given.queries[0]).argmax(1)
    given.queries = given.queries[0], labels
    return given


def test_a_saturated_query_is_resampled_near_by_and_says_so():
    given = sure(case("cnn"))
    given.model = without_dropout(given.model)
    images, labels = given.queries
    scores = attribute(given, perturbation="as_published")
    resampled = [q for q, status in enumerate(scores.status) if status == "resampled"]
    assert resampled
    for q in resampled:
        _, half = by_hand(given.model, images[q : q + 1], labels[q : q + 1])
        assert half < 1e-2
        assert np.abs(scores.values[q]).max() > 0
    again = attribute(given, perturbation="as_published")
    assert np.array_equal(scores.values, again.values), "what it draws belongs to the query"
    other = attribute(given, perturbation=fi.Perturbation(lr=5e-3, behaviour="as_published", seed=1))
    assert not np.array_equal(scores.values[resampled], other.values[resampled]), "another seed, another draw"


def without_dropout(model):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_a_saturated_query_of_whole_numbers_is_refused():
    given = case("transformer")
    with torch.no_grad():
        given.model.tokens.weight *= 40  # sure of everything, right or wrong
    text = torch.tensor([3, 3, 3, 3])
    for _ in range(5):
        with torch.no_grad():
            text[1:] = given.model.eval()(text[None]).argmax(2)[0, :-1]
    given.model.blocks.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else None)
    assert float(given.task.loss(given.model.train(), text[None]).detach()) < 1e-3, "the query must be saturated"
    with pytest.raises(fi.SettingError, match="float inputs"):
        attribute(given, queries=[text], perturbation="as_published", on_bad_query="skip")


@pytest.mark.parametrize("name", ["cnn", "resnet", "transformer", "unet"])
def test_the_same_query_gets_the_same_push_dropout_or_not(name):
    given = case(name)
    for module in given.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    pushing = pusher(given, fi.Perturbation.preset("as_published"))
    query = pushing.check([0], 0, skip=False)
    first = {key: tensor.clone() for key, tensor in pushing.push(query).sides[0].items()}
    torch.rand(5)  # the caller's generator is elsewhere, as in a resumed run
    again = pusher(given, fi.Perturbation.preset("as_published")).push(query)
    assert all(torch.equal(tensor, again.sides[0][key]) for key, tensor in first.items())


def test_old_gradients_are_left_alone():
    given = case("cnn")
    for parameter in given.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    kept = [parameter.grad for parameter in given.model.parameters()]
    attribute(given, perturbation="as_published")
    assert all(p.grad is g and bool((g == 1).all()) for p, g in zip(given.model.parameters(), kept, strict=True))


def test_a_group_is_refused():
    with pytest.raises(fi.QueryError, match="single queries"):
        attribute(case("resnet"), groups=["a", "a", "b"], perturbation="as_published")


@pytest.mark.parametrize("setting", [{"steps": 2}, {"two_sided": True}, {"toward": "descent"}, {"direction": "sign"}])
def test_settings_that_it_does_not_have_are_refused(setting):
    with pytest.raises(fi.SettingError, match="as_published"):
        fi.Perturbation(lr=5e-3, behaviour="as_published", **setting)
