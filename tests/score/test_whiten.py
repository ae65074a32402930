"""Whitening against dense algebra: P⁻¹ = GᵀG/N + λI formed and inverted."""

import pytest
import torch
from close import assert_close

from forwardinf.core.errors import DataError
from forwardinf.core.ridge import DAMPING, Ridge
from forwardinf.score.whiten import hold_linear, whitened

WHY = "float64 solves"
DRAW = torch.Generator().manual_seed(0)
G, ASKED, LOSSES = (torch.randn(n, 9, dtype=torch.float64, generator=DRAW) for n in (20, 3, 3))
G = G * torch.rand(20, 1, dtype=torch.float64, generator=DRAW)


def inverse(gradients, damping):
    n = len(gradients)
    weight = damping * gradients.square().sum(1).mean() / n
    return torch.linalg.inv(gradients.T @ gradients / n + weight * torch.eye(9, dtype=torch.float64))


@pytest.mark.parametrize("damping", [0.1, 3.0, "auto"])
@pytest.mark.parametrize("form", ["gram", "responses"])
def test_whitened_scores_are_those_of_the_preconditioned_gradient(form, damping):
    given = {"gram": G @ G.T} if form == "gram" else {"responses": G}
    want = ASKED @ inverse(G, DAMPING if damping == "auto" else damping) @ G.T
    assert_close(whitened(ASKED @ G.T, damping=damping, **given), want, rtol=1e-9, why=WHY)
    units = G / G.norm(dim=1, keepdim=True)
    want = ASKED @ inverse(units, DAMPING if damping == "auto" else damping) @ units.T
    assert_close(whitened(ASKED @ G.T, damping=damping, unit=True, **given), want, rtol=1e-9, why=WHY)


def test_a_query_asked_something_else_than_its_loss():
    """rise goes with what is asked, cross and values with what is read."""
    for unit in (False, True):
        held = G / G.norm(dim=1, keepdim=True) if unit else G
        scale = ASKED.norm(dim=1) if unit else torch.ones(3, dtype=torch.float64)
        p, ridge = inverse(held, 0.5), Ridge(G @ G.T, damping=0.5, unit=unit)
        got = hold_linear(ridge, ASKED @ G.T, ASKED.square().sum(1), ASKED @ LOSSES.T, LOSSES @ G.T)
        assert_close(got.values, (ASKED @ p @ held.T) / scale[:, None], rtol=1e-9, why=WHY)
        assert_close(got.cross, (ASKED @ p @ LOSSES.T) / scale[:, None], rtol=1e-9, why=WHY)
        assert_close(got.rise, (ASKED @ p @ ASKED.T).diagonal() / scale**2, rtol=1e-9, why=WHY)


@pytest.mark.parametrize("unit", [False, True])
def test_a_copy_of_the_query_has_share_one(unit):
    found = hold_linear(Ridge(G @ G.T, unit=unit), G[:3] @ G.T, G[:3].square().sum(1), G[:3] @ G[:3].T)
    assert_close(found.values[:, :3].diagonal(), found.rise, rtol=1e-9, why=WHY)
    assert_close(found.cross.diagonal(), found.rise, rtol=1e-9, why=WHY)


@pytest.mark.parametrize("shape", [(3, 19), (20,), (20, 3)])
def test_scores_of_other_examples_are_refused(shape):
    with pytest.raises(DataError, match=r"\(Q, 20\)"):
        whitened(torch.zeros(shape), gram=G @ G.T)
