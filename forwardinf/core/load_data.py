"""Data named by one word: a file, a folder, a Hugging Face dataset, or your own function. The command line's reader too.

No file is ever unpickled, no code is downloaded, and nothing is guessed in silence: what is ambiguous is an error.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from forwardinf.core.errors import DataError, Error, FileError, MissingExtra, SettingError, choose

FORMS = (
    "arrays.npz, rows.parquet, rows.jsonl(.gz), a folder of those, a folder of images (folder/class/*.png), a saved "
    "Hugging Face dataset, a hub id (owner/name), or module:function; with :test at the end for a split"
)
SPLITS = ("train", "test", "validation", "valid", "val", "dev")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".bin", ".ckpt")
OTHERS = (".csv", ".tsv", ".txt", ".npy", ".h5", ".arrow", ".zip", ".gz")
TABLES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")
CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
TEXT = {"text", "tokenizer", "max_length"}


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
    ``.parquet .jsonl(.gz) .json``   Arrow table (Parquet memory-mapped). A folder of such files: those whose name
                                     begins with the split (``train.jsonl.gz``, ``test-00000.parquet``), else all, sorted
    ``folder/class/*.png|jpg|…``     :class:`ImageFolder`; with splits ``folder/train/class/…``
    folder of ``save_to_disk``       ``datasets.Dataset``
    ``owner/name``                   ``datasets.Dataset`` from the hub; code in the repository is never run
    ``module:function``              what ``function(**options)`` returns; the current folder is put on the import path
    ===============================  ===================================================================================

    Arrays: uint8 with three or more dimensions, and nothing else, is taken for images: ``(N, H, W)`` becomes
    ``(N, 1, H, W)``, ``(N, H, W, C)`` with C of 1, 3 or 4 becomes ``(N, C, H, W)`` (kept where axis 1 is 1, 3 or 4
    already), as float32 times ``scale``. Other integers become int64; floats stay as they are unless ``dtype`` is given.

    Args:
        spec: One of the above; ``data.npz:test`` selects a split too. An existing path comes before a module or hub id.
        split: Which part. Default: ``"train"`` where there are splits.
        rows: Keep these rows only; see :func:`select_rows`.
        columns: Which columns, in which order. With ``tokenizer``: columns to carry along in each row, as metadata.
        scale: What image arrays are multiplied by; default 1/255.
        mean: Subtracted after scaling, one number or one for each channel (images only).
        std: Divided by after that.
        dtype: What floating arrays become, like ``"float32"``.
        image_size: Image folders: resize to this (height, width), or square; bilinear.
        image_mode: Image folders: ``"RGB"`` (default) or ``"L"`` for grey.
        text: Column to tokenise; default ``"text"``.
        tokenizer: A tokenizer, or a folder or hub id of one. Gives :class:`TokenizedText` (tables, Hugging Face).
        max_length: Cut texts to so many tokens.
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
    source, split = _parse(str(spec), split)
    given = {"split": split, "columns": columns, "scale": scale, "mean": mean, "std": std, "dtype": dtype,
             "image_size": image_size, "image_mode": image_mode, "text": text, "tokenizer": tokenizer,
             "max_length": max_length, **options}  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(columns, str):
        raise SettingError("columns", expected="a list of names", got=repr(columns), do=f"Write [{columns!r}].")
    read, settings = _reader(source, allow_code)
    if settings is not None:
        for name in sorted(set(given) - settings):
            if name in options:
                raise choose(f"{spec}: setting", name, sorted(settings))
            raise SettingError(f"{name}={given[name]!r}", expected=f"settings that apply to {source}: {sorted(settings)}",
                               got="one that does not", do="Leave it out.")  # fmt: skip
    if settings is not None and (text is not None or max_length is not None) and tokenizer is None:
        raise SettingError("text= or max_length=", expected="a tokenizer too", got="none", do="Pass tokenizer=.")
    data = read(source, given)
    if settings is not None and tokenizer is not None:
        data = TokenizedText(data, text or "text", tokenizer, max_length, columns or ())
    return data if rows is None else _take(data, select_rows(data, rows))


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
    size = data if isinstance(data, int) else len(data[0]) if isinstance(data, tuple) else len(data)
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


def _take(data: Any, rows: list[int]) -> Any:
    if isinstance(data, tuple) and all(isinstance(column, Tensor | np.ndarray) for column in data):
        return tuple(column[rows] for column in data)
    if isinstance(data, pa.Table):
        return data.take(rows)
    if isinstance(data, list):
        return [data[row] for row in rows]
    return data.select(rows) if hasattr(data, "select") else Subset(data, rows)


# Which form a spec has


def _parse(spec: str, split: str | None) -> tuple[str, str | None]:
    """Take ``:split`` off the end of a spec that is not a path as a whole."""
    head, colon, tail = spec.rpartition(":")
    if not colon or Path(spec).exists() or not re.fullmatch(r"\w+", tail):
        return spec, split
    if CODE.fullmatch(spec) and not Path(head).exists() and not head.endswith((".npz", *TABLES)):
        return spec, split
    if CODE.fullmatch(spec) and Path(head).is_dir() and Path(f"{head}.py").is_file():
        raise SettingError(spec, expected="a folder and its split, or a module and its function",
                           got=f"both {head}/ and {head}.py", do=f"Write ./{spec} for the folder, or rename one.")  # fmt: skip
    if split is not None and split != tail:
        raise SettingError(spec, expected="one split", got=f"{tail!r} and split={split!r}", do="Name it once.")
    return head, tail


Read = Callable[[str, dict[str, Any]], Any]


def _reader(source: str, allow_code: bool) -> tuple[Read, set[str] | None]:
    """Return the function that reads this form, and the settings that apply to it (None: any)."""
    path = Path(source)
    name = path.name.lower()
    if name.endswith(PICKLES) and not path.is_dir():
        raise FileError(source, expected="a file that can be read without running code",
                        got=f"{path.suffix}, which would be unpickled",
                        do="Save the arrays with numpy.savez(path, x=..., y=...), or give module:function.")  # fmt: skip
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _read_saved, {"split", "columns", *TEXT}
        if _tables_in(path) or any(_tables_in(folder) for folder in _folders(path) if folder.name in SPLITS):
            return _read_tables, {"split", "columns", *TEXT}
        if _folders(path):
            return _read_images, {"split", "mean", "std", "image_size", "image_mode"}
        raise FileError(source, expected=FORMS, got="a folder that holds none of these")
    if name.endswith((".npz", *TABLES)):
        if not path.is_file():
            raise FileError(source, expected="a file", got="nothing at this path", do="Check the path.")
        if name.endswith(".npz"):
            return _read_arrays, {"split", "columns", "scale", "mean", "std", "dtype"}
        return _read_tables, {"split", "columns", *TEXT}
    if CODE.fullmatch(source):
        if not allow_code:
            raise SettingError(source, expected="data that needs no code", got="module:function",
                               do="Allow it with --allow-code, if you trust the module.")  # fmt: skip
        return _read_function, None
    if path.exists() or path.suffix.lower() in (*IMAGES, *OTHERS):
        what = "a kind of file that is not read" if path.exists() else "nothing at this path"
        raise FileError(source, expected=FORMS, got=what, do="Give module:function for any other form.")
    if HUB.fullmatch(source):
        return _read_hub, {"split", "columns", *TEXT}
    if "/" in source or "\\" in source:
        raise FileError(source, expected=FORMS, got="nothing at this path", do="Check the path.")
    raise SettingError(f"data {source!r}", expected=FORMS, got="none of these")


def _choose_split(source: str, split: str | None, found: Sequence[str]) -> str | None:
    """Return the split to read: the one asked for, else train, else the only one. No splits and none asked: None."""
    if split is not None and split not in found:
        if not found:
            raise SettingError(f"{source}: split", expected="no split, as there are none here", got=repr(split))
        raise choose(f"{source}: split", split, found)
    if split is None and len(found) > 1 and "train" not in found:
        raise SettingError(f"{source}: split", expected=f"one of {', '.join(map(repr, found))}", got="none")
    return split if split is not None or not found else "train" if "train" in found else found[0]


# Arrays


def _read_arrays(source: str, given: dict[str, Any]) -> tuple[Tensor, ...]:
    if not zipfile.is_zipfile(source):
        raise FileError(source, expected="an .npz file", got="a damaged one, or another kind of file")
    try:
        with np.load(source, allow_pickle=False) as file:
            columns, arrays = _columns_of(source, list(file.files), given.get("split")), {}
            for name in given.get("columns") or columns:
                if name not in columns:
                    raise choose(f"{source}: column", name, columns)
                arrays[name] = file[columns[name]]
    except Error:
        raise
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError) as error:
        if "allow_pickle" not in str(error):
            raise FileError(source, expected="an .npz file", got=f"a damaged one ({error})") from error
        raise FileError(source, expected="arrays of numbers", got="arrays of objects, which would be unpickled",
                        do="Save them with a numeric dtype, or choose others with columns=.") from error  # fmt: skip
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise DataError(source, expected="columns of equal length", got=str(lengths),
                        do="Choose with columns=, or read the file in a function of your own (module:function).")  # fmt: skip
    pictures = [name for name, array in arrays.items() if array.dtype == np.uint8 and array.ndim >= 3]
    for setting in ("scale", "mean", "std"):
        if setting in given and not pictures:
            raise SettingError(f"{setting}=", expected="images: uint8 arrays of three dimensions or more",
                               got=str({name: f"{array.dtype}, {array.ndim} dimensions" for name, array in arrays.items()}),
                               do=f"Leave {setting}= out: other arrays are taken as they are.")  # fmt: skip
    floating = None if "dtype" not in given else as_dtype(given["dtype"])
    return tuple(_tensor(f"{source}: column {name!r}", array, floating, given) for name, array in arrays.items())


def _columns_of(source: str, names: list[str], split: str | None) -> dict[str, str]:
    """Map column names to names in the file, like ``x`` to ``x_test``, for the split asked for."""
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        left, _, right = name.rpartition("_")
        if left and right in SPLITS:
            parts.setdefault(right, {})[left] = name
        elif (begin := name.partition("_"))[0] in SPLITS and begin[2]:
            parts.setdefault(begin[0], {})[begin[2]] = name
    plain = {name: name for name in names if not any(name in part.values() for part in parts.values())}
    if parts and plain and "train" not in parts:
        parts["train"] = plain
    chosen = _choose_split(source, split, sorted(parts))
    columns = parts[chosen] if chosen else plain
    if not columns:
        raise DataError(source, expected="at least one array", got="none")
    return columns


def _tensor(where: str, array: np.ndarray[Any, Any], dtype: torch.dtype | None, given: dict[str, Any]) -> Tensor:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(where, expected="numbers", got=f"an array of {array.dtype}", do="Choose others with columns=.")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype != np.uint8 or array.ndim < 3:
        tensor = torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array)
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    images = torch.from_numpy(array)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.ndim == 4 and images.shape[3] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        images = images.permute(0, 3, 1, 2)
    images = images.to(torch.float32, memory_format=torch.contiguous_format).mul_(given.get("scale", 1 / 255))
    images = _normalised(images, given.get("mean"), given.get("std"), channels=1)
    return images if dtype is None else images.to(dtype)


def _normalised(images: Tensor, mean: Any, std: Any, *, channels: int) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel (axis ``channels``), in place."""
    for name, value in (("mean", mean), ("std", std)):
        if value is None:
            continue
        numbers = torch.as_tensor(value, dtype=torch.float32)
        count = images.shape[channels]
        if numbers.numel() not in (1, count) or numbers.ndim > 1 or (name == "std" and not bool((numbers > 0).all())):
            raise SettingError(name, expected=f"one number, or {count}, one for each channel"
                               + (", above 0" if name == "std" else ""), got=repr(value))  # fmt: skip
        each = numbers.reshape(-1, *[1] * (images.ndim - channels - 1))
        images = images.sub_(each) if name == "mean" else images.div_(each)
    return images


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return the floating dtype of this name; anything else is a SettingError."""
    found = name if isinstance(name, torch.dtype) else getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SettingError("dtype", expected="'float32', 'float64', 'bfloat16' or 'float16'", got=repr(name))
    return found


# Tables


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _tables_in(path: Path) -> list[Path]:
    names = TABLES[:3]  # a lone .json in a folder is more often settings than rows
    return sorted(file for file in path.glob("[!.]*") if file.name.lower().endswith(names) and file.is_file())


def _read_tables(source: str, given: dict[str, Any]) -> pa.Table:
    path, found = Path(source), dict[str, list[Path]]()
    files = [path] if path.is_file() else _tables_in(path)
    for file in files if path.is_dir() else ():
        if (part := re.split(r"[-_.]", file.name)[0].lower()) in SPLITS:
            found.setdefault(part, []).append(file)
    for folder in _folders(path) if path.is_dir() else ():
        if folder.name in SPLITS:
            found.setdefault(folder.name, []).extend(_tables_in(folder))
    chosen = _choose_split(source, given.get("split"), sorted(name for name, inside in found.items() if inside))
    files = found[chosen] if chosen else files
    wanted = None if "tokenizer" in given else given.get("columns")
    tables = [_read_parquet(file, wanted) if file.suffix.lower() == ".parquet" else _read_json(file) for file in files]
    if len({frozenset(table.column_names) for table in tables}) > 1:
        raise DataError(source, expected="files with the same columns", got=", ".join(file.name for file in files),
                        do="Name one file.")  # fmt: skip
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise DataError(source, expected="files with the same columns", got=str(error)) from error
    if table.num_rows == 0:
        raise DataError(source, expected="at least one row", got="none")
    return table if wanted is None else _selected(source, table, wanted)


def _selected(source: str, table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    for name in wanted:
        if name not in table.column_names:
            raise choose(f"{source}: column", name, table.column_names)
    return table.select(list(wanted))


def _read_parquet(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        known = pq.read_schema(path, memory_map=True).names
        wanted = None if columns is None or set(columns) - set(known) else list(columns)
        return pq.read_table(path, columns=wanted, memory_map=True, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise FileError(str(path), expected="a Parquet file", got=f"a damaged one ({error})") from error


def _read_json(path: Path) -> pa.Table:
    try:
        with pa.input_stream(str(path), compression="gzip" if path.name.lower().endswith(".gz") else None) as stream:
            content = stream.read()
    except (OSError, pa.ArrowException) as error:
        raise FileError(str(path), expected="a file of JSON lines", got=f"a damaged one ({error})") from error
    try:
        if content.lstrip()[:1] == b"[":  # one JSON array instead of lines
            content = b"\n".join(json.dumps(row).encode() for row in json.loads(content))
        if not content.strip():
            return pa.table({})
        block = pa_json.ReadOptions(block_size=min(len(content) + 1, 2**31 - 1))
        table = pa_json.read_json(pa.BufferReader(content), read_options=block)
        schema = pa.schema([field.with_type(_without_dates(field.type)) for field in table.schema])
        if schema != table.schema:  # Arrow turned text that looks like dates into times: read it as the text it is
            parse = pa_json.ParseOptions(explicit_schema=schema)
            table = pa_json.read_json(pa.BufferReader(content), read_options=block, parse_options=parse)
        table.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    raise ValueError("not an object {...}")
            except ValueError as wrong:
                raise DataError(f"{path}, line {number}", expected="one JSON object a line", got=f"{wrong}") from wrong
        raise DataError(str(path), expected="columns of one type each", got=str(error),
                        do="Arrow counts rows from 0. Make the values alike.") from error  # fmt: skip
    return table


def _without_dates(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dates(field.type)) for field in kind])
    return kind


# Text


class TokenizedText(Dataset[dict[str, Any]]):
    """Texts as rows of token ids, tokenised when they are asked for, without padding.

    Each row is a dict of ``input_ids`` and ``attention_mask`` (lists), ``labels`` where the data has a column ``labels``
    or ``label``, and the columns named in ``keep``.
    """

    def __init__(self, data: Any, text: str, tokenizer: Any, max_length: int | None, keep: Sequence[str] = ()) -> None:
        names = list(data.column_names)
        for name in (text, *keep):
            if name not in names:
                raise choose("column", name, names)
        if isinstance(tokenizer, str | Path):
            tokenizer = _load_tokenizer(str(tokenizer))
        if max_length is not None and max_length < 1:
            raise SettingError("max_length", expected="1 or more", got=repr(max_length))
        self._texts, self._tokenizer, self._max_length = _values(data, text), tokenizer, max_length
        label = next((name for name in ("labels", "label") if name in names), None)
        self._others = {name: _values(data, name) for name in keep}
        if label is not None:
            self._others["labels"] = _values(data, label)
        for row, value in enumerate(self._others.get("labels", ())):
            if value is None or isinstance(value, str):
                raise DataError(f"column {label!r}, row {row}", expected="the number of its class", got=repr(value),
                                do="Write the numbers the model was trained with.")  # fmt: skip
        for row, value in enumerate(self._texts):
            if not isinstance(value, str):
                raise DataError(f"column {text!r}, row {row}", expected="text", got=repr(value))

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> dict[str, Any]:
        cut = {"truncation": True, "max_length": self._max_length} if self._max_length is not None else {}
        tokens = self._tokenizer(self._texts[row], **cut)
        found = {name: list(tokens[name]) for name in ("input_ids", "attention_mask") if name in tokens}
        return found | {name: values[row] for name, values in self._others.items()}

    def select(self, rows: Sequence[int]) -> Subset[dict[str, Any]]:
        """Return these rows, in this order."""
        return Subset(self, list(rows))


def _values(data: Any, name: str) -> list[Any]:
    column = data[name]
    return list(column.to_pylist() if isinstance(column, pa.ChunkedArray) else column)


def _load_tokenizer(source: str) -> Any:
    transformers = import_extra("transformers", extra="hf", need=f"the tokenizer {source}")
    try:
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileError(f"tokenizer {source}", expected="a folder or hub id of a tokenizer", got=str(error)) from error


# Images


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images in one folder for each class, sorted by class and then by path: ``(float32 (C, H, W) in [0, 1], class)``.

    Nothing is read before it is asked for. Rotation tags are ignored, transparency is dropped.

    Attributes:
        classes: Names, in the order of their numbers. A class that another split has and this one lacks keeps its number.
        ids: Paths relative to the folder, with ``/``.
    """

    def __init__(self, root: Path, classes: Sequence[str], files: Sequence[tuple[str, int]], *, image_mode: str = "RGB",
                 image_size: int | tuple[int, int] | None = None, mean: Any = None, std: Any = None) -> None:  # fmt: skip
        if image_mode not in ("RGB", "L"):
            raise choose("image_mode", image_mode, ("RGB", "L"))
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise SettingError("image_size", expected="a number above 0, or (height, width)", got=repr(image_size))
        self.root, self.classes, self._files = root, list(classes), list(files)
        self._mode, self._size, self._mean, self._std = image_mode, size, mean, std

    @property
    def ids(self) -> list[str]:
        """Paths relative to the folder."""
        return [name for name, _ in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        name, label = self._files[row]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(self.root / name) as image:
                    deep = image.mode.startswith(("I", "F"))
                    picture = image.convert(self._mode)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError,
                Image.DecompressionBombWarning) as error:  # fmt: skip
            raise DataError(str(self.root / name), expected="an image", got=f"{type(error).__name__}: {error}",
                            do="Mend or remove the file.") from error  # fmt: skip
        if deep:
            raise DataError(str(self.root / name), expected="8 bits a channel", got="more, which would be clipped",
                            do="Read the images in a function of your own (module:function).")  # fmt: skip
        if self._size is not None:
            picture = picture.resize((self._size[1], self._size[0]), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, -1).permute(2, 0, 1)
        scaled = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return _normalised(scaled, self._mean, self._std, channels=0), label

    def select(self, rows: Sequence[int]) -> ImageFolder:
        """Return these rows, in this order."""
        return ImageFolder(self.root, self.classes, [self._files[row] for row in rows], image_mode=self._mode,
                           image_size=self._size, mean=self._mean, std=self._std)  # fmt: skip


def _images_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and not path.name.startswith(".")]


def _read_images(source: str, given: dict[str, Any]) -> ImageFolder:
    root = Path(source)
    splits = [folder for folder in _folders(root)
              if folder.name in SPLITS and any(_images_in(inside) for inside in _folders(folder))]  # fmt: skip
    chosen = _choose_split(source, given.pop("split", None), [folder.name for folder in splits])
    here = root / chosen if chosen else root
    classes = sorted({folder.name for top in (splits or [root]) for folder in _folders(top)})
    files = [(path.relative_to(here).as_posix(), number)
             for number, name in enumerate(classes) for path in _images_in(here / name)]  # fmt: skip
    if not files:
        raise DataError(source, expected="folder/class/image.png, or another form: " + FORMS, got="no images")
    return ImageFolder(here, classes, sorted(files, key=lambda file: (file[1], file[0])), **given)


# Hugging Face


def _read_saved(source: str, given: dict[str, Any]) -> Any:
    datasets = import_extra("datasets", extra="hf", need=f"reading {source}")
    try:
        data = datasets.load_from_disk(source)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise FileError(source, expected="a saved dataset", got=f"a damaged one ({error})") from error
    chosen = _choose_split(source, given.get("split"), list(data) if isinstance(data, dict) else [])
    return _columns_only(source, data[chosen] if chosen else data, given)


def _read_hub(source: str, given: dict[str, Any]) -> Any:
    datasets = import_extra("datasets", extra="hf", need=f"the hub dataset {source}")
    old = int(datasets.__version__.split(".")[0]) < 4  # later ones run no code at all, and refuse the word
    try:
        data = datasets.load_dataset(source, split=given.get("split"), **({"trust_remote_code": False} if old else {}))
    except (OSError, ValueError, RuntimeError) as error:
        raise FileError(f"data {source!r}", expected=FORMS, got=f"no such path, and the hub says: {error}") from error
    if isinstance(data, dict):
        data = data[_choose_split(source, None, list(data))]
    return _columns_only(source, data, given)


def _columns_only(source: str, data: Any, given: dict[str, Any]) -> Any:
    if "columns" not in given or "tokenizer" in given:
        return data
    for name in given["columns"]:
        if name not in data.column_names:
            raise choose(f"{source}: column", name, data.column_names)
    return data.select_columns(list(given["columns"]))


# Code


def _read_function(source: str, given: dict[str, Any]) -> Any:
    function = import_name(source)
    if not callable(function):
        raise SettingError(source, expected="a function", got=type(function).__name__)
    takes = inspect.signature(function).parameters
    for name in given if not any(each.kind is each.VAR_KEYWORD for each in takes.values()) else ():
        if name not in takes:
            raise choose(f"{source}: option", name, takes)
    data = function(**given)
    if data is None:
        raise DataError(source, expected="data", got="None", do="Return it from the function.")
    return data


def import_name(spec: str) -> Any:
    """Import ``module:name``, with the current folder on the import path (it stays there, for the module's own imports).

    Raises:
        SettingError: No such module or name. Errors inside the module are its own and pass through.
    """
    module_name, _, name = spec.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise SettingError(spec, expected="a module that can be imported, or an existing path",
                           got=f"no module {error.name!r}", do=f"Looked in {Path.cwd()} too.") from error  # fmt: skip
    for part in name.split("."):
        if not hasattr(found, part):
            raise choose(f"{spec}: name", part, [known for known in dir(found) if not known.startswith("_")])
        found = getattr(found, part)
    return found


def import_extra(package: str, *, extra: str, need: str) -> Any:
    """Import an optional dependency, or raise MissingExtra saying what needs it and which extra brings it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, extra=extra, need=need) from error
