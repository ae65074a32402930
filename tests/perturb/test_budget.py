"""What a fit costs is counted: of each layer by hand, and as many examples as that allows."""

import pytest
import torch
from torch import nn

import forwardinf as fi
from forwardinf.data.examples import examples
from forwardinf.perturb import budget, fits, gfim, kronecker
from forwardinf.perturb.budget import PASS, Budget, count
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.task import Classification


def feed_of(model, *shape, size=12):
    torch.manual_seed(0)
    data = examples((torch.randn(size, *shape), torch.arange(size) % 3), name="train")
    return Feed(model.eval(), Classification(), data, torch.device("cpu"))


LAYERS = {  # model, input, multiplications of a forward, of GᵀG
    "linear": (nn.Linear(5, 3), (5,), 15, 5 + 3),
    "one place a time": (nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), (2, 4), 24, 8 + 3),
    "few places": (nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 3)), (4, 4, 4), 4 * 288 + 96,
                   4**2 * (8 + 36) + 4 * 36**2 + 32 + 3),
    "many places": (nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 9, 9), 81 * 3,
                    81 * 3 + 1 * 3**2),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_forward_and_its_products_are_counted(name):
    model, shape, forward, products = LAYERS[name]
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    found = count(feed_of(model, *shape), weights, gfim.COSTS.work, gfim.COSTS.once)
    assert found.forward == forward
    assert found.fit == PASS * forward + products


def test_what_is_done_once_is_a_factor_and_a_solution():
    model = nn.Linear(6, 3)
    found = count(feed_of(model, 6), {"weight": model.weight}, gfim.COSTS.work, gfim.COSTS.once)
    assert found.once == pytest.approx(6**3 / 3 + 2 * 6**2 * 3)
    found = count(feed_of(model, 6), {"weight": model.weight}, kronecker.COSTS.work, kronecker.COSTS.once)
    assert found.once == kronecker.EIGENVECTORS * (6**3 + 3**3)


def test_a_fit_reads_what_eight_passes_pay_for_and_never_next_to_nothing():
    dear = Budget(forward=10.0**9, fit=10.0**11, once=0.0)
    assert dear.examples(10_000) == 10_000 * 8 // 100
    assert dear.examples(300) == budget.FEWEST
    assert dear.examples(10) == 10
    assert Budget(1.0, 100.0, 0.0).examples(10_000) == 10_000, "a small model is fitted on all"
    assert Budget(0.0, 0.0, 0.0).examples(7) == 7
    assert dear.forwards(100) == 100 * 100


def test_a_fit_on_fewer_examples_is_said_and_more_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(budget, "LEAST", 0)
    monkeypatch.setattr(budget, "PASSES", 1)
    monkeypatch.setattr(budget, "FEWEST", 2)
    torch.manual_seed(0)
    model, train = nn.Linear(5, 3), (torch.randn(40, 5), torch.arange(40) % 3)

    def said(**settings):
        rule = fi.Perturbation("gfim", **settings)
        found = fi.attribute(model, train, (train[0][:1], train[1][:1]), task=fi.Classification(), perturbation=rule,
                             progress=False)  # fmt: skip
        return [note for note in found.notes if "fitted on" in note]

    assert said() == ["gfim: fitted on 8 of 40 examples, by its cost (fit_examples= asks for more)"]
    assert said(fit_examples=40) == []


def test_what_a_fit_costs_is_counted_once_and_kept_with_it(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    torch.manual_seed(0)
    data, counted = (torch.randn(20, 4), torch.arange(20) % 3), []
    monkeypatch.setattr(fits, "count", lambda *given: counted.append(1) or count(*given))

    def scores():
        return fi.attribute(model, data, (data[0][:1], data[1][:1]), task=fi.Classification(), perturbation="gfim",
                            cache_dir=tmp_path, progress=False).values  # fmt: skip

    first = scores()
    assert (scores() == first).all()
    assert len(counted) == 1
    (kept,) = (tmp_path / "fits").glob("*.json")
    kept.write_text(kept.read_text().replace(":", ";", 3))  # a damaged one is made anew
    assert (scores() == first).all()
    assert len(counted) == 2
