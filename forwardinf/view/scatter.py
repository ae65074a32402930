"""Scatter plots of two influences, as a PNG: a row of two panels for each experiment, values on the left, ranks on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from forwardinf.core.files import written
from forwardinf.truth.agreement import ranks
from forwardinf.truth.mirror import Mirror

SIDE, LEFT, TOP, GAP, FOOT = 360, 60, 66, 70, 44  # pixels
FINE = 2  # drawn larger and reduced: soft edges
INKS = ("#1b6ca8", "#d1495b", "#2a9d5c", "#8f5bb5", "#e08e2b", "#0f9aa7", "#a0522d", "#5c6f82", "#c2477f", "#7a8b1f")
PAPER, INK, FAINT = "#ffffff", "#20262c", "#c9d0d6"


def plot(mirrors: Sequence[Mirror], path: Path) -> Path:
    """Draw the experiments below one another and write them as one PNG, whole or not at all."""
    high = TOP + SIDE + FOOT
    page = Image.new("RGB", (LEFT + 2 * SIDE + GAP + 20, high * len(mirrors)), PAPER)
    for place, one in enumerate(mirrors):
        page.paste(_row(one, page.width, high), (0, place * high))
    with written(path) as part:
        page.quantize(64).save(part, format="PNG", optimize=True)
    return path


def _row(one: Mirror, wide: int, high: int) -> Image.Image:
    sheet = Image.new("RGB", (wide * FINE, high * FINE), PAPER)
    draw = ImageDraw.Draw(sheet)

    def text(x: float, y: float, words: str, size: int = 13, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * FINE)
        draw.text((x * FINE, y * FINE), words, fill=INK, font=font, anchor=anchor)

    told = f"{one.data}: {one.experiment}"
    theirs = "".join(f", authors' {name} {value:.4f}" for name, value in one.published.items())
    text(LEFT, 16, told, 15)
    text(
        LEFT,
        36,
        f"mean over {len(one.tests)}: Pearson {one.pearson.mean():.4f}, Spearman {one.spearman.mean():.4f}{theirs}",
    )
    several = len(one.tests) > 1
    across, up = [_scaled(table, one) if several else table for table in (one.addition, one.removal)]
    names = (
        ("test added", "training example removed")
        if "group_size" not in one.facts
        else ("tests added", "group removed")
    )
    unit = " (of each test's largest)" if several else " (nats)"
    _panel(draw, text, LEFT, across, up, names[0] + unit, names[1] + unit)
    _panel(
        draw, text, LEFT + SIDE + GAP, ranks(one.addition), ranks(one.removal), f"rank: {names[0]}", f"rank: {names[1]}"
    )
    return sheet.resize((wide, high), Image.Resampling.LANCZOS)


def _scaled(table: Any, one: Mirror) -> Any:
    """Bring tests of different strength onto one scale: the largest influence of each is 1, by removal."""
    return table / np.abs(one.removal).max(1, keepdims=True)


def _panel(
    draw: ImageDraw.ImageDraw, text: Any, left: int, across: Any, up: Any, name_across: str, name_up: str
) -> None:
    low, top = float(min(across.min(), up.min())), float(max(across.max(), up.max()))
    edge = 0.04 * (top - low) or 1.0
    low, top = low - edge, top + edge
    base = TOP + SIDE

    def at(x: Any, y: Any) -> tuple[Any, Any]:
        return left + (x - low) / (top - low) * SIDE, base - (y - low) / (top - low) * SIDE

    frame = [left * FINE, TOP * FINE, (left + SIDE) * FINE, base * FINE]
    draw.rectangle(frame, outline=FAINT, width=FINE)
    draw.line([left * FINE, base * FINE, (left + SIDE) * FINE, TOP * FINE], fill=FAINT, width=FINE)
    if low < 0 < top:
        x, y = at(0.0, 0.0)
        draw.line([x * FINE, TOP * FINE, x * FINE, base * FINE], fill=FAINT, width=FINE)
        draw.line([left * FINE, y * FINE, (left + SIDE) * FINE, y * FINE], fill=FAINT, width=FINE)
    size = 1.2 if across.size > 2000 else 2.0 if across.size > 300 else 3.2
    order = np.random.default_rng(0).permutation(across.size)  # so that no test hides the others
    xs, ys = at(across.ravel()[order], up.ravel()[order])
    inks = [INKS[query % len(INKS)] for query in np.repeat(np.arange(len(across)), across.shape[1])[order]]
    for x, y, ink in zip(xs, ys, inks, strict=True):
        draw.ellipse([(x - size) * FINE, (y - size) * FINE, (x + size) * FINE, (y + size) * FINE], fill=ink)
    for value in (low + edge, top - edge):
        x, y = at(value, value)
        text(x, base + 11, f"{value:.3g}", 11, "mm")
        text(left - 5, y, f"{value:.3g}", 11, "rm")
    text(left + SIDE / 2, base + 28, name_across, 12, "mm")
    text(left, TOP - 10, name_up, 12, "lm")
