"""Text and numbers made fit to be shown. Whatever comes out of somebody's data is hostile until it has been here.

Nothing is dropped in silence: a character that could move the cursor, reorder the line or end it is shown by its escape.
HTML escaping is not done here: the report's template does it, for everything.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, SupportsFloat

# C0 and C1 controls, line and paragraph separators, directional overrides and isolates, halves of surrogate pairs,
# non-characters. Joiners and plain direction marks stay: emoji, Persian and Hebrew need them.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\uffff]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


MOST_SHARE = 10.0
BEYOND = "an example whose gradient is far larger than the query's own can have a share above 100 %"


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def visible(text: object) -> str:
    r"""Show what cannot be seen: ``\x1b`` for an escape, ``\u202e`` for an override. Line breaks and tabs stay."""
    lines = str(text).replace("\r\n", "\n")
    return _UNSAFE.sub(lambda m: m.group() if m.group() in "\n\t" else _escape(m), lines)


def for_terminal(text: object, *, encoding: str = "utf-8") -> str:
    """One line that any terminal can show: no control sequence survives, and nothing the encoding lacks."""
    line = _UNSAFE.sub(_escape, re.sub(r"\s*\r?\n\s*|\t", " ", str(text)))
    return line.encode(encoding, "backslashreplace").decode(encoding)


def for_csv(text: object) -> str:
    """Text a spreadsheet will not run: a cell that would start a formula gets a leading ``'``. Numbers stay numbers."""
    shown = visible(text)
    if shown.lstrip()[:1] in {"=", "+", "-", "@", "|", "%", "＝", "＋", "－", "＠"} or shown[:1] in {"\t", "\n"}:
        return shown if _is_number(shown) else f"'{shown}"
    return shown


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", text) is not None


def file_name(text: object, *, limit: int = 80) -> str:
    """Turn any text into the name of a file, never a path, that every system accepts. Not unique: number the files."""
    plain = unicodedata.normalize("NFKD", str(text)).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)[:limit].strip(".-")
    return f"_{name}" if not name or _RESERVED.fullmatch(name) else name


def shorten(text: str, limit: int = 280) -> str:
    """Cut after ``limit`` characters, at a space where one is near, and say so with an ellipsis."""
    text = text.strip()
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    space = head.rfind(" ")
    return (head[:space] if space > 0.8 * limit else head).rstrip() + "…"


def number(value: SupportsFloat | None, *, signed: bool = False, minus: str = "−") -> str:
    """Three significant digits, ``–`` where there is no number; ``signed`` prints the plus too."""
    x = math.nan if value is None else float(value)
    if math.isnan(x):
        return "–" if minus == "−" else "-"
    size = abs(x)
    if math.isinf(x):
        digits = "∞" if minus == "−" else "inf"
    elif size == 0:
        return "0"
    elif 1e-3 <= float(f"{size:.3g}") < 1e6:
        decimals = max(0, 2 - math.floor(math.log10(float(f"{size:.3g}"))))
        digits = f"{size:,.{decimals}f}"
    else:
        mantissa, exponent = f"{size:.2e}".split("e")
        digits = f"{mantissa}e{int(exponent)}".replace("-", minus)
    return (minus if x < 0 else "+" if signed else "") + digits


def percent(value: SupportsFloat | None, *, minus: str = "−") -> str:
    """A share of one in per cent: ``41 %``, ``4.2 %``, ``0.04 %``; ``–`` where there is none."""
    x = math.nan if value is None else 100 * float(value)
    if not math.isfinite(x):
        return "–" if minus == "−" else "-"
    size = abs(x)
    if 0 < size < 0.005:
        return f"{minus if x < 0 else ''}<0.01 %"
    decimals = 0 if size >= 9.95 or size == 0 else 1 if size >= 0.995 else 2
    return f"{minus if x < 0 else ''}{size:,.{decimals}f} %"


def share(value: SupportsFloat | None, *, minus: str = "−") -> str:
    """A score as a share of the query's own rise: in per cent, ``>10×`` where it is beyond ten times that (:data:`BEYOND`)."""
    x = math.nan if value is None else float(value)
    if math.isfinite(x) and abs(x) <= MOST_SHARE:
        return percent(x, minus=minus)
    return percent(None, minus=minus) if math.isnan(x) else f"<{minus}10×" if x < 0 else ">10×"


def beyond(shares: Iterable[Any]) -> bool:
    """Tell whether a share is above 100 %, so that a reader is told how that can be."""
    return any(is_number(value) and abs(float(value)) > 1.005 for value in shares)


def cell(value: Any, *, minus: str = "−", limit: int = 100) -> str:
    """Any value as the text of a table's cell: three digits, ``yes`` and ``no``, ``–`` for what is missing."""
    value = scalar(value)
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return number(None, minus=minus)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value) and not hasattr(value, "__index__"):
        return number(value, minus=minus)
    return shorten(str(value), limit)


def is_number(value: Any) -> bool:
    """Tell whether a cell holds one number (then it stands at the right); truth values and text do not count."""
    value = scalar(value)
    return hasattr(value, "__float__") and not isinstance(value, bool | str) and not hasattr(value, "__len__")


def scalar(value: Any) -> Any:
    """Unwrap a NumPy or torch scalar; return anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
