"""What the examples share: the command line, and one reader per data set.

The data are not part of the project. `FORWARDINF_DATA` names the folder that holds them; each set lies in its own
subfolder, with the file names used below.
"""

import argparse
import gzip
import io
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


def options(doc: str, *, n_train: int, n_queries: int) -> argparse.ArgumentParser:
    """Return a parser with the options every example has; small numbers make a run of seconds."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--n-train", type=int, default=n_train, help="training examples to read (default %(default)s)")
    parser.add_argument("--n-queries", type=int, default=n_queries, help="queries to ask (default %(default)s)")
    parser.add_argument("--top", type=int, default=5, help="rows to print per query (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write an HTML report here")
    return parser


def listed(best: pd.DataFrame, labels: np.ndarray, names: list[str]) -> str:
    """Return rows of `scores.top` or `.bottom` on one line: each one's class, position and score."""
    return ", ".join(f"{names[labels[row.train]]} #{row.train} ({row.score:+.3g})" for row in best.itertuples())


def data(*parts: str) -> Path:
    """Return a path inside the data folder; stop with a clear message where there is none."""
    root = os.environ.get("FORWARDINF_DATA")
    if not root:
        raise SystemExit("FORWARDINF_DATA is not set: it must name the folder that holds the data sets.")
    path = Path(root, *parts)
    if not path.exists():
        raise SystemExit(f"FORWARDINF_DATA is {root}, which has no {'/'.join(parts)}.")
    return path


def cifar_lossless() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the first 4,000 CIFAR-10 training images, (N, 32, 32, 3) uint8, labels (N,) and the class names."""
    names = np.load(data("cifar10", "cifar10_jpeg.npz"))["class_names"].tolist()
    with np.load(data("cifar10", "cifar10_lossless_train0_3999.npz")) as file:
        return file["x"], file["y"].astype(np.int64), names


def cifar_jpeg(split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first n CIFAR-10 images of a split, (n, 32, 32, 3) uint8, JPEG quality, and labels (n,)."""
    with np.load(data("cifar10", "cifar10_jpeg.npz")) as file:
        ends, labels = file[f"{split}_offsets"][: n + 1], file[f"y_{split}"]
        packed = file[f"{split}_jpeg"][: ends[-1]].tobytes()
    images = [Image.open(io.BytesIO(packed[a:b])) for a, b in itertools.pairwise(ends)]
    return np.stack([np.asarray(image) for image in images]), labels[:n].astype(np.int64)


def digits(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return `mnist` or `fashion_mnist`, split `train` or `test`: (N, 28, 28) uint8 and labels (N,)."""
    with np.load(data(name, f"{name}.npz")) as file:
        return file[f"x_{split}"], file[f"y_{split}"].astype(np.int64)


def sst2(split: str) -> tuple[list[str], list[int]]:
    """Return the sentences of SST-2 and their labels, 1 = positive; split `train`, `dev` or `test`."""
    with gzip.open(data("sst2", f"{split}.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def text(name: str) -> str:
    """Return a text of `lm_text`: `tinystories_train_excerpt`, `tinyshakespeare`, `wikitext2_valid`, ..."""
    with gzip.open(data("lm_text", f"{name}.txt.gz"), "rt", encoding="utf-8") as file:
        return file.read()


def stories() -> list[str]:
    """Return the TinyStories of the excerpt; a paragraph that opens like a tale is taken to start one."""
    found: list[str] = []
    for paragraph in text("tinystories_train_excerpt").strip().split("\n\n"):
        if paragraph.startswith("Once upon a time") or not found:
            found.append(paragraph)
        else:
            found[-1] += "\n\n" + paragraph
    return found
