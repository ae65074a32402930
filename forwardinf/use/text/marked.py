"""Which words of a question's top documents react."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pandas as pd
from torch import Tensor

from forwardinf.core.progress import progress
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Id
from forwardinf.job.options import as_perturbation
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.parameters import select
from forwardinf.perturb.push import Pusher
from forwardinf.use.text.questions import Asking
from forwardinf.use.text.spans import token_changes

SPANS_BY = Perturbation(rise=0.5, two_sided=True)  # half a nat for each token of the answer


def marked_words(given: Asking, table: pd.DataFrame, count: int, perturbation: Any) -> pd.DataFrame:
    """Return the change of every token of each question's top documents under the push."""
    rule = SPANS_BY if perturbation is None else as_perturbation(perturbation)
    if rule.kind == "linear" or not rule.signed:
        rule = SPANS_BY
    if given.globs is not None:
        rule = Perturbation.from_dict({**rule.to_dict(), "parameters": list(given.globs)})
    began = time.perf_counter()
    by_loss = given.by_loss()  # tokens' losses are shown, whatever scores were read by
    fitting = Fitting(
        rule,
        replace(given.train, task=by_loss),
        select(given.model, rule.parameters),
        given.batch_size,
        progress=given.options.progress,
    )
    pusher = Pusher(replace(given.queries, task=by_loss.whole()), fitting)
    place_of_id = {name: place for place, name in enumerate(given.train.examples.ids)}
    records: list[dict[str, Any]] = []
    with progress("changes of tokens", len(given.names), given.options.progress) as advance:
        for name, members in zip(given.names, given.members, strict=True):
            top = table[(table["question"] == name) & (table["rank"] <= count)]
            places = [place_of_id[value] for value in top["train"]]
            rows = [given.unit(place).row for place in places]
            for place, rank, change in zip(
                places, top["rank"], token_changes(pusher, members, name, given.train, rows), strict=True
            ):
                records += _span(given, name, place, int(rank), change)
            advance(1)
    given.clock["spans_s"] = time.perf_counter() - began
    return pd.DataFrame(records, columns=["question", "rank", "train", "start", "end", "text", "change"])


def _span(given: Asking, name: Id, place: int, rank: int, change: Tensor) -> list[dict[str, Any]]:
    unit = given.unit(place)
    moved = (
        change.tolist() if given.both else [0.0, *change.tolist()]
    )  # a decoder's first token is predicted by nothing
    if given.task.packed:
        numbers = given.task.numbers(given.train.examples[unit.row]).tolist()
        moved = [value for value, number in zip(moved, numbers, strict=True) if number == unit.number]
    return [
        {"question": name, "rank": rank, "train": given.train.examples.ids[place], "start": start, "end": end,
         "text": told, "change": value}
        for (start, end, told), value in zip(given.pieces(place), moved, strict=False)
    ]  # fmt: skip
