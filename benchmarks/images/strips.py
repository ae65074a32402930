"""The pictures of docs/trace-images.md: generated images beside the training images that each method names."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from benchmarks import page, pictures
from benchmarks.images.bench import top
from benchmarks.images.denoisers import HIGH, LOW

SCALE = {14: 3, 28: 2}
MOST, BEST = 6, 5


def regenerated(columns: Mapping[str, Tensor]) -> None:
    """Draw what the same noise becomes: a row for each generated image, a column for each thing that was removed."""
    count = min(MOST, len(next(iter(columns.values()))))
    rows = [[[_grey(column[q]) for column in columns.values()]] for q in range(count)]
    _save("regenerated", rows, "columns: " + "; ".join(columns), SCALE[14])


def beside(
    name: str, queries: Tensor, train: Tensor, scores: Mapping[str, np.ndarray], exemplars: Tensor | None = None
) -> None:
    """Draw generated images (left), each beside the best five of each method, and on top what they were made from."""
    rows = [] if exemplars is None else [[list(map(_grey, exemplars))]]
    for q in range(min(MOST, len(queries))):
        best = [[_grey(train[at]) for at in top(values[q], BEST)] for values in scores.values()]
        rows.append([[_grey(queries[q])], *best])
    head = "generated | " if exemplars is None else "made from (top row); then generated | "
    plain = "".join(c if c.isalnum() else "-" for c in name.lower().replace(",", ""))
    _save(plain, rows, head + " | ".join(scores), SCALE[queries.shape[-1]])


def _grey(image: Tensor) -> np.ndarray:
    """Return an image between 0 and 1."""
    low, high = (-0.5, 0.5) if image.shape[-1] == 28 else (LOW, HIGH)
    return ((image - low) / (high - low)).numpy()


def _save(name: str, rows: list[list[list[np.ndarray]]], told: str, scale: int) -> None:
    pictures.strips(rows, told, page.DOCS / f"trace-images-{name}.png", scale)
