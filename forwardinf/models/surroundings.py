"""What is around a model and must not change its readings: switched off while it is borrowed, and given back as it was.

Mixed precision around the call would round our own arithmetic, too; inference mode forbids gradients; attention's fast path
without gradients is another kernel than with them; activation checkpoints run a forward a second time, behind the recording's
back; cuDNN's recurrent layers have no backward in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint as checkpointing
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within the block: full precision, gradients possible, one kernel for each layer, no activation checkpoints."""
    kinds = {parameter.device.type for parameter in model.parameters()} | {"cpu"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for kind in kinds - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_one_kernel())
        stack.enter_context(_no_checkpoints())
        stack.enter_context(_ordinary_weights(model))
        stack.enter_context(_own_recurrence(model))
        yield


@contextmanager
def _one_kernel() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _no_checkpoints() -> Iterator[None]:
    """Call what would be checkpointed as it is: the same function, and its activations are kept."""

    def run(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
        return function(*args)

    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        yield  # before the function runs; ends after it

    kept = checkpointing._checkpoint_without_reentrant_generator
    kind: Any = checkpointing.CheckpointFunction
    outer = vars(kind).get("apply")  # there where a model is borrowed inside another loan
    kind.apply = staticmethod(run)
    checkpointing._checkpoint_without_reentrant_generator = nothing
    try:
        yield
    finally:
        if outer is None:
            del kind.apply  # the inherited one is there again
        else:
            kind.apply = outer
        checkpointing._checkpoint_without_reentrant_generator = kept


@contextmanager
def _own_recurrence(model: nn.Module) -> Iterator[None]:
    """Let torch's own kernel read recurrent layers on a GPU, with gradients and without: cuDNN's is for training mode alone.

    Switched off around each of these layers and nothing else: convolutions keep cuDNN.
    """
    before: list[bool] = []

    def off(*_: Any) -> None:
        before.append(torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False

    def back(*_: Any) -> None:
        torch.backends.cudnn.enabled = before.pop()

    hooks: list[Any] = []
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and _on_gpu(module):
            hooks += [module.register_forward_pre_hook(off), module.register_forward_hook(back, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _on_gpu(module: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in module.parameters())


@contextmanager
def _ordinary_weights(model: nn.Module) -> Iterator[None]:
    """Put copies in the place of weights that were made in inference mode: those cannot take part in autograd."""
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    copies: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                places.append((module, name, parameter))
                copies.setdefault(id(parameter), nn.Parameter(parameter.clone(), parameter.requires_grad))
    try:
        for module, name, parameter in places:
            module._parameters[name] = copies[id(parameter)]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
