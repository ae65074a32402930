"""Which parameters move."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from forwardinf.core.errors import ModelError, SettingError

Parameters = dict[str, nn.Parameter]


def select(model: nn.Module, patterns: Sequence[str] | None) -> Parameters:
    """Return the parameters that a query moves, by name; a tied one once.

    Args:
        model: Its parameters are looked up, not changed.
        patterns: Globs over names; None: those with ``requires_grad``, or in a PEFT model with none, the active adapter.

    Raises:
        SettingError: A pattern matches no parameter, or only whole-number ones.
        ModelError: Nothing would move.
    """
    named = dict(model.named_parameters())
    if patterns is None:
        chosen = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        chosen = chosen or _active_adapter(model, named)
        if not chosen:
            raise ModelError(
                "model", expected="parameters with requires_grad", got="none",
                do="Say which move with Perturbation(parameters='*'), or load the adapter with is_trainable=True.",
            )  # fmt: skip
    else:
        chosen = {}
        for pattern in patterns:
            found = {name: parameter for name, parameter in named.items() if fnmatchcase(name, pattern)}
            if not found:
                some = ", ".join(list(named)[:4])
                raise SettingError("Perturbation(parameters=)", expected="a pattern that matches a parameter name",
                                   got=repr(pattern), do=f"Names look like: {some}.")  # fmt: skip
            chosen.update(found)
    for name, parameter in chosen.items():
        if parameter.is_complex():
            raise ModelError(f"parameter {name}", expected="real numbers", got=f"{parameter.dtype}",
                             do="Keep it as real numbers (torch.view_as_complex in the forward), or say which others move: "
                             "Perturbation(parameters=[...]).")  # fmt: skip
    moving = {name: parameter for name, parameter in chosen.items() if parameter.is_floating_point()}
    if not moving:
        kinds = sorted({str(parameter.dtype) for parameter in chosen.values()})
        raise SettingError("Perturbation(parameters=)", expected="floating-point parameters", got=f"only {', '.join(kinds)}",
                           do="Quantised weights do not move: move adapters on top of them.")  # fmt: skip
    return moving


def _active_adapter(model: nn.Module, named: Parameters) -> Parameters:
    """Return a PEFT model's active adapter tensors (it was loaded for inference, so none of them wants a gradient)."""
    active = getattr(model, "active_adapters", None) or getattr(model, "active_adapter", None)
    if not hasattr(model, "peft_config") or active is None:
        return {}
    names = [active] if isinstance(active, str) else list(active() if callable(active) else active)
    return {
        name: parameter
        for name, parameter in named.items()
        if any(f".{adapter}." in f"{name}." for adapter in names) and "base_layer" not in name
    }
