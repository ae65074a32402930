"""How far two gradients of one example may be apart, and how far they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.errors import NoiseError
from forwardinf.gradients.layer_uses import Use
from forwardinf.gradients.recording import Parameters
from forwardinf.tasks.feed import Feed

Tensors = dict[str, Tensor]
PRIMES = (7, 5, 11, 3, 2)  # examples of the batch that is checked: one that divides no other axis
MIXED = ("The loss depends on the rest of the batch (mixing in the collate, batch statistics, a loss normalised over the batch, "
         "padding that is not masked): make it per example.")  # fmt: skip
COMPANY = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 2e-1, torch.float16: 1e-1}


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


def spread(rows: Sequence[int], count: int) -> list[int]:
    """Return so many rows, evenly spread."""
    count = min(len(rows), count)
    return [rows[place * len(rows) // count] for place in range(count)]


def counts(parameters: Parameters, most: int) -> list[int]:
    """Return numbers of examples to try, those first that divide no side of a parameter."""
    sides = {side for parameter in parameters.values() for side in parameter.shape}
    fitting = [count for count in PRIMES if count <= most]
    return sorted(fitting, key=lambda count: any(side % count == 0 for side in sides))


def same_company(feed: Feed, row: int, together: float, alone: float, parameters: Parameters) -> None:
    """Refuse a loss that depends on the rest of the batch: its gradient belongs to no example."""
    dtype = next(iter(parameters.values())).dtype
    if abs(together - alone) > COMPANY.get(dtype, 2e-1) * (1 + abs(alone)):
        raise NoiseError(
            f"row {row} read alone and among others", expected="losses that belong to the example",
            got=f"{alone:.6g} and {together:.6g}",
            do=MIXED,
        )  # fmt: skip
