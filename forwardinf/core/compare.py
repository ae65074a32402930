"""How far two gradients of one example may be apart, and how far they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.recording import Parameters
from forwardinf.core.uses import Use

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Tolerance:
    """How far two gradients of one example may be apart.

    Attributes:
        whole: As a share of the example's whole gradient: rounding adds up over layers.
        own: As a share of the parameter's, beside ``rest`` of the whole: a small parameter must not be wrong unseen.
        rest: See ``own``.
    """

    whole: float
    own: float
    rest: float


WIDE = Tolerance(1e-9, 1e-6, 1e-11)
SINGLE = Tolerance(1e-4, 1e-2, 1e-5)
NARROW = Tolerance(5e-2, 2e-1, 2e-2)  # eight bits of mantissa, rounded at every layer


def tolerance_of(parameters: Parameters, element_size: int) -> Tolerance:
    """Return the tolerance of gradients computed in these parameters' dtype, ``element_size`` bytes at the narrowest."""
    least = min(element_size, *(parameter.element_size() for parameter in parameters.values()))
    return NARROW if least < 4 else SINGLE if least < 8 else WIDE


def distances(uses: Sequence[Use], whole: Tensors) -> dict[str, float]:
    """Return, by parameter, how far the gradient by uses of one example is from autograd's; one that is absent is zero."""
    found: Tensors = {}
    for use in uses:
        own = use.gradient()[0]
        own = own if own.element_size() >= 4 else own.float()
        found[use.name] = found[use.name] + own if use.name in found else own
    apart = {name: tensor - whole[name] if name in whole else tensor for name, tensor in found.items()}
    return lengths({**{name: tensor for name, tensor in whole.items() if name not in apart}, **apart})


def lengths(tensors: Tensors) -> dict[str, float]:
    """Return the Euclidean norm of each tensor, to a few digits: that is all a tolerance asks for."""
    wide = {name: each if each.element_size() >= 4 else each.float() for name, each in tensors.items()}
    return {name: float(torch.linalg.vector_norm(each)) for name, each in wide.items()}


def total(norms: Mapping[str, float]) -> float:
    """Return the norm of several tensors together."""
    return math.hypot(*norms.values())


def wrong_alone(apart: Mapping[str, float], own: Mapping[str, float], tolerance: Tolerance) -> frozenset[str]:
    """Return parameters that are wrong by their own measure: of how far they are ``apart``, and how long they are."""
    rest = tolerance.rest * total(own)
    return frozenset(name for name, off in apart.items() if not off <= tolerance.own * own.get(name, 0.0) + rest)
