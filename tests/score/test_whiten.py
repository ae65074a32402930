"""Whitening against dense algebra: P⁻¹ = GᵀG/N + λI formed and inverted."""

import pytest
import torch
from close import assert_close

from forwardinf.core.errors import DataError
from forwardinf.gradients.ridge import DAMPING
from forwardinf.score.whiten import whitened

WHY = "float64 solves"
DRAW = torch.Generator().manual_seed(0)
G, ASKED = (torch.randn(n, 9, dtype=torch.float64, generator=DRAW) for n in (20, 3))
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
    want = ASKED @ inverse(units, DAMPING if damping == "auto" else damping) @ G.T
    assert_close(whitened(ASKED @ G.T, damping=damping, temper=1.0, **given), want, rtol=1e-9, why=WHY)


@pytest.mark.parametrize("shape", [(3, 19), (20,), (20, 3)])
def test_scores_of_other_examples_are_refused(shape):
    with pytest.raises(DataError, match=r"\(Q, 20\)"):
        whitened(torch.zeros(shape), gram=G @ G.T)
