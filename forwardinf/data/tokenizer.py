"""The tokenizer of a folder or hub id. An adapter's is its base model's where its own folder has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forwardinf.core.errors import FileError, SettingError
from forwardinf.core.paths import as_path
from forwardinf.data.import_gate import import_extra, is_code
from forwardinf.data.places import expanded, look_on_hub
from forwardinf.data.saved_settings import base_of, config_of

FORMS = "a folder or hub id of a tokenizer"
GIVE = "Give --tokenizer (in Python tokenizer=): the folder or hub id of the tokenizer the model was trained with."
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)


def load_tokenizer(source: str | Path) -> Any:
    """Return the tokenizer of a folder or hub id; no code of its own is run.

    Raises:
        FileError: There is none, it is damaged, or it would need code of its own.
        SettingError: The word is ``module:factory``, which has no tokenizer beside it.
        MissingExtra: transformers is not installed.
    """
    path, word = as_path("tokenizer", source), expanded(source)
    if is_code(word):
        raise SettingError("tokenizer", expected=FORMS, got=f"none; {word} has none beside it", do=GIVE)
    if path.is_file():
        raise FileError(f"tokenizer {word!r}", expected=FORMS, got="a file", do="Give the folder it lies in.")
    if not path.exists():
        look_on_hub("tokenizer", word, FORMS, cached="tokenizer_config.json")
    if not has_tokenizer(word):
        adapter = config_of(word, "adapter_config.json")
        if adapter is None:
            raise FileError(f"tokenizer {word!r}", expected=FORMS, got="a folder without one", do=GIVE)
        return load_tokenizer(base_of(word, adapter))
    return _loaded(word)


def has_tokenizer(source: str | Path) -> bool:
    """Return whether a folder holds files of a tokenizer; of a hub id this is not known before it is asked."""
    path = Path(expanded(source))
    return not path.is_dir() or any((path / name).is_file() for name in FILES)


def _loaded(word: str) -> Any:
    transformers = import_extra("transformers", extra="hf", need=f"the tokenizer {word}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(word, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        if not Path(word).is_dir() and (adapter := config_of(word, "adapter_config.json")) is not None:
            return load_tokenizer(base_of(word, adapter))
        raise FileError(f"tokenizer {word!r}", expected=FORMS, got=str(error).partition("\n")[0], do=GIVE) from error
    except Exception as error:  # the tokenizers library raises bare Exception at a damaged file
        raise FileError(f"tokenizer {word!r}", expected=FORMS, got=f"a damaged one ({error})", do=GIVE) from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise FileError(f"tokenizer {word!r}", expected=FORMS, got="one without a vocabulary", do=GIVE)
    return tokenizer
