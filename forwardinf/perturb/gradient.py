"""The query's gradient: the way its measurement falls fastest: ascent lowers what the query is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from forwardinf.data.examples import Batch
from forwardinf.gradients.per_example import factored
from forwardinf.gradients.recorder import only_these as only_these
from forwardinf.gradients.recording import dense
from forwardinf.perturb.direction import Tensors
from forwardinf.perturb.parameters import Parameters
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.root import slope


def query_gradient(
    queries: Feed, rows: Sequence[int], parameters: Parameters, batch_size: int, *, rooted: bool = False
) -> Tensors:
    """Return the gradient of minus the mean measurement of these query rows, float32 or wider, by parameter name.

    ``rooted``: of the mean root of it (:mod:`forwardinf.tasks.root`). Parameters that the query does not touch are left out.
    Cost: one forward and one backward of the query.
    """
    total: Tensors = {}

    def ask(model: nn.Module, batch: Batch) -> Tensor:
        away = -queries.task.measure(model, batch)
        if not away.requires_grad:  # it touches none of these parameters
            return away
        weighed = away * slope(away.detach()) if rooted else away
        _add_gradient(total, parameters, weighed.sum() / len(rows))
        return away.detach()

    with only_these(queries.model, parameters), torch.enable_grad():
        for _ in queries.each(ask, rows, batch_size):
            pass
    return total


def weighted_gradient(
    train: Feed, rows: Sequence[int], weights: Tensor, parameters: Parameters, batch_size: int
) -> Tensors:
    """Return Σᵢ wᵢ gᵢ over the units in these rows, float32 or wider, by parameter name. Cost: a forward and a backward."""
    total: Tensors = {}
    at = 0

    def ask(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal at
        losses = train.task.loss(model, batch)
        own = weights[at : at + len(losses)].to(losses)
        at += len(losses)
        if losses.requires_grad:
            _add_gradient(total, parameters, (losses * own).sum())
        return losses.detach()

    with only_these(train.model, parameters), torch.enable_grad():
        for _ in train.each(ask, rows, batch_size):
            pass
    return total


def _add_gradient(total: Tensors, parameters: Parameters, value: Tensor) -> None:
    """Add the gradient of one number, in float32 or wider; what it does not touch stays out."""
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    for name, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            wide = dense(grad).to(torch.promote_types(grad.dtype, torch.float32))
            total[name] = total[name].add_(wide) if name in total else wide.contiguous()


@dataclass(frozen=True)
class RowGradients:
    """The gradients of several query rows, taken in one pass.

    Attributes:
        rows: Which.
        tables: ``(rows, *shape)`` of each parameter that any of them touches, float32 or wider.
        away: ``(rows,)`` float64: minus what each is asked, as it is.
    """

    rows: range
    tables: Tensors
    away: Tensor

    def of(self, row: int) -> Tensors:
        """Return one row's gradient, a copy."""
        return {name: table[row - self.rows.start].clone() for name, table in self.tables.items()}


def row_gradients(
    queries: Feed, rows: range, parameters: Parameters, batch_size: int, *, rooted: bool = False
) -> RowGradients:
    """Return the gradient of minus the measurement of each of these query rows, for models that can be taken apart.

    Equal to :func:`query_gradient` of each row to rounding. Cost: a forward and an activation-only backward of all of them
    together. Memory: one gradient each.
    """
    tables: Tensors = {}
    away, at = torch.zeros(len(rows), dtype=torch.float64), 0
    anyhow = replace(queries, skipped=frozenset(rows))  # what is wrong with one of them is said where it is looked at

    def ask(model: nn.Module, batch: Batch) -> Tensor:
        return -queries.task.measure(model, batch)

    for units, values, uses in factored(anyhow, rows, parameters, batch_size, ask):
        here = slice(at, at + len(units))
        away[here] = values
        for use in uses:
            found = use.flat()
            found = found.to(torch.promote_types(found.dtype, torch.float32))
            if rooted:
                found = found * slope(values)[:, None].to(found)
            if use.name not in tables:
                tables[use.name] = found.new_zeros(len(rows), *use.shape)
            tables[use.name][here] += found.reshape(-1, *use.shape)
        at = here.stop
    return RowGradients(rows, tables, away)
