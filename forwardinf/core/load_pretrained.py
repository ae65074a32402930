"""A model in a folder or on the hub, loaded by the library that saved it: transformers, diffusers or PEFT."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from forwardinf.core.errors import Error, FileError, ModelError, SettingError
from forwardinf.core.load_code import import_extra
from forwardinf.core.load_places import expanded, is_path, look_on_hub, nearest, offline
from forwardinf.core.load_tensors import PICKLED, read_config

FORMS = "module:factory, a folder saved by transformers, diffusers or PEFT, or a hub id (owner/name)"
CONFIGS = ("adapter_config.json", "config.json", "model_index.json")
FAMILIES = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification",
            "AutoModelForTokenClassification", "AutoModelForQuestionAnswering", "AutoModelForMaskedLM",
            "AutoModelForImageClassification", "AutoModel")  # fmt: skip


def pretrained(source: str) -> nn.Module:
    """Load a folder or hub id with the library that wrote it."""
    if not Path(source).is_dir():
        if Path(source).exists() or Path(source).suffix in (".safetensors", *PICKLED):
            raise SettingError(f"model {source!r}", expected=FORMS, got="a file",
                               do="A file has weights only: give module:factory, and the file as weights=.")  # fmt: skip
        look_on_hub("model", source, FORMS)
    if (config := config_of(source, "adapter_config.json")) is not None:
        return _with_adapter(source, config)
    if (config := config_of(source, "config.json")) is not None:
        return _from_diffusers(source, config) if "_class_name" in config else _from_transformers(source, config)
    if (config := config_of(source, "model_index.json")) is not None:
        parts = [name for name in config if name in ("unet", "transformer", "prior", "vae")]
        raise SettingError(f"model {source!r}", expected="the folder of one model", got="a whole pipeline",
                           do=f"Point to its part: {', '.join(f'{source}/{name}' for name in parts)}.")  # fmt: skip
    where = "in this folder" if Path(source).is_dir() else "that the hub gives or the cache holds, and no such path"
    raise FileError(f"model {source!r}", expected=FORMS, got=f"no {', '.join(CONFIGS[:-1])} or {CONFIGS[-1]} {where}",
                    do="For weights alone, give module:factory and weights=.")  # fmt: skip


def config_of(source: str, name: str) -> dict[str, Any] | None:
    """Read a settings file of a folder or hub repository; None if it has no such file.

    Raises:
        FileError: The file is damaged, or there is no such repository, or neither hub nor cache can say.
    """
    if Path(source).is_dir():
        return _without_code(source, Path(source) / name) if (Path(source) / name).is_file() else None
    hub = import_extra("huggingface_hub", extra="hf", need=f"the hub model {source}")
    try:
        return _without_code(source, Path(hub.hf_hub_download(source, name)))
    except Error:
        raise
    except hub.errors.LocalEntryNotFoundError as error:  # the hub was not reached, and the cache has no such file
        if offline(hub) or _known(hub, source):
            return None
        raise FileError(f"model {source!r}", expected=FORMS, got="no such path, and the hub cannot be reached",
                        do=nearest(source) or "Check the connection, or give the path of a folder.") from error  # fmt: skip
    except hub.errors.EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FileError(f"model {source!r}", expected=FORMS, got=f"no such path, and the hub says: {error}") from error


def _without_code(source: str, path: Path) -> dict[str, Any]:
    """Read a settings file; refuse one that would have a library fetch and run code: kernels from a hub, remote code."""
    config = read_config(path)
    below: list[Any] = [config]
    while below:
        here = below.pop()
        if isinstance(here, dict):
            for name, value in here.items():
                kernel = (
                    str(name).endswith("_implementation") and isinstance(value, str) and ("/" in value or ":" in value)
                )
                if kernel or (name == "trust_remote_code" and value):
                    raise FileError(f"{source}: {path.name}", expected="settings that need no code", got=f"{name}: {value}",
                                    do="Remove that line, or build the model in a module:factory.")  # fmt: skip
        below += here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()
    return config


def _known(hub: Any, source: str) -> bool:
    """Return whether the cache holds this repository."""
    return any(isinstance(hub.try_to_load_from_cache(source, name), str) for name in CONFIGS)


def base_of(source: str, config: dict[str, Any]) -> str:
    """Return the folder or hub id of an adapter's base model, which may lie beside it."""
    base = config.get("base_model_name_or_path")
    if not base:
        raise FileError(f"adapter {source!r}", expected="a base model in adapter_config.json", got="none",
                        do="Build the base in a module:factory and put the adapter on it there.")  # fmt: skip
    beside = Path(source) / base
    if Path(source).is_dir() and beside.is_dir():
        return str(beside)
    if is_path(str(base)) and not Path(expanded(base)).exists():
        raise FileError(f"adapter {source!r}", expected="its base model where adapter_config.json says",
                        got=f"nothing at {base!r}", do="Put it there, or change base_model_name_or_path.")  # fmt: skip
    return expanded(base)


def _from_transformers(source: str, config: dict[str, Any]) -> nn.Module:
    transformers = import_extra("transformers", extra="hf", need=f"the model {source}")
    named = [str(name) for name in config.get("architectures") or []]
    kinds = {name: getattr(transformers, name, None) for name in named}
    known = [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    if not known and (named or "auto_map" in config):
        code = ", whose code lies in the repository (auto_map)" if "auto_map" in config else ""
        raise FileError(f"model {source!r}", expected="an architecture that transformers has",
                        got=(", ".join(named) or "none") + code,
                        do="Code from a model's folder is never run: build the model in a module:factory.")  # fmt: skip
    if known:
        return load_strictly(getattr(transformers, known[0]), source)[0]
    for name in FAMILIES:  # nothing says which head the model has: the one that uses every tensor of the file
        try:
            model, unused = load_strictly(getattr(transformers, name), source)
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
    return load_strictly(kind, source)[0]


def load_strictly(kind: Any, source: str) -> tuple[nn.Module, list[str]]:
    """Load with ``kind.from_pretrained``; return the model and the names it has no use for. None may be missing."""
    options = {} if hasattr(kind, "load_config") else {"trust_remote_code": False, "weights_only": True}
    try:
        model, info = kind.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise FileError(f"model {source!r}", expected="weights that can be read without running code",
                        got=f"{type(error).__name__}: {error}",
                        do="Fetch a damaged file again; convert a pickled one to safetensors.") from error  # fmt: skip
    found = {how: sorted(map(str, info.get(f"{how}_keys", ()))) for how in ("missing", "mismatched", "unexpected")}
    if told := [few(found[how], how) for how in ("missing", "mismatched") if found[how]]:
        raise ModelError(f"model {source!r}", expected=f"every weight of {kind.__name__}", got="; ".join(told),
                         do="They would start at random: load the checkpoint that the model was trained to.")  # fmt: skip
    return model, found["unexpected"]


def few(names: list[str], how: str) -> str:
    """Return how many names there are, of what kind, and the first three."""
    return f"{len(names)} {how}: {', '.join(names[:3])}{' …' if names[3:] else ''}"


def _with_adapter(source: str, config: dict[str, Any]) -> nn.Module:
    peft = import_extra("peft", extra="hf", need=f"the adapter {source}")
    model = pretrained(base_of(source, config))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return peft.PeftModel.from_pretrained(model, source, is_trainable=True, torch_device="cpu")  # type: ignore[no-any-return]
    except UserWarning as error:
        raise ModelError(f"adapter {source!r}", expected="every tensor of the adapter", got=str(error)) from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise FileError(f"adapter {source!r}", expected="an adapter that fits its base", got=f"{error}") from error
