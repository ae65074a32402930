"""A trace for people: a report page and, in the terminal, answers beside their documents with the reacting words marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from forwardinf.view.clean import for_terminal, number, percent
from forwardinf.view.pictures import picture
from forwardinf.view.report import Card, Example, QuerySection, ReportPage, Table, write_report

if TYPE_CHECKING:
    from forwardinf.use.traced import Traced

MOST = 50  # questions on a page
LEVELS = (0.1, 0.25, 0.5, 0.75)  # share of the strongest change, from which a word is marked, fainter to stronger
STYLES = ("", "green", "bold green", "black on green", "bold black on bright_green")

Marks = list[tuple[str, int]]


def report(found: Traced, path: Path, show: Callable[[Any], Any] | None, k: int) -> Path:
    """Write the report; see :meth:`Traced.report`."""
    pictures = found.use == "trace-images"
    name = "image" if pictures else "question"
    asked = list(dict.fromkeys(found.table[name]))
    notes = list(found.notes)
    if len(asked) > MOST:
        notes.append(f"the first {MOST} of {len(asked)} are shown")
    page = ReportPage(
        title="Which training images made this image?" if pictures else "Which training text taught the model this?",
        summary=[(f"{name}s", len(asked)), ("training examples", len(found.scores.ids)), ("how", found.how)],
        notes=notes,
        sections=[_section(found, name, value, show, k) for value in asked[:MOST]],
        tables=[Table.from_frame(found.baselines, "The free alternatives", "What each would have named, on the same examples.")],
        run_card=dict(found.cost),
        kind="finite" if found.scores.kind == "finite" else "linear" if found.scores.unit else "compared",
        signed=found.scores.signed, jointly=found.how.endswith("jointly"), sections_first=True,
    )  # fmt: skip
    return write_report(path, page)


def _section(found: Traced, name: str, value: Any, show: Callable[[Any], Any] | None, k: int) -> QuerySection:
    rows = found.table[found.table[name] == value].head(k)
    cards = [_card(found, row, value, show) for row in rows.to_dict("records")]
    if name == "image":
        return QuerySection(value, example=picture(found.shown["images"][value], show=show), proponents=cards)
    prompt, answer = found.shown["questions"][value]
    return QuerySection(value, example=prompt, caption=f"answer: {answer}", proponents=cards)


def _card(found: Traced, row: dict[Any, Any], value: Any, show: Callable[[Any], Any] | None) -> Card:
    marks: Marks = []
    example: Example = None
    told = []
    if found.use == "trace-images":
        example = picture(found.shown["train"][row["train"]], show=show)
        told = [("pixels", row["pixel_similarity"])]
    else:
        example = found.shown["texts"][row["train"]]
        marks = marked(found, value, row["train"])
        told = [("BM25", row["bm25"]), ("fused", row["fused"])]
    caption = ", ".join(f"{what} {number(figure)}" for what, figure in told if math.isfinite(figure))
    return Card(row["train"], int(row["rank"]), float(row["score"]), _known(row["share"]), example=example,
                caption=caption, marks=tuple(marks))  # fmt: skip


def marked(found: Traced, question: Any, train: Any) -> Marks:
    """Return a document as (text, level) pieces, level 0 to 4 by how far its tokens moved; empty where it was not read."""
    spans = found.spans
    if spans is None or not len(spans):
        return []
    of_question = spans[spans["question"] == question]
    own = of_question[of_question["train"] == train]
    most = float(of_question["change"].max()) if len(own) else 0.0
    if not most > 0:
        return []
    return list(_pieces(found.shown["texts"][train], own, most))


def _pieces(text: str, tokens: pd.DataFrame, most: float) -> Iterator[tuple[str, int]]:
    at = 0
    for start, end, change in zip(tokens["start"], tokens["end"], tokens["change"], strict=True):
        if end <= start or start < at:
            continue
        space = len(text[start:end]) - len(text[start:end].lstrip())  # a byte-level token begins with its space
        if text[at : start + space]:
            yield text[at : start + space], 0
        yield text[start + space : end], sum(change / most >= level for level in LEVELS)
        at = int(end)
    if text[at:]:
        yield text[at:], 0


def show_trace(found: Traced, console: Console, k: int) -> None:
    """Print each question with its top documents, the words that reacted marked; on a terminal in colour."""
    for name in dict.fromkeys(found.table["question"]):
        prompt, answer = found.shown["questions"][name]
        _line(console, [(f"{name}  ", "dim"), (prompt, ""), (" → ", "dim"), (answer, "bold")])
        rows = found.table[found.table["question"] == name].head(k)
        for row in rows.to_dict("records"):
            figures = f"{row['rank']:>3}  {number(row['score'], signed=True, minus='-'):>9}  "
            figures += f"{percent(row['share'], minus='-'):>6}  {row['train']}  "
            text = found.shown["texts"][row["train"]]
            pieces = marked(found, name, row["train"]) or [(text, 0)]
            _line(console, [(figures, "dim"), *((told, STYLES[level]) for told, level in pieces)])
    _line(console, [("positive = proponent: it supports the answer; marked words reacted most", "dim")])


def show_images(found: Traced, console: Console, k: int) -> None:
    """Print each generated image's strongest training images, with what their pixels would have said beside them."""
    for name in dict.fromkeys(found.table["image"]):
        _line(console, [(f"{name}", "bold"), ("  rank, score, share, pixel similarity, training image", "dim")])
        for row in found.table[found.table["image"] == name].head(k).to_dict("records"):
            figures = f"{row['rank']:>3}  {number(row['score'], signed=True, minus='-'):>9}  "
            figures += f"{percent(row['share'], minus='-'):>6}  {number(row['pixel_similarity'], minus='-'):>7}  "
            _line(console, [(figures, "dim"), (str(row["train"]), "")])
    _line(console, [("positive = proponent: it supports the generated image", "dim")])


def _line(console: Console, parts: Sequence[tuple[str, str]]) -> None:
    """Print pieces of text in their styles; no control character of theirs reaches the terminal."""
    line = Text()
    for told, style in parts:
        line.append(for_terminal(told, encoding=console.encoding or "utf-8"), style=style)
    console.print(line, soft_wrap=not console.is_terminal, markup=False, highlight=False, emoji=False)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
