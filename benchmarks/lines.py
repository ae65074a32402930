"""A plot of a few lines on logarithmic axes, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from forwardinf.core.files import written
from forwardinf.view.scatter import FAINT, INK, INKS, PAPER

WIDE, HIGH, LEFT, TOP, KEY = 520, 340, 64, 40, 210  # pixels; the key stands on the right
FINE = 2  # drawn larger and reduced: soft edges


def plot(lines: Mapping[str, Sequence[tuple[float, float]]], path: Path, title: str, across: str, up: str) -> None:
    """Draw each line through its points, ours (first come) whole, and name it beside its last point's colour."""
    points = [point for line in lines.values() for point in line]
    xs, ys = [[math.log10(point[axis]) for point in points] for axis in (0, 1)]
    x_from, x_to, y_from, y_to = min(xs), max(max(xs), min(xs) + 0.1), math.floor(min(ys)), math.ceil(max(ys))
    page = Image.new("RGB", ((LEFT + WIDE + KEY) * FINE, (TOP + HIGH + 50) * FINE), PAPER)
    draw = ImageDraw.Draw(page)

    def text(x: float, y: float, words: str, size: int = 12, anchor: str = "lm", ink: str = INK) -> None:
        draw.text((x * FINE, y * FINE), words, fill=ink, font=ImageFont.load_default(size * FINE), anchor=anchor)

    def at(x: float, y: float) -> tuple[float, float]:
        right, below = (math.log10(x) - x_from) / (x_to - x_from), (math.log10(y) - y_from) / (y_to - y_from)
        return (LEFT + 12 + right * (WIDE - 24)) * FINE, (TOP + HIGH - below * HIGH) * FINE

    draw.rectangle([LEFT * FINE, TOP * FINE, (LEFT + WIDE) * FINE, (TOP + HIGH) * FINE], outline=FAINT, width=FINE)
    for power in range(y_from, y_to + 1):
        y = at(10**x_from, 10**power)[1]
        draw.line([LEFT * FINE, y, (LEFT + WIDE) * FINE, y], fill=FAINT, width=FINE)
        text(LEFT - 6, y / FINE, f"{10.0**power:g}", 11, "rm")
    for value in sorted({point[0] for point in points}):
        text(at(value, 10**y_from)[0] / FINE, TOP + HIGH + 12, f"{value:g}", 11, "mm")
    for place, (name, line) in enumerate(lines.items()):
        ink, drawn = INKS[place % len(INKS)], [at(*point) for point in line]
        draw.line(drawn, fill=ink, width=2 * FINE)
        for x, y in drawn:
            draw.ellipse([x - 4 * FINE, y - 4 * FINE, x + 4 * FINE, y + 4 * FINE], fill=ink)
        text(LEFT + WIDE + 14, TOP + 10 + 20 * place, name, 12, "lm", ink)
    text(LEFT, 16, title, 14)
    text(LEFT + WIDE / 2, TOP + HIGH + 32, across, 12, "mm")
    text(LEFT + 6, TOP - 10, up, 11, "lm")
    with written(path) as part:
        page.resize((page.width // FINE, page.height // FINE), Image.Resampling.LANCZOS).quantize(64).save(
            part, format="PNG", optimize=True
        )
