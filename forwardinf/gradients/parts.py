"""A model's parameters as matrices: what each part's per-example gradient is made of, whatever layer used it.

Every kind of layer comes down to a sum of outer products G = Σₜ lₜ rₜᵀ in the parameter's own coordinates: rows are
output channels, tokens of a table, or (one row) the numbers of a bias. Curvature is fitted on these matrices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from forwardinf.gradients.layer_uses import Convolved, Direct, Lookup, Outer, Use


@dataclass(frozen=True)
class Part:
    """One parameter, or some rows of it, as ``groups`` matrices ``(rows, columns)``.

    Attributes:
        name: The parameter's name.
        shape: (groups, rows, columns): groups of a convolution; a bias is one row.
        span: The rows of the parameter that this part holds, or None for all (fused attention projects by thirds).
    """

    name: str
    shape: tuple[int, int, int]
    span: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """What the part's numbers are filed under."""
        return self.name if self.span is None else f"{self.name}[{self.span[0]}:{self.span[1]}]"

    def of(self, whole: Tensor) -> Tensor:
        """Return this part of a tensor of the parameter's shape, as matrices."""
        return (whole if self.span is None else whole[slice(*self.span)]).reshape(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Part:
        """Undo :meth:`to_dict`."""
        return cls(kept["name"], tuple(kept["shape"]), None if kept["span"] is None else tuple(kept["span"]))


def part_of(use: Use) -> Part:
    """Return the part that a use belongs to."""
    if isinstance(use, Outer):
        rows, columns = use.matrix
        if use.rows is None:
            return Part(use.name, (1, rows, columns))
        start, stop, _ = use.rows.indices(rows)
        return Part(use.name, (1, stop - start, columns), (start, stop))
    if isinstance(use, Convolved):
        groups = int(use.settings["groups"])
        return Part(use.name, (groups, use.shape[0] // groups, use.shape[1:].numel()))
    if isinstance(use, Lookup):
        return Part(use.name, (1, use.shape[0], use.shape[1]))
    return Part(use.name, (1, 1, use.shape.numel()))


def sorted_uses(uses: Iterable[Use]) -> tuple[dict[str, tuple[Part, list[Use]]], dict[str, str]]:
    """Return (uses by part, parameters whose uses do not go together in one matrix and why)."""
    found: dict[str, tuple[Part, list[Use]]] = {}
    for use in uses:
        part = part_of(use)
        found.setdefault(part.key, (part, []))[1].append(use)
    odd: dict[str, str] = {}
    spans: dict[str, set[tuple[int, int] | None]] = {}
    for key, (part, members) in found.items():
        if any(part_of(use) != part for use in members) or len({isinstance(use, Direct) for use in members}) > 1:
            odd[part.name] = "used in several ways"
        spans.setdefault(found[key][0].name, set()).add(part.span)
    for name, cuts in spans.items():
        whole = sorted(cut for cut in cuts if cut is not None)
        overlap = any(after[0] < before[1] for before, after in pairwise(whole))
        if overlap or (None in cuts and whole):
            odd[name] = "used whole and in parts"
    return {key: pair for key, pair in found.items() if pair[0].name not in odd}, odd


def sides(use: Use) -> tuple[Tensor, Tensor]:
    """Return (l, r), ``(groups, B, T, rows)`` and ``(groups, B, T, columns)``, of a matrix use: G = Σₜ lₜ rₜᵀ."""
    if isinstance(use, Convolved):
        a, d = use.factors()
        return wide(d.transpose(0, 1)), wide(a.transpose(0, 1))
    assert isinstance(use, Outer)
    a, d = use.factors()
    left, right = (a, d) if use.turned else (d, a)
    return wide(left.unsqueeze(0)), wide(right.unsqueeze(0))


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
