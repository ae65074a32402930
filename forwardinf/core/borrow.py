"""Borrow the user's model: eval mode, buffers frozen; give it back bit for bit (laws 1 and 6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from forwardinf.core import noise
from forwardinf.core.errors import ModelError
from forwardinf.core.surroundings import undisturbed


@contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """Lend the model, out of its wrappers: in eval mode, and afterwards flags, buffers and generators are as they were.

    What is around it is switched off meanwhile (:mod:`forwardinf.core.surroundings`).

    Raises:
        ModelError: A parameter has no data (meta device), or the block ended well but a reading had written to a buffer
            (it is put back all the same).
    """
    if not isinstance(model, nn.Module):
        raise ModelError("model", expected="a torch.nn.Module", got=type(model).__name__)
    model = bare(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ModelError(f"parameter {name}", expected="data", got="a lazy layer that has not run yet",
                             do="Run the model on a batch first.")  # fmt: skip
        if tensor.is_meta:
            raise ModelError(f"parameter {name}", expected="data", got="the meta device", do="Load the weights first.")
    training = {module: module.training for module in model.modules()}
    written: list[str] = []
    with noise.own_state(), undisturbed(model):
        wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            model.eval()
            yield model
        finally:
            written = _put_back(model, buffers)
            for module, was in training.items():
                module.training = was
            for parameter, was in wanted.items():
                parameter.requires_grad_(was)
    if written:
        raise ModelError(
            f"buffer {written[0]}", expected="readings that leave it alone in eval mode", got="another value after reading",
            do="A forward that writes buffers makes every reading depend on the one before; freeze it.",
        )  # fmt: skip


def _put_back(model: nn.Module, kept: dict[str, Tensor]) -> list[str]:
    """Restore buffers; return the names of those that had changed."""
    changed = []
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in kept and not same_bits(buffer, kept[name]):
                buffer.copy_(kept[name])
                changed.append(name)
    return changed


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile``, ``DataParallel`` and their like: the same weights, read without the wrapper."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, NaN being equal to NaN."""
    return torch.equal(one, other) or (
        one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
    )
