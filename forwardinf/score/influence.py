"""One sign, one unit, one place: from two readings to a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from forwardinf.core.errors import TaskError
from forwardinf.core.settings import Perturbation
from forwardinf.tasks.root import root, slope


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
        ``(N,)`` float64, in the task's unit or its root's (``reading``); linear: the same per unit step.

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
    read = _reading(perturbation)
    before, after = read(before), [read(side) for side in after]
    if perturbation.both_sides:
        change = (after[0] - after[1]) / 2
    elif perturbation.toward == "ascent":
        change = after[0] - before
    else:
        change = before - after[0]
    if not perturbation.signed:
        change = change.abs()
    return rate(change / step, before, perturbation) if perturbation.kind == "linear" else change


def rate(change: Tensor, losses: Tensor, perturbation: Perturbation) -> Tensor:
    """Return a rate of losses as the rate of what is read of them: the same, or that of their roots.

    Args:
        change: ``(N,)``: gᵢᵀ P g_q.
        losses: ``(N,)``: ℓᵢ of the model as it was.
        perturbation: Its reading.

    Returns:
        ``(N,)`` float64; for the root φ′(ℓᵢ) gᵢᵀ P g_q, where g_q is the gradient of the query's own root.
    """
    return change * slope(losses) if perturbation.reading == "root" else change


def _reading(perturbation: Perturbation) -> Callable[[Tensor], Tensor]:
    """Return what turns losses into what is compared; of a rate, the slope is all that counts (:func:`rate`)."""
    return root if perturbation.reading == "root" and perturbation.kind == "finite" else lambda losses: losses


def residual(before: Tensor, after: Sequence[Tensor], perturbation: Perturbation) -> Tensor:
    """Return ½|ℓ₊ + ℓ₋ − 2ℓ₀|: what curvature adds to a two-sided difference, ``(N,)`` float64, in the score's unit.

    It is the size of the second-order term, which cancels in the score itself; what does not cancel starts at third order.
    So it says how far from straight the losses run between the two sides, an upper guess at the score's own bend.

    Args:
        before: Losses of the model as it was, ``(N,)``.
        after: The two sides, ``(N,)`` each.
        perturbation: What is read of a loss.

    Raises:
        TaskError: There are not two sides of the same examples.

    Example:
        >>> import torch
        >>> sides = [torch.tensor([2.5]), torch.tensor([0.5])]
        >>> residual(torch.tensor([1.0]), sides, Perturbation(length=0.1, two_sided=True))
        tensor([0.5000])
    """
    if len(after) != 2 or any(side.shape != before.shape for side in after):
        raise TaskError("curvature residual", expected=f"two sides of {tuple(before.shape)} losses",
                        got=str([tuple(side.shape) for side in after]), do="Perturb with two_sided=True.")  # fmt: skip
    read = _reading(perturbation)
    return (read(after[0]) + read(after[1]) - 2 * read(before)).abs() / 2
