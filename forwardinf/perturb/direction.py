"""From the query's gradient to the direction in which it moves the model.

A new direction is a file and an entry in ``registry.py``; one that has to be fitted first does so in its ``Maker``, which sees
the model and the training data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from forwardinf.core.progress import Setting
from forwardinf.core.settings import Perturbation
from forwardinf.perturb.budget import Budget
from forwardinf.perturb.parameters import Parameters
from forwardinf.tasks.feed import Feed

PIECE = 2**20  # numbers widened to float64 at a time: no second copy of a large tensor

Tensors = dict[str, Tensor]
Direction = Callable[[Tensors], Tensors]  # may work in place
Maker = Callable[["Fitting"], Direction]


@dataclass
class Fitting:
    """What a direction may learn from before any query is pushed.

    Attributes:
        perturbation: The settings (damping, Fisher type, how many examples, seed).
        train: Model, task and training data.
        parameters: Those that move.
        batch_size: Examples at a time that the model reads well.
        key: Digest of model, data and task, or None where a fit must not be kept.
        cache: Where fits are kept between calls, or None.
        progress: Whether long fits show a bar.
        notes: Takes what a person should know (parameters that a direction could only treat by the diagonal).
        witnesses: What a kept fit has to reproduce, once it is known (:mod:`forwardinf.perturb.reproduce`).
        budget: What a fit costs, once it is counted.
    """

    perturbation: Perturbation
    train: Feed
    parameters: Parameters
    batch_size: int
    key: str | None = None
    cache: Path | None = None
    progress: Setting = "auto"
    notes: list[str] = field(default_factory=list)
    witnesses: dict[tuple[object, ...], tuple[object, object]] = field(default_factory=dict)
    budget: Budget | None = None


def plain(gradient: Tensors) -> Tensors:
    """Return the gradient itself: P = I, the steepest way (Forward-INF with plain steps; TracIn's dot product)."""
    return gradient


def sign(gradient: Tensors) -> Tensors:
    """Return the gradient's sign, element by element: the first step of Adam, up to its ε."""
    return {name: tensor.sign_() for name, tensor in gradient.items()}


def make_plain(fitting: Fitting) -> Direction:
    """Return :func:`plain`, which learns nothing."""
    return plain


def make_sign(fitting: Fitting) -> Direction:
    """Return :func:`sign`, which learns nothing."""
    return sign


def norm(tensors: Tensors) -> float:
    """Return the Euclidean norm over all tensors, summed in float64."""
    return math.sqrt(
        sum(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors.values())
    )


def dot(one: Tensors, other: Tensors) -> float:
    """Return the inner product over the tensors that both have, summed in float64."""
    found = 0.0
    for name in one:
        if name in other:
            a, b = one[name].flatten(), other[name].flatten()
            for start in range(0, len(a), PIECE):
                part = slice(start, start + PIECE)
                found += float(torch.dot(a[part].double(), b[part].double()))
    return found
