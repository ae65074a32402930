"""What a kept fit must reproduce before it is believed: losses of a few training examples, and products of their gradients.

A fit is named by a digest of model, data and code, which cannot see everything that a loss depends on: a module that the task
imports, an attribute of an object's class, an environment variable, what a hook closes over. So a few numbers are
stored beside every fit, computed again before it is used, and must agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forwardinf.perturb.direction import Fitting, Tensors
from forwardinf.perturb.gradient import weighted_gradient
from forwardinf.tasks.feed import Feed

ROWS = 8  # training rows, spread evenly
AGAIN = 4  # times the difference between reading them together and alone
ROUNDING = 4  # times the root of a dtype's precision: gradients, relative to their size


@dataclass(frozen=True)
class Witness:
    """A few numbers that anything fitted to these gradients depends on.

    Attributes:
        losses: Of the rows, in order.
        noise: How far a loss moves when it is read alone.
        products: Of each parameter ⟨a, a⟩, ⟨a, b⟩, ⟨b, b⟩, where a and b are the gradients of every other row's loss.
        precision: Of the parameters' dtype.
    """

    losses: list[float]
    noise: float
    products: dict[str, list[float]]
    precision: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {"losses": self.losses, "noise": self.noise, "products": self.products}

    def agrees(self, kept: object) -> bool:
        """Return whether kept numbers are these, to rounding."""
        try:
            losses, noise, products = (kept[name] for name in ("losses", "noise", "products"))  # type: ignore[index]
            if len(losses) != len(self.losses) or products.keys() != self.products.keys():
                return False
            floor = AGAIN * max(float(noise), self.noise)
            same = all(_close(one, other, floor) for one, other in zip(losses, self.losses, strict=True))
            return same and all(self._same_products(products[name], own) for name, own in self.products.items())
        except (KeyError, TypeError, ValueError):
            return False

    def _same_products(self, kept: list[float], own: list[float]) -> bool:
        allowed = ROUNDING * math.sqrt(self.precision)
        (one, cross, other), (aa, ab, bb) = kept, own
        scale = math.sqrt(max(aa, one) * max(bb, other))
        return (
            abs(one - aa) <= allowed * max(aa, one)
            and abs(other - bb) <= allowed * max(bb, other)
            and abs(cross - ab) <= allowed * scale
        )


def witness(fitting: Fitting, feed: Feed, labels: str) -> Witness:
    """Return what a fit on this feed must reproduce. Cost, once a call: a few forwards of 8 rows, two backwards of 4.

    Args:
        fitting: Whose parameters count; keeps what was found.
        feed: The training data under the labels that are fitted on.
        labels: Which those are: fits under the same labels share a witness.
    """
    task = fitting.train.task  # kept beside the witness: its number stays its own
    key = (labels, id(task), fitting.perturbation.seed)
    if key not in fitting.witnesses:
        fitting.witnesses[key] = task, _made(fitting, feed)
    found = fitting.witnesses[key][1]
    assert isinstance(found, Witness)
    return found


def believed(fitting: Fitting, feed: Feed, labels: str, header: Mapping[str, Any]) -> bool:
    """Return whether what is kept under this header was made from the gradients that there are now."""
    return witness(fitting, feed, labels).agrees(header.get("witness"))


def _made(fitting: Fitting, feed: Feed) -> Witness:
    size = len(feed.examples)
    rows = sorted({round(place * (size - 1) / max(ROWS - 1, 1)) for place in range(ROWS)})
    losses, alone = feed.losses(rows, len(rows)), feed.losses(rows, 1)
    sides = [_gradient(fitting, feed, rows[start::2]) for start in (0, 1)]
    products = {
        name: [_dot(sides[a], sides[b], name) for a, b in ((0, 0), (0, 1), (1, 1))] for name in fitting.parameters
    }
    dtypes = [parameter.dtype for parameter in fitting.parameters.values() if parameter.dtype.is_floating_point]
    precision = max((torch.finfo(dtype).eps for dtype in dtypes), default=torch.finfo(torch.float32).eps)
    noise = float((losses - alone).abs().max()) if len(losses) else 0.0
    return Witness(losses.tolist(), noise, products, precision)


def _gradient(fitting: Fitting, feed: Feed, rows: list[int]) -> Tensors:
    weights = torch.ones(len(feed.examples.units_of(rows)))
    return weighted_gradient(feed, rows, weights, fitting.parameters, max(len(rows), 1))


def _dot(one: Tensors, other: Tensors, name: str) -> float:
    if name not in one or name not in other:
        return 0.0
    a, b = (_wide(side[name]) for side in (one, other))
    return float(torch.dot(a, b))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.flatten().double()


def _close(one: float, other: float, floor: float) -> bool:
    return one == other or abs(one - other) <= floor + 1e-5 * (1 + abs(other))
