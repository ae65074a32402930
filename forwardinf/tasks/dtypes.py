"""Numbers brought to the model's dtype, where the model does not take them as they are (arrays of float64, mostly)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.errors import Error
from forwardinf.tasks.task import LABELS, Task

Batch = Any
SHOWN = 4  # columns that a note names


@dataclass(frozen=True)
class Cast:
    """What is done to each batch: its floating tensors become ``dtype``; its label too, or not."""

    dtype: torch.dtype
    labels: bool

    def __call__(self, task: Task, batch: Batch) -> Batch:
        """Return the batch; whole numbers, text and what fits already are the same objects as before."""
        return _cast(batch, self.dtype, None if self.labels else label_of(task, batch))


def find_cast(model: nn.Module, task: Task, batch: Batch, loss: Callable[[Batch], Tensor]) -> Cast | None:
    """Return what a batch needs before the model takes it; None where it takes it as it is.

    Only a batch with floating tensors of another dtype than the model's is tried, by a forward and a backward pass of these
    few rows: as it is, then with its inputs cast, then with its label cast too. What already works stays as it is.
    """
    kinds = list(dict.fromkeys(p.dtype for p in model.parameters() if p.is_floating_point()))
    given = {tensor.dtype for _, tensor in floats(batch)}
    if not kinds or not given or (len(kinds) == 1 and given == set(kinds)):
        return None
    candidates = [None, *(Cast(kind, labels) for kind in kinds for labels in (False, True))]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    half: list[Cast | None] = []
    for candidate in candidates:
        far = _how_far(batch if candidate is None else candidate(task, batch), loss, wanted)
        if far == 2:
            return candidate
        half += [candidate] if far == 1 else []
    return half[0] if half else candidates[1]  # no forward at all: the first reading says what else is wrong


def _how_far(batch: Batch, loss: Callable[[Batch], Tensor], wanted: Sequence[Tensor]) -> int:
    """Return 0 where a forward fails, 1 where only the backward does, 2 where neither does."""
    try:
        with torch.enable_grad():
            values = loss(batch)
    except RuntimeError as error:
        return 2 if isinstance(error, Error | torch.OutOfMemoryError) else 0
    except Exception:  # something else is wrong: the first reading will say what
        return 2
    if not wanted or not isinstance(values, Tensor) or not values.requires_grad:
        return 2
    try:
        torch.autograd.grad(values.sum(), wanted, allow_unused=True)
    except RuntimeError:
        return 1
    return 2


def told(batch: Batch, cast: Cast, task: Task) -> str:
    """Return a note on what is brought to which dtype."""
    spared = None if cast.labels else label_of(task, batch)
    changed = [(path, tensor.dtype) for path, tensor in floats(batch)
               if tensor.dtype != cast.dtype and tensor is not spared]  # fmt: skip
    columns = [f"column {path} ({_name(kind)})" if path else _name(kind) for path, kind in changed[:SHOWN]]
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return f"{', '.join(columns)}{more} brought to the model's {_name(cast.dtype)}"


def floats(batch: Batch, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) of every floating tensor in a batch."""
    if isinstance(batch, Tensor):
        if batch.is_floating_point():
            yield path, batch
        return
    pairs = batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, tuple | list) else ()
    for key, value in pairs:
        yield from floats(value, f"{path}.{key}" if path else str(key))


def label_of(task: Task, batch: Batch) -> Any:
    """Return the label in a batch: where the task says, else the last of a tuple, or ``labels`` or ``label``."""
    if hasattr(task, "split"):
        try:
            return task.split(batch)[1]
        except Error:
            return None
    if isinstance(batch, Mapping):
        return next((batch[name] for name in LABELS if name in batch), None)
    return batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def _cast(batch: Batch, dtype: torch.dtype, spared: Any) -> Batch:
    if spared is not None and batch is spared:
        return batch
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {name: _cast(value, dtype, spared) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cast(value, dtype, spared) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_cast(value, dtype, spared) for value in batch)
    return batch


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
