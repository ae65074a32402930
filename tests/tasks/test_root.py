"""The root reading against its definition: φ′ = r^−½ with r = 1 − e^−ℓ, φ(0) = 0."""

import numpy as np
import torch
from close import assert_close

from forwardinf.tasks.root import root, slope

LOSSES = torch.tensor(np.logspace(-12, 2, 40))


def test_the_slope_is_one_over_the_root_of_the_residual():
    assert_close(slope(LOSSES), (1 - np.exp(-LOSSES.numpy().astype(np.longdouble))).astype(float) ** -0.5, rtol=1e-4,
                 why="1 − e^−ℓ by itself loses digits at 1e-12")  # fmt: skip


def test_the_root_is_the_integral_of_its_slope():
    losses = LOSSES.clone().requires_grad_()
    root(losses).sum().backward()
    assert_close(losses.grad, slope(LOSSES), rtol=1e-9, why="autograd, float64")
    assert root(torch.zeros(1)).item() == 0


def test_small_losses_count_by_their_square_root_and_large_ones_as_they_are():
    assert_close(root(LOSSES[:10]), 2 * LOSSES[:10].sqrt(), rtol=1e-6, why="up to 3e-9: the next term is ℓ^1.5 / 6")
    assert_close(root(torch.tensor([40.0, 41.0]).double()).diff(), torch.ones(1), rtol=1e-12, why="e^−40 is nothing")


def test_a_loss_that_rounded_to_zero_has_the_slope_of_the_smallest_one_and_below_zero_is_zero():
    smallest = torch.finfo(torch.float64).eps ** -0.5
    assert slope(torch.tensor([0.0, -1e-17]).double()).tolist() == [smallest, smallest]
    assert root(torch.tensor([-1e-17])).item() == 0
