"""One HTML file that opens from disk, years later, without a network: styles, charts and pictures are inside it.

It computes no score: all numbers are handed to it in a :class:`ReportPage`, and only their places on the page are found here.
All text is hostile until escaped: the template escapes every expression, and the page forbids itself scripts and loads.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jinja2
from markupsafe import Markup
from PIL import Image

from forwardinf.core.errors import FileError, SettingError
from forwardinf.core.files import written
from forwardinf.core.paths import as_path
from forwardinf.view.clean import beyond, cell, is_number, number, share, shorten, visible
from forwardinf.view.marked_text import LONGEST, Words, cut
from forwardinf.view.pictures import data_uri

if TYPE_CHECKING:
    import pandas as pd

Example = Image.Image | str | Words | None


@dataclass(frozen=True)
class Card:
    """One training example beside a query. ``rank`` counts from 1 within its row; numbers that are not had are None."""

    train_id: object
    rank: int
    score: float
    share: float | None = None
    baseline: float | None = None
    uncertainty: float | None = None
    example: Example = None
    caption: str = ""


@dataclass(frozen=True)
class QuerySection:
    """One query: what it is, its strongest proponents and opponents (strongest first), and where all scores lie.

    ``status`` is ``"ok"``, or the reason why this query is to be read with care, shown as it is.
    ``histogram`` is ``(counts, edges)`` over all training examples, as ``numpy.histogram`` gives it.
    """

    query_id: object
    example: Example = None
    caption: str = ""
    rise: float | None = None
    unit: str | None = None
    status: str = "ok"
    proponents: Sequence[Card] = ()
    opponents: Sequence[Card] = ()
    histogram: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Table:
    """Rows under a title. A cell is text, words, a number, a truth value, a picture or None; ``share`` is told in per cent."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    explanation: str = ""

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, title: str, explanation: str = "", *, limit: int = 500) -> Table:
        """Take the first ``limit`` rows of a DataFrame, a named index included; say so when there are more."""
        if frame.index.name is not None:
            frame = frame.reset_index()
        if len(frame) > limit:
            explanation = f"{explanation} The first {limit:,} of {len(frame):,} rows.".strip()
            frame = frame.head(limit)
        rows = list(zip(*(frame.iloc[:, i].tolist() for i in range(frame.shape[1])), strict=True))
        return cls(title, [str(name) for name in frame.columns], rows, explanation)


@dataclass(frozen=True)
class ReportPage:
    """A whole report, top to bottom.

    ``kind`` says what a score is (the legend explains it; ``jointly``: of a set named one by one). ``one_scale``: bars of all
    queries compare. ``asked``: what a query is called; ``about``: what is
    explained of it. ``sections_first``: what was asked stands above the tables.
    ``signed=False`` is for published settings whose scores are
    magnitudes: the page then speaks of the strongest effects, and of no opponents.
    """

    title: str
    summary: Sequence[tuple[str, object]] = ()
    notes: Sequence[str] = ()
    sections: Sequence[QuerySection] = ()
    tables: Sequence[Table] = ()
    run_card: Mapping[str, object] = field(default_factory=dict)
    kind: Literal["finite", "linear", "probe", "compared"] = "finite"
    signed: bool = True
    jointly: bool = False
    one_scale: bool = False
    asked: str = "query"
    about: str = "prediction"
    sections_first: bool = False

    @property
    def asked_all(self) -> str:
        """What several queries are called."""
        return "Queries" if self.asked == "query" else f"{self.asked.capitalize()}s"


def write_report(path: str | os.PathLike[str], page: ReportPage) -> Path:
    """Write the page as one self-contained HTML file, whole or not at all; equal pages give equal bytes."""
    target = as_path("report", path)
    if target.is_dir():
        raise FileError(str(target), expected="the name of a file", got="a folder", do="Try 'report.html' inside it.")
    html = render(page)
    with written(target) as part:
        part.write_text(html, encoding="utf-8", newline="\n")
    return target


def render(page: ReportPage) -> str:
    """Return the page as HTML."""
    style = files("forwardinf.view").joinpath("report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return _template().render(page=page, style=Markup(style), policy=policy, units=_units(page), beyond=_beyond(page),
                              grey=_grey(page))  # fmt: skip


@cache
def _template() -> jinja2.Template:
    source = files("forwardinf.view").joinpath("report.html.j2").read_text(encoding="utf-8")
    house = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_finalize, trim_blocks=True, lstrip_blocks=True
    )
    house.filters.update(
        number=number,
        share=share,
        uri=data_uri,
        text=lambda x: shorten(str(x), LONGEST),
        pieces=lambda x: cut(x).pieces,
        cell=lambda x, name="": share(x) if name == "share" and is_number(x) else cell(x, limit=LONGEST),
    )
    house.tests.update(
        picture=lambda x: isinstance(x, Image.Image),
        words=lambda x: isinstance(x, Words),
        number=is_number,
        known=lambda x: x is not None and x == x,
    )
    house.globals.update(chart=chart, reach=_reach, at=_at)
    return house.from_string(source)


def _finalize(value: object) -> object:
    """Show control and reordering characters in every printed expression; the escaping of HTML comes after."""
    if isinstance(value, Markup):
        return value
    return "" if value is None else visible(value)


def _units(page: ReportPage) -> list[str]:
    """The units of the page's queries, each once, in order."""
    return list(dict.fromkeys(section.unit for section in page.sections if section.unit))


# Places on the page. SVG here has no viewBox: what is in per cent stretches with the page, what is in pixels does not.


@dataclass(frozen=True)
class Bar:
    """One bin of a histogram: left and width in per cent, height in pixels."""

    left: str
    width: str
    height: str
    label: str


@dataclass(frozen=True)
class Chart:
    """A histogram as drawn. ``marks``: place of each card's score and its side. ``zero``: place of 0, None if outside."""

    bars: Sequence[Bar]
    marks: Sequence[tuple[str, str]]
    zero: str | None
    low: float
    high: float
    total: int


def chart(section: QuerySection, height: float = 56) -> Chart | None:
    """Place the histogram of a query's scores; heights grow with the logarithm of the count, so that one is visible."""
    if section.histogram is None:
        return None
    counts, edges = ([float(x) for x in part] for part in section.histogram)
    where = f"histogram of query {section.query_id}"
    if len(edges) != len(counts) + 1:
        got = f"{len(counts)} counts and {len(edges)} edges"
        raise SettingError(where, expected="one edge more than counts", got=got)
    if not all(math.isfinite(x) for x in (*counts, *edges)) or min(counts, default=0) < 0:
        raise SettingError(where, expected="finite edges, and counts of at least 0", got="others")
    low, high, most = edges[0], edges[-1], max(counts, default=0)
    if not low < high or not most:
        return None
    bars = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            tall = max(1.5, height * math.log1p(count) / math.log1p(most))
            label = f"{count:,.0f} from {number(left, signed=True)} to {number(right, signed=True)}"
            width = max(0.05, 100 * (right - left) / (high - low) - 0.12)
            bars.append(Bar(_at(left - low, high - low), f"{width:.2f}%", f"{tall:.1f}", label))
    cards = [(card, "pro") for card in section.proponents] + [(card, "con") for card in section.opponents]
    marks = [(_at(card.score - low, high - low), side) for card, side in cards if math.isfinite(card.score)]
    zero = _at(-low, high - low) if 0.06 < -low / (high - low) < 0.94 else None
    return Chart(bars, marks, zero, low, high, int(sum(counts)))


def _beyond(page: ReportPage) -> bool:
    """Whether a share above 100 % stands on the page, so that a reader is told how that can be."""
    cards = [card.share for section in page.sections for card in (*section.proponents, *section.opponents)]
    cells = [
        row[table.columns.index("share")] for table in page.tables if "share" in table.columns for row in table.rows
    ]
    return beyond([*cards, *cells])


def _grey(page: ReportPage) -> bool:
    """Whether a text on the page is read in part without being counted."""
    shown = [card.example for section in page.sections for card in (*section.proponents, *section.opponents)]
    shown += [section.example for section in page.sections]
    cells = [cell for table in page.tables for row in table.rows for cell in row]
    return any(isinstance(one, Words) and one.partly_counted for one in (*shown, *cells))


def _reach(sections: Sequence[QuerySection]) -> float:
    """What a bar of full length stands for: the strongest card of these queries, with its uncertainty."""
    cards = [card for section in sections for card in (*section.proponents, *section.opponents)]
    ends = [abs(card.score) + _known(card.uncertainty) for card in cards]
    return max((x for x in ends if math.isfinite(x)), default=0.0) or 1.0


def _at(value: float | None, reach: float) -> str:
    """A place or a length between 0 and ``reach``, in per cent."""
    return f"{100 * min(1.0, max(0.0, _known(value) / reach)):.2f}%"


def _known(value: float | None) -> float:
    return 0.0 if value is None or math.isnan(value) else float(value)
