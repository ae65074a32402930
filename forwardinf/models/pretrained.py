"""A model in a folder or on the hub, loaded by the library that saved it: transformers, diffusers or PEFT."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from forwardinf.core.errors import Error, FileError, ModelError, SettingError
from forwardinf.data.import_gate import import_extra
from forwardinf.data.places import look_on_hub
from forwardinf.data.saved_settings import CONFIGS, MODELS, base_of, config_of
from forwardinf.models.tensor_files import PICKLED

FAMILIES = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification",
            "AutoModelForTokenClassification", "AutoModelForQuestionAnswering", "AutoModelForMaskedLM",
            "AutoModelForImageClassification", "AutoModel")  # fmt: skip


def pretrained(source: str) -> nn.Module:
    """Load a folder or hub id with the library that wrote it."""
    if not Path(source).is_dir():
        if Path(source).exists() or Path(source).suffix in (".safetensors", *PICKLED):
            raise SettingError(f"model {source!r}", expected=MODELS, got="a file",
                               do="A file has weights only: give module:factory, and the file as weights=.")  # fmt: skip
        look_on_hub("model", source, MODELS)
    if (config := config_of(source, "adapter_config.json")) is not None:
        return _with_adapter(source, config)
    if (config := config_of(source, "config.json")) is not None:
        return _from_diffusers(source, config) if "_class_name" in config else _from_transformers(source, config)
    if (config := config_of(source, "model_index.json")) is not None:
        parts = [name for name in config if name in ("unet", "transformer", "prior", "vae")]
        raise SettingError(f"model {source!r}", expected="the folder of one model", got="a whole pipeline",
                           do=f"Point to its part: {', '.join(f'{source}/{name}' for name in parts)}.")  # fmt: skip
    where = "in this folder" if Path(source).is_dir() else "that the hub gives or the cache holds, and no such path"
    raise FileError(f"model {source!r}", expected=MODELS, got=f"no {', '.join(CONFIGS[:-1])} or {CONFIGS[-1]} {where}",
                    do="For weights alone, give module:factory and weights=.")  # fmt: skip


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
