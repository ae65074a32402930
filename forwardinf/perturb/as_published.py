"""The perturbation of the authors' released leakage notebook, for comparison only.

What it does that the clean behaviour does not: the push runs in training mode on the example doubled, so BatchNorm's
running statistics move too; the step is Adam's first, about lr · sign(gradient) whatever the gradient's size; a saturated
query is replaced by one drawn near it; scores are absolute values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.errors import SettingError
from forwardinf.core.settings import Perturbation
from forwardinf.data import noise
from forwardinf.perturb.direction import Tensors
from forwardinf.perturb.gradient import only_these
from forwardinf.perturb.parameters import Parameters
from forwardinf.perturb.swap import tensors_of
from forwardinf.tasks.task import Batch, Task

SATURATED = 5e-3  # half the cross-entropy, as the notebook computes it, below which the query is resampled
ENOUGH = 1e-2
RADIUS, GROWTH, TRIES = 3.0, 1.1, 200


def published_push(
    model: nn.Module, task: Task, batch: Batch, parameters: Parameters, perturbation: Perturbation, key: object
) -> tuple[Tensors, str]:
    """Return (θ′ by name, buffers included; status ``"ok"`` or ``"resampled"``) for one query's batch of one.

    The model is given back as it was. Raises SettingError where a saturated query has no float inputs to resample.
    """
    live = tensors_of(model)
    kept = {name: tensor.detach().clone() for name, tensor in live.items()}
    training = {module: module.training for module in model.modules()}
    grads = {parameter: parameter.grad for parameter in parameters.values()}
    seed = noise.seed_of(perturbation.seed, key)
    doubled, status = _twice(batch), "ok"
    try:
        model.train()
        with only_these(model, parameters), torch.enable_grad(), noise.own_state(), noise.repeated(2):
            noise.seed_all(seed)  # dropout is on: the same query must give the same push
            half = _half_loss(model, task, doubled)
            if float(half.detach()) < SATURATED:
                doubled, status = (
                    _resampled(model, task, doubled, kept, live, seed),
                    "resampled",
                )
                half = _half_loss(model, task, doubled)
            optimiser = torch.optim.Adam(parameters.values(), lr=float(perturbation.lr or 0))
            optimiser.zero_grad()
            (-half).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return {
            name: tensor.detach().clone() for name, tensor in live.items() if not torch.equal(tensor, kept[name])
        }, status
    finally:
        _restore(live, kept)
        for parameter in parameters.values():
            parameter.grad = grads[parameter]
        for module, was in training.items():
            module.training = was


def _half_loss(model: nn.Module, task: Task, doubled: Batch) -> Tensor:
    """Return the mean over the two copies, divided by two once more as the notebook does."""
    return task.loss(model, doubled).mean() / 2


def _resampled(
    model: nn.Module, task: Task, doubled: Batch, kept: Tensors, live: Mapping[str, Tensor], seed: int
) -> Batch:
    """Return a batch whose inputs lie on a sphere around the query's, at the first radius where the loss suffices."""
    generator = torch.Generator().manual_seed(seed)
    inputs = doubled[0] if isinstance(doubled, tuple | list) else None
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise SettingError("preset('as_published')", expected="float inputs (a saturated query is resampled)",
                           got="a batch of whole numbers or a mapping", do="Use the clean behaviour.")  # fmt: skip
    radius = RADIUS
    for _ in range(TRIES):
        away = torch.randn(inputs.shape[1:], generator=generator).to(inputs)
        near = (inputs + radius * away / away.norm(), *doubled[1:])
        with torch.no_grad():
            half = float(_half_loss(model, task, near))
        _restore(live, kept)  # training mode moved the running statistics
        if half >= ENOUGH or not math.isfinite(half):
            break
        radius *= GROWTH
    return near


def _restore(live: Mapping[str, Tensor], kept: Tensors) -> None:
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(kept[name])


def _twice(batch: Any) -> Any:
    """Return a batch of one, doubled: BatchNorm in training mode needs more than one."""
    if isinstance(batch, Tensor):
        return torch.cat([batch, batch])
    if isinstance(batch, Mapping):
        return {name: _twice(value) for name, value in batch.items()}
    return type(batch)(_twice(value) for value in batch) if isinstance(batch, tuple | list) else batch
