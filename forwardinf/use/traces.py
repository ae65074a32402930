"""What `trace` and `trace_images` return: rows, the free alternatives on the same rows, and how to keep and show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forwardinf.core.paths import as_path
from forwardinf.core.progress import Stages
from forwardinf.core.settings import DIRECTIONS, Perturbation
from forwardinf.data.ids import Id
from forwardinf.score.scores import Scores
from forwardinf.use.tables import ByQuery, records, save

DRAWN_BY = "forwardinf.view.trace_pages"  # the view stands above: named, not imported, so that floors stay floors


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Traced(ByQuery):
    """What :func:`forwardinf.trace` and :func:`forwardinf.trace_images` return.

    ``found[question]`` is the rows of one question (image), ``found.top(k, query=[…])`` those of several, by their ids.

    Attributes:
        use: ``"trace"`` or ``"trace-images"``.
        table: Each question's (image's) strongest training examples, best first.
        spans: ``trace``: how far each token of the top documents moved when the model was pushed off the answer.
        baselines: The free alternatives on the same rows: what each of them would have named.
        scores: All scores, positive = proponent; NaN where a candidate list left an example out.
        threshold: None: a trace ranks, it decides nothing.
        false_positive_rate: None, likewise.
        how: How scores were made.
        notes: What a person should know.
        cost: Seconds and passes.
        shown: What a report may show: questions with answers; texts, what was read before them and what of them counts; or
            pictures.
    """

    use: str
    table: pd.DataFrame
    baselines: pd.DataFrame
    scores: Scores
    spans: pd.DataFrame | None = None
    threshold: float | None = None
    false_positive_rate: float | None = None
    how: str = ""
    notes: Sequence[str] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        asked, size = len(self), len(self.scores.ids)
        what = f"{asked:,} {self.asked_by}{'s' if asked != 1 else ''} × {size:,} training examples"
        there = ", ".join(f".{name}" for name, frame in self.frames.items() if len(frame))
        return f"Traced({what}, {self.how}; positive = proponent; see {there}, .scores, .report(path))"

    @property
    def asked_by(self) -> str:  # type: ignore[override]
        """The column of what was asked: ``"question"`` or ``"image"``."""
        return "image" if self.use == "trace-images" else "question"

    @property
    def query_ids(self) -> list[Id]:
        """The questions' (images') ids, in order."""
        return self.scores.query_ids

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables by name."""
        found = {"table": self.table, "baselines": self.baselines}
        return found if self.spans is None else {**found, "spans": self.spans}

    def facts(self) -> dict[str, Any]:
        """Return everything but the rows, as plain values."""
        return {"use": self.use, "rows": len(self.table), "how": self.how, "threshold": self.threshold,
                "false_positive_rate": self.false_positive_rate, "notes": list(self.notes), "cost": dict(self.cost)}  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON; numbers that there are none of are None."""
        return {**self.facts(), **{name: records(frame) for name, frame in self.frames.items()}}

    def save(self, folder: str | Path) -> Path:
        """Write each table as Parquet and the rest as ``use.json`` into a folder; files are whole or absent.

        No training text is written but what stands in the spans.
        """
        return save(folder, self.frames, self.facts())

    def report(self, path: str | Path, show: Callable[[Any], Any] | None = None, *, k: int = 8) -> Path:
        """Write one HTML file: each question beside its top training examples.

        Args:
            path: The file.
            show: ``show(example)`` gives a PIL image or text.
            k: How many of each question.
        """
        return import_module(DRAWN_BY).report(self, as_path("report", path), show, k)  # type: ignore[no-any-return]


def expect_attribution(whole: Stages, rule: Perturbation, size: int, queries: int) -> None:
    """Say what :func:`attribute` will do as a part of another call, for its progress."""
    whole.expect("fitting", 4 * size if DIRECTIONS[rule.direction].fitted != "never" else 0)
    whole.expect("queries", 10 * queries)
    whole.expect("baseline", size)
    each = queries * (2 if rule.both_sides else 1)
    whole.expect("reading", size * (min(each, 5) if rule.kind == "linear" else each))


def ranked(values: Any, k: int) -> Any:
    """Return the places of the k highest, best first; ties by position; what is NaN is left out."""
    found = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    return found[: min(k, int(np.isfinite(values).sum()))]
