"""Inner products of per-example gradients with one vector, from the factors of a recorded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from forwardinf.gradients.layer_uses import Lookup, Outer, Use


def dots(uses: Sequence[Use], vector: Mapping[str, Tensor], size: int) -> Tensor:
    """Return gᵢᵀv of ``size`` examples, ``(B,)`` float64 on the CPU; what ``vector`` leaves out counts as zero."""
    found = torch.zeros(size, dtype=torch.float64)
    for use in uses:
        if use.name in vector:
            found += _dot(use, vector[use.name]).double().cpu()
    return found


def _dot(use: Use, v: Tensor) -> Tensor:
    if isinstance(use, Outer):
        a, d = use.factors()
        v = v.reshape(use.matrix)
        v = (v.T if use.turned else v).to(d.dtype)
        return ((d @ (v if use.rows is None else v[use.rows])) * a).sum((1, 2))
    if isinstance(use, Lookup):
        index, d = use.factors()
        return (v.to(d.dtype)[index] * d).sum((1, 2))
    gradient = use.flat()
    return gradient @ v.to(gradient.dtype).flatten()
