"""A trace for people: a report page and, in the terminal, answers beside their documents with the reacting words marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from forwardinf.view.clean import BEYOND, beyond, for_terminal, number, share
from forwardinf.view.marked_text import ARROW, READ, Words, cut, in_pieces
from forwardinf.view.pictures import picture
from forwardinf.view.report import Card, Example, QuerySection, ReportPage, Table, write_report

if TYPE_CHECKING:
    from forwardinf.use.traces import Traced

MOST = 50  # questions on a page
LEVELS = (0.1, 0.25, 0.5, 0.75)  # share of the strongest change, from which a word is marked, fainter to stronger
STYLES = {READ: "dim", 0: "", 1: "green", 2: "bold green", 3: "black on green", 4: "bold black on bright_green"}
IN_TERMINAL = 600  # characters shown of one document
HOW = {
    "unit-whitened": "gradients at equal length, whitened by all training examples", "whitened": "gradients, whitened by all "
    "training examples", "cosine": "cosines of gradients", "dot": "products of gradients",
}  # fmt: skip
OF = {
    "loss": "of the loss", "root": "of the root of each token's loss", "margin": "of each token's log-odds",
    "picture": "of the denoised picture", "both": "of the loss and of the denoised picture",
}  # fmt: skip


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
        summary=[(f"{name}s", len(asked)), ("training examples", len(found.scores.ids)), ("how", found.how), *_meaning(found)],
        notes=notes,
        sections=[_section(found, name, value, show, k) for value in asked[:MOST]],
        tables=[Table.from_frame(found.baselines, "The free alternatives", "What each would have named, on the same examples.")]
        if len(found.baselines) else [],
        run_card=dict(found.cost),
        kind="finite" if found.scores.kind == "finite" else "linear" if found.scores.unit else "compared",
        signed=found.scores.signed, jointly=found.how.endswith("jointly"), one_scale=True, asked=name,
        about="generated image" if pictures else "answer", sections_first=True,
    )  # fmt: skip
    return write_report(path, page)


def _section(found: Traced, name: str, value: Any, show: Callable[[Any], Any] | None, k: int) -> QuerySection:
    rows = found.table[found.table[name] == value].head(k)
    cards = [_card(found, row, value, show) for row in rows.to_dict("records")]
    if name == "image":
        return QuerySection(value, example=picture(found.shown["images"][value], show=show), proponents=cards)
    prompt, answer = found.shown["questions"][value]
    return QuerySection(value, example=prompt, caption=f"answer: {answer}", proponents=cards)


def _meaning(found: Traced) -> list[tuple[str, object]]:
    """Return what the words of ``how`` mean, where they are ours."""
    first, *rest = found.how.split(", ")
    name, _, through = first.partition(" through ")
    if name not in HOW:
        return []
    told = [
        HOW[name],
        *(OF[word] for word in rest if word in OF),
        f"through the model's curvature ({through})" if through else "",
    ]
    return [("that is", ", ".join(filter(None, told)))]


def _card(found: Traced, row: dict[Any, Any], value: Any, show: Callable[[Any], Any] | None) -> Card:
    if found.use == "trace-images":
        example: Example = picture(found.shown["train"][row["train"]], show=show)
        told = [("pixels", row["pixel_similarity"])]
    else:
        text = found.shown["texts"][row["train"]]
        example = picture(text, show=show) if show is not None else marked(found, value, row["train"])
        told = [("BM25", row["bm25"]), ("fused", row["fused"])]
    caption = ", ".join(f"{what} {number(figure)}" for what, figure in told if math.isfinite(figure))
    return Card(
        row["train"], int(row["rank"]), float(row["score"]), _known(row["share"]), example=example, caption=caption
    )


def marked(found: Traced, question: Any, train: Any) -> Words:
    """Return a document, marked by how far its tokens moved where that was read; of a pair both sides."""
    text, spans = found.shown["texts"][train], found.spans
    marks: list[tuple[int, int, int]] = []
    if spans is not None and len(spans):
        of_question = spans[spans["question"] == question]
        own = of_question[of_question["train"] == train]
        most = float(of_question["change"].max()) if len(own) else 0.0
        if most > 0:
            marks = list(_marks(text, own, most))
    words = in_pieces(text, marks, found.shown.get("counted", {}).get(train))
    before = found.shown.get("before", {}).get(train, "")
    return Words(((f"{before.rstrip()} {ARROW} ", READ), *words.pieces)) if before else words


def _marks(text: str, tokens: pd.DataFrame, most: float) -> Iterator[tuple[int, int, int]]:
    at = 0
    for start, end, change in zip(tokens["start"], tokens["end"], tokens["change"], strict=True):
        if end <= start or start < at:
            continue
        space = len(text[start:end]) - len(text[start:end].lstrip())  # a byte-level token begins with its space
        yield start + space, int(end), sum(change / most >= level for level in LEVELS)
        at = int(end)


def show_trace(found: Traced, console: Console, k: int) -> None:
    """Print each question with its top documents, the words that reacted marked; on a terminal in colour."""
    for name in dict.fromkeys(found.table["question"]):
        prompt, answer = found.shown["questions"][name]
        _line(console, [(f"{name}  ", "dim"), (prompt, ""), (" → ", "dim"), (answer, "bold")])
        rows = found.table[found.table["question"] == name].head(k)
        for row in rows.to_dict("records"):
            figures = f"{row['rank']:>3}  {number(row['score'], signed=True, minus='-'):>9}  "
            figures += f"{share(row['share'], minus='-'):>6}  {row['train']}  "
            pieces = cut(marked(found, name, row["train"]), IN_TERMINAL).pieces
            _line(console, [(figures, "dim"), *((told, STYLES[level]) for told, level in pieces)])
    told = "rank, score, share, document; positive = proponent: it supports the answer"
    if console.is_terminal and found.spans is not None:
        told += "; coloured words reacted most"
    _line(console, [(told, "dim")])
    _footnotes(found, console)


def show_images(found: Traced, console: Console, k: int) -> None:
    """Print each generated image's strongest training images, with what their pixels would have said beside them."""
    for name in dict.fromkeys(found.table["image"]):
        _line(console, [(f"{name}", "bold"), ("  rank, score, share, pixel similarity, training image", "dim")])
        for row in found.table[found.table["image"] == name].head(k).to_dict("records"):
            figures = f"{row['rank']:>3}  {number(row['score'], signed=True, minus='-'):>9}  "
            figures += f"{share(row['share'], minus='-'):>6}  {number(row['pixel_similarity'], minus='-'):>7}  "
            _line(console, [(figures, "dim"), (str(row["train"]), "")])
    _line(console, [("positive = proponent: it supports the generated image", "dim")])
    _footnotes(found, console)


def _footnotes(found: Traced, console: Console) -> None:
    """Print what needs a word of explanation where it was shown."""
    if beyond(found.table["share"]):
        _line(console, [(BEYOND, "dim")])
    shown = found.shown
    if any(shown.get("before", {}).values()) or any(spans is not None for spans in shown.get("counted", {}).values()):
        _line(console, [(f"what stands before {ARROW} is read by the model but not counted in the loss", "dim")])


def _line(console: Console, parts: Sequence[tuple[str, str]]) -> None:
    """Print pieces of text in their styles; no control character of theirs reaches the terminal."""
    line = Text()
    for told, style in parts:
        line.append(for_terminal(told, encoding=console.encoding or "utf-8"), style=style)
    console.print(line, soft_wrap=not console.is_terminal, markup=False, highlight=False, emoji=False)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
