"""Gauss–Newton products and conjugate gradients against the dense matrix, by autograd one example at a time."""

from dataclasses import replace

import pytest
import torch
from cases import ROWS, attribute, case
from close import assert_close
from curvature import OWN, Given, fitting, flat, one_by_one, scores_by_hand, values
from given import Packed
from torch import nn
from torch.autograd.functional import hessian

import forwardinf as fi
from forwardinf.core.errors import ModelError, SettingError, TaskError
from forwardinf.perturb import conjugate as module
from forwardinf.perturb.blocks import mean_diagonal
from forwardinf.perturb.conjugate import cg, conjugate
from forwardinf.perturb.diagonal import diagonal_blocks
from forwardinf.perturb.gauss_newton import gauss_newton_product
from forwardinf.tasks.task import as_task, prediction_of

DRAW = torch.Generator().manual_seed(0)


def batch_of(fit, row):
    return fit.train.place(next(iter(fit.train.examples.batches([row], 1)))[1])


def dense(fit, rows=None):
    """Return (1/N) Σᵢ Jᵢᵀ Hᵢ Jᵢ over ``fit.parameters``, formed one number of the output at a time."""
    rows = range(len(fit.train.examples)) if rows is None else rows
    chosen, total = list(fit.parameters.values()), 0
    for row in rows:
        found = prediction_of(fit.train.task, fit.train.model, batch_of(fit, row))
        lines = [
            torch.autograd.grad(number, chosen, retain_graph=True, materialize_grads=True)
            for number in found.output.flatten()
        ]
        j = torch.stack([torch.cat([grad.flatten() for grad in line]) for line in lines])
        h = hessian(lambda o, found=found: found.loss(o).sum(), found.output.detach())
        total = total + j.T @ h.reshape(len(j), len(j)) @ j
    return total / len(rows)


def vector(fit, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in fit.parameters.items()}


def regression():
    x = torch.randn(14, 5, generator=DRAW).double()
    return Given(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)), (x, x[:, :2].sin()), fi.Regression())


def smoothed():
    x = torch.randn(14, 5, generator=DRAW).double()
    task = fi.Classification(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1)
    return Given(nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)), (x, torch.arange(14) % 3), task)


def sentences():
    given = case("transformer", torch.float64)
    given.train = given.train[:2]
    return given


MADE = {"cnn": lambda: case("cnn", torch.float64), "transformer": sentences,
        "regression": regression, "smoothed": smoothed}  # fmt: skip
MOVES = {"cnn": ("conv1.*", "head.*"), "transformer": ("places.*", "blocks.1.self_attn.*", "blocks.0.norm*")}


@pytest.mark.parametrize("name", MADE)
def test_products_and_solutions_are_those_of_the_dense_matrix(name):
    share = 1 if name in MOVES else 0.1
    fit = fitting(MADE[name](), "cg", batch_size=9, damping=share, parameters=MOVES.get(name))
    full, v = dense(fit), vector(fit)
    product = gauss_newton_product(fit.train, range(len(fit.train.examples)), fit.parameters, 9, v)
    assert_close(flat(product, fit.parameters), full @ flat(v, fit.parameters), rtol=1e-9, why=OWN)
    weight = share * mean_diagonal(diagonal_blocks(fit), fit.parameters)
    damped = full + weight * torch.eye(len(full), dtype=torch.float64)
    got = cg(fit)({n: t.clone() for n, t in v.items()})
    want = torch.linalg.solve(damped, flat(v, fit.parameters))
    assert_close(flat(got, fit.parameters), want, rtol=1e-5, why="conjugate gradients end at a residual of 1e-9")


def test_where_the_output_is_linear_it_is_the_hessian():
    x, labels = torch.randn(12, 5, generator=DRAW).double(), torch.arange(12) % 3
    fit = fitting(Given(nn.Linear(5, 3), (x, labels)), "cg")
    shapes = [p.shape for p in fit.parameters.values()]

    def loss(theta):
        weight, bias = (t.view(s) for t, s in zip(theta.split([s.numel() for s in shapes]), shapes, strict=True))
        return nn.functional.cross_entropy(x @ weight.T + bias, labels)

    v = vector(fit)
    theta = torch.cat([p.detach().flatten() for p in fit.parameters.values()])
    got = gauss_newton_product(fit.train, range(12), fit.parameters, 5, v)
    assert_close(
        flat(got, fit.parameters), hessian(loss, theta) @ flat(v, fit.parameters), rtol=1e-10, why="convex: GN = H"
    )


def test_the_trace_that_damping_is_measured_by_is_that_of_the_matrix():
    """Gradients under drawn labels have the Gauss–Newton matrix as second moment: on average over draws."""
    fits = [fitting("cnn", "diagonal", seed=seed, parameters="head.*") for seed in range(40)]
    mean = sum(mean_diagonal(diagonal_blocks(fit), fit.parameters) for fit in fits) / len(fits)
    want = float(dense(fits[0]).diagonal().mean())
    assert_close(mean, want, rtol=0.15, why="40 draws of 40 labels, of which each is worth about its own mean")


def test_what_the_query_does_not_touch_moves_too():
    """Curvature couples parameters: a gradient of the head alone moves the body."""
    fit = fitting("cnn", "cg", damping=1, parameters=("conv1.*", "head.*"))
    full, v = dense(fit), vector(fit)
    only = {n: t for n, t in v.items() if n.startswith("head")}
    padded = {n: t if n in only else torch.zeros_like(t) for n, t in v.items()}
    weight = mean_diagonal(diagonal_blocks(fit), fit.parameters)
    want = torch.linalg.solve(full + weight * torch.eye(len(full)).double(), flat(padded, fit.parameters))
    got = cg(fit)({n: t.clone() for n, t in only.items()})
    assert set(got) == set(fit.parameters)
    assert_close(flat(got, fit.parameters), want, rtol=1e-5, why="conjugate gradients end at a residual of 1e-9")


def test_linear_scores_are_those_of_a_dense_inverse():
    given, rule = case("cnn", torch.float64), fi.Perturbation("cg", parameters=("conv2.*", "head.*"), damping=3)
    fit = fitting(case("cnn", torch.float64), "cg", parameters=("conv2.*", "head.*"), damping=3)
    weight = 3 * mean_diagonal(diagonal_blocks(fit), fit.parameters)
    full = dense(fit)
    damped = full + weight * torch.eye(len(full), dtype=torch.float64)

    def solve(gradient):
        found = torch.linalg.solve(damped, flat(gradient, fit.parameters))
        pieces = found.split([p.numel() for p in fit.parameters.values()])
        return {n: piece.view(fit.parameters[n].shape) for n, piece in zip(fit.parameters, pieces, strict=True)}

    want = scores_by_hand(given, rule, solve)
    assert_close(
        values(attribute(given, perturbation=rule)), want, rtol=1e-3, why="a difference at 1e-6 against a rate"
    )


def test_the_same_gradient_is_solved_once_and_gives_the_same_bits(monkeypatch):
    fit, calls, whole = fitting("cnn", "cg"), [], module.conjugate
    monkeypatch.setattr(module, "conjugate", lambda *args: calls.append(1) or whole(*args))
    direction = cg(fit)
    first, again, other = (direction(vector(fit, seed)) for seed in (0, 0, 1))
    assert len(calls) == 2
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_sample_of_the_training_set_is_named(monkeypatch):
    fit = fitting("cnn", "cg", fit_examples=10, parameters="head.*", damping=1)
    direction = cg(fit)
    assert fit.notes == ["cg: curvature over a sample of 10 of 40 training examples"]
    full, v = dense(fit, module.sampled_rows(fit)), vector(fit)
    weight = mean_diagonal(diagonal_blocks(fit), fit.parameters)
    want = torch.linalg.solve(full + weight * torch.eye(len(full)).double(), flat(v, fit.parameters))
    assert_close(flat(direction(v), fit.parameters), want, rtol=1e-5, why="conjugate gradients end at 1e-9")
    monkeypatch.setattr(module, "MOST_EXAMPLES", 30)
    fit = fitting("cnn", "cg")
    cg(fit)
    assert "30 of 40" in fit.notes[0]
    assert ROWS == 40


def test_documents_packed_into_a_row_count_each():
    fit = fitting(Packed(), "cg", parameters="norm.*", damping=1, batch_size=4)
    fit.train.examples.seal(range(9), lambda done: None, fit.train.task.parts)
    units = fit.train.examples.units
    assert units > len(fit.train.examples)
    direction, v = cg(fit), vector(fit)
    weight = mean_diagonal(diagonal_blocks(fit), fit.parameters)
    fit.train = replace(fit.train, task=fit.train.task.whole())
    full = dense(fit) * len(fit.train.examples) / units
    want = torch.linalg.solve(full + weight * torch.eye(len(full)).double(), flat(v, fit.parameters))
    assert_close(flat(direction(v), fit.parameters), want, rtol=1e-5, why="conjugate gradients end at 1e-9")


@pytest.mark.parametrize("direction", ["gfim", "cg"])
def test_float32_gives_what_float64_gives(direction):
    rule = fi.Perturbation(
        direction, parameters="blocks.1.*"
    )  # texts are the same bits in both, and so are the labels drawn for them
    narrow, exact = (
        values(attribute(case("transformer", dtype), perturbation=rule)) for dtype in (torch.float32, torch.float64)
    )
    assert_close(narrow, exact, rtol=0.02, why="a difference in float32")


def test_what_cannot_be_answered_is_refused():
    given = case("cnn", torch.float64)
    given.task = as_task(given.task.loss)
    with pytest.raises(TaskError, match="what the model predicts"):
        cg(fitting(given, "cg"))
    with pytest.raises(SettingError, match="'true' beside direction='cg'"):
        cg(fitting("cnn", "cg", fisher="empirical"))


def solved(diagonal, most, nearly=lambda v: {"x": v["x"].clone()}):
    return conjugate({"x": torch.ones(len(diagonal)).double()}, lambda v: {"x": v["x"] * diagonal}, nearly, 1e-10, most)


def test_it_stops_says_how_far_it_got_and_refuses_what_is_no_solution():
    hard = torch.logspace(0, 3, 40).double()
    found, left = solved(hard, 500)
    assert left <= 1e-10
    assert_close(found["x"], 1 / hard, rtol=1e-8, why="a residual of 1e-10")
    _, left = solved(hard, 60)
    assert 1e-10 < left < 0.1
    with pytest.raises(ModelError, match="Damp more"):
        solved(hard, 3)
    with pytest.raises(ModelError, match="positive curvature"):
        solved(torch.tensor([1.0, -2.0]).double(), 10)
    found, left = solved(hard, 2, lambda v: {"x": v["x"] / hard})
    assert_close(found["x"], 1 / hard, rtol=1e-12, why="preconditioned by itself: one step")


def test_a_cut_solution_is_noted(monkeypatch):
    monkeypatch.setattr(module, "conjugate", lambda *args: ({"x": torch.ones(1)}, 0.01))
    fit = fitting("cnn", "cg")
    cg(fit)(one_by_one(fit)[0])
    assert any("residual of 1.0e-02" in note for note in fit.notes)
