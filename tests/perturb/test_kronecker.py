"""K-FAC and EK-FAC against dense blocks by autograd, one gradient at a time."""

import pytest
import torch
from cases import NAMES, Cnn, attribute, case
from close import assert_close
from curvature import OWN, Given, fitting, matrix, one_by_one, scores_by_hand, values
from test_parameters import Mlp, lora
from torch import nn

import forwardinf as fi
from forwardinf.gradients import moments, squares
from forwardinf.perturb.blocks import mean_diagonal
from forwardinf.perturb.kronecker import ekfac, ekfac_blocks, kfac, kfac_blocks

DRAW = torch.Generator().manual_seed(0)


def dense(block):
    """Return a block's curvature as a matrix over the part's numbers, groups apart: ``(groups, n, n)``."""
    groups, rows, columns = block.part.shape

    def basis(side, size):
        return torch.eye(size, dtype=torch.float64).repeat(groups, 1, 1) if side is None else side

    left, right = basis(block.left, rows), basis(block.right, columns)
    both = torch.stack(
        [torch.kron(one.contiguous(), other.contiguous()) for one, other in zip(left, right, strict=True)]
    )
    return both @ torch.diag_embed(block.values.flatten(1)) @ both.mT


def grouped(block, gradients):
    """Return the part's gradients, ``(groups, N, n)``."""
    whole = torch.stack([block.part.of(gradient[block.part.name]) for gradient in gradients])
    return whole.flatten(2).transpose(0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_eigenvalues_are_exact_in_their_own_basis(name):
    fit = fitting(name, "ekfac")
    gradients, blocks = one_by_one(fit), ekfac_blocks(fit)
    assert {block.part.name for block in blocks} == set(fit.parameters)
    got, want = [], []
    for block in blocks:
        turned = torch.stack([block.part.of(gradient[block.part.name]) for gradient in gradients])
        turned = turned if block.left is None else block.left.mT @ turned
        turned = turned if block.right is None else turned @ block.right
        got.append(block.values.flatten())
        want.append(turned.square().mean(0).flatten())
        for side in (block.left, block.right):
            if side is not None:
                one = torch.eye(side.shape[-1], dtype=torch.float64).expand_as(side)
                assert_close(side.mT @ side, one, rtol=1e-10, why="eigenvectors are orthonormal")
    assert_close(torch.cat(got), torch.cat(want), rtol=1e-9, why=OWN)
    assert not any("diagonal" in note for note in fit.notes)
    mean = sum(matrix(gradients, n).square().sum() for n in fit.parameters) / len(gradients)
    mean = mean / sum(p.numel() for p in fit.parameters.values())
    assert_close(mean_diagonal(blocks, fit.parameters), float(mean), rtol=1e-9, why="a trace is the same in any basis")


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_exact_eigenvalues_are_nearer_to_the_fisher(name):
    fit = fitting(name, "ekfac", fisher="empirical")
    gradients = one_by_one(fit)

    def error(blocks):
        total = 0.0
        for block in blocks:
            if block.part.shape[1] * block.part.shape[2] <= 1024:
                g = grouped(block, gradients)
                total += float((dense(block) - g.mT @ g / len(gradients)).square().sum())
        return total

    exact, factored = error(ekfac_blocks(fit)), error(kfac_blocks(fit))
    assert 0 < exact < factored  # the best eigenvalues for that basis (George et al. 2018, theorem 3)


def test_one_place_one_layer_is_the_product_of_two_second_moments():
    x = torch.randn(30, 5, generator=DRAW).double()
    given = Given(nn.Linear(5, 4), (x, torch.arange(30) % 4))
    fit = fitting(given, "kfac", fisher="empirical")
    d = given.model(x).softmax(1) - torch.nn.functional.one_hot(torch.arange(30) % 4, 4)
    weight, bias = sorted(kfac_blocks(fit), key=lambda block: block.part.name, reverse=True)
    assert_close(dense(weight)[0], torch.kron(d.mT @ d / 30, x.mT @ x / 30), rtol=1e-9, why="K-FAC, as published")
    assert_close(dense(bias)[0], d.mT @ d / 30, rtol=1e-9, why="a bias has one vector for a gradient: exact")


class Places(nn.Module):
    """A convolution whose places do not overlap, seen through a random layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 3, 2, stride=2, bias=False), nn.Linear(48, 5, bias=False)
        self.out.requires_grad_(False)

    def forward(self, x):
        return self.out(self.conv(x).flatten(1))


def mixed(*shape):
    """Return inputs whose numbers are correlated within a place and not between places."""
    x = torch.randn(*shape, generator=DRAW).double()
    turn = torch.randn(shape[-1], shape[-1], generator=DRAW).double() * torch.linspace(2, 0.1, shape[-1]).double()
    return x @ turn


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_it_is_the_inverse_of_the_dense_block_where_factors_are_independent(kind):
    labels = torch.randint(0, 5, (1500,), generator=DRAW)
    if kind == "linear":
        given, scale = Given(nn.Linear(8, 5, bias=False), (mixed(1500, 8), labels)), 0.02
        name = "weight"
    else:
        patches = mixed(1500, 4, 4, 8).view(1500, 4, 4, 2, 2, 2)  # b, y, x, channel, dy, dx
        images = patches.permute(0, 3, 1, 4, 2, 5).reshape(1500, 2, 8, 8)
        given, scale, name = Given(Places(), (images, labels)), 0.1, "conv.weight"
    with torch.no_grad():
        for parameter in given.model.parameters():
            parameter.mul_(scale)  # nearly even predictions: what comes back does not depend on what went in
    gradients = matrix(one_by_one(fitting(given, "ekfac", batch_size=500)), name)
    fisher = gradients.mT @ gradients / len(gradients)
    asked = matrix(one_by_one(fitting(given, "ekfac", fisher="empirical", batch_size=500)), name)[:20]
    for direction in (kfac, ekfac):
        solve = direction(fitting(given, direction.__name__, batch_size=500, damping=0.3))
        inverse = torch.linalg.inv(fisher + solve.damping * torch.eye(len(fisher)))
        want = asked @ inverse
        got = torch.stack([solve({name: g.view(given.model.get_parameter(name).shape)})[name].flatten() for g in asked])
        assert float(torch.cosine_similarity(got, want).min()) >= 0.99
        assert float(torch.cosine_similarity(asked, want).mean()) < 0.9  # the gradient itself is far from it
        assert_close(
            got.norm(dim=1) / want.norm(dim=1), torch.ones(20), rtol=0.1, why="the same scale, not only direction"
        )


def test_groups_of_a_convolution_are_blocks_of_their_own():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    images = torch.randn(12, 4, 5, 5, generator=DRAW).double()
    blocks = {b.part.key: b for b in ekfac_blocks(fitting(Given(model, (images, torch.arange(12) % 3)), "ekfac"))}
    assert blocks["0.weight"].part.shape == (2, 3, 18)
    assert blocks["0.weight"].left.shape == (2, 3, 3)
    assert blocks["0.weight"].right.shape == (2, 18, 18)


def test_tied_embeddings_add_both_uses():
    fit = fitting("transformer", "kfac", fisher="empirical")
    tied = next(b for b in kfac_blocks(fit) if b.part.name == "tokens.weight")
    assert tied.left is None
    assert tied.right is not None
    alone = fitting("transformer", "kfac", fisher="empirical")
    alone.train.model.lm_head.weight = nn.Parameter(alone.train.model.tokens.weight.detach().clone())
    alone.parameters["lm_head.weight"] = alone.train.model.lm_head.weight
    apart = {b.part.name: dense(b)[0] for b in kfac_blocks(alone)}
    basis = torch.kron(torch.eye(20, dtype=torch.float64), tied.right[0].contiguous())
    want = (basis.mT @ (apart["tokens.weight"] + apart["lm_head.weight"]) @ basis).diagonal()
    assert_close(tied.values.flatten(), want, rtol=1e-9, why="the sum of the two uses' curvature, along that basis")


def test_padding_changes_nothing():
    given = case("transformer", torch.float64)
    short = ekfac(fitting(given, "ekfac", batch_size=1))
    long = ekfac(fitting(given, "ekfac", batch_size=40))
    gradient = one_by_one(fitting(given, "ekfac"))[0]
    one, other = (solve({n: t.clone() for n, t in gradient.items()}) for solve in (short, long))
    for name in gradient:
        assert_close(one[name], other[name], rtol=1e-6, why="eigenvectors of equal factors, summed in another order")


def test_adapters_are_linear_layers():
    torch.manual_seed(0)
    model = lora(Mlp()).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    x = torch.randn(20, *input_of(Mlp()), generator=DRAW).double()
    given = Given.__new__(Given)
    given.model, given.train, given.task = model, (x, torch.arange(20) % 3), fi.Classification()
    fit = fitting(given, "ekfac", parameters="*lora*")
    blocks = ekfac_blocks(fit)
    assert {block.part.name for block in blocks} == set(fit.parameters)
    assert fit.notes == []
    assert all(block.left is not None and block.right is not None for block in blocks)


def input_of(model):
    return (next(m for m in model.modules() if isinstance(m, nn.Linear)).in_features,)


def test_a_slope_is_a_vector_whose_covariance_is_kept_whole():
    model = nn.Sequential(nn.Linear(5, 4), nn.PReLU(4), nn.Linear(4, 3))
    x = torch.randn(14, 5, generator=DRAW).double()
    fit = fitting(Given(model, (x, torch.arange(14) % 3)), "ekfac", fisher="empirical")
    gradients, blocks = one_by_one(fit), {b.part.name: b for b in ekfac_blocks(fit)}
    assert not fit.notes
    g = matrix(gradients, "1.weight")
    assert_close(dense(blocks["1.weight"])[0], g.T @ g / len(g), rtol=1e-9, why=OWN)


def test_a_side_that_is_too_large_is_kept_by_its_diagonal(monkeypatch):
    monkeypatch.setattr(moments, "LARGEST_SIDE", 30)
    monkeypatch.setattr("forwardinf.perturb.kronecker.LARGEST_SIDE", 30)
    fit = fitting("cnn", "ekfac")
    blocks = {block.part.name: block for block in ekfac_blocks(fit)}
    assert blocks["head.weight"].right is None
    assert blocks["head.weight"].left is not None
    assert blocks["conv1.weight"].right is not None
    assert fit.notes == ["curvature by the diagonal only: conv2.weight (a side of 54), head.weight (a side of 32)"]
    gradients = one_by_one(fit)
    turned = blocks["head.weight"].left.mT @ torch.stack([g["head.weight"] for g in gradients])
    assert_close(blocks["head.weight"].values[0], turned.square().mean(0), rtol=1e-9, why=OWN)


@pytest.mark.parametrize("numbers", [1, 300, 10**9])
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_how_many_gradients_are_held_at_a_time_changes_nothing(name, numbers, monkeypatch):
    want = ekfac_blocks(fitting(name, "ekfac"))
    monkeypatch.setattr(squares, "NUMBERS_AT_ONCE", numbers)
    monkeypatch.setattr(moments, "NUMBERS_AT_ONCE", numbers)
    got = ekfac_blocks(fitting(name, "ekfac"))
    for one, other in zip(got, want, strict=True):
        assert_close(dense(one), dense(other), rtol=1e-6, why="eigenvectors of equal factors, summed in another order")


@pytest.mark.parametrize("direction", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_linear_scores_are_those_of_a_dense_matrix(name, direction):
    given, rule = case(name, torch.float64), fi.Perturbation(direction, damping=10)
    fit = fitting(case(name, torch.float64), direction, damping=10)
    maker = {"kfac": kfac, "ekfac": ekfac}[direction](fit)
    inverses = {}
    for block in maker.blocks:
        damped = dense(block) + maker.damping * torch.eye(dense(block).shape[-1], dtype=torch.float64)
        inverses[block.part.key] = block.part, torch.linalg.inv(damped)

    def solve(gradient):
        found = {name: torch.full_like(tensor, float("nan")) for name, tensor in gradient.items()}
        for part, inverse in inverses.values():
            flat = part.of(gradient[part.name]).flatten(1)[..., None]
            span = slice(None) if part.span is None else slice(*part.span)
            found[part.name][span] = (inverse @ flat).reshape(found[part.name][span].shape)
        return found

    want = scores_by_hand(given, rule, solve)
    assert_close(values(attribute(given, perturbation=rule)), want, rtol=1e-3, why="a difference at ‖Δθ‖/‖θ‖ = 1e-6")


def test_a_finite_push_along_it_reaches_its_rise():
    given = case("cnn", torch.float64)
    scores = attribute(given, perturbation=fi.Perturbation("ekfac", rise=0.3, two_sided=True))
    assert set(scores.status) == {"ok"}
    assert scores.cost["fit_s"] > 0


def test_narrow_models_are_fitted_in_float32():
    given = case("cnn")
    given.model, given.train = Cnn(0.0).bfloat16(), (given.train[0].bfloat16(), given.train[1])
    blocks = ekfac_blocks(fitting(given, "ekfac"))
    assert {block.values.dtype for block in blocks} == {torch.float32}
    assert all(bool(torch.isfinite(block.values).all()) for block in blocks)
