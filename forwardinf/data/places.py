"""Where a word leads: to something on this disk, or to the Hugging Face hub. A mistyped path never goes to the network."""

from __future__ import annotations

import logging
import re
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from forwardinf.core.errors import FileError, SettingError
from forwardinf.data.endings import HUB, IMAGES, OTHERS, PICKLES, TABLES
from forwardinf.data.import_gate import import_extra

log = logging.getLogger(__name__)

ENDINGS = (".safetensors", ".npz", ".gguf", ".onnx", ".yaml", ".yml", ".py", *IMAGES, *OTHERS, *PICKLES, *TABLES)
SHOWN = 5  # names of what is there instead


def expanded(word: str | Path) -> str:
    """Return the word with ``~`` filled in."""
    return str(Path(word).expanduser()) if str(word).startswith("~") else str(word)


def is_path(word: str) -> bool:
    """Return whether a word can only be meant as a path: hub ids are ``name`` or ``owner/name``.

    Example:
        >>> is_path("runs/last/model"), is_path("./model"), is_path("weights.safetensors"), is_path("openai-community/gpt2")
        (True, True, True, False)
    """
    head, slash, tail = word.partition("/")
    if word.startswith((".", "~", "/")) or "\\" in word or re.match(r"[A-Za-z]:", word):
        return True
    if slash and (not tail or "/" in tail or Path(head).exists()):
        return True
    return word.lower().endswith(ENDINGS)


def nearest(word: str | Path) -> str:
    """Return a hint at the path that was meant: the most alike, or what is there; nothing where nothing is."""
    base, parts = Path(), Path(expanded(word)).parts
    for at, part in enumerate(parts):
        if (base / part).exists():
            base = base / part
            continue
        try:
            names = sorted(found.name for found in base.iterdir() if not found.name.startswith("."))
        except OSError:  # a file, or not ours to look into
            return ""
        lower = {name.lower(): name for name in names}
        if close := get_close_matches(part.lower(), lower, n=1):
            meant = base / lower[close[0]]
            whole = meant.joinpath(*parts[at + 1 :])
            return f"Did you mean {str(whole if whole.exists() else meant)!r}?"
        told = ", ".join(names[:SHOWN]) + (" …" if names[SHOWN:] else "")
        return f"In {base.absolute() if base == Path() else base}: {told}." if names else ""
    return ""


def look_on_hub(what: str, word: str, forms: str, *, extra: str = "hf", cached: str | None = "config.json") -> None:
    """Say that the hub is asked, or refuse a word that is no hub id. Call it where there is nothing at this path.

    Args:
        what: ``"model"``, ``"tokenizer"`` or ``"data"``.
        word: As it was given.
        forms: What would be right, for the error.
        extra: Brings huggingface_hub.
        cached: A file that every repository of this kind has: where the cache holds it, nothing is said.

    Raises:
        FileError: The word is meant as a path; says which one may have been meant.
        SettingError: It is no hub id either.
    """
    if is_path(word):
        raise FileError(f"{what} {word!r}", expected=forms, got="nothing at this path", do=nearest(word))
    if not HUB.fullmatch(word):
        raise SettingError(f"{what} {word!r}", expected=forms, got="none of these, and nothing at this path")
    hub = import_extra("huggingface_hub", extra=extra, need=f"the hub {what} {word}")
    known = cached is not None and isinstance(hub.try_to_load_from_cache(word, cached), str)
    if not known and not offline(hub):
        log.warning("%s %r: no such path here, asking the Hugging Face hub. %s", what, word, nearest(word))


def offline(hub: Any) -> bool:
    """Return whether the hub is not to be asked (``HF_HUB_OFFLINE``)."""
    return bool(import_module(f"{hub.__name__}.constants").HF_HUB_OFFLINE)  # no attribute until it is imported
