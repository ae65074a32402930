"""Products with the Gauss–Newton matrix (1/N) Σᵢ Jᵢᵀ Hᵢ Jᵢ of the training loss, which is never formed.

J is the Jacobian of the model's output, H the Hessian of the loss at that output (Schraudolph 2002). It is positive
semidefinite where the loss is convex in the output, and is the Hessian itself where the output is linear in what moves. J v is
taken as the derivative of Jᵀw by w, so that a model needs a second backward, not a forward mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from forwardinf.core.errors import TaskError
from forwardinf.data.examples import Batch
from forwardinf.perturb.direction import Tensors
from forwardinf.perturb.gradient import only_these
from forwardinf.perturb.parameters import Parameters
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.prediction import Prediction
from forwardinf.tasks.task import prediction_of


def gauss_newton_product(
    train: Feed, rows: Sequence[int], parameters: Parameters, batch_size: int, vector: Tensors
) -> Tensors:
    """Return (1/N) Σᵢ Jᵢᵀ Hᵢ Jᵢ v over these rows, float32 or wider, by parameter name. N counts documents where rows pack some.

    Args:
        train: Model, task and data; the task must know its loss in two halves.
        rows: Which training rows.
        parameters: What moves.
        batch_size: Rows at a time.
        vector: v; what it leaves out counts as zero.

    Cost: a forward, three backwards: about 7 F. Memory: as in training on one batch, twice.

    Raises:
        TaskError: The task does not say what the model predicts.
    """
    total: Tensors = {}

    def ask(model: nn.Module, batch: Batch) -> Tensor:
        found = prediction_of(train.task, model, batch)
        if found is None:
            raise unknown_prediction(train)
        for name, tensor in _product(found, parameters, vector).items():
            total[name] = total[name].add_(tensor) if name in total else tensor
        return found.output.new_zeros(1)

    # fused attention has no second derivative
    with only_these(train.model, parameters), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for _ in train.each(ask, rows, batch_size):
            pass
    units = len(train.examples.units_of(rows))
    return {name: tensor.div_(units) for name, tensor in total.items()}


def _product(found: Prediction, parameters: Parameters, vector: Tensors) -> Tensors:
    """Return Σᵢ Jᵢᵀ Hᵢ Jᵢ v of one batch."""
    output = found.output
    if not output.requires_grad:
        return {}
    names, chosen = list(parameters), list(parameters.values())
    weights = torch.zeros_like(output, requires_grad=True)
    back = torch.autograd.grad(output, chosen, weights, create_graph=True, allow_unused=True)
    pairs = [
        (grad, vector[name].to(grad))
        for name, grad in zip(names, back, strict=True)
        if grad is not None and name in vector
    ]
    if not pairs:
        return {}
    (forward,) = torch.autograd.grad([grad for grad, _ in pairs], weights, [v for _, v in pairs], retain_graph=True)
    del back, pairs
    curved = torch.autograd.grad(output, chosen, _hessian(found, forward), allow_unused=True)
    return {
        name: grad.to(torch.promote_types(grad.dtype, torch.float32)).contiguous()
        for name, grad in zip(names, curved, strict=True)
        if grad is not None
    }


def _hessian(found: Prediction, vector: Tensor) -> Tensor:
    """Return H u at the output."""
    output = found.output.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(found.loss(output).sum(), output, create_graph=True)
    if not slope.requires_grad:  # a loss that is linear in the output
        return torch.zeros_like(vector)
    (curved,) = torch.autograd.grad(slope, output, vector)
    return curved


def unknown_prediction(train: Feed) -> TaskError:
    """Return (not raise) the refusal of a task whose loss is not known in two halves."""
    kind = type(getattr(train.task, "function", None) or train.task).__name__
    return TaskError(
        f"direction='cg' with {kind}", expected="a task that says what the model predicts (Task.predicted)", got="none",
        do="Use direction='ekfac' or 'hold', or define predicted.",
    )  # fmt: skip
