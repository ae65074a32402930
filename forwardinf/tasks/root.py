"""The root reading: losses on a scale on which well-fitted examples still speak.

A classifier's gradient is its residual r = 1 − p times the slope of its logits, and r = 1 − e^−ℓ. What a training example did to
the model it did while it was not yet fitted; at the end r has all but vanished, and with it the example's score. Read through
φ with φ′ = r^−½, gradients count by √r: φ(ℓ) = ℓ + 2 log(1 + √r), which is 2√ℓ for small losses and ℓ + 1.4 for large ones.
Measured against retraining it is better than the loss itself on every kind of data but wrong labels (docs/faithfulness.md).
"""

from __future__ import annotations

import torch
from torch import Tensor


def root(losses: Tensor) -> Tensor:
    """Return φ(ℓ), in √nats; rounding below 0 counts as 0.

    Example:
        >>> root(torch.tensor([0.0, 1e-4, 20.0]).double()).round(decimals=3).tolist()
        [0.0, 0.02, 21.386]
    """
    known = losses.clamp_min(0)
    return known + 2 * torch.log1p(_residual(known).sqrt())


def slope(losses: Tensor) -> Tensor:
    """Return φ′ = r^−½, r at least 2.2e-16: a loss that has rounded to 0 may still have a gradient.

    Example:
        >>> slope(torch.tensor([0.01, 20.0]).double()).round(decimals=3).tolist()
        [10.025, 1.0]
    """
    return _residual(losses.clamp_min(0)).clamp_min(torch.finfo(torch.float64).eps).rsqrt()


def _residual(losses: Tensor) -> Tensor:
    return -torch.expm1(-losses)
