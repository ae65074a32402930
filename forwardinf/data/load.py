"""Data named by one word: a file, a folder, a Hugging Face dataset, or your own function. The command line's reader too.

No file is ever unpickled, no code is downloaded, and nothing is guessed in silence: what is ambiguous is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from forwardinf.core.errors import DataError, FileError, SettingError, choose
from forwardinf.core.paths import as_path
from forwardinf.data.endings import FORMS, IMAGES, OTHERS, PICKLES
from forwardinf.data.forms import form_of
from forwardinf.data.frames import as_table
from forwardinf.data.import_gate import is_code
from forwardinf.data.read_images import ImageFolder
from forwardinf.data.registry import Reader, reader_of
from forwardinf.data.tokenise import tokenised


def load_data(
    spec: str | Path,
    *,
    split: str | None = None,
    rows: str | Path | Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    scale: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    dtype: str | torch.dtype | None = None,
    image_size: int | tuple[int, int] | None = None,
    image_mode: str | None = None,
    text: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    allow_code: bool = True,
    **options: Any,
) -> Any:
    """Read data into a form that ``attribute`` accepts.

    ===============================  ===================================================================================
    ``file.npz``                     tuple of tensors, one for each array. ``x_train, y_train, x_test, y_test`` (or
                                     ``train_x`` …) are selected by split; other names are columns in file order
                                     (beside a ``test`` split and no ``train`` one, they are the train split)
    ``.parquet .jsonl(.gz) .json``   Arrow table (Parquet memory-mapped; ``.csv`` and ``.tsv``, ``.gz`` too, with a first
    ``.csv .tsv``                    line of names; dates stay text). A folder of such files: those whose name
                                     begins with the split (``train.jsonl.gz``, ``test-00000.parquet``), else all, sorted
    ``folder/class/*.png|jpg|…``     :class:`ImageFolder`; with splits ``folder/train/class/…``
    folder of ``save_to_disk``       ``datasets.Dataset``
    ``owner/name``                   ``datasets.Dataset`` from the hub; code in the repository is never run
    ``module:function``              what ``function(**options)`` returns; the module is found on ``sys.path``
    ===============================  ===================================================================================

    Another form is one entry: :func:`forwardinf.data.registry.add_reader`.

    Arrays: uint8 with three or more dimensions, and nothing else, is taken for images: ``(N, H, W)`` becomes
    ``(N, 1, H, W)``, ``(N, H, W, C)`` with C of 1, 3 or 4 becomes ``(N, C, H, W)`` (kept where axis 1 is 1, 3 or 4
    already), as float32 times ``scale``. Other integers become int64; floats stay as they are unless ``dtype`` is given.

    Args:
        spec: One of the above; ``data.npz:test`` selects a split too. What is code is told by its form alone: a split of
            a folder is ``./folder:test``. An existing path comes before a hub id.
        split: Which part. Default: ``"train"`` where there are splits.
        rows: Keep these rows only; see :func:`select_rows`.
        columns: Which columns, in which order. With ``tokenizer``: columns to carry along in each row, as metadata.
        scale: What image arrays are multiplied by; default 1/255.
        mean: Subtracted after scaling, one number or one for each channel (images only).
        std: Divided by after that.
        dtype: What floating arrays become, like ``"float32"``.
        image_size: Image folders: resize to this (height, width), or square; bilinear.
        image_mode: Image folders: ``"RGB"`` (default) or ``"L"`` for grey.
        text: Column to tokenise, or two with a comma between; default the one kind that is there: ``text``, ``messages``
            (conversations, through the tokenizer's chat template) or ``prompt`` and ``completion``. What counts of each:
            :func:`forwardinf.data.tokenise.tokenised`.
        tokenizer: A tokenizer, or a folder or hub id of one: rows of token ids, with their text (tables, Hugging Face).
        max_length: Cut texts to so many tokens; how many were cut is said.
        allow_code: Whether ``module:function`` may be imported.
        **options: Handed to ``function``; so is ``split``, if it takes one.

    Raises:
        SettingError: The form is not known, or a setting does not apply to it.
        FileError: No such file, a damaged one, or one that would need unpickling.
        DataError: The content cannot be used: the row, file or column is named.

    Example:
        >>> x, y = load_data("mnist.npz:test", rows="0:100")  # doctest: +SKIP
        >>> x.shape, x.dtype, y.dtype  # doctest: +SKIP
        (torch.Size([100, 1, 28, 28]), torch.float32, torch.int64)
    """
    if not is_code(str(spec)):
        as_path("data", spec)
    source, split = _parse(str(spec), split)
    given = {"split": split, "columns": columns, "scale": scale, "mean": mean, "std": std, "dtype": dtype,
             "image_size": image_size, "image_mode": image_mode, "text": text, "tokenizer": tokenizer,
             "max_length": max_length, **options}  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(columns, str):
        raise SettingError("columns", expected="a list of names", got=repr(columns), do=f"Write [{columns!r}].")
    reader = _reader(source, allow_code)
    settings = reader.settings
    if settings is not None:
        for name in sorted(set(given) - settings):
            if name in options:
                raise choose(f"{spec}: setting", name, sorted(settings))
            raise SettingError(f"{name}={given[name]!r}", expected=f"settings that apply to {source}: {sorted(settings)}",
                               got="one that does not", do="Leave it out.")  # fmt: skip
    if settings is not None and (text is not None or max_length is not None) and tokenizer is None:
        raise SettingError("text= or max_length=", expected="a tokenizer too", got="none", do="Pass tokenizer=.")
    data = reader.read(source, given)
    if settings is not None and tokenizer is not None:
        data = tokenised(data, tokenizer, text, max_length, columns or (), source=source)
    return data if rows is None else take_rows(data, select_rows(data, rows))


def select_rows(data: Any, rows: str | Path | Sequence[int]) -> list[int]:
    """Return the positions that ``rows`` names in ``data``, in its order.

    Args:
        data: Data, or its length. A tuple is columns.
        rows: ``"0:100"`` (``"-100:"`` is the last hundred, ``"::10"`` every tenth), ``"3,5,9"``, positions, or a file
            with one position a line (blank lines and ``#`` comments are skipped).

    Raises:
        SettingError: Not one of those, out of range, twice the same, or none at all.
        FileError: No such file.
        DataError: A line of the file is not a position.

    Example:
        >>> select_rows(10, "2:5"), select_rows(10, "3,9")
        ([2, 3, 4], [3, 9])
    """
    size = data if isinstance(data, int) else count_rows(data)
    if not isinstance(rows, str | Path):
        return _checked_rows("rows", list(rows), size)
    written = str(rows).strip()
    if cut := re.fullmatch(r"(-?\d+)?:(-?\d+)?(?::([1-9]\d*))?", written):
        start, stop, step = (int(part) if part is not None else None for part in cut.groups())
        for edge in (start, stop):
            if edge is not None and not -size <= edge <= size:
                raise SettingError(f"rows {written}", expected=f"positions in 0:{size}", got=str(edge))
        return _checked_rows(f"rows {written}", list(range(size))[start:stop:step], size)
    if re.fullmatch(r"-?\d+(\s*,\s*-?\d+)*", written):
        return _checked_rows(f"rows {written}", [int(part) for part in written.split(",")], size)
    path = Path(rows)
    if not path.is_file():
        raise FileError(f"rows {written}", expected="0:100, or 3,5,9, or a file of positions", got="no such file")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        word = line.partition("#")[0].strip()
        if word and not re.fullmatch(r"\d+", word):
            raise DataError(f"{path}, line {number}", expected="a position: 0, 1, 2 …", got=repr(line.strip()))
        found += [int(word)] if word else []
    return _checked_rows(str(path), found, size)


def _checked_rows(where: str, rows: list[int], size: int) -> list[int]:
    if not rows:
        raise SettingError(where, expected="at least one row", got="none")
    seen: set[int] = set()
    for row in rows:
        if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < size:
            raise SettingError(where, expected=f"positions from 0 to {size - 1}", got=repr(row))
        if row in seen:
            raise SettingError(where, expected="each position once", got=f"{row} twice")
        seen.add(row)
    return [int(row) for row in rows]


def count_rows(data: Any) -> int:
    """Return how many rows data has, in any form that a reader or a function of the user's gives.

    Raises:
        DataError: It is several datasets, or has no length.
    """
    data = data.dataset if isinstance(data, DataLoader) else data
    return form_of(data, "data", joined=True).size


def take_rows(data: Any, rows: list[int]) -> Any:
    """Return these rows of data in any form, in this order, in the same form.

    A tuple or mapping is columns; a DataLoader keeps its collate.

    Raises:
        DataError: It is several datasets, or has no length.
    """
    if isinstance(data, tuple):
        return tuple(take_rows(column, rows) for column in data)
    if isinstance(data, Mapping) and not hasattr(data, "column_names"):
        return {name: take_rows(column, rows) for name, column in data.items()}
    if isinstance(data, Tensor | np.ndarray):
        return data[rows]
    if isinstance(data, pd.DataFrame | pd.Series):
        return data.iloc[rows]
    if isinstance(data, pa.Table | pa.ChunkedArray | pa.Array):
        return data.take(rows)
    if isinstance(data, list):
        return [data[row] for row in rows]
    if isinstance(data, DataLoader):
        return DataLoader(take_rows(data.dataset, rows), batch_size=data.batch_size, collate_fn=data.collate_fn)
    if hasattr(data, "column_names") or isinstance(data, ImageFolder):
        return data.select(rows)
    frame = as_table(data, "data")
    return Subset(data, rows) if frame is None else frame.take(rows)


# Which form a spec has


def _parse(spec: str, split: str | None) -> tuple[str, str | None]:
    """Take ``:split`` off the end of a spec that is not a path as a whole."""
    head, colon, tail = spec.rpartition(":")
    if not colon or is_code(spec) or not re.fullmatch(r"\w+", tail) or as_path("data", spec).exists():
        return spec, split
    if split is not None and split != tail:
        raise SettingError(spec, expected="one split", got=f"{tail!r} and split={split!r}", do="Name it once.")
    return head, tail


def _reader(source: str, allow_code: bool) -> Reader:
    """Return what reads this form, or say why nothing does."""
    if is_code(source) and not allow_code:
        raise SettingError(source, expected="data that needs no code", got="module:function",
                           do="Allow it with --allow-code, if you trust the module.")  # fmt: skip
    found = reader_of(source)
    if found is not None:
        return found
    path = as_path("data", source)
    if path.is_dir():
        raise FileError(source, expected=FORMS, got="a folder that holds none of these")
    if path.name.lower().endswith(PICKLES):
        raise FileError(source, expected="a file that can be read without running code",
                        got=f"{path.suffix}, which would be unpickled",
                        do="Save the arrays with numpy.savez(path, x=..., y=...), or give module:function.")  # fmt: skip
    if path.exists() or path.suffix.lower() in (*IMAGES, *OTHERS):
        what = "a kind of file that is not read" if path.exists() else "nothing at this path"
        raise FileError(source, expected=FORMS, got=what, do="Give module:function for any other form.")
    if "/" in source or "\\" in source:
        raise FileError(source, expected=FORMS, got="nothing at this path", do="Check the path.")
    raise SettingError(f"data {source!r}", expected=FORMS, got="none of these")
