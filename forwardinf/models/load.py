"""Models named by one word: what a function of yours builds, or a folder or hub id holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forwardinf.core.errors import ModelError, SettingError
from forwardinf.core.paths import as_path
from forwardinf.data.import_gate import import_name, is_code
from forwardinf.data.places import expanded
from forwardinf.data.read_arrays import as_dtype
from forwardinf.models.pretrained import pretrained
from forwardinf.models.weights import put_path


def load_model(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    factory_options: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    allow_code: bool = True,
) -> nn.Module:
    """Return a trained model in eval mode.

    Args:
        spec: ``module:factory`` (called with ``factory_options``; found on ``sys.path``, never a module of the standard
            library), a folder saved by transformers, diffusers or PEFT, or a hub id. What is code is told by the form of the
            word alone. An adapter is loaded trainable, on the base its ``adapter_config.json`` names. No code from a folder
            or the hub is run; a word that is meant as a path (``runs/last``, ``./model``) and leads nowhere is never looked
            for on the hub.
        weights: A checkpoint to load into it; see :func:`load_state`.
        weights_key: Where in the file the weights are, like ``"state_dict"``; dots go deeper.
        factory_options: Keyword arguments for the factory.
        dtype: What floating parameters become, like ``"float32"``. Default: as the factory or the files have it.
        device: Where the model goes. Default: where the factory puts it, or the CPU.
        allow_code: Whether ``module:factory`` may be imported.

    Raises:
        SettingError: The spec is no known form, or a setting does not apply to it.
        FileError: A file is missing, damaged, or would need unpickling or code.
        ModelError: The weights do not fit the model, leave a part of it untrained, or are not there at all (meta).
        MissingExtra: The library that reads this folder is not installed.

    Example:
        >>> model = load_model("torch.nn:Linear", factory_options={"in_features": 2, "out_features": 1})
        >>> model.training
        False
    """
    source = expanded(spec)
    as_path("model", spec)
    if is_code(source):
        if not allow_code:
            raise SettingError(source, expected="a model that needs no code", got="module:factory",
                               do="Allow it with --allow-code, if you trust the module.")  # fmt: skip
        model = _build(source, dict(factory_options or {}))
    elif factory_options:
        raise SettingError("factory_options", expected="a spec module:factory", got=source, do="Leave them out.")
    else:
        model = pretrained(source)
    if weights is not None:
        put_path(model, as_path("weights", weights), weights_key)
    elif weights_key is not None:
        raise SettingError("weights_key", expected="weights= too", got="none")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ModelError(f"{source}: {name}", expected="a value", got="a tensor on the meta device",
                             do="Build the model on a real device, without offloading.")  # fmt: skip
    if dtype is not None:
        model.to(as_dtype(dtype))
    if device is not None:
        try:
            model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise SettingError("device", expected="a device of this machine", got=f"{device} ({error})") from error
    return model.eval()


def _build(spec: str, options: dict[str, Any]) -> nn.Module:
    found = import_name(spec, "model")
    if isinstance(found, nn.Module):
        if options:
            raise SettingError("factory_options", expected="a factory", got=f"{spec}, which is a model already")
        return found
    if not callable(found):
        raise SettingError(spec, expected="a function or class that makes a model", got=type(found).__name__)
    model = found(**options)
    if not isinstance(model, nn.Module):
        raise ModelError(spec, expected="a torch.nn.Module", got=type(model).__name__, do="Return the model.")
    return model
