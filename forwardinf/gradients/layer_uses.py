"""Every use of a parameter in one forward pass, as each example's gradient sees it.

A training example's gradient of a weight is a sum of outer products of what went into the layer and what came back at
its output; of a bias, the sum of what came back. Keeping those factors (the activations of one forward and the output
gradients of one activation-only backward) stands for all per-example gradients at once, and takes their memory only
where they are formed. Curvature is fitted from the factors, and exact linear scores are read from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forwardinf.gradients.layouts import Layout


@dataclass
class Use:
    """One use of one parameter: ``name``, its shape, the number of the call, and what the backward brings.

    Attributes:
        name: The parameter's name.
        shape: Its shape.
        call: Which function call it was: the weight and the bias of one layer share it.
        back: ``(B, …)``: the gradient of the summed losses at the call's output, examples first; None before the backward.
    """

    name: str
    shape: torch.Size
    call: int
    back: Tensor | None = field(default=None, init=False)

    def gradient(self) -> Tensor:
        """Return each example's gradient of the parameter through this use, ``(B, *shape)``."""
        raise NotImplementedError

    def take(self, d: Tensor, layout: Layout, size: int) -> None:
        """Take what came back to the call's output, laid out as that is."""
        self.back = layout.examples_first(d, size)

    def flat(self) -> Tensor:
        """Return the same as ``(B, entries)``, of a single number too."""
        found = self.gradient()
        return found.reshape(len(found), self.shape.numel())

    def part(self, start: int, stop: int) -> Use:
        """Return this use by examples ``start`` to ``stop`` of the batch alone."""
        fields = {name: getattr(self, name)[start:stop] for name in ("entered", "index") if hasattr(self, name)}
        taken = replace(self, **fields)
        taken.back = self.came_back[start:stop]
        return taken

    @property
    def matrix(self) -> tuple[int, int]:
        """The parameter's shape as one matrix: rows are outputs, columns all that each of them is made of."""
        return self.shape[0], self.shape[1:].numel()

    @property
    def came_back(self) -> Tensor:
        """What the backward brought; zeros cannot be told from absence, so absence is an error of ours."""
        assert self.back is not None, f"no gradient came back to {self.name}"
        return self.back


@dataclass
class Outer(Use):
    """A matrix times vectors: the gradient is Σₜ dₜ aₜᵀ.

    Attributes:
        entered: ``(B, T, in)``: a.
        turned: The parameter is ``(in, out)``, not ``(out, in)``. A kernel of more axes, whose patches are vectors, is
            ``(out, in)`` as :attr:`matrix` has it.
        rows: The part of the parameter's output rows that this call used, or None for all.
    """

    entered: Tensor
    turned: bool = False
    rows: slice | None = None

    def take(self, d: Tensor, layout: Layout, size: int) -> None:
        """Take what came back, as vectors."""
        self.back = layout.places(d, size)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (a, d), ``(B, T, in)`` and ``(B, T, out)``."""
        return self.entered, self.came_back

    def gradient(self) -> Tensor:
        """Return Σₜ dₜ aₜᵀ, ``(B, *shape)``."""
        a, d = self.factors()
        found = torch.einsum("bti,bto->bio", a, d) if self.turned else torch.einsum("bto,bti->boi", d, a)
        if self.rows is None:
            return found.reshape(len(a), *self.shape)
        whole = found.new_zeros(len(a), *self.shape)
        whole[:, self.rows] = found
        return whole


@dataclass
class Patches(Outer):
    """A convolution of several pictures an example: a matrix times the patches of all of them."""

    def take(self, d: Tensor, layout: Layout, size: int) -> None:
        """Take what came back, ``(pictures, out, …)``."""
        self.back = layout.places(d.flatten(2).transpose(1, 2), size)


@dataclass
class Convolved(Use):
    """A convolution of one picture an example: an outer product over patches.

    Attributes:
        entered: ``(B, channels, …)``.
        settings: stride, padding, dilation, groups.
    """

    entered: Tensor
    settings: dict[str, Any]

    def take(self, d: Tensor, layout: Layout, size: int) -> None:
        """Take what came back, ``(B, out, …)``."""
        self.back = d

    def patches(self) -> Tensor:
        """Return the patches that the kernel saw, ``(B, groups, places, channels per group × kernel)``."""
        x, kernel = self.entered, self.shape[2:]
        groups = self.settings["groups"]
        for _ in range(2 - len(kernel)):  # one-dimensional: a second axis of one
            x, kernel = x.unsqueeze(2), torch.Size([1, *kernel])
        options = {name: _pair(self.settings[name], len(self.shape) - 2) for name in ("stride", "dilation")}
        before, after = _padding(self.settings["padding"], kernel, options["dilation"], len(self.shape) - 2)
        if before != after:
            x = F.pad(x, (before[1], after[1], before[0], after[0]))
            before = (0, 0)
        found = F.unfold(x, (kernel[0], kernel[1]), padding=before, **options)  # (B, C·k, places)
        return found.view(len(x), groups, -1, found.shape[-1]).transpose(2, 3)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (a, d), ``(B, groups, places, in)`` and ``(B, groups, places, out)``, each of one group."""
        return self.patches(), self.by_place()

    def by_place(self) -> Tensor:
        """Return what came back, ``(B, groups, places, out)``."""
        d = self.came_back.flatten(2)
        return d.view(len(d), self.settings["groups"], -1, d.shape[-1]).transpose(2, 3)

    def gradient(self) -> Tensor:
        """Return the kernel's gradient, ``(B, *shape)``."""
        a, d = self.factors()
        return torch.einsum("bgto,bgti->bgoi", d, a).reshape(len(a), *self.shape)


@dataclass
class Lookup(Use):
    """Rows of a table: the gradient is zero but in the rows that were looked up.

    Attributes:
        index: ``(B, T)``: which rows.
        skipped: A row that never learns (``padding_idx``), or None.
        weight: Factor on what came back (the mean of a bag).
    """

    index: Tensor
    skipped: int | None = None
    weight: float = 1.0

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (index, d), ``(B, T)`` and ``(B, T, width)``; d is zero where the row never learns."""
        d = self.came_back.reshape(*self.index.shape, self.shape[1]) * self.weight
        if self.skipped is not None:
            d = d.masked_fill((self.index == self.skipped)[..., None], 0.0)
        return self.index, d

    def gradient(self) -> Tensor:
        """Return the table's gradient, ``(B, *shape)``."""
        index, d = self.factors()
        found = d.new_zeros(len(index), *self.shape)
        return found.scatter_add_(1, index[..., None].expand_as(d), d)


@dataclass
class Direct(Use):
    """A parameter small enough that its per-example gradient is formed at once: biases, scales, tables of positions."""

    form: Callable[[Tensor], Tensor]

    def gradient(self) -> Tensor:
        """Return it, ``(B, *shape)``."""
        return self.form(self.came_back).reshape(-1, *self.shape)

    def part(self, start: int, stop: int) -> Use:
        """Return some examples' gradients, formed."""
        return formed(self.name, self.gradient()[start:stop], self.call)


@dataclass
class Formed(Direct):
    """A gradient that autograd has formed, as no factors of it are known.

    Attributes:
        why: What stood in the way, for people.
    """

    why: str = ""


@dataclass
class Bag(Lookup):
    """A bag of rows for each example: each row took the bag's gradient."""

    def take(self, d: Tensor, layout: Layout, size: int) -> None:
        """Take what came back, ``(B, width)``."""
        self.back = d

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (index, d)."""
        d = self.came_back[:, None] * self.weight
        return self.index, d.expand(*self.index.shape, -1)


def _pair(value: Any, axes: int) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    values = values * axes if len(values) == 1 else values
    return (1, values[0]) if axes == 1 else (values[0], values[1])


def _padding(
    value: Any, kernel: Sequence[int], dilation: Sequence[int], axes: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    if value == "valid":
        return (0, 0), (0, 0)
    if value == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = total[0] // 2, total[1] // 2
        return before, (total[0] - before[0], total[1] - before[1])
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    values = values * axes if len(values) == 1 else values
    both = (0, values[0]) if axes == 1 else (values[0], values[1])
    return both, both


def formed(name: str, gradients: Tensor, call: int = 0, why: str = "") -> Formed:
    """Return gradients ``(B, *shape)`` that are known as they are."""
    use = Formed(name, gradients.shape[1:], call, lambda whole: whole, why)
    use.back = gradients
    return use


def as_uses(gradient: Mapping[str, Tensor]) -> list[Use]:
    """Return one gradient, by parameter name, as the uses of a batch of one."""
    return [formed(name, tensor[None]) for name, tensor in gradient.items()]
