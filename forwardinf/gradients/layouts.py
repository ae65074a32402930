"""Where the examples of a batch lie in what a function is fed and puts out.

A layer sees ``(B, T, width)``, ``(T, B, width)``, ``(B·T, width)`` or no examples at all, and sizes alone cannot tell which:
eight tokens in batches of eight look the same either way. So sizes are looked at once, in a batch of a prime number of examples
that divides no other axis, and what they say is compared with autograd's gradients of single examples (``recorder.py``). From
then on the layout of a call is known by its place in the forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["axis", "rows", "spread", "shared", "one"]


class Ambiguous(Exception):
    """More than one axis may be the examples': try another number of them."""


@dataclass(frozen=True)
class Layout:
    """Which of a tensor's leading axes the examples are.

    Attributes:
        kind: ``"axis"``: the axis numbered ``axis``. ``"rows"``: the first axis holds each example's places one after the
            other, ``(B·T, …)``. ``"spread"``: there were no examples (a table of positions), and the output was repeated for
            each of them. ``"shared"``: there were none, and it stays so until something with examples meets it. ``"one"``:
            everything belongs to a single example.
        axis: See above.
    """

    kind: Kind
    axis: int = 0

    def examples_first(self, tensor: Tensor, size: int) -> Tensor:
        """Return the tensor with the ``size`` examples as its first axis and all places behind it."""
        if self.kind == "axis":
            return tensor.movedim(self.axis, 0)
        if self.kind == "rows":
            return tensor.reshape(size, -1, *tensor.shape[1:])
        return tensor.unsqueeze(0) if self.kind == "one" else tensor

    def places(self, tensor: Tensor, size: int) -> Tensor:
        """Return vectors as ``(B, T, width)``, whatever axes the places have."""
        found = self.examples_first(tensor, size)
        return found.reshape(len(found), -1, tensor.shape[-1])

    def fits(self, leading: Sequence[int], size: int) -> bool:
        """Return whether axes of these sizes can be laid out so for ``size`` examples."""
        if self.kind == "axis":
            return self.axis < len(leading) and leading[self.axis] == size
        if self.kind == "rows":
            return bool(leading) and leading[0] % size == 0
        return True


def by_size(leading: Sequence[int], size: int) -> Layout | None:
    """Return the layout that the leading axes' sizes show, for a number of examples that divides no other size.

    None where there are no examples.

    Raises:
        Ambiguous: It divides several.

    Example:
        >>> by_size((5, 7), 7), by_size((35,), 7), by_size((4, 5), 7)
        (Layout(kind='axis', axis=1), Layout(kind='rows', axis=0), None)
    """
    divided = [axis for axis, length in enumerate(leading) if length and length % size == 0]
    if len(divided) > 1:
        raise Ambiguous
    if not divided:
        return None
    axis = divided[0]
    if leading[axis] == size:
        return Layout("axis", axis)
    return Layout("rows") if axis == 0 else None
