"""From the query's gradient to the direction in which it moves the model.

A new direction is a name in ``core/settings.py`` and an entry here; one that has to be fitted first does so in its
``Maker``, which sees the model and the training data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from forwardinf.core.feed import Feed
from forwardinf.core.settings import Perturbation

Tensors = dict[str, Tensor]
Direction = Callable[[Tensors], Tensors]  # may work in place
Maker = Callable[[Perturbation, Feed], Direction]


def plain(gradient: Tensors) -> Tensors:
    """Return the gradient itself: P = I, the steepest way (Forward-INF with plain steps; TracIn's dot product)."""
    return gradient


def sign(gradient: Tensors) -> Tensors:
    """Return the gradient's sign, element by element: the first step of Adam, up to its ε (SYSTEMS §2.3)."""
    return {name: tensor.sign_() for name, tensor in gradient.items()}


MAKERS: dict[str, Maker] = {
    "plain": lambda perturbation, train: plain,
    "sign": lambda perturbation, train: sign,
}


def make_direction(perturbation: Perturbation, train: Feed) -> Direction:
    """Return the direction that the setting names, fitted on the training data where it needs that."""
    return MAKERS[perturbation.direction](perturbation, train)


def norm(tensors: Tensors) -> float:
    """Return the Euclidean norm over all tensors, summed in float64."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def dot(one: Tensors, other: Tensors) -> float:
    """Return the inner product over the tensors that both have, summed in float64."""
    return sum(float((one[name].double() * other[name].double()).sum()) for name in one if name in other)
