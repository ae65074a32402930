"""Datasets of Hugging Face: saved to disk, or on the hub."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from forwardinf.core.errors import FileError, choose
from forwardinf.data.endings import FORMS, choose_split
from forwardinf.data.import_gate import import_extra
from forwardinf.data.places import look_on_hub


def read_saved(source: str, given: dict[str, Any]) -> Any:
    """Read a folder that ``save_to_disk`` wrote."""
    datasets = import_extra("datasets", extra="hf", need=f"reading {source}")
    try:
        data = datasets.load_from_disk(source)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise FileError(source, expected="a saved dataset", got=f"a damaged one ({error})") from error
    chosen = choose_split(source, given.get("split"), list(data) if isinstance(data, dict) else [])
    return _columns_only(source, data[chosen] if chosen else data, given)


def read_hub(source: str, given: dict[str, Any]) -> Any:
    """Read a dataset from the hub, or from the cache; code in the repository is never run."""
    look_on_hub("data", source, FORMS, cached=None)
    datasets = import_extra("datasets", extra="hf", need=f"the hub dataset {source}")
    old = int(datasets.__version__.split(".")[0]) < 4  # later ones run no code at all, and refuse the word
    try:
        data = datasets.load_dataset(source, split=given.get("split"), **({"trust_remote_code": False} if old else {}))
    except (OSError, ValueError, RuntimeError) as error:
        raise FileError(f"data {source!r}", expected=FORMS, got=f"no such path, and the hub says: {error}") from error
    if isinstance(data, dict):
        data = data[choose_split(source, None, list(data))]
    return _columns_only(source, data, given)


def _columns_only(source: str, data: Any, given: dict[str, Any]) -> Any:
    if "columns" not in given or "tokenizer" in given:
        return data
    for name in given["columns"]:
        if name not in data.column_names:
            raise choose(f"{source}: column", name, data.column_names)
    return data.select_columns(list(given["columns"]))
