"""Models named by one word, and checkpoints put into a model in place: strictly, and never by running code from a file."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from forwardinf.core.errors import Error, FileError, ModelError, SettingError, choose
from forwardinf.core.load_data import CODE, HUB, as_dtype, import_extra, import_name

FORMS = "module:factory, a folder saved by transformers, diffusers or PEFT, or a hub id (owner/name)"
PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt")
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # what DataParallel and torch.compile put before every name
WEIGHTS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
FAMILIES = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification",
            "AutoModelForTokenClassification", "AutoModelForQuestionAnswering", "AutoModelForMaskedLM",
            "AutoModelForImageClassification", "AutoModel")  # fmt: skip
ADAPTER_SETTINGS = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")

State = dict[str, Tensor]


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
        spec: ``module:factory`` (called with ``factory_options``; the current folder is put on the import path), a
            folder saved by transformers, diffusers or PEFT, or a hub id. An adapter is loaded trainable, on the base its
            ``adapter_config.json`` names. No code from a folder or the hub is run. An existing folder comes first.
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
    source = str(spec)
    if CODE.fullmatch(source) and not Path(source).exists():
        if not allow_code:
            raise SettingError(source, expected="a model that needs no code", got="module:factory",
                               do="Allow it with --allow-code, if you trust the module.")  # fmt: skip
        model = _build(source, dict(factory_options or {}))
    elif factory_options:
        raise SettingError("factory_options", expected="a spec module:factory", got=source, do="Leave them out.")
    else:
        model = _pretrained(source)
    if weights is not None:
        _put_path(model, Path(weights), weights_key)
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
        changed = _put_path(model, Path(checkpoint), weights_key)
    elif isinstance(checkpoint, nn.Module):
        changed = _put(model, dict(checkpoint.state_dict()), where)
    elif isinstance(checkpoint, Mapping):
        changed = _put(model, _tensors(checkpoint, weights_key, where), where)
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
    if told := [_few(names, how) for how, names in wrong.items() if names]:
        raise ModelError(where, expected=f"weights that fit {whose}", got="; ".join(told),
                         do="Check the model, or name the part of the file with weights_key=.")  # fmt: skip


def _differ(own: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    return any(
        isinstance(tensor, Tensor) and not torch.equal(tensor, given[name].to(tensor)) for name, tensor in own.items()
    )


def _size(shape: torch.Size | None) -> str:
    return "no tensor" if shape is None else str(list(shape))


def _few(names: list[str], how: str) -> str:
    return f"{len(names)} {how}: {', '.join(names[:3])}{' …' if names[3:] else ''}"


def _tied(own: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the names of tensors that are one and the same in memory."""
    places: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in own.items():
        if isinstance(tensor, Tensor) and tensor.numel() and not tensor.is_meta:
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            places.setdefault(place, []).append(name)
    yield from (group for group in places.values() if len(group) > 1)


# Reading weights


def _put_path(model: nn.Module, path: Path, key: str | None) -> bool:
    """Copy the weights at ``path`` into ``model``; return whether any value changed."""
    if not path.exists():
        raise FileError(str(path), expected="a checkpoint", got="nothing at this path", do="Check the path.")
    if path.is_file():
        return _put(model, _read_file(path, key), str(path))
    if key is not None:
        raise SettingError("weights_key", expected="a file", got=f"the folder {path}", do="Leave it out.")
    if (path / "adapter_config.json").is_file():
        return _put_adapter(unwrap(model), path)
    kind = type(unwrap(model))
    if (path / "config.json").is_file() and any(
        base.__name__ in ("PreTrainedModel", "ModelMixin") for base in kind.__mro__
    ):
        loaded, _ = _load_strictly(kind, str(path))  # the library knows how names on disk become names in the model
        return _put(model, dict(loaded.state_dict()), str(path))
    for name in WEIGHTS:
        if (path / name).is_file():
            return _put(model, _read_file(path / name, None), str(path))
        if (index := path / f"{name}.index.json").is_file():
            shards = sorted(set(_read_config(index).get("weight_map", {}).values()))
            state = [pair for shard in shards for pair in _read_file(path / Path(shard).name, None).items()]
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
    theirs, ours = _read_config(path / "adapter_config.json"), holder.peft_config[active].to_dict()
    differs = [name for name in ADAPTER_SETTINGS if name in theirs and name in ours and theirs[name] != ours[name]]
    if differs:
        raise ModelError(str(path), expected="an adapter with the model's settings",
                         got="; ".join(f"{name} {theirs[name]!r}, not {ours[name]!r}" for name in differs))  # fmt: skip
    given = _read_file(next((path / name for name in ADAPTERS if (path / name).is_file()), path / ADAPTERS[0]), None)
    own = peft.get_peft_model_state_dict(holder, adapter_name=active, save_embedding_layers=False)
    if set(given) - set(own):  # an adapter may bring its embedding layers along
        whole = peft.get_peft_model_state_dict(holder, adapter_name=active, save_embedding_layers=True)
        own = whole if set(given) <= set(whole) else own
    _compare(own, given, str(path), f"the adapter {active!r}")
    changed = _differ(own, given)
    peft.set_peft_model_state_dict(holder, given, adapter_name=active)
    return changed


def _read_file(path: Path, key: str | None) -> State:
    try:
        if path.suffix == ".safetensors":
            return _tensors(load_file(path), key, str(path))
        if path.suffix in PICKLED:
            return _tensors(torch.load(path, map_location="cpu", weights_only=True), key, str(path))
    except Error:
        raise
    except pickle.UnpicklingError as error:
        raise FileError(
            str(path), expected="tensors only", got="a file that would run code when it is read, or a damaged one",
            do="Where you trust it, convert it once: safetensors.torch.save_model(model, 'model.safetensors').",
        ) from error  # fmt: skip
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise FileError(str(path), expected="a file of weights", got=f"a damaged or missing one ({error})") from error
    raise FileError(str(path), expected=f"a .safetensors file, or {', '.join(PICKLED)}", got=path.suffix or "no suffix")


def _tensors(content: Any, key: str | None, where: str) -> State:
    """Return the mapping of names to tensors found under ``key``."""
    rest = key
    while rest:
        if not isinstance(content, Mapping):
            raise SettingError(f"{where}: weights_key {key!r}", expected=f"a mapping at {rest!r}", got="a value")
        step = rest if rest in content else rest.partition(".")[0]
        if step not in content:
            raise choose(f"{where}: weights_key", step, [str(name) for name in content])
        content, rest = content[step], rest[len(step) + 1 :]
    items = content.items() if isinstance(content, Mapping) else ()
    strange = [str(name) for name, value in items if not isinstance(value, Tensor)]
    if not items or strange:
        inside = [str(name) for name, value in items if isinstance(value, Mapping)]
        raise FileError(where, expected="a mapping of names to tensors",
                        got=f"other values at {', '.join(strange[:3])}" if strange else "something else",
                        do=f"Try weights_key= with one of {', '.join(inside[:5])}." if inside else "")  # fmt: skip
    return {str(name): value for name, value in items}


# Building models


def _build(spec: str, options: dict[str, Any]) -> nn.Module:
    found = import_name(spec)
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


def _pretrained(source: str) -> nn.Module:
    """Load a folder or hub id with the library that wrote it."""
    if not Path(source).is_dir():
        if Path(source).exists() or Path(source).suffix in (".safetensors", *PICKLED):
            raise SettingError(f"model {source!r}", expected=FORMS, got="a file",
                               do="A file has weights only: give module:factory, and the file as weights=.")  # fmt: skip
        if not HUB.fullmatch(source):
            raise SettingError(f"model {source!r}", expected=FORMS, got="none of these, and nothing at this path")
    if (config := _config_of(source, "adapter_config.json")) is not None:
        return _with_adapter(source, config)
    if (config := _config_of(source, "config.json")) is not None:
        return _from_diffusers(source, config) if "_class_name" in config else _from_transformers(source, config)
    if (config := _config_of(source, "model_index.json")) is not None:
        parts = [name for name in config if name in ("unet", "transformer", "prior", "vae")]
        raise SettingError(f"model {source!r}", expected="the folder of one model", got="a whole pipeline",
                           do=f"Point to its part: {', '.join(f'{source}/{name}' for name in parts)}.")  # fmt: skip
    where = "in this folder" if Path(source).is_dir() else "that the hub gives or the cache holds, and no such path"
    raise FileError(f"model {source!r}", expected=FORMS, got=f"no config.json, adapter_config.json or model_index.json {where}",
                    do="For weights alone, give module:factory and weights=.")  # fmt: skip


def _config_of(source: str, name: str) -> dict[str, Any] | None:
    """Read a settings file of a folder or hub repository; None if it has no such file."""
    if Path(source).is_dir():
        return _read_config(Path(source) / name) if (Path(source) / name).is_file() else None
    hub = import_extra("huggingface_hub", extra="hf", need=f"the hub model {source}")
    try:
        return _read_config(Path(hub.hf_hub_download(source, name)))
    except Error:
        raise
    except hub.errors.EntryNotFoundError:  # or not in the cache, where the hub cannot be reached
        return None
    except (OSError, ValueError) as error:
        raise FileError(f"model {source!r}", expected=FORMS, got=f"no such path, and the hub says: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(str(path), expected="a JSON object", got=f"a damaged file ({error})") from error
    if not isinstance(content, dict):
        raise FileError(str(path), expected="a JSON object", got=type(content).__name__)
    return content


def _from_transformers(source: str, config: dict[str, Any]) -> nn.Module:
    transformers = import_extra("transformers", extra="hf", need=f"the model {source}")
    named = [str(name) for name in config.get("architectures") or []]
    known = [name for name in named if isinstance(getattr(transformers, name, None), type)]
    if not known and (named or "auto_map" in config):
        code = ", whose code lies in the repository (auto_map)" if "auto_map" in config else ""
        raise FileError(f"model {source!r}", expected="an architecture that transformers has",
                        got=(", ".join(named) or "none") + code,
                        do="Code from a model's folder is never run: build the model in a module:factory.")  # fmt: skip
    if known:
        return _load_strictly(getattr(transformers, known[0]), source)[0]
    for name in FAMILIES:  # nothing says which head the model has: the one that uses every tensor of the file
        try:
            model, unused = _load_strictly(getattr(transformers, name), source)
        except Error:
            continue
        if not unused:
            return model
    raise ModelError(f"model {source!r}", expected="architectures in config.json, or weights that fit one model class",
                     got="neither", do='Add "architectures": ["…"] to config.json.')  # fmt: skip


def _from_diffusers(source: str, config: dict[str, Any]) -> nn.Module:
    diffusers = import_extra("diffusers", extra="diffusion", need=f"the model {source}")
    name = str(config["_class_name"])
    kind = getattr(diffusers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise FileError(f"model {source!r}", expected="a model class of diffusers", got=name)
    return _load_strictly(kind, source)[0]


def _load_strictly(kind: Any, source: str) -> tuple[nn.Module, list[str]]:
    """Load with ``kind.from_pretrained``; return the model and the names it has no use for. None may be missing."""
    options = {} if hasattr(kind, "load_config") else {"trust_remote_code": False, "weights_only": True}
    try:
        model, info = kind.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise FileError(f"model {source!r}", expected="weights that can be read without running code",
                        got=f"{type(error).__name__}: {error}",
                        do="Fetch a damaged file again; convert a pickled one to safetensors.") from error  # fmt: skip
    found = {how: sorted(map(str, info.get(f"{how}_keys", ()))) for how in ("missing", "mismatched", "unexpected")}
    if told := [_few(found[how], how) for how in ("missing", "mismatched") if found[how]]:
        raise ModelError(f"model {source!r}", expected=f"every weight of {kind.__name__}", got="; ".join(told),
                         do="They would start at random: load the checkpoint that the model was trained to.")  # fmt: skip
    return model, found["unexpected"]


def _with_adapter(source: str, config: dict[str, Any]) -> nn.Module:
    peft = import_extra("peft", extra="hf", need=f"the adapter {source}")
    base = config.get("base_model_name_or_path")
    if not base:
        raise FileError(f"adapter {source!r}", expected="a base model in adapter_config.json", got="none",
                        do="Build the base in a module:factory and put the adapter on it there.")  # fmt: skip
    beside = Path(source) / base
    model = _pretrained(str(beside) if Path(source).is_dir() and beside.is_dir() else str(base))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return peft.PeftModel.from_pretrained(model, source, is_trainable=True, torch_device="cpu")  # type: ignore[no-any-return]
    except UserWarning as error:
        raise ModelError(f"adapter {source!r}", expected="every tensor of the adapter", got=str(error)) from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise FileError(f"adapter {source!r}", expected="an adapter that fits its base", got=f"{error}") from error
