"""What examples look like without any gradient: their inputs, and what an early and the last layer make of them.

The layers are found by themselves: one batch runs with a hook on every module that owns a weight matrix, and the order of
the calls tells which was second and which last. What *enters* the second is the early feature, what enters the last is the
last hidden feature. Maps are averaged down to at most 8 × 8 places, sequences over their (unpadded) tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forwardinf.core.progress import Advance
from forwardinf.data.examples import Batch
from forwardinf.tasks.feed import Ask, Feed

NAMES = ("input", "early", "last")
MOST_PLACES, MOST_WORDS, MOST_WIDTH = 8, 1024, 1024  # what a feature may take, so that 100,000 of them fit in memory

Features = dict[str, Tensor]


@torch.no_grad()
def features(feed: Feed, batch_size: int, advance: Advance, layers: Mapping[str, str] | None = None) -> Features:
    """Return ``{"input", "early", "last"}: (N, d)`` float32, those that could be had.

    Args:
        feed: Model (in eval mode), task and examples.
        batch_size: Examples at a time.
        advance: Told of examples done.
        layers: Which modules; default :func:`find_layers`.

    Cost: one forward pass.
    """
    with Look(feed, layers) as look:
        for values in feed.each(look.at(feed.task.loss), range(len(feed.examples)), batch_size):
            advance(len(values))
    return look.features()


class Look:
    """Within the block, what an ask's forwards make of examples is kept: features without a pass of their own.

    Args:
        feed: Model (in eval mode), task and examples.
        layers: Which modules; default :func:`find_layers`.
    """

    def __init__(self, feed: Feed, layers: Mapping[str, str] | None = None) -> None:
        """Nothing has been seen."""
        self.feed = feed
        self._layers = find_layers(feed) if layers is None else layers
        self._seen: dict[str, Tensor] = {}
        self._parts: dict[str, list[Tensor]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Look:
        """Look at the layers."""
        modules = dict(self.feed.model.named_modules())
        self._hooks = [
            modules[path].register_forward_pre_hook(_keep(self._seen, name), with_kwargs=True)
            for name, path in self._layers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        """Look away."""
        for hook in self._hooks:
            hook.remove()

    def at(self, ask: Ask) -> Ask:
        """Return the ask, of whose batches what the layers saw is kept."""

        def asked(model: nn.Module, batch: Batch) -> Tensor:
            self._seen.clear()
            values = ask(model, batch)
            mask, inputs = _mask(batch), _input(self.feed, batch)
            if inputs is not None:
                self._seen["input"] = inputs
            for name, tensor in self._seen.items():
                shown = tensor if name == "input" else _flat(tensor, len(values), mask)
                if shown is not None:
                    self._parts.setdefault(name, []).append(shown.float().cpu())
            return values

        return asked

    def features(self) -> Features:
        """Return what was seen of all examples."""
        size = len(self.feed.examples)
        whole = {
            name: torch.cat(self._parts[name]) for name in NAMES if name in self._parts and _even(self._parts[name])
        }
        return {name: values for name, values in whole.items() if len(values) == size}


@torch.no_grad()
def find_layers(feed: Feed) -> dict[str, str]:
    """Return the names of the modules whose input is the early and the last feature; fewer where the model has fewer."""
    calls: list[str] = []

    def note(path: str) -> Any:
        return lambda module, given: calls.append(path)

    hooks = [
        module.register_forward_pre_hook(note(path))
        for path, module in feed.model.named_modules()
        if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    ]
    try:
        rows = range(min(2, len(feed.examples)))
        for _ in feed.each(feed.task.loss, rows, len(rows)):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    order = list(dict.fromkeys(calls))
    once = [path for path in order if calls.count(path) == 1] or order
    found = {}
    if len(once) > 2:
        found["early"] = once[1]
    if len(once) > 1:
        found["last"] = once[-1]
    return found


def _keep(seen: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                seen[name] = value.detach()
                return

    return hook


def _flat(tensor: Tensor, size: int, mask: Tensor | None) -> Tensor | None:
    """Return one row for each example, or None where a tensor has no examples of its own."""
    if tensor.ndim < 2 or len(tensor) != size:
        return None
    if tensor.ndim == 4:
        side = max(1, min(MOST_PLACES, int((MOST_WIDTH / tensor.shape[1]) ** 0.5)))
        places = (min(tensor.shape[2], side), min(tensor.shape[3], side))
        return F.adaptive_avg_pool2d(tensor.contiguous(), places).flatten(1)
    if tensor.ndim == 3:
        if mask is not None and mask.shape == tensor.shape[:2]:
            kept = mask.to(tensor.dtype)[..., None]
            return (tensor * kept).sum(1) / kept.sum(1).clamp_min(1)
        return tensor.mean(1)
    return tensor.flatten(1)


def _mask(batch: Batch) -> Tensor | None:
    found = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return found if isinstance(found, Tensor) else None


def _input(feed: Feed, batch: Batch) -> Tensor | None:
    """Return the inputs as rows: numbers as they are (large ones averaged), token ids as counts of words."""
    given = feed.task.split(batch)[0] if hasattr(feed.task, "split") else batch
    if isinstance(given, Mapping):
        given = next((given[name] for name in ("pixel_values", "input_ids", "inputs") if name in given),
                     next(iter(given.values()), None))  # fmt: skip
    if isinstance(given, tuple | list):
        given = given[0] if given else None
    if not isinstance(given, Tensor) or given.ndim < 2 or given.is_complex():
        return None
    if not given.is_floating_point() and given.ndim == 2 and given.dtype != torch.uint8:
        return _words(given, _mask(batch))
    if given.ndim == 4 and given[0].numel() > MOST_WIDTH:
        side = max(8, int((MOST_WIDTH / given.shape[1]) ** 0.5))
        given = F.adaptive_avg_pool2d(given.float(), (min(side, given.shape[2]), min(side, given.shape[3])))
    return given.float().flatten(1)


def _words(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return how often each word occurs, words beyond the table folded into it; square roots temper the frequent."""
    counts = torch.zeros(len(ids), MOST_WORDS, device=ids.device)
    ones = torch.ones(ids.shape, device=ids.device) if mask is None else mask.to(counts.dtype)
    return counts.scatter_add_(1, ids.long() % MOST_WORDS, ones).sqrt_()


def _even(parts: list[Tensor]) -> bool:
    return len({part.shape[1:] for part in parts}) == 1
