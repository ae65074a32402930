"""Conjugate gradients on the damped Gauss–Newton matrix: (G + λI)⁻¹ g with no approximation of G but a tolerance.

Hestenes & Stiefel 1952; for influence Koh & Liang 2017 (arXiv:1703.04730, §3), who take the Hessian. The diagonal of
the Fisher, which the damping needs anyway, is the preconditioner. Every query costs its own iterations over the training
examples: for few queries, and as the reference that cheaper directions are held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from forwardinf.core.errors import ModelError, SettingError
from forwardinf.core.fingerprint import digest
from forwardinf.gradients.parts import wide
from forwardinf.perturb.blocks import Solved, mean_diagonal
from forwardinf.perturb.damping import damping
from forwardinf.perturb.diagonal import diagonal_blocks
from forwardinf.perturb.direction import Direction, Fitting, Tensors, dot, norm
from forwardinf.perturb.fisher import draws_labels
from forwardinf.perturb.fits import kept_dtype, sampled_rows
from forwardinf.perturb.gauss_newton import gauss_newton_product, unknown_prediction

MOST_EXAMPLES = 4_096  # that fit_examples="auto" reads: every iteration of every query reads them
MOST = 500  # iterations
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # ‖residual‖/‖g‖; products in float32 carry about 1e-6
USELESS = 0.1  # a residual above which there is no solution to speak of
KEPT = 2**29  # bytes of solutions: a query is pushed when it is checked and when it is read

Product = Callable[[Tensors], Tensors]


def cg(fitting: Fitting) -> Direction:
    """Return the direction (G + λI)⁻¹ g. Cost: about 3 F once; about 7 F an iteration over the examples, for each query.

    Raises:
        TaskError: The task does not say what the model predicts.
        SettingError: The empirical Fisher is asked for: G has no labels in it.
    """
    rule = fitting.perturbation
    if rule.fisher != "true":
        raise SettingError("Perturbation(fisher=)", expected="'true' beside direction='cg'", got=repr(rule.fisher),
                           do="Use direction='ekfac' or 'hold' for the empirical Fisher.")  # fmt: skip
    train = replace(fitting.train, task=fitting.train.task.whole())
    if not draws_labels(train):
        raise unknown_prediction(train)
    rows = sampled_rows(fitting, MOST_EXAMPLES)
    if len(rows) < len(train.examples):
        fitting.notes.append(f"cg: curvature over a sample of {len(rows)} of {len(train.examples)} training examples")
    blocks = diagonal_blocks(fitting)
    weight = damping(rule.direction, rule.damping, mean_diagonal(blocks, fitting.parameters))
    nearly = Solved(blocks, weight)
    seen: dict[str, Tensors] = {}
    held = 0

    def product(vector: Tensors) -> Tensors:
        found = gauss_newton_product(train, rows, fitting.parameters, fitting.batch_size, vector)
        return {name: tensor * weight + found.get(name, 0) for name, tensor in vector.items()}

    def direction(gradient: Tensors) -> Tensors:
        nonlocal held
        key = digest({name: tensor.cpu() for name, tensor in gradient.items()})
        if key in seen:
            return {name: tensor.to(gradient_device(gradient), copy=True) for name, tensor in seen[key].items()}
        zeros = {
            name: torch.zeros_like(wide(p.detach())) for name, p in fitting.parameters.items() if name not in gradient
        }
        found, left = conjugate({**gradient, **zeros}, product, nearly, TOLERANCE[kept_dtype(fitting)])
        if left > TOLERANCE[kept_dtype(fitting)]:
            fitting.notes.append(f"cg: stopped after {MOST} iterations at a residual of {left:.1e} for one query")
        held += sum(tensor.nbytes for tensor in found.values())
        if held <= KEPT:
            seen[key] = {name: tensor.cpu().clone() for name, tensor in found.items()}
        return found

    return direction


def gradient_device(gradient: Tensors) -> torch.device:
    """Return where a gradient is."""
    return next(iter(gradient.values())).device


@torch.no_grad()
def conjugate(
    target: Tensors, product: Product, nearly: Product, tolerance: float, most: int = MOST
) -> tuple[Tensors, float]:
    """Return (x with A x = b, its residual ‖b − A x‖/‖b‖ as the recursion has it).

    Args:
        target: b; every name that x shall have.
        product: v to A v, A symmetric and positive definite.
        nearly: v to M⁻¹ v, M near A.
        tolerance: The residual at which it ends.
        most: Iterations at most.

    Raises:
        ModelError: A is not positive definite, or after ``most`` iterations the residual is still above .1.
    """
    size = norm(target)
    found = {name: torch.zeros_like(tensor) for name, tensor in target.items()}
    if size == 0:
        return found, 0.0
    rest = {name: tensor.clone() for name, tensor in target.items()}
    turned = nearly(rest)
    way = {name: tensor.clone() for name, tensor in turned.items()}
    height, left = dot(rest, turned), 1.0
    for _ in range(most):
        curved = product(way)
        bend = dot(way, curved)
        if not 0 < bend < math.inf:
            raise ModelError(
                "Gauss–Newton matrix", expected="positive curvature", got=f"{bend:.3g}",
                do="The loss is not convex in the model's output, or overflows: damp more, or use direction='ekfac'.",
            )  # fmt: skip
        step = height / bend
        for name, tensor in way.items():
            found[name].add_(tensor, alpha=step)
            rest[name].sub_(curved[name], alpha=step)
        left = norm(rest) / size
        if left <= tolerance:
            return found, left
        turned = nearly(rest)
        higher = dot(rest, turned)
        for name, tensor in way.items():
            tensor.mul_(higher / height).add_(turned[name])
        height = higher
    if not left <= USELESS:
        raise ModelError("conjugate gradients", expected=f"a residual ≤ {USELESS} in {most} iterations", got=f"{left:.2g}",
                         do="Damp more.")  # fmt: skip
    return found, left
