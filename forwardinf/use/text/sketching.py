"""Documents and questions compared by sketches of their gradients."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.errors import ModelError, QueryError, SettingError
from forwardinf.core.fingerprint import code_digest, digest, model_digest
from forwardinf.core.progress import Advance, progress
from forwardinf.core.settings import Perturbation
from forwardinf.gradients.per_example import recorder_of
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.metric import Sides, metric
from forwardinf.use.checkpoints import each_checkpoint
from forwardinf.use.jointly import Turn, jointly
from forwardinf.use.sketch import Ask, Sketcher, compared, place_of
from forwardinf.use.sketch_cache import KeptRows
from forwardinf.use.text.questions import FIT, Array, Asking
from forwardinf.use.whitening import Kept

CURVATURES = ("kfac", "none")


def _none(places: Sequence[int], advance: Advance) -> Tensor:
    """Make nothing: who only looks at what is kept."""
    return torch.empty(0)


def _only(values: Array, chosen: list[Array] | None) -> Array:
    if chosen is not None:
        for row, places in zip(values, chosen, strict=True):
            row[np.setdiff1d(np.arange(len(row)), places)] = np.nan
    return values


def by_sketches(
    given: Asking,
    how: str,
    damping: float | None,
    chosen: list[Array] | None,
    checkpoints: Sequence[Any] | None,
    together: int = 0,
) -> tuple[Array, Array, list[Turn]]:
    """Return (scores, each question's score with itself, who leaves when) from gradient sketches, averaged over checkpoints.

    ``together``: how many documents of each question are to be named jointly, by the last state.
    """
    total, own, count = np.zeros((len(given.asked), given.units)), np.zeros(len(given.asked)), 0
    turns: list[Turn] = []
    for _ in each_checkpoint(given.model, checkpoints):
        sketcher, places = _sketcher(given, chosen)
        index, kept, asked = _sketches(given, sketcher, places)
        began = time.perf_counter()
        with progress("comparing", 1, given.options.progress) as advance:
            found = compared(index, asked, how, damping, kept=kept)
            values = np.full(total.shape, np.nan)
            values[:, places] = found.scores.numpy()
            total, own, count = total + values, own + found.own.numpy(), count + 1
            if together:
                turns = jointly(found, together, chosen, places)
            advance(1)
        given.clock["questions_s"] = given.clock.get("questions_s", 0.0) + time.perf_counter() - began
    return _only(total / count, chosen), own / count, turns


def _sketcher(given: Asking, chosen: list[Array] | None) -> tuple[Sketcher, Array]:
    """Return what sketches, and the places of the documents that are: all of them where an index of all is kept."""
    whole = np.arange(given.units)
    side = given.side(None) if chosen is None else given.side(chosen)
    if chosen is not None:
        draw = np.random.default_rng(given.options.seed)
        others = draw.choice(given.units, min(FIT, given.units), replace=False)
        places = np.unique(np.concatenate([*chosen, others]))
        full = _full_side(given)
        if full is not None:
            side, places = full, whole
            given.note("candidates are compared within the kept index of all documents")
    else:
        places = whole
    return Sketcher(given.parameters, side=side, seed=given.options.seed, metric=_metric(given)), places


def _full_side(given: Asking) -> int | None:
    """Return the side of a kept index of all documents; None where there is none, or no room for it."""
    try:
        side = given.side(None)
    except SettingError:
        return None
    folder = _folder(given, side)
    kept = KeptRows(folder, _none, 0, torch.float32, given.note)
    return side if folder is not None and kept.holds(given.units) else None


def _folder(given: Asking, side: int) -> Path | None:
    """Return where sketches of this side are kept."""
    if given.options.cache is None:
        return None
    made_from = (model_digest(given.model), given.data_digest, code_digest(given.task), sorted(given.parameters))
    return place_of(given.options.cache, *made_from, side, given.options.seed, given.curvature)


def _sketches(given: Asking, sketcher: Sketcher, places: Array) -> tuple[Tensor, Kept | None, Tensor]:
    """Return the sketched gradients of these documents, where what is made of them is kept, and those of the questions."""
    began = time.perf_counter()
    dtype = next(iter(given.parameters.values())).dtype
    rows = KeptRows(_folder(given, sketcher.side), lambda asked, advance: _sketched(given, sketcher, asked, advance),
                    sketcher.width, dtype, given.note)  # fmt: skip
    wanted = places.tolist()
    with progress("gradients", len(wanted), given.options.progress) as advance:
        index = rows.take(wanted, given.order(wanted), advance)
    kept = rows.kept(wanted) if len(places) == given.units else None  # other questions have other candidates
    given.clock["index_s"] = given.clock.get("index_s", 0.0) + time.perf_counter() - began
    began = time.perf_counter()
    ask: Ask = lambda model, batch: -given.queries.task.measure(model, batch)  # noqa: E731
    with progress("questions", len(given.rows), given.options.progress) as advance:
        each = sketcher.rows(given.queries, range(len(given.rows)), 1, ask, advance)
    joined = torch.stack([each[members].mean(0) for members in given.members])
    for name, length in zip(given.names, joined.norm(dim=1).tolist(), strict=True):
        if not 0 < length < float("inf"):
            raise QueryError(f"question {name!r}", expected="a finite gradient that is not zero", got=f"length {length}",
                             do="Ask an earlier checkpoint, or contrast it with a wrong answer.")  # fmt: skip
    given.note(recorder_of(given.train, given.parameters).told())
    given.clock["questions_s"] = given.clock.get("questions_s", 0.0) + time.perf_counter() - began
    return index, kept, joined


def _metric(given: Asking) -> dict[str, Sides] | None:
    """Return what gradients are taken through, fitted to a sample of the documents."""
    if given.curvature == "none":
        return None
    by_loss = given.by_loss()  # the Fisher does not ask what gradients are of
    made_from = (model_digest(given.model), given.data_digest, code_digest(by_loss))
    key = None if None in made_from else digest(*made_from)
    rule = Perturbation("kfac", fit_examples=FIT, seed=given.options.seed)
    fitting = Fitting(rule, replace(given.train, task=by_loss), given.parameters, given.batch_size, key,
                      given.options.cache, given.options.progress)  # fmt: skip
    try:
        found = metric(fitting)
    except ModelError as error:
        raise ModelError("trace(curvature='kfac')", expected="documents with finite gradients", got=str(error),
                         do="Pass curvature='none'.") from error  # fmt: skip
    for note in fitting.notes:
        given.note(note)
    return found


def _sketched(given: Asking, sketcher: Sketcher, places: Sequence[int], advance: Advance) -> Tensor:
    """Return the documents' sketched gradients, ``(places, width)``; of packed rows one document at a time."""
    if not given.task.packed:
        return sketcher.rows(given.train, list(places), given.batch_size, None, advance)
    found = torch.zeros(len(places), sketcher.width)
    units = [given.unit(int(place)) for place in places]
    for number in sorted({unit.number for unit in units}):
        at = [place for place, unit in enumerate(units) if unit.number == number]
        feed = replace(given.train, task=given.task.nth(number), examples=given.train.examples.one_each())
        found[at] = sketcher.rows(feed, [units[place].row for place in at], given.batch_size, None, advance)
    return found
