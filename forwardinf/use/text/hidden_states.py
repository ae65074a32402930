"""What the model itself finds alike: mean hidden states, compared by their cosine. One forward pass, no gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from forwardinf.core.errors import ModelError
from forwardinf.core.progress import Advance
from forwardinf.data.examples import Batch
from forwardinf.data.padding import NOT_COUNTED
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.outputs import innermost, keywords_of
from forwardinf.tasks.text import inputs_of
from forwardinf.use.responses import unit
from forwardinf.use.sketch import silent
from forwardinf.use.text.documents import encodes


def hidden_states(feed: Feed, rows: Sequence[int], batch_size: int, advance: Advance = silent) -> Tensor:
    """Return each row's mean last hidden state, ``(rows, width)`` float32 on the CPU, of length one.

    Of an encoder-decoder both sides, one after the other. Cost: 1 F.

    Raises:
        ModelError: The model does not give its hidden states (``output_hidden_states=True``).
    """
    found = []
    with torch.no_grad(), _without_traces(feed.model):
        for values in feed.each(_mean_states, rows, batch_size):
            found.append(values.float().cpu())
            advance(len(values))
    return unit(torch.cat(found))


@contextmanager
def _without_traces(model: nn.Module) -> Iterator[None]:
    """Take off what transformers puts on a model when it is first asked for hidden states: hooks, and a note of them."""
    tables = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks")
    before = [(module, {name: set(getattr(module, name)) for name in tables}, set(vars(module)))
              for module in model.modules()]  # fmt: skip
    try:
        yield
    finally:
        for module, hooks, names in before:
            for name in tables:
                for key in set(getattr(module, name)) - hooks[name]:
                    del getattr(module, name)[key]
            for name in set(vars(module)) - names:
                delattr(module, name)


def _mean_states(model: nn.Module, batch: Batch) -> Tensor:
    inner = innermost(model)
    taken, inputs = keywords_of(inner), inputs_of(model, batch)
    inputs = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
    if taken is None or not taken & {"output_hidden_states", "kwargs"}:
        raise ModelError(
            "hidden states", expected="a model that takes output_hidden_states=True", got=type(inner).__name__
        )
    given = {name: value for name, value in inputs.items() if name in taken}
    labels = batch["labels"] if encodes(model) else None
    output = model(**given, **({} if labels is None else {"labels": labels}), output_hidden_states=True)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    if labels is None:
        return _mean(output.hidden_states[-1], mask)
    counted = (labels != NOT_COUNTED).long()
    return torch.cat(
        [_mean(output.encoder_last_hidden_state, mask), _mean(output.decoder_hidden_states[-1], counted)], 1
    )


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weight = mask.to(states.dtype)[..., None]
    return unit((states * weight).sum(1) / weight.sum(1).clamp_min(1))
