"""From scores to a report page: which examples are shown, with which captions. The numbers are the scores' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forwardinf.score.scores import Scores
from forwardinf.view.marked_text import Language, language_of
from forwardinf.view.pictures import picture
from forwardinf.view.report import Card, Example, QuerySection, ReportPage, Table, write_report

MOST_QUERIES = 50  # a page is for looking; the scores hold the rest
BINS = 60

Show = Callable[[Any], Any]
Draw = Callable[[Any], Example]


def report(
    scores: Scores,
    path: Path,
    show: Show | None = None,
    k: int = 8,
    *,
    title: str = "Which training examples made it behave like this?",
    captions: Callable[[Any], str] | None = None,
    tables: Sequence[Table] = (),
    summary: Sequence[tuple[str, object]] = (),
    tokenizer: Any = None,
) -> Path:
    """Write the report; see :meth:`Scores.report`.

    Args:
        scores: What to show. Pictures appear where the scores still know their data (not after ``load_scores``).
        path: The file.
        show: ``show(example)`` gives a PIL image or text.
        k: How many proponents and opponents of each query.
        title: Heading.
        captions: ``captions(example)`` gives the line under a picture; default: its label, where it has one.
        tables: Further tables, shown before the queries.
        summary: Further facts for the head of the page.
        tokenizer: Turns token ids into text; default: the one that data or task know.
    """
    draw = _drawing(scores, show, tokenizer)
    shown = scores.query_ids[:MOST_QUERIES]
    notes = list(scores.notes)
    if len(shown) < len(scores.query_ids):
        notes.append(f"the first {len(shown)} of {len(scores.query_ids)} queries are shown")
    page = ReportPage(
        title=title,
        summary=[("queries", len(scores.query_ids)), ("training examples", len(scores.ids)), ("kind", scores.kind),
                 ("unit", _unit(scores)), *summary],
        notes=notes,
        sections=[_section(scores, q, k, draw, captions) for q in range(len(shown))],
        tables=list(tables),
        run_card=run_card(scores),
        kind=scores.kind if scores.kind in ("finite", "linear", "probe") else "finite",  # type: ignore[arg-type]
        signed=scores.signed,
    )  # fmt: skip
    return write_report(path, page)


def run_card(scores: Scores) -> Mapping[str, object]:
    """Return what a reader needs to make the same numbers again."""
    rule = {name: value for name, value in scores.perturbation.items() if value is not None}
    floor = scores.noise_floor[np.isfinite(scores.noise_floor)]
    return {
        **{
            f"{name} digest": value
            for name, value in scores.made_from.items()
            if name in ("model", "data", "queries", "task")
        },
        "perturbation": ", ".join(f"{name}={value}" for name, value in rule.items()),
        "noise floor": f"{float(np.median(floor)):.3g} (median over queries)" if len(floor) else "unknown",
        "batch size": scores.plan.get("batch_size", "unknown"),
        **{name: value for name, value in scores.cost.items() if isinstance(value, int | float)},
    }


def _drawing(scores: Scores, show: Show | None, tokenizer: Any) -> Draw:
    """Return how an example is drawn."""
    language = Language(tokenizer) if scores.pictured is None else language_of(scores.pictured[0], tokenizer)
    return lambda example: None if example is None else picture(example, show=show, language=language)


def _section(scores: Scores, q: int, k: int, draw: Draw, captions: Callable[[Any], str] | None) -> QuerySection:
    name = scores.query_ids[q]
    queries = scores.pictured[1] if scores.pictured is not None else None
    example = queries[q] if queries is not None and len(queries) == len(scores.query_ids) else None
    rows = scores.dense[q] if scores.dense is not None else scores.best[q][1]
    there = rows[np.isfinite(rows)]
    return QuerySection(
        query_id=name,
        example=draw(example),
        caption=_caption(example, captions),
        rise=_number(scores.rise[q]),
        unit=_unit(scores),
        status=scores.status[q],
        proponents=_cards(scores, name, k, draw, captions, best=True),
        opponents=_cards(scores, name, k, draw, captions, best=False) if scores.signed else (),
        histogram=_histogram(there) if len(there) else None,
    )


def _histogram(scores: Any) -> tuple[list[float], list[float]]:
    counts, edges = np.histogram(scores.astype(np.float64), bins=BINS)
    return counts.tolist(), edges.tolist()


def _cards(
    scores: Scores, query: Any, k: int, draw: Draw, captions: Callable[[Any], str] | None, *, best: bool
) -> list[Card]:
    table = scores.top(k, query=query) if best else scores.bottom(k, query=query)
    if scores.signed:  # a proponent below zero is none
        table = table[table["score"] > 0] if best else table[table["score"] < 0]
    place = {value: position for position, value in enumerate(scores.ids)}
    cards = []
    for row in table.to_dict("records"):
        example = _train_example(scores, place[row["train"]])
        cards.append(
            Card(row["train"], int(row["rank"]), float(row["score"]), _number(row["share"]), _number(row["baseline"]),
                 _number(row["uncertainty"]), draw(example), _caption(example, captions))
        )  # fmt: skip
    return cards


def _train_example(scores: Scores, unit: int) -> Any:
    if scores.pictured is None:
        return None
    examples = scores.pictured[0]
    return examples[examples.rows_of([unit])[0]]


def _caption(example: Any, captions: Callable[[Any], str] | None) -> str:
    if example is None:
        return ""
    if captions is not None:
        return captions(example)
    label = None
    if isinstance(example, Mapping):
        label = next((example[name] for name in ("labels", "label") if name in example), None)
    elif isinstance(example, tuple | list) and len(example) > 1:
        label = example[-1]
    size = getattr(label, "numel", lambda: 1)()
    return f"label {getattr(label, 'item', lambda: label)()}" if label is not None and size == 1 else ""


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _unit(scores: Scores) -> str | None:
    return f"{scores.unit} per unit step" if scores.kind == "linear" and scores.unit else scores.unit
