"""Checkpoints put into a model in place: all of one, strictly, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.errors import FileError, ModelError, SettingError
from forwardinf.core.paths import as_path
from forwardinf.data.import_gate import import_extra
from forwardinf.data.places import nearest
from forwardinf.data.saved_settings import read_config
from forwardinf.models.pretrained import few, load_strictly
from forwardinf.models.tensor_files import State, read_tensors, tensors_in

WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # what DataParallel and torch.compile put before every name
WEIGHTS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_SETTINGS = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


def load_state(model: nn.Module, checkpoint: Any, *, weights_key: str | None = None) -> None:
    """Put a checkpoint's values into ``model``, in place; nothing is written unless all of it fits.

    Names must agree one to one. ``module.`` and ``_orig_mod.`` before names do not count, and of tied tensors one is
    enough. Values are converted to the dtype and device of the model's own.

    Args:
        model: Any module.
        checkpoint: A ``.safetensors`` file; a ``.pt``, ``.pth``, ``.th``, ``.bin`` or ``.ckpt`` file of tensors; a folder
            of transformers or diffusers, ``checkpoint-500`` of a Trainer included; an adapter folder, for a PEFT model; a
            state dict; or a module.
        weights_key: Where in the file or state dict the weights are, like ``"state_dict"``; dots go deeper.

    Raises:
        ModelError: Names or shapes differ, two tied tensors have two values, or no value would change.
        FileError: The file is missing, damaged, or would need unpickling.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> load_state(model, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        >>> model.weight.tolist()
        [[1.0, 1.0]]
    """
    where = str(checkpoint) if isinstance(checkpoint, str | Path) else f"checkpoint {type(checkpoint).__name__}"
    if isinstance(checkpoint, str | Path):
        changed = put_path(model, as_path("checkpoint", checkpoint), weights_key)
    elif isinstance(checkpoint, nn.Module):
        changed = _put(model, dict(checkpoint.state_dict()), where)
    elif isinstance(checkpoint, Mapping):
        changed = _put(model, tensors_in(checkpoint, weights_key, where), where)
    else:
        raise SettingError("checkpoint", expected="a path, a state dict or a module", got=type(checkpoint).__name__)
    if not changed:
        raise ModelError(where, expected="weights that differ from the model's", got="the same values in every tensor",
                         do="Each checkpoint must be another state of the model: leave this one out.")  # fmt: skip


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``, DataParallel and DistributedDataParallel."""
    while type(model).__name__ in ("OptimizedModule", "DataParallel", "DistributedDataParallel"):
        inner: Any = model
        model = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    return model


# Fitting values to a model


def _put(model: nn.Module, state: State, where: str) -> bool:
    """Copy ``state`` into ``model`` if all of it fits; return whether any value changed."""
    own = model.state_dict()
    plain = {WRAPPERS.sub("", name): name for name in own}
    given: State = {}
    for name, value in state.items():
        known = name if name in own else plain.get(WRAPPERS.sub("", name), WRAPPERS.sub("", name))
        if known in given:
            raise ModelError(f"{where}: {name}", expected="one tensor for each name", got=f"two for {known}")
        given[known] = value
    for group in _tied(own):
        values = [given[name].to(own[name]) for name in group if name in given]
        if any(not torch.equal(values[0], value) for value in values[1:]):
            raise ModelError(
                f"{where}: {', '.join(group)}", expected="one value, as the model ties them", got="several"
            )
        given |= {name: values[0] for name in group if values and name not in given}
    _compare(own, given, where, type(model).__name__)
    changed = _differ(own, given)
    try:
        model.load_state_dict(given, strict=True)
    except RuntimeError as error:
        raise ModelError(where, expected=f"weights that fit {type(model).__name__}", got=str(error)) from error
    return changed


def _compare(own: Mapping[str, Any], given: Mapping[str, Any], where: str, whose: str) -> None:
    """Raise ModelError unless names and shapes agree one to one."""
    shapes = {
        name: (getattr(own[name], "shape", None), getattr(given[name], "shape", None)) for name in own if name in given
    }
    wrong = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [f"{name} {_size(got)}, not {_size(ours)}" for name, (ours, got) in shapes.items() if ours != got],
    }  # fmt: skip
    if told := [few(names, how) for how, names in wrong.items() if names]:
        raise ModelError(where, expected=f"weights that fit {whose}", got="; ".join(told),
                         do="Check the model, or name the part of the file with weights_key=.")  # fmt: skip


def _differ(own: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    return any(
        isinstance(tensor, Tensor) and not torch.equal(tensor, given[name].to(tensor)) for name, tensor in own.items()
    )


def _size(shape: torch.Size | None) -> str:
    return "no tensor" if shape is None else str(list(shape))


def _tied(own: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the names of tensors that are one and the same in memory."""
    places: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in own.items():
        if isinstance(tensor, Tensor) and tensor.numel() and not tensor.is_meta:
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            places.setdefault(place, []).append(name)
    yield from (group for group in places.values() if len(group) > 1)


def put_path(model: nn.Module, path: Path, key: str | None) -> bool:
    """Copy the weights at ``path`` into ``model``; return whether any value changed."""
    if not path.exists():
        raise FileError(str(path), expected="a checkpoint", got="nothing at this path", do=nearest(path))
    if path.is_file():
        return _put(model, read_tensors(path, key), str(path))
    if key is not None:
        raise SettingError("weights_key", expected="a file", got=f"the folder {path}", do="Leave it out.")
    if (path / "adapter_config.json").is_file():
        return _put_adapter(unwrap(model), path)
    kind = type(unwrap(model))
    if (path / "config.json").is_file() and any(
        base.__name__ in ("PreTrainedModel", "ModelMixin") for base in kind.__mro__
    ):
        loaded, _ = load_strictly(kind, str(path))  # the library knows how names on disk become names in the model
        return _put(model, dict(loaded.state_dict()), str(path))
    for name in WEIGHTS:
        if (path / name).is_file():
            return _put(model, read_tensors(path / name, None), str(path))
        if (index := path / f"{name}.index.json").is_file():
            shards = sorted(set(read_config(index).get("weight_map", {}).values()))
            state = [pair for shard in shards for pair in read_tensors(path / Path(shard).name, None).items()]
            return _put(model, dict(state), str(path))
    raise FileError(str(path), expected=f"a folder with one of {', '.join(WEIGHTS)}, or an adapter", got="none of them")


def _put_adapter(model: nn.Module, path: Path) -> bool:
    """Copy an adapter into the active one of ``model``, which must have the same settings."""
    peft = import_extra("peft", extra="hf", need=f"the adapter {path}")
    if not isinstance(model, peft.PeftModel):
        raise ModelError(str(path), expected="a PEFT model to load this adapter into", got=type(model).__name__,
                         do="Load the model with its adapter: load_model(adapter folder).")  # fmt: skip
    holder: Any = model
    active = holder.active_adapter
    theirs, ours = read_config(path / "adapter_config.json"), holder.peft_config[active].to_dict()
    differs = [name for name in ADAPTER_SETTINGS if name in theirs and name in ours and theirs[name] != ours[name]]
    if differs:
        raise ModelError(str(path), expected="an adapter with the model's settings",
                         got="; ".join(f"{name} {theirs[name]!r}, not {ours[name]!r}" for name in differs))  # fmt: skip
    given = read_tensors(next((path / name for name in ADAPTERS if (path / name).is_file()), path / ADAPTERS[0]), None)
    own = peft.get_peft_model_state_dict(holder, adapter_name=active, save_embedding_layers=False)
    if set(given) - set(own):  # an adapter may bring its embedding layers along
        whole = peft.get_peft_model_state_dict(holder, adapter_name=active, save_embedding_layers=True)
        own = whole if set(given) <= set(whole) else own
    _compare(own, given, str(path), f"the adapter {active!r}")
    changed = _differ(own, given)
    peft.set_peft_model_state_dict(holder, given, adapter_name=active)
    return changed
