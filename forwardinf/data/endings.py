"""What data may look like on disk, in the words that all its readers share: endings, names of splits, hub ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from forwardinf.core.errors import SettingError, choose

FORMS = (
    "arrays.npz, rows.parquet, rows.jsonl(.gz), rows.csv or .tsv(.gz), a folder of those, a folder of images "
    "(folder/class/*.png), a saved Hugging Face dataset, a hub id (owner/name), or module:function; with :test at the end "
    "for a split"
)
SPLITS = ("train", "test", "validation", "valid", "val", "dev")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".bin", ".ckpt")
OTHERS = (".txt", ".npy", ".h5", ".arrow", ".zip", ".gz")
CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
TABLES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", *CSV)
HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def choose_split(source: str, split: str | None, found: Sequence[str]) -> str | None:
    """Return the split to read: the one asked for, else train, else the only one. No splits and none asked: None."""
    if split is not None and split not in found:
        if not found:
            raise SettingError(f"{source}: split", expected="no split, as there are none here", got=repr(split))
        raise choose(f"{source}: split", split, found)
    if split is None and len(found) > 1 and "train" not in found:
        raise SettingError(f"{source}: split", expected=f"one of {', '.join(map(repr, found))}", got="none")
    return split if split is not None or not found else "train" if "train" in found else found[0]


def folders_in(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones."""
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
