"""What the tests of fitted directions share: a fitting, and the slow obvious curvature from one gradient at a time."""

import torch
from cases import case, feed, size
from torch import nn

import forwardinf as fi
from forwardinf.gradients.per_example import per_example_gradients
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.fisher import fisher_feed
from forwardinf.perturb.parameters import select
from forwardinf.score.scores import Scores

OWN = "float64: the same sums in another order"


class Given:
    """Any model and data as a case, in float64, every parameter drawn anew."""

    def __init__(self, model, train, task=None, queries=None):
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.model, self.train, self.task = model.double().eval(), train, task or fi.Classification()
        self.queries = queries


def fitting(given, direction="plain", batch_size=7, key=None, cache=None, **settings):
    """Return what a direction is fitted from; ``given`` is a case or its name."""
    given = case(given, torch.float64) if isinstance(given, str) else given
    rule = fi.Perturbation(direction, **settings)
    return Fitting(rule, feed(given), select(given.model, rule.parameters), batch_size, key, cache, progress=False)


def one_by_one(fitting):
    """Return the gradients that the curvature is made of, one dictionary an example, in order, zeros filled in."""
    rows = range(len(fitting.train.examples))
    found = per_example_gradients(fisher_feed(fitting)[0], rows, fitting.parameters)
    return [
        {name: g.get(name, torch.zeros_like(p)).detach() for name, p in fitting.parameters.items()} for g, _ in found
    ]


def matrix(gradients, name):
    """Return one parameter's gradients, ``(N, numel)``."""
    return torch.stack([gradient[name].flatten() for gradient in gradients])


def flat(gradient, parameters):
    return torch.cat([gradient[name].flatten() for name in parameters])


def scores_by_hand(given, rule, solve):
    """Return gᵢᵀ P g_q ``(Q, N)``; ``solve`` is P on a dictionary of tensors."""
    chosen = select(given.model, rule.parameters)

    def all_of(data):
        rows = per_example_gradients(feed(given, data), range(size(data)), chosen)
        return [{name: g.get(name, torch.zeros_like(p)).detach() for name, p in chosen.items()} for g, _ in rows]

    train = torch.stack([flat(g, chosen) for g in all_of(given.train)])
    return torch.stack([train @ flat(solve(g), chosen) for g in all_of(given.queries)])


def values(scores):
    assert isinstance(scores, Scores)
    return torch.from_numpy(scores.values).double()
