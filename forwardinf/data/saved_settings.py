"""The settings that a saved model, adapter or pipeline has beside its weights: read as plain JSON, never as code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forwardinf.core.errors import Error, FileError
from forwardinf.data.import_gate import import_extra
from forwardinf.data.places import expanded, is_path, nearest, offline

MODELS = "module:factory, a folder saved by transformers, diffusers or PEFT, or a hub id (owner/name)"
CONFIGS = ("adapter_config.json", "config.json", "model_index.json")


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
        raise FileError(f"model {source!r}", expected=MODELS, got="no such path, and the hub cannot be reached",
                        do=nearest(source) or "Check the connection, or give the path of a folder.") from error  # fmt: skip
    except hub.errors.EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FileError(f"model {source!r}", expected=MODELS, got=f"no such path, and the hub says: {error}") from error


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


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(str(path), expected="a JSON object", got=f"a damaged file ({error})") from error
    if not isinstance(content, dict):
        raise FileError(str(path), expected="a JSON object", got=type(content).__name__)
    return content
