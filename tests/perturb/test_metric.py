"""Gradients taken through the metric have products that are influences under K-FAC, as nearly as one product of two sides can."""

import pytest
import torch
from cases import case, feed, gradients
from close import assert_close

import forwardinf as fi
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.kronecker import kfac
from forwardinf.perturb.metric import metric
from forwardinf.perturb.parameters import select
from forwardinf.use.sketch import Sketcher


def fitting_of(given, globs=None):
    return Fitting(fi.Perturbation("kfac"), feed(given), select(given.model, globs), 8)


def taken(sides, matrix):
    """Return one gradient through its sides, as a flat vector."""
    found = matrix.double()
    found = found.reshape(len(found), -1) if found.ndim > 1 else found.reshape(1, -1)
    if sides.left is not None:
        found = sides.left.times(found)
    if sides.right is not None:
        found = sides.right.times(found.T).T
    return (found * sides.scale).flatten()


def both(given, globs=None):
    """Return (products through the metric, scores under K-FAC) of the first rows with one another."""
    fitting = fitting_of(given, globs)
    found, solve = metric(fitting), kfac(fitting)
    whole = gradients(given, given.train, given.task.loss)[:12]
    names = [(name, p.shape) for name, p in given.model.named_parameters()]
    each = []
    for row in whole:
        pieces, at = {}, 0
        for name, shape in names:
            pieces[name] = row[at : at + shape.numel()].view(shape)
            at += shape.numel()
        each.append({name: pieces[name] for name in fitting.parameters})
    through_it = torch.stack([torch.cat([taken(found[name], g[name]) for name in g]) for g in each])
    solved = [solve({name: tensor.float().clone() for name, tensor in g.items()}) for g in each]
    want = torch.tensor([[sum(float((g[n].double() * s[n].double()).sum()) for n in g) for s in solved] for g in each])
    return through_it @ through_it.T, want


def test_of_vectors_it_is_the_exact_root():
    got, want = both(case("cnn"), ["*bias"])
    assert_close(got, want, rtol=1e-4, why="one covariance each: nothing is shared out; float32 fits")


@pytest.mark.parametrize("name", ["cnn", "transformer", "resnet"])
def test_products_are_influences_under_k_fac(name):
    got, want = both(case(name))
    cosine = float((got.flatten() @ want.flatten().double()) / (got.norm() * want.double().norm()))
    assert cosine > 0.9, f"the damping is shared out between two sides, no more: {cosine}"
    plain = gradients(case(name), case(name).train, case(name).task.loss)[:12]
    raw = plain @ plain.T
    assert cosine > float((raw.flatten() @ want.flatten().double()) / (raw.norm() * want.double().norm()))


def test_a_sketch_that_projects_nothing_is_the_gradient_through_the_metric():
    given = case("transformer")
    fitting = fitting_of(given)
    found = metric(fitting)
    rows = Sketcher(fitting.parameters, side=4096, metric=found).rows(feed(given), range(4), 4)
    whole, at, want = gradients(given, given.train, given.task.loss)[:4], 0, []
    for name, parameter in given.model.named_parameters():
        piece = whole[:, at : at + parameter.numel()]
        want.append(torch.stack([taken(found[name], row.view(parameter.shape)) for row in piece]))
        at += parameter.numel()
    want = torch.cat(want, 1)
    assert_close(
        rows @ rows.T, want @ want.T, rtol=1e-3, why="gradients in float32; the order of the numbers is the sketch's"
    )
