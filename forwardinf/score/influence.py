"""One sign, one unit, one place: from two readings to a score."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from forwardinf.core.errors import TaskError
from forwardinf.core.settings import Perturbation


def influence(before: Tensor, after: Sequence[Tensor], perturbation: Perturbation, step: float) -> Tensor:
    """Score how much each training example supports the query.

    Positive means *proponent*: unlearning the query hurts the example too, so removing the example would hurt the query.
    To first order ``step · gᵢᵀ P g_q``, whichever way the query pushed.

    Args:
        before: Losses of the model as it was, ``(N,)``, in the task's unit.
        after: Losses of the moved model, one ``(N,)`` for each side that was read, in the same order.
        perturbation: Which sides those are, and whether the score is a rate.
        step: The factor on the direction; a linear score is divided by it.

    Returns:
        ``(N,)`` float64, in the task's unit (linear: per unit step).

    Raises:
        TaskError: The readings are not of the same examples.

    Example:
        >>> import torch
        >>> influence(torch.tensor([1.0]), [torch.tensor([1.5])], Perturbation(length=0.1), step=1.0)
        tensor([0.5000])
        >>> influence(torch.tensor([1.0]), [torch.tensor([0.5])], Perturbation(length=0.1, toward="descent"), step=1.0)
        tensor([0.5000])
    """
    for side in after:
        if side.shape != before.shape:
            raise TaskError("score", expected=f"{tuple(before.shape)} losses", got=str(tuple(side.shape)))
    if perturbation.both_sides:
        change = (after[0] - after[1]) / 2
    elif perturbation.toward == "ascent":
        change = after[0] - before
    else:
        change = before - after[0]
    if not perturbation.signed:
        change = change.abs()
    return change / step if perturbation.kind == "linear" else change


def residual(before: Tensor, after: Sequence[Tensor]) -> Tensor:
    """Return ½|ℓ₊ + ℓ₋ − 2ℓ₀|: what curvature adds to a two-sided difference, ``(N,)`` float64, in the task's unit.

    It is the size of the second-order term, which cancels in the score itself; what does not cancel starts at third order.
    So it says how far from straight the losses run between the two sides, an upper guess at the score's own bend.

    Args:
        before: Losses of the model as it was, ``(N,)``.
        after: The two sides, ``(N,)`` each.

    Raises:
        TaskError: There are not two sides of the same examples.

    Example:
        >>> import torch
        >>> residual(torch.tensor([1.0]), [torch.tensor([2.5]), torch.tensor([0.5])])
        tensor([0.5000])
    """
    if len(after) != 2 or any(side.shape != before.shape for side in after):
        raise TaskError("curvature residual", expected=f"two sides of {tuple(before.shape)} losses",
                        got=str([tuple(side.shape) for side in after]), do="Perturb with two_sided=True.")  # fmt: skip
    return (after[0] + after[1] - 2 * before).abs() / 2
