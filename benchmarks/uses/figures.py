"""Two small PNGs: a score against the truth, and what is known by heart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from forwardinf.core.files import written

SIDE, EDGE, FINE = 300, 56, 2
INK, FAINT, DOT = "#20262c", "#c9d0d6", "#1b6ca8"
CELL, GAP, FOOT = 72, 8, 34
Panel = tuple[str, Any, Any, str, str]


def scatter(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels ``(title, across, up, name across, name up)`` side by side."""
    wide, high = (SIDE + EDGE + 20) * len(panels), SIDE + EDGE + 40
    sheet = Image.new("RGB", (wide * FINE, high * FINE), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    for place, (title, across, up, name_across, name_up) in enumerate(panels):
        left, base = place * (SIDE + EDGE + 20) + EDGE, SIDE + 40
        draw.rectangle([left * FINE, 40 * FINE, (left + SIDE) * FINE, base * FINE], outline=FAINT, width=FINE)
        xs, ys = (_scaled(values) for values in (across, up))
        for x, y in zip(xs, ys, strict=True):
            at = (left + x * SIDE) * FINE, (base - y * SIDE) * FINE
            draw.ellipse([at[0] - 3, at[1] - 3, at[0] + 3, at[1] + 3], fill=DOT)
        _words(draw, left, 14, title, 14)
        _words(draw, left, 30, f"up: {name_up}", 11)
        _words(draw, left, base + 26, f"across: {name_across}", 11)
        for values, where in ((across, "x"), (up, "y")):
            low, top = float(np.min(values)), float(np.max(values))
            for value, share in ((low, 0.0), (top, 1.0)):
                x, y = (left + share * SIDE, base + 10) if where == "x" else (left - 4, base - share * SIDE)
                _words(draw, x, y, f"{value:.2g}", 10, "mm" if where == "x" else "rm")
    _save(sheet.resize((wide, high), Image.Resampling.LANCZOS), path)


def gallery(rows: Sequence[tuple[str, Sequence[tuple[Any, str]]]], path: Path) -> None:
    """Draw rows of ``(title, [(image (C, H, W) in [0, 1], caption)])``."""
    count = max(len(cells) for _, cells in rows)
    wide, high = count * (CELL + GAP) + GAP, CELL + FOOT + 24
    sheet = Image.new("RGB", (wide, high * len(rows)), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    for place, (title, cells) in enumerate(rows):
        top = place * high
        draw.text((GAP, top + 12), title, fill=INK, font=ImageFont.load_default(13), anchor="lm")
        for at, (image, caption) in enumerate(cells):
            left = GAP + at * (CELL + GAP)
            pixels = (np.asarray(image).clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
            drawn = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
            sheet.paste(drawn.resize((CELL, CELL), Image.Resampling.NEAREST), (left, top + 24))
            for line, words in enumerate(caption.split("\n")):
                spot = left, top + 24 + CELL + 8 + 13 * line
                draw.text(spot, words, fill=INK, font=ImageFont.load_default(10), anchor="lm")
    _save(sheet, path)


def _scaled(values: Any) -> Any:
    found = np.asarray(values, dtype=np.float64)
    return (found - found.min()) / max(float(np.ptp(found)), 1e-12)


def _words(draw: Any, x: float, y: float, words: str, size: int, anchor: str = "lm") -> None:
    draw.text((x * FINE, y * FINE), words, fill=INK, font=ImageFont.load_default(size * FINE), anchor=anchor)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as part:
        image.quantize(64).save(part, format="PNG", optimize=True)
