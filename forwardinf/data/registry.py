"""Every form that data may have on disk, and what reads it. A new one is a function and one entry: :func:`add_reader`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forwardinf.core.errors import FileError
from forwardinf.core.paths import as_path
from forwardinf.core.registry import Registry
from forwardinf.data.endings import HUB, IMAGES, OTHERS, PICKLES, SPLITS, TABLES, folders_in
from forwardinf.data.import_gate import is_code, read_function
from forwardinf.data.read_arrays import read_arrays
from forwardinf.data.read_hub import read_hub, read_saved
from forwardinf.data.read_images import read_images
from forwardinf.data.read_tables import read_tables, tables_in

TEXT = ("split", "columns", "text", "tokenizer", "max_length")  # settings of rows that may be texts

Fits = Callable[[str], bool]
Read = Callable[[str, dict[str, Any]], Any]


@dataclass(frozen=True)
class Reader:
    """What reads a form of data; see :func:`add_reader`.

    Attributes:
        fits: Whether a word for data names this form, or the endings of its files.
        read: Reads it.
        settings: Those that apply; None: any.
    """

    fits: Fits | tuple[str, ...]
    read: Read
    settings: frozenset[str] | None


READERS: Registry[Reader] = Registry("reader")


def add_reader(
    name: str, fits: Fits | str | tuple[str, ...], read: Read, settings: tuple[str, ...] | None = ("split",)
) -> None:
    """Enter a form of data, which :func:`forwardinf.load_data` and ``--data`` take from then on.

    Readers are asked in the order in which they were entered, so a built-in form stays what it is.

    Args:
        name: Of the form: small letters, digits, ``-`` and ``_``.
        fits: ``fits(word)``: whether the word, without a ``:split`` at its end, names this form; or the ending of its files,
            like ``".toy"``, or several.
        read: ``read(word, settings)`` gives data in a form that :func:`forwardinf.attribute` accepts. It gets the settings that
            were given, without those that are None.
        settings: Which of :func:`forwardinf.load_data`'s settings apply, or others; any other is refused. None: any. With
            ``"tokenizer"`` among them the columns of texts are tokenised afterwards.

    Raises:
        SettingError: The name is taken, or is none.
    """
    found = (fits,) if isinstance(fits, str) else fits
    READERS.add(name, Reader(found, read, None if settings is None else frozenset(settings)))


def reader_of(word: str) -> Reader | None:
    """Return the first reader that a word fits, or None.

    Raises:
        FileError: The word is that of a file which is not there.
    """
    for reader in READERS.values():
        if not isinstance(reader.fits, tuple):
            if reader.fits(word):
                return reader
        elif (path := as_path("data", word)).name.lower().endswith(reader.fits) and not path.is_dir():
            if not path.is_file():
                raise FileError(word, expected="a file", got="nothing at this path", do="Check the path.")
            return reader
    return None


def _is_saved(word: str) -> bool:
    path = as_path("data", word)
    return path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file())


def _holds_tables(word: str) -> bool:
    path = as_path("data", word)
    if not path.is_dir():
        return False
    return bool(tables_in(path)) or any(tables_in(folder) for folder in folders_in(path) if folder.name in SPLITS)


def _holds_images(word: str) -> bool:
    path = as_path("data", word)
    return path.is_dir() and bool(folders_in(path))


def _is_hub(word: str) -> bool:
    path = as_path("data", word)
    endings = [ending for reader in READERS.values() if isinstance(reader.fits, tuple) for ending in reader.fits]
    a_file = path.name.lower().endswith((*endings, *PICKLES)) or path.suffix.lower() in (*IMAGES, *OTHERS)
    return not a_file and not path.exists() and HUB.fullmatch(word) is not None


add_reader("code", is_code, read_function, None)
add_reader("saved", _is_saved, read_saved, TEXT)
add_reader("folder-of-tables", _holds_tables, read_tables, TEXT)
add_reader("folder-of-images", _holds_images, read_images, ("split", "mean", "std", "image_size", "image_mode"))
add_reader("arrays", ".npz", read_arrays, ("split", "columns", "scale", "mean", "std", "dtype"))
add_reader("tables", TABLES, read_tables, TEXT)
add_reader("hub", _is_hub, read_hub, TEXT)
