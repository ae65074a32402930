"""Before the factored engine is used: does the model use its parameters only in ways whose gradients are known?

Seen on a few examples of the data, against autograd one example at a time. What is found here is also what an exact score's
noise floor is made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.errors import Error
from forwardinf.core.feed import Feed
from forwardinf.core.memory import out_of_memory
from forwardinf.core.watch import Parameters, watched
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.per_example import per_example_gradients

SAME = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative to an example's whole gradient
NARROW = 5e-2  # bfloat16 and float16: the activations themselves are rounded to eight bits
LOOKED_AT = 256  # rows whose losses are read to find the extreme ones
COMPARED = 8
ELEMENTS = 2**26  # gradients that are held at once, at most (and two examples in any case)
ROUNDINGS = 4
KINK = 1e-2  # how far one unit at its kink moves an example's gradient, at most: a batch may round it to the other side


@dataclass(frozen=True)
class Support:
    """What the check found.

    Attributes:
        reason: Why the factored engine cannot read this model, with the parameter's name; empty: it can.
        error: How far an example's gradient was off by rounding at most (an absolute length; not where a unit stands at its
            kink): times the length of a direction, the difference between two scores that means nothing.
    """

    reason: str = ""
    error: float = 0.0


def unsupported(feed: Feed, parameters: Parameters, rows: Sequence[int], batch_size: int = 16) -> Support:
    """Compare the factors' gradients with autograd's on a few rows: some spread evenly, some with the largest losses.

    ``batch_size`` rows at a time fit into memory.

    Cost: a forward of a few hundred rows, a backward of a few, one at a time. Memory: as many gradients as were compared.
    """
    if feed.examples.units != len(feed.examples):
        return Support("several documents in a row: their gradients cannot be told apart by rows")
    if len(rows) == 0:
        return Support("no rows to compare on")
    sample = _sample(feed, parameters, rows, batch_size)
    try:
        found = _watched(feed, parameters, sample, batch_size)
    except Error as error:
        return Support(str(error))
    except Exception as error:  # whatever a user's model does when it is watched
        if out_of_memory(error):
            return Support("not enough memory for a few gradients")
        return Support(f"the forward raises {type(error).__name__} when it is watched: {error}")
    gradients, strange = found
    if strange:
        name, function = next(iter(strange.items()))
        return Support(f"parameter {name} is used by {function}(), whose per-example gradient is not known")
    return _compared(feed, parameters, sample, gradients, batch_size)


def _sample(feed: Feed, parameters: Parameters, rows: Sequence[int], batch_size: int) -> list[int]:
    looked = [rows[place] for place in _spread(len(rows), min(LOOKED_AT, 8 + len(rows) // 50))]
    losses = feed.losses(looked, batch_size)
    elements = sum(parameter.numel() for parameter in parameters.values())
    count = max(2, min(COMPARED, ELEMENTS // max(elements, 1)))
    large = losses.argsort(descending=True)[: count // 2].tolist()
    return sorted({looked[place] for place in (*large, *_spread(len(looked), count - count // 2))})


def _spread(size: int, count: int) -> list[int]:
    count = min(size, count)
    return [place * size // count for place in range(count)]


def _watched(
    feed: Feed, parameters: Parameters, sample: list[int], batch_size: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    place = {row: at for at, row in enumerate(sample)}
    total: dict[str, Tensor] = {}
    unknown: dict[str, str] = {}
    for piece, _, uses, strange in watched(feed, sample, parameters, batch_size):
        unknown |= strange
        at = [place[row] for row in piece]
        while uses and not unknown:
            use = uses.pop()
            gradient = use.gradient()
            wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            if use.name not in total:
                total[use.name] = wide.new_zeros(len(sample), *use.shape)
            total[use.name][at] += wide
    return total, unknown


def _compared(
    feed: Feed, parameters: Parameters, sample: list[int], found: dict[str, Tensor], batch_size: int
) -> Support:
    engine = FactoredEngine(feed, parameters, batch_size)
    tolerance = max(SAME.get(parameter.dtype, NARROW) for parameter in parameters.values())
    own, worst, largest = engine.directions(len(sample)), 0.0, 0.0
    gram, kinked = torch.zeros(len(sample), dtype=torch.float64), torch.zeros(len(sample), dtype=torch.bool)
    try:
        for at, (gradient, _) in enumerate(per_example_gradients(feed, sample, parameters)):
            size = sum(float(tensor.double().square().sum()) for tensor in gradient.values()) ** 0.5
            apart = {name: _apart(found, gradient, name, at) for name in parameters}
            off = _whole(apart)
            kinked[at] = tolerance * size < off <= KINK * size
            if kinked[at]:
                alone, _ = _watched(feed, parameters, [sample[at]], 1)  # rounded as autograd's own was: same side
                apart = {name: _apart(alone, gradient, name, 0) for name in parameters}
                off = _whole(apart)
            if not off <= tolerance * size:
                name = max(apart, key=lambda key: apart[key])
                share = off / size if size else float("inf")
                return Support(f"parameter {name}: gradients by its uses differ from autograd's by {share:.1g} of the whole "
                               f"(row {sample[at]})")  # fmt: skip
            own.put(at, gradient)
            gram[at] = size**2
            worst, largest = max(worst, off), max(largest, size)
    except RuntimeError as error:
        if out_of_memory(error):
            return Support("not enough memory for a few gradients")
        return Support(f"autograd has no gradient of one example's loss: {error}")
    if int(kinked.sum()) > len(sample) // 4:  # a kink is rare: this is the examples of a batch seeing one another
        return Support("gradients in a batch differ from those of single examples")
    if not largest:
        return Support("no gradient reaches the parameters that move")
    squares = engine.read(own, sample).diagonal()  # the whole way, products and all
    if not bool(((squares - gram).abs()[~kinked] <= 4 * tolerance * largest**2).all()):
        return Support("products with gradients differ from autograd's on this machine")
    return Support("", worst + ROUNDINGS * torch.finfo(engine.products.dtype).eps * largest)


def _whole(apart: dict[str, float]) -> float:
    return math.hypot(*apart.values())


def _apart(found: dict[str, Tensor], gradient: dict[str, Tensor], name: str, at: int) -> float:
    """Return how far two gradients of one parameter are apart; one that is absent is zero."""
    if name not in found:
        return float(gradient[name].double().norm()) if name in gradient else 0.0
    ours = found[name][at]
    return float((ours - gradient[name]).double().norm()) if name in gradient else float(ours.double().norm())
