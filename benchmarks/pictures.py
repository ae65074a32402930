"""Small pictures as PNGs: lines on logarithmic axes, scatter plots, galleries and strips of images."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from forwardinf.core.files import written
from forwardinf.view.scatter import FAINT, INK, INKS, PAPER

FINE = 2  # drawn larger and reduced: soft edges
WIDE, HIGH, LEFT, TOP, KEY = 520, 340, 64, 40, 210  # pixels of a plot of lines; the key stands on the right
SIDE, EDGE, STEP = 300, 56, 376  # of a scatter plot
CELL, GAP, FOOT = 72, 8, 34  # of a gallery
Panel = tuple[str, Any, Any, str, str]


class Sheet:
    """A page that is drawn in pixels and saved reduced."""

    def __init__(self, wide: int, high: int) -> None:
        self.image = Image.new("RGB", (wide * FINE, high * FINE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def words(self, x: float, y: float, told: str, size: int = 12, anchor: str = "lm", ink: str = INK) -> None:
        self.draw.text((x * FINE, y * FINE), told, fill=ink, font=ImageFont.load_default(size * FINE), anchor=anchor)

    def frame(self, left: float, top: float, right: float, below: float) -> None:
        box = [left * FINE, top * FINE, right * FINE, below * FINE]
        self.draw.rectangle(box, outline=FAINT, width=FINE)

    def line(self, points: Sequence[tuple[float, float]], ink: str, width: int = 1) -> None:
        self.draw.line([(x * FINE, y * FINE) for x, y in points], fill=ink, width=width * FINE)

    def dot(self, x: float, y: float, radius: float, ink: str) -> None:
        box = [(x - radius) * FINE, (y - radius) * FINE, (x + radius) * FINE, (y + radius) * FINE]
        self.draw.ellipse(box, fill=ink)

    def save(self, path: Path) -> None:
        size = self.image.width // FINE, self.image.height // FINE
        save(self.image.resize(size, Image.Resampling.LANCZOS).quantize(64), path)


def save(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with written(path) as part:
        image.save(part, format="PNG", optimize=True)


def lines(found: Mapping[str, Sequence[tuple[float, float]]], path: Path, *, title: str, across: str, up: str) -> None:
    """Draw each line through its points, on logarithmic axes, and name it beside its last point's colour."""
    found = {name: line for name, line in found.items() if line}
    points = [point for line in found.values() for point in line]
    if not points:
        return
    xs, ys = ([math.log10(point[axis]) for point in points] for axis in (0, 1))
    x_from, x_to, y_from, y_to = min(xs), max(max(xs), min(xs) + 0.1), math.floor(min(ys)), math.ceil(max(ys))
    sheet = Sheet(LEFT + WIDE + KEY, TOP + HIGH + 50)

    def at(x: float, y: float) -> tuple[float, float]:
        right, above = (math.log10(x) - x_from) / (x_to - x_from), (math.log10(y) - y_from) / (y_to - y_from)
        return LEFT + 12 + right * (WIDE - 24), TOP + HIGH - above * HIGH

    sheet.frame(LEFT, TOP, LEFT + WIDE, TOP + HIGH)
    for power in range(y_from, y_to + 1):
        y = at(10**x_from, 10**power)[1]
        sheet.line([(LEFT, y), (LEFT + WIDE, y)], FAINT)
        sheet.words(LEFT - 6, y, f"{10.0**power:g}", 11, "rm")
    for value in sorted({point[0] for point in points}):
        sheet.words(at(value, 10**y_from)[0], TOP + HIGH + 12, f"{value:g}", 11, "mm")
    for place, (name, line) in enumerate(found.items()):
        ink, drawn = INKS[place % len(INKS)], [at(*point) for point in line]
        sheet.line(drawn, ink, 2)
        for point in drawn:
            sheet.dot(*point, 4, ink)
        sheet.words(LEFT + WIDE + 14, TOP + 10 + 20 * place, name, ink=ink)
    sheet.words(LEFT, 16, title, 14)
    sheet.words(LEFT + WIDE / 2, TOP + HIGH + 32, across, anchor="mm")
    sheet.words(LEFT + 6, TOP - 10, up, 11)
    sheet.save(path)


def scatter(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels ``(title, across, up, name across, name up)`` side by side."""
    sheet, base = Sheet(STEP * len(panels), SIDE + EDGE + 40), SIDE + 40
    for place, (title, across, up, name_across, name_up) in enumerate(panels):
        left = place * STEP + EDGE
        sheet.frame(left, 40, left + SIDE, base)
        for x, y in zip(_scaled(across), _scaled(up), strict=True):
            sheet.dot(left + x * SIDE, base - y * SIDE, 1.5, INKS[0])
        sheet.words(left, 14, title, 14)
        sheet.words(left, 30, f"up: {name_up}", 11)
        sheet.words(left, base + 26, f"across: {name_across}", 11)
        for share, of in ((0.0, np.min), (1.0, np.max)):
            sheet.words(left + share * SIDE, base + 10, f"{of(across):.2g}", 10, "mm")
            sheet.words(left - 4, base - share * SIDE, f"{of(up):.2g}", 10, "rm")
    sheet.save(path)


def _scaled(values: Any) -> Any:
    found = np.asarray(values, dtype=np.float64)
    return (found - found.min()) / max(float(np.ptp(found)), 1e-12)


def gallery(rows: Sequence[tuple[str, Sequence[tuple[Any, str]]]], path: Path) -> None:
    """Draw rows of ``(title, [(image (C, H, W) in [0, 1], caption)])``."""
    count = max(len(cells) for _, cells in rows)
    high = CELL + FOOT + 24
    sheet = Sheet(count * (CELL + GAP) + GAP, high * len(rows))
    for place, (title, cells) in enumerate(rows):
        top = place * high
        sheet.words(GAP, top + 12, title, 13)
        for at, (image, caption) in enumerate(cells):
            left = GAP + at * (CELL + GAP)
            grown = Image.fromarray(as_bytes(image)).convert("RGB").resize((CELL * FINE,) * 2, Image.Resampling.NEAREST)
            sheet.image.paste(grown, (left * FINE, (top + 24) * FINE))
            for line, told in enumerate(caption.split("\n")):
                sheet.words(left, top + 24 + CELL + 8 + 13 * line, told, 10)
    sheet.save(path)


def as_bytes(image: Any) -> np.ndarray:
    """Return an image (C, H, W) in [0, 1] as bytes, (H, W) where it is grey."""
    found = (np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return found[..., 0] if found.shape[2] == 1 else found


def strips(rows: Sequence[Sequence[Sequence[Any]]], told: str, path: Path, scale: int, gap: int = 4) -> None:
    """Draw rows of groups of images, a wider gap between the groups, under one line of words."""
    drawn = [
        _beside([_beside([_grown(image, scale) for image in group], gap) for group in row], 3 * gap) for row in rows
    ]
    words = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), told)
    wide = max(int(words[2]) + 2 * gap, *(row.shape[1] for row in drawn))
    sheet = Image.new("L", (wide, sum(len(row) + gap for row in drawn) + 14), 255)
    ImageDraw.Draw(sheet).text((gap, 1), told, fill=0)
    top = 14
    for row in drawn:
        sheet.paste(Image.fromarray(row), (0, top))
        top += len(row) + gap
    save(sheet, path)


def _grown(image: Any, scale: int) -> np.ndarray:
    return np.kron(as_bytes(image), np.ones((scale, scale), dtype=np.uint8))


def _beside(images: Sequence[np.ndarray], gap: int) -> np.ndarray:
    return np.concatenate([np.pad(image, ((0, 0), (0, gap)), constant_values=255) for image in images], 1)
