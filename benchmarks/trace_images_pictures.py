"""The pictures of docs/trace-images.md: generated images beside the training images that each method names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from denoisers import HIGH, LOW
from PIL import Image, ImageDraw
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "docs"
SCALE = {14: 3, 28: 2}
GAP, LINE, MOST = 4, 14, 6
BEST = 5


def regenerated(columns: Mapping[str, Tensor]) -> None:
    """Draw what the same noise becomes: a row for each generated image, a column for each thing that was removed."""
    rows = [torch.stack([column[q] for column in columns.values()]) for q in range(len(next(iter(columns.values()))))]
    sheet = [_strip(row) for row in rows[:MOST]]
    _save("trace-images-regenerated", _stack(sheet), "columns: " + "; ".join(columns))


def beside(
    name: str, queries: Tensor, train: Tensor, scores: Mapping[str, np.ndarray], exemplars: Tensor | None = None
) -> None:
    """Draw generated images (left), each beside the best five of each method, and on top what they were made from."""
    lines = []
    if exemplars is not None:
        lines.append(_strip(exemplars))
    for q in range(min(MOST, len(queries))):
        parts = [_strip(queries[q : q + 1])]
        parts += [_strip(train[np.argsort(-values[q], kind="stable")[:BEST].copy()]) for values in scores.values()]
        lines.append(np.concatenate([part for pair in parts for part in (pair, _blank(len(pair), 3 * GAP))], 1))
    head = "made from (top row); then generated | " if exemplars is not None else "generated | "
    plain = "".join(c if c.isalnum() else "-" for c in name.lower().replace(",", ""))
    _save(f"trace-images-{plain}", _stack(lines), head + " | ".join(scores))


def _strip(images: Tensor) -> np.ndarray:
    low, high = (-0.5, 0.5) if images.shape[-1] == 28 else (LOW, HIGH)
    grey = ((images[:, 0] - low) / (high - low) * 255).round().clamp(0, 255).byte().numpy()
    scale = SCALE[images.shape[-1]]
    grown = [np.kron(image, np.ones((scale, scale), dtype=np.uint8)) for image in grey]
    return np.concatenate([part for image in grown for part in (image, _blank(len(image), GAP))], 1)


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width), 255, dtype=np.uint8)


def _stack(lines: list[np.ndarray]) -> np.ndarray:
    widest = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, GAP), (0, widest - line.shape[1])), constant_values=255) for line in lines]
    return np.concatenate(padded)


def _save(name: str, sheet: np.ndarray, told: str) -> None:
    words = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), told)
    whole = Image.new("L", (max(sheet.shape[1], int(words[2]) + 2 * GAP), sheet.shape[0] + LINE), 255)
    ImageDraw.Draw(whole).text((GAP, 1), told, fill=0)
    whole.paste(Image.fromarray(sheet), (0, LINE))
    FOLDER.mkdir(exist_ok=True)
    whole.save(FOLDER / f"{name}.png", optimize=True)
