"""Walk along a query's direction: from θ to θ′, in one step or several, in float32 masters where weights are narrower."""

from __future__ import annotations

from collections.abc import Callable

import torch

from forwardinf.core.errors import ModelError
from forwardinf.core.settings import Perturbation
from forwardinf.perturb.direction import Tensors, norm
from forwardinf.perturb.norms import Ruler
from forwardinf.perturb.parameters import Parameters
from forwardinf.perturb.swap import lend

LINEAR_LENGTH = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
TINY_SHARE = 0.05  # below this share of moved weights, rounding decides the ranks


def linear_length(parameters: Parameters) -> float:
    """Return the relative length at which a difference stands for a derivative: short, but above rounding."""
    return max(LINEAR_LENGTH.get(parameter.dtype, 1e-2) for parameter in parameters.values())


def walk(
    ruler: Ruler,
    perturbation: Perturbation,
    first: Tensors,
    direction_at: Callable[[], Tensors],
    size: float,
    side: int,
) -> tuple[Tensors, float, float, float]:
    """Return (θ′ by name, step, relative length, share moved).

    Args:
        ruler: Measures lengths, and knows the parameters.
        perturbation: ``lr`` means that ``size`` is a raw step; else it is the relative length of the whole way.
        first: The direction at the weights as they are, away from the query. Only read.
        direction_at: The same at the weights the model holds when it is called (with several steps).
        size: How far.
        side: +1 away from the query, −1 towards it.

    Raises:
        ModelError: Nearly all of the change is lost to rounding.
    """
    parameters, steps = ruler.parameters, perturbation.steps
    masters: Tensors = {}
    direction, step = first, 0.0
    for turn in range(steps):
        if turn > 0:
            with lend(parameters, _rounded(parameters, masters)):
                direction = direction_at()
        step = size if perturbation.lr is not None else ruler.step_for(direction, size / steps)
        for name, tensor in direction.items():
            start = masters.get(name)
            start = parameters[name].detach().to(tensor.dtype) if start is None else start
            masters[name] = torch.add(start, tensor, alpha=side * step)
    change = {name: master - parameters[name].detach().to(master.dtype) for name, master in masters.items()}
    length = ruler.relative(change)
    if steps > 1:
        step = norm(change) / norm(direction)
    moved = _rounded(parameters, masters)
    share = _share_moved(parameters, moved, direction)
    if share < TINY_SHARE:
        kinds = {str(parameters[name].dtype) for name in moved}
        raise ModelError(
            "perturbation", expected="a step that survives rounding", got=f"{share:.1%} of the {'/'.join(kinds)} weights moved",
            do="Use a longer length (bfloat16: at least 1e-2), or read the model in float32.",
        )  # fmt: skip
    return moved, step, length, share


def _rounded(parameters: Parameters, masters: Tensors) -> Tensors:
    return {name: master.to(parameters[name].dtype) for name, master in masters.items()}


def _share_moved(parameters: Parameters, moved: Tensors, direction: Tensors) -> float:
    asked = changed = 0
    for name, tensor in moved.items():
        if name not in direction:  # touched at an earlier step only
            continue
        wanted = direction[name] != 0
        asked += int(torch.count_nonzero(wanted))
        changed += int(torch.count_nonzero((tensor != parameters[name].detach()).logical_and_(wanted)))
    return changed / asked if asked else 0.0
