"""Comparisons that assert by themselves: the worst entry, and the reason why the tolerance is what it is."""

import numpy as np
import torch


def assert_close(got, want, *, rtol, why):
    """Fail where ``got`` is further from ``want`` than ``rtol`` of the largest entry of ``want``."""
    got, want = _plain(got), _plain(want)
    _comparable(got, want, why)
    scale = want.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    _judge((got - want).abs() / scale, rtol, got, want, f"of the largest entry > {rtol:.0e} ({why})")


def assert_within(got, want, *, atol, why):
    """Fail where ``got`` is further from ``want`` than ``atol``, in their own unit (a number, or one for each row)."""
    got, want = _plain(got), _plain(want)
    _comparable(got, want, why)
    room = _plain(atol)
    assert bool((room > 0).all()), "a tolerance must be positive"
    error = (got - want).abs() / (room if room.ndim == 0 else room.reshape(-1, *[1] * (got.ndim - 1)))
    _judge(error, 1.0, got, want, f"times what is allowed ({why})")


def _comparable(got, want, why):
    assert why, "a tolerance comes with its reason"
    assert got.shape == want.shape, f"shape {tuple(got.shape)} != {tuple(want.shape)}"
    assert got.numel() > 0, "comparing nothing proves nothing"


def _judge(error, limit, got, want, told):
    worst = int(torch.nan_to_num(error, nan=float("inf")).argmax())
    assert float(error.flatten()[worst]) <= limit, (  # NaN is not <= anything
        f"worst at {worst} of {tuple(got.shape)}: got {got.flatten()[worst]:.6e}, want {want.flatten()[worst]:.6e}, "
        f"error {float(error.flatten()[worst]):.1e} {told}"
    )


def _plain(value):
    if not isinstance(value, torch.Tensor):
        value = torch.from_numpy(np.array(value, dtype=np.float64))
    return value.detach().double().cpu()
