"""HyperINF's Fisher against its dense formula, one gradient at a time; Schulz against Cholesky."""

import pytest
import torch
from cases import NAMES, attribute, case
from close import assert_close
from curvature import OWN, Given, fitting, matrix, one_by_one, scores_by_hand, values
from torch import nn

import forwardinf as fi
from forwardinf.core.errors import ModelError
from forwardinf.perturb import gfim as module
from forwardinf.perturb.blocks import mean_diagonal
from forwardinf.perturb.gfim import Slices, gfim, gfim_blocks
from forwardinf.perturb.schulz import schulz

DRAW = torch.Generator().manual_seed(0)


def dense(part, gradients, side):
    """Return I ⊗ E[GᵀG]/r as a matrix over the part's numbers (one group), from gradients one at a time."""
    rows, columns = part.shape[1:]
    g = [part.of(gradient[part.name])[0] for gradient in gradients]
    if side == "columns":
        return torch.kron(torch.eye(rows).double(), sum(one.T @ one for one in g) / len(g) / rows)
    return torch.kron(sum(one @ one.T for one in g) / len(g) / columns, torch.eye(columns).double())


@pytest.mark.parametrize("name", NAMES[:3])
def test_every_weight_has_the_dense_formula(name):
    fit = fitting(name, "gfim", fisher="empirical")
    gradients, blocks = one_by_one(fit), gfim_blocks(fit)
    assert {block.part.name for block in blocks} == set(fit.parameters)
    seen = set()
    for block in blocks:
        draw = torch.randn(block.part.shape, dtype=torch.float64, generator=DRAW)
        if isinstance(block, Slices):
            seen.add(block.side)
            assert block.part.shape[0] == 1
            full = dense(block.part, gradients, block.side)
        else:
            full = torch.diag(matrix(gradients, block.part.name).square().mean(0))
        scale = float(full.diagonal().mean())
        want = torch.linalg.solve(full + scale * torch.eye(len(full), dtype=torch.float64), draw.flatten())
        assert_close(block.solve(draw, scale).flatten(), want, rtol=1e-9, why=OWN)
    assert "columns" in seen
    assert {block.part.name for block in blocks if not isinstance(block, Slices)} == {
        n for n, p in fit.parameters.items() if p.ndim == 1 or n in ("tokens.weight", "places.weight")
    }, "vectors and tables"
    mean = sum(matrix(gradients, n).square().sum() for n in fit.parameters) / len(gradients)
    mean = mean / sum(p.numel() for p in fit.parameters.values())
    assert_close(mean_diagonal(blocks, fit.parameters), float(mean), rtol=1e-9, why="1/r keeps the trace, E‖G‖²")


def test_what_has_the_diagonal_alone_is_named():
    fit = fitting("transformer", "gfim")
    gfim_blocks(fit)
    assert fit.notes == ["gfim: curvature by the diagonal only: places.weight, tokens.weight"]
    fit = fitting("cnn", "gfim")
    gfim_blocks(fit)
    assert fit.notes == [], "vectors have nothing else"


def test_an_adapter_of_low_rank_is_inverted_on_its_long_side():
    """A is r×in, B is out×r: HyperINF turns B over, so that r counts slices in both."""
    model = nn.Sequential(nn.Linear(7, 2, bias=False), nn.Linear(2, 9, bias=False))
    given = Given(model, (torch.randn(12, 7, generator=DRAW).double(), torch.arange(12) % 9))
    blocks = {block.part.name: block for block in gfim_blocks(fitting(given, "gfim"))}
    assert (blocks["0.weight"].side, blocks["0.weight"].gram.shape) == ("columns", (1, 7, 7))
    assert (blocks["1.weight"].side, blocks["1.weight"].gram.shape) == ("rows", (1, 9, 9))


def test_groups_of_a_convolution_are_apart_and_large_sides_give_way(monkeypatch):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5, bias=False))
    given = Given(model, (torch.randn(11, 4, 4, 4, generator=DRAW).double(), torch.arange(11) % 5))
    fit = fitting(given, "gfim", fisher="empirical")
    (block,) = (block for block in gfim_blocks(fit) if block.part.name == "0.weight")
    g = torch.stack([block.part.of(gradient["0.weight"]) for gradient in one_by_one(fit)])  # (N, groups, rows, columns)
    assert_close(block.gram, torch.einsum("ngri,ngrj->gij", g, g) / len(g) / 3, rtol=1e-9, why=OWN)
    monkeypatch.setattr(module, "LARGEST_SIDE", 10)
    kinds = {block.part.name: getattr(block, "side", "diagonal") for block in gfim_blocks(fit)}
    assert kinds == {"0.weight": "rows", "0.bias": "diagonal", "2.weight": "rows"}
    monkeypatch.setattr(module, "LARGEST_SIDE", 4)
    assert getattr(gfim_blocks(fit)[-1], "side", "diagonal") == "diagonal"
    assert any("2.weight" in note for note in fit.notes)


WAYS = {  # what decides how GᵀG is taken: pictures of which size, how many channels, how many examples
    "few vectors": (3, 12, 9), "vectors that become too many": (3, 2, 40), "fewer places than rows": (4, 12, 9),
    "more places than rows": (8, 3, 9),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_the_product_of_gradients_gives_the_dense_one(way):
    size, channels, count = WAYS[way]
    model = nn.Sequential(
        nn.Conv2d(2, channels, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)
    )
    given = Given(model, (torch.randn(count, 2, size, size, generator=DRAW).double(), torch.arange(count) % 3))
    fit = fitting(given, "gfim", fisher="empirical")
    (block,) = (block for block in gfim_blocks(fit) if block.part.name == "0.weight")
    assert block.few == (way == "few vectors")
    gradients = one_by_one(fit)
    full = dense(block.part, gradients, block.side)
    g = torch.randn(block.part.shape, dtype=torch.float64, generator=DRAW)
    want = torch.linalg.solve(full + 0.1 * torch.eye(len(full), dtype=torch.float64), g.flatten())
    assert_close(block.solve(g, 0.1).flatten(), want, rtol=1e-9, why=OWN)
    other = Slices(block.part, block.kept, block.side, "schulz", few=block.few)
    assert_close(other.solve(g, 0.1), block.solve(g, 0.1), rtol=1e-5, why="the iteration ends at 1e-8")
    assert_close(block.trace(), float(full.trace()), rtol=1e-9, why=OWN)


@pytest.mark.parametrize("damping", [0.03, 30])
def test_schulz_agrees_with_cholesky(damping):
    directions = [gfim(fitting("resnet", "gfim", damping=damping), inverse) for inverse in ("cholesky", "schulz")]
    gradient = one_by_one(fitting("resnet"))[0]
    one, other = (direction({n: t.clone() for n, t in gradient.items()}) for direction in directions)
    for name in one:
        assert_close(one[name], other[name], rtol=1e-5, why="the iteration ends at ‖I − AX‖/√d = 1e-8")


def hard(size=30, condition=1e4):
    turn = torch.linalg.qr(torch.randn(size, size, generator=DRAW).double())[0]
    return turn @ torch.diag(torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), size).double()) @ turn.T


def test_schulz_ends_where_it_says_and_refuses_where_it_would_not():
    a = hard()
    assert_close(schulz(a), torch.linalg.inv(a), rtol=1e-6, why="condition 1e4, ‖I − AX‖/√d ≤ 1e-8")
    assert_close(schulz(a * 1e6), torch.linalg.inv(a) / 1e6, rtol=1e-6, why="whatever the scale")
    with pytest.raises(ModelError, match="diverges"):
        schulz(a, start=2.1)  # I − AX₀ has an eigenvalue of −1.1
    with pytest.raises(ModelError, match="in 5 steps"):
        schulz(a, most=5)  # another, stronger damping: HyperINF's 15 steps from 5e-5
    with pytest.raises(ModelError, match="diverges"):
        schulz(a * float("nan"))


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_linear_scores_are_those_of_a_dense_matrix(name):
    given, rule = case(name, torch.float64), fi.Perturbation("gfim")
    fit = fitting(case(name, torch.float64), "gfim")
    direction = gfim(fit)
    gradients = one_by_one(fit)
    full = {}
    for block in direction.blocks:
        if isinstance(block, Slices):
            full[block.part] = dense(block.part, gradients, block.side)
        else:
            full[block.part] = torch.diag(matrix(gradients, block.part.name).square().mean(0))

    def solve(g):
        found = {}
        for part, whole in full.items():
            damped = whole + direction.damping * torch.eye(len(whole), dtype=torch.float64)
            found.setdefault(part.name, []).append(torch.linalg.solve(damped, part.of(g[part.name]).flatten()))
        return {n: torch.cat(pieces).view(g[n].shape) for n, pieces in found.items()}

    want = scores_by_hand(given, rule, solve)
    assert_close(
        values(attribute(given, perturbation=rule)), want, rtol=1e-3, why="a difference at 1e-6 against a rate"
    )


def test_a_second_call_recalls_the_fit(tmp_path):
    one, other = (gfim_blocks(fitting("cnn", "gfim", key="a", cache=tmp_path)) for _ in range(2))
    assert len(list((tmp_path / "fits").glob("*.safetensors"))) == 1
    assert all(torch.equal(a.gram, b.gram) for a, b in zip(one, other, strict=True) if isinstance(a, Slices))
