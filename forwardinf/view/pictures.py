"""A training example, whatever the dataset gave, as something to look at: a picture or a short text."""

from __future__ import annotations

import base64
import io
import reprlib
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from forwardinf.core.errors import SettingError
from forwardinf.view.clean import number, shorten
from forwardinf.view.marked_text import TEXTS, Language, Words, of_row

Show = Callable[[Any], "Image.Image | str"]
Shown = Image.Image | str | Words
PLAIN = Language()

SMALL = 64  # a longest side up to this is enlarged, pixel by pixel
ENLARGED = 128  # to at most this
LARGEST = 256  # and a longer one than this is reduced to it
PICTURES = ("pixel_values", "image", "img", "images", "pixels", "x", "input", "inputs")


def picture(example: Any, *, show: Show | None = None, language: Language = PLAIN) -> Shown:
    """Turn an example into a PIL image or a text; never fails for want of an idea, then it names the type.

    Args:
        example: Tensor or array (C, H, W), (H, W, C) or (H, W), PIL image, text, tuple (input, label), dict, …
        show: The user's own way to show an example; it takes precedence.
        language: How token ids are to be read.
    """
    if show is None:
        return _draw(example, language, depth=0)
    if not callable(show):
        raise SettingError("show", expected="a function from an example to a PIL image or text", got=repr(show))
    shown = show(example)
    if isinstance(shown, Image.Image | str):
        return shown
    raise SettingError(
        "show",
        expected="a PIL image or text for each example",
        got=f"{type(shown).__name__}",
        do="For an array, return PIL.Image.fromarray(array).",
    )


def data_uri(image: Image.Image, *, scale: int | None = None, largest: int = LARGEST) -> str:
    """Write the image as a PNG data URI; small ones enlarged by a whole factor, so that pixels stay square.

    Args:
        image: Any mode.
        scale: The factor; by default what brings an image of up to 64 pixels to about 128, and 1 for others.
        largest: A side longer than this is reduced to it.
    """
    if 0 in image.size:
        raise SettingError("image", expected="at least one pixel", got=f"size {image.size[0]} × {image.size[1]}")
    if scale is not None and (not isinstance(scale, int) or scale < 1):
        raise SettingError("scale", expected="a whole number, at least 1", got=repr(scale))
    image, longest = _plain(image), max(image.size)
    factor = scale if scale is not None else max(1, ENLARGED // longest) if longest <= SMALL else 1
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    elif longest > largest:
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    image.info = {}  # no comments, places or cameras from the original file
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _plain(image: Image.Image) -> Image.Image:
    """Copy into one of the modes that every browser shows alike: L, RGB or RGBA."""
    if image.mode in {"L", "RGB", "RGBA"}:
        return image.copy()
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits: PIL's own conversion would clip at 255
        return Image.fromarray(_bytes(np.asarray(image)))
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _draw(example: Any, language: Language, depth: int) -> Shown:
    if isinstance(example, Image.Image):
        return example
    if isinstance(example, str):
        return example.strip() or "(empty text)"
    if isinstance(example, bytes | bytearray):
        return f"{len(example):,} bytes"
    if depth < 4:
        if isinstance(example, Mapping):
            return _of_fields(example, language, depth + 1)
        if isinstance(example, list | tuple):
            return _of_parts(example, language, depth + 1)
        if (array := _array(example)) is not None:
            return _of_array(array, language, channels_first=not isinstance(example, np.ndarray))
    if isinstance(example, Real) and not isinstance(example, bool | Integral):
        return number(float(example))
    return shorten(reprlib.repr(example))


def _array(example: Any) -> npt.NDArray[Any] | None:
    """Return a tensor or array on the CPU, in a type that NumPy knows; None for anything else."""
    if isinstance(example, np.ndarray):
        return example
    if hasattr(example, "detach") and hasattr(example, "is_floating_point"):
        tensor = example.detach().cpu()
        return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)
    return np.asarray(example) if hasattr(example, "__array__") and hasattr(example, "shape") else None


def _of_fields(example: Mapping[Any, Any], language: Language, depth: int) -> Shown:
    """Pictures first, by name and then by look; then text and its answer, token ids, then every field on a line."""
    drawn = {name: _draw(value, language, depth) for name, value in example.items() if value is not None}
    named = [drawn[name] for name in PICTURES if name in drawn]
    for one in (*named, *drawn.values()):
        if isinstance(one, Image.Image):
            return one
    if (words := of_row(example, language)) is not None:
        return words
    for name in TEXTS:
        if name in drawn and isinstance(example[name], str):
            return drawn[name]
    return shorten("\n".join(f"{name}: {value}" for name, value in drawn.items())) or "(no fields)"


def _of_parts(example: list[Any] | tuple[Any, ...], language: Language, depth: int) -> Shown:
    """Read (input, label) as the input, and a list of numbers as the array it is."""
    if not example:
        return "(empty)"
    if isinstance(example, list) and isinstance(example[0], list | Real):
        try:
            array = np.asarray(example)
        except ValueError:  # ragged
            return shorten(reprlib.repr(example))
        return _of_array(array, language, channels_first=True)
    drawn = [_draw(part, language, depth) for part in example]
    for one in drawn:
        if isinstance(one, Image.Image):
            return one
    texts = [one for part, one in zip(example, drawn, strict=True) if isinstance(part, str)]
    return "\n".join(map(str, texts)) if texts else drawn[0]


def _of_array(array: npt.NDArray[Any], language: Language, *, channels_first: bool) -> Shown:
    while array.ndim > 1 and array.shape[0] == 1 and (array.ndim != 3 or 1 in array.shape[1:]):
        array = array[0]  # a batch of one
    told = f"{' × '.join(map(str, array.shape))} {array.dtype}"
    if array.dtype.kind not in "buif" or array.size == 0:
        return shorten(reprlib.repr(array.tolist())) if array.size else f"(empty: {told})"
    if array.ndim == 0:
        return number(array.item())
    if array.ndim == 1:
        return _row(array, language)
    if array.ndim == 2 and min(array.shape) > 1:
        return Image.fromarray(_bytes(array))
    if array.ndim == 3:
        first, last = array.shape[0] in {1, 3, 4}, array.shape[2] in {1, 3, 4}
        if first and (channels_first or not last):
            array, last = np.moveaxis(array, 0, 2), True
        if last and not (array.shape[2] == 4 and _stretched(array)):  # four channels beyond [0, 1] are latents
            return Image.fromarray(_bytes(array[..., 0] if array.shape[2] == 1 else array))
    return told


def _row(array: npt.NDArray[Any], language: Language) -> str:
    """Spell whole numbers as the text that they are the tokens of, or as token ids; others as values, the first few."""
    if array.dtype.kind in "bui":
        return language.told(array.astype(np.int64).tolist())
    rest = f" … ({len(array):,} values)" if len(array) > 8 else ""
    return "  ".join(number(x) for x in array[:8]) + rest


def _stretched(array: npt.NDArray[Any]) -> bool:
    """Tell whether the values are neither bytes nor within [0, 1]."""
    return array.dtype != np.uint8 and array.dtype != np.bool_ and not _within(array, 0, 1)


def _within(array: npt.NDArray[Any], low: float, high: float) -> bool:
    return bool(np.nanmin(array) >= low and np.nanmax(array) <= high)


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale to 0…255: [0, 1] and [−1, 1] as they are, whole numbers up to 255 too, all else from least to largest."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    values = np.asarray(array, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= -1 and high <= 1:
        low, high = -1.0, 1.0
    elif array.dtype.kind in "ui" and low >= 0 and 128 <= high <= 255:
        low, high = 0.0, 255.0
    elif low == high:
        low, high = low - 1, high + 1
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.ascontiguousarray(np.round((values - low) / (high - low) * 255).astype(np.uint8))
