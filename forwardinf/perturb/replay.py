"""Replay: train on for a few steps, with the query added to every batch, once against it and once for it.

θ± ← θ± − η (ḡ_batch(θ±) ∓ g_q(θ±)/B): two runs of plain SGD over the same batches that differ only in the sign of the
query's share, which is that of one more example in a batch of B. What both have in common, training that goes on, cancels in
the difference of the two sides; what is left is ((I − (I − ηH)ⁿ)H⁻¹) g_q to first order: the plain step for n = 1, the
influence direction H⁻¹g_q for many steps (Spearman with exact leave-one-out rises from .53 to .98 on a convex toy).

Mirrored retraining is the same taken to the end: the user's own training function, from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.errors import ModelError, TaskError
from forwardinf.data.noise import seed_of
from forwardinf.perturb.direction import Tensors, norm
from forwardinf.perturb.gradient import query_gradient, weighted_gradient
from forwardinf.perturb.norms import Ruler
from forwardinf.perturb.parameters import Parameters
from forwardinf.perturb.steps import TINY_SHARE
from forwardinf.perturb.swap import Push, lend, tensors_of
from forwardinf.tasks.feed import Feed

BATCH = 64  # training examples in a step, fewer where there are fewer


def replay(
    train: Feed, queries: Feed, rows: Sequence[int], ruler: Ruler, *, steps: int, lr: float, seed: int, batch_size: int
) -> Push:
    """Return both ends of continued training: first the side away from the query, then the side towards it.

    Batches of 64 are drawn without replacement, epoch after epoch, in an order that depends on the seed alone. The model
    is read as it is lent: dropout off, BatchNorm by its running statistics. No momentum, no weight decay.
    Cost: 2n forwards and backwards of a batch and of the query; memory: four copies of the parameters.

    Args:
        train: The training data, and the model.
        queries: The queries.
        rows: One query's rows.
        ruler: Knows the parameters that train, and measures lengths.
        steps: n.
        lr: η: best that of the last epochs of training.
        seed: Of the order.
        batch_size: Examples at a time that the model reads well; does not change the steps.

    Raises:
        ModelError: Training diverges, or narrow weights lose the difference to rounding.
    """
    parameters = ruler.parameters
    order = list(_batches(len(train.examples), steps, seed))
    share = 1 / len(order[0])
    start = query_gradient(queries, rows, parameters, batch_size)

    def trained(side: int) -> Tensors:
        moved = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        with lend(parameters, moved):
            masters = {
                name: p.detach().to(torch.promote_types(p.dtype, torch.float32)) for name, p in parameters.items()
            }
            for batch in order:
                units = len(train.examples.units_of(batch))
                even = torch.full((units,), 1 / units, dtype=torch.float64)
                step = weighted_gradient(train, batch, even, parameters, batch_size)
                for name, tensor in query_gradient(queries, rows, parameters, batch_size).items():
                    away = tensor.mul_(-side * share)
                    step[name] = step[name].add_(away) if name in step else away
                _advance(parameters, masters, step, lr)
        return moved

    sides = trained(1), trained(-1)
    if not all(bool(torch.isfinite(tensor).all()) for side in sides for tensor in side.values()):
        raise ModelError("replay", expected="training that goes on", got=f"weights that are not finite after {steps} steps",
                         do=f"Choose a smaller lr than {lr:g}, that of the last epochs of training.")  # fmt: skip
    return _push(sides, parameters, ruler, norm(start), start)


def mirrored(
    train_fn: Callable[[Sequence[int], int, Any, float], nn.Module],
    model: nn.Module,
    ruler: Ruler,
    indices: Sequence[int],
    extra: Any,
    *,
    weight: float,
    seed: int = 0,
) -> Push:
    """Return both ends of exact mirrored retraining: trained with the query's loss at −weight, and at +weight.

    Two whole trainings for each query. To first order in the weight the difference of the two sides is that of adding the
    query once, per unit of its weight, without the second-order error of adding it once.

    Args:
        train_fn: ``(indices, seed, extra, weight) -> model``: minimises the training loss (a sum, or a mean with the weight
            scaled alike) plus ``weight`` times the loss of ``extra``, and nothing else may differ between two calls.
        model: The model that will be read; a trained one must have its names, shapes and dtypes.
        ruler: Of the parameters of that model.
        indices: The training examples to train on.
        extra: The query, as ``train_fn`` takes it.
        weight: How much it counts, > 0.
        seed: Passed on, the same for both.

    Raises:
        TaskError: ``train_fn`` returned no module, or both sides came out the same.
        ModelError: Its tensors are not those of the model.
    """
    live, sides = tensors_of(model), []
    for sign in (-1, 1):
        trained = train_fn(indices, seed, extra, sign * weight)
        if not isinstance(trained, nn.Module):
            raise TaskError("train_fn", expected="a trained torch.nn.Module", got=type(trained).__name__)
        sides.append({name: tensor.detach().clone() for name, tensor in tensors_of(trained).items()})
        _same_names(live, sides[-1])
    change = {name: (sides[0][name].double() - sides[1][name].double()) / 2 for name in ruler.parameters}
    length = norm(change)
    if length == 0:
        raise TaskError(
            "train_fn", expected="a model that the query's weight changes", got="the same one for both signs"
        )
    moved = sum(int(torch.count_nonzero(tensor)) for tensor in change.values())
    return Push(tuple(sides), weight, ruler.relative(change), moved / sum(t.numel() for t in change.values()))


def _batches(size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield the rows of each step: epochs in a new order each, cut into batches; a short last batch joins none."""
    batch = min(BATCH, size)
    draw = torch.Generator().manual_seed(seed_of("replay", seed))
    rows: list[int] = []
    for _ in range(steps):
        if len(rows) < batch:
            rows = torch.randperm(size, generator=draw).tolist()
        yield rows[:batch]
        rows = rows[batch:]


@torch.no_grad()
def _advance(parameters: Parameters, masters: Tensors, step: Tensors, lr: float) -> None:
    """Take one step of SGD in float32 or wider, and round into the model."""
    for name, tensor in step.items():
        masters[name].sub_(tensor, alpha=lr)
        if parameters[name].data_ptr() != masters[name].data_ptr():
            parameters[name].copy_(masters[name])


def _push(sides: tuple[Tensors, Tensors], parameters: Parameters, ruler: Ruler, size: float, start: Tensors) -> Push:
    """Return the pair with how far half its difference is; refuse one that rounding has made nothing of."""
    change: Tensors = {}
    asked = changed = 0
    for name, away in sides[0].items():
        wide = torch.promote_types(away.dtype, torch.float32)
        change[name] = (away.to(wide) - sides[1][name].to(wide)) / 2
        if name in start:
            wanted = start[name] != 0
            asked += int(torch.count_nonzero(wanted))
            changed += int(torch.count_nonzero((change[name] != 0).logical_and_(wanted)))
    share = changed / max(asked, 1)
    if share < TINY_SHARE:
        kinds = {str(parameter.dtype) for parameter in parameters.values()}
        raise ModelError("replay", expected="a difference that survives rounding",
                         got=f"{share:.1%} of the {'/'.join(kinds)} weights differ between the two sides",
                         do="Replay more steps or a larger lr, or read the model in float32.")  # fmt: skip
    return Push(sides, norm(change) / size, ruler.relative(change), share)


def _same_names(live: Mapping[str, Tensor], trained: Tensors) -> None:
    """Raise ModelError unless a trained model has the tensors of the one that is read."""
    if live.keys() != trained.keys():
        odd = sorted(live.keys() ^ trained.keys())
        raise ModelError("train_fn", expected="the model's own names", got=f"another set, like {odd[0]}",
                         do="Build the same architecture.")  # fmt: skip
