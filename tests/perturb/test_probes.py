"""Shared probes: what perturbing along them would read is what projecting the factors gives; E[u uᵀ] = I."""

import pytest
import torch
from cases import case, crossed
from close import assert_close
from given import Strange, dense, feed
from torch import nn

from forwardinf.core.errors import SettingError
from forwardinf.gradients.per_example import factored
from forwardinf.perturb import probes as module
from forwardinf.perturb.parameters import select
from forwardinf.perturb.probes import Probes, hadamard, matrix, probe_responses, tables_of

SAME = "float64, the same sum in another order"


def directions(probes):
    """Return (M, P): the directions as one would perturb along them."""
    return torch.stack([
        torch.cat([u.double().flatten() for u in probes.direction(m).values()]) for m in range(probes.count)
    ])  # fmt: skip


def small(monkeypatch):
    """Make every shape meet every way of projecting, at sizes a test can afford."""
    monkeypatch.setattr(module, "FLAT_MATRIX", 100)
    monkeypatch.setattr(module, "FLAT_KERNEL", 100)
    monkeypatch.setattr(module, "WIDEST", 64)
    monkeypatch.setattr(module, "ENTRIES", 20_000)


@pytest.mark.parametrize(("name", "kind"), crossed(["structured", "gaussian"], unet=["structured"]))
def test_both_views_agree(name, kind, monkeypatch):
    small(monkeypatch)
    given = case(name, torch.float64)
    chosen = select(given.model, None)
    probes = Probes(chosen, 66, seed=3, kind=kind, tables=tables_of(given.model, chosen))
    got = [probes.responses(uses, len(units)) for units, _, uses in factored(feed(given), range(5), chosen, 3)]
    assert_close(torch.cat(got), dense(given, range(5)) @ directions(probes).T, rtol=1e-12, why=SAME)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["structured", "gaussian"])
def test_tables_tied_weights_groups_and_unknown_uses(kind, tied, monkeypatch):
    small(monkeypatch)
    given = Strange(tied)
    chosen = select(given.model, None)
    tables = tables_of(given.model, chosen)
    assert tables == (set() if tied else {"table.weight"})
    for told in (tables, set()):
        probes = Probes(chosen, 70, kind=kind, tables=told)
        got = probe_responses(feed(given), range(9), probes, 4)
        assert got.dtype == torch.float32
        assert_close(got, dense(given, range(9)) @ directions(probes).T, rtol=1e-6, why="kept in float32")


@pytest.mark.parametrize("count", [1, 5, 64, 130])
def test_any_number_of_probes(count, monkeypatch):
    small(monkeypatch)
    given = case("cnn", torch.float64)
    probes = Probes(select(given.model, None), count)
    got = probe_responses(feed(given), range(3), probes, 2)
    assert got.shape == (3, count)
    assert_close(got, dense(given, range(3)) @ directions(probes).T, rtol=1e-6, why="kept in float32")


def test_a_seed_is_a_seed_and_directions_do_not_depend_on_what_was_asked_before():
    parameters = select(case("cnn").model, None)
    one, same, other = (Probes(parameters, 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(directions(one)[5], torch.cat([u.double().flatten() for u in same.direction(5).values()]))
    assert not torch.equal(directions(one), directions(other))


@pytest.mark.parametrize("kind", ["structured", "gaussian"])
def test_the_mean_over_seeds_is_the_identity(kind, monkeypatch):
    small(monkeypatch)
    model = nn.Sequential(nn.Linear(12, 11), nn.Conv2d(2, 3, 3))  # 132 entries are factored, the rest is flat
    total = torch.zeros(200, 200, dtype=torch.float64)
    for seed in range(60):
        u = directions(Probes(select(model, None), 64, seed=seed, kind=kind))
        total += u.T @ u / len(u) / 60
    noise = 1 / (60 * 64) ** 0.5
    assert (total - torch.eye(200)).abs().max() < 6 * noise  # the largest of 40,000 entries


@pytest.mark.parametrize(("kind", "most"), [("structured", 1.6), ("gaussian", 1.4)])
def test_the_gram_matrix_is_estimated_as_well_as_independent_normal_draws_would(kind, most):
    """Relative error of ⟨gᵢ, gⱼ⟩ in units of √(2/M), what dense normal probes leave on the diagonal."""
    given = case("cnn", torch.float64)
    gradients = dense(given, range(20))
    gram = gradients @ gradients.T
    lengths = gram.diagonal().sqrt()
    errors = []
    for seed in range(5):
        r = probe_responses(feed(given), range(20), Probes(select(given.model, None), 256, seed=seed, kind=kind), 20)
        errors.append(((r.double() @ r.double().T / 256 - gram) / (lengths[:, None] * lengths)).square().mean())
    assert torch.stack(errors).mean().sqrt() < most * (2 / 256) ** 0.5


def test_the_transform_is_the_matrix(monkeypatch):
    x = torch.randn(3, 4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for width in (64, 128, 512):
        whole = matrix(width, torch.float64, torch.device("cpu"))
        assert torch.equal(whole @ whole.T, width * torch.eye(width, dtype=torch.float64))
        assert_close(hadamard(x, width), x @ whole[:50], rtol=1e-12, why=SAME)
        assert_close(hadamard(x[..., :3], width), x[..., :3] @ whole[:3], rtol=1e-12, why=SAME)


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingError, match="structured"):
        Probes({}, 4, kind="structure")
