"""Is this test example, or a near copy of it, in the training set? The training examples that react as its copies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError
from forwardinf.core.progress import Setting, stages
from forwardinf.data.examples import Collate, Id
from forwardinf.job.options import Options
from forwardinf.models.borrowed import borrowed
from forwardinf.score.scores import Scores
from forwardinf.use.inputs import checked_count, checked_share, open_inputs
from forwardinf.use.leaks.decision import calibration, free_alternatives, null_of, pairs_table
from forwardinf.use.leaks.fdr import LEAST_CLEAN
from forwardinf.use.leaks.matching import (
    best_matches,
    candidate_rows,
    expect,
    open_side,
    refuse_leaked,
    rows_to_read,
    views_of,
)
from forwardinf.use.responses import unit
from forwardinf.use.tables import ByQuery, Found

UNITS = {
    "cosine": "of the responses to the same perturbations; 1 = the training example responds as the query does",
    "share": "1 (100 %) = the pair's reaction is as large as the query's own",
    "input_similarity": "cosine of the inputs", "feature_similarity": "cosine of a layer's features",
    "score": "how far the pair stands out among the query's nearest neighbours, in multiples of what is usual for neighbours, "
             "added over the views",
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Leaks(ByQuery, Found):
    """What :func:`leaks` returns. ``found[query]`` is one query's pairs, ``found.top(k, query=[…])`` those of several.

    Attributes:
        p_values: For each query, the chance that a clean query's best match scores as high; NaN where uncalibrated.
        fdr: The false-discovery rate that the decision is made at.
    """

    p_values: pd.Series[float] | None = None
    fdr: float = 0.05

    @property
    def query_ids(self) -> list[Id]:
        """The queries' ids, in order."""
        ids: list[Id] = self.table["query"].unique().tolist() if self.p_values is None else self.p_values.index.tolist()
        return ids

    @property
    def decided(self) -> str:
        """How many queries have a copy, in words."""
        found = int(self.table.groupby("query", sort=False)["is_leak"].any().sum())
        among = f" among {len(self.pictured['train']):,} training examples" if "train" in self.pictured else ""
        return f"{found:,} of {len(self):,} queries have a copy{among}"

    @property
    def rule(self) -> str:
        """What was decided by, in words."""
        return f"score of at least {self.threshold:.3g}, or the same content"

    @property
    def rate(self) -> str:
        """How often a clean query is accused, in words."""
        if self.false_positive_rate is None:
            return "uncalibrated, no false-positive rate"
        return f"false-discovery rate {100 * self.fdr:.2g} %, {super().rate}"


def leaks(
    model: nn.Module,
    train: Any,
    queries: Any,
    *,
    task: Any,
    clean: Any = None,
    candidates: Literal["auto", "all", "neighbours"] | Any = "auto",
    fdr: float = 0.05,
    k: int = 3,
    ids: str | Sequence[Id] | None = None,
    query_ids: str | Sequence[Id] | None = None,
    parameters: str | Sequence[str] | None = None,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    progress: Setting = "auto",
    seed: int = 0,
) -> Leaks:
    """Find, for every query, the training examples that are (near) copies of it, and decide which queries leaked.

    An exact copy reacts to every perturbation of the model as the query does: its share is 1 and the cosine of their
    responses is 1. Near copies come close. A pair's score adds up how far it stands out among the query's neighbours in
    four views (whitened responses, inputs, an early and the last layer's features; see ``use/leaks/evidence.py``), and the
    decision compares the best pair of each query with those of clean queries.

    Cost: one forward pass over the training set for the features, about 4 F for the responses (one gradient pass), and
    Q·N products of vectors. Memory: about 4,000 numbers for each training example.

    Args:
        model: As in :func:`attribute`.
        train: As in :func:`attribute`.
        queries: The test examples, in the same forms.
        task: What an example's loss is. Any task will do; inputs are compared where it can tell them from the label.
        clean: Examples known not to be in the training set (at least 20), of the queries' kind: their best matches are
            the null distribution. Without them the middle of at least 50 queries is (leaks must be fewer than 15 %);
            with fewer queries the decision is uncalibrated, and says so.
        candidates: ``"all"`` reads every training example's gradient; ``"neighbours"`` only those of the 20 nearest of
            each query in each free view (two stages, for large sets); ``"auto"``: all up to 2e9 pairs. Or a list of
            training positions for each query, or ``{query id: training ids}``: only those are read.
        fdr: The false-discovery rate q of the decision over the queries (Benjamini–Hochberg).
        k: Pairs for each query.
        ids: As in :func:`attribute`.
        query_ids: As in :func:`attribute`.
        parameters: Globs over the names of the parameters whose responses count.
        collate_fn: As in :func:`attribute`.
        num_workers: As in :func:`attribute`.
        batch_size: Examples at a time in forward passes.
        device: As in :func:`attribute`.
        progress: As in :func:`attribute`.
        seed: Of the probes and of what the data draws.

    Returns:
        :class:`Leaks`. ``table``: k rows for each query, best first. ``cosine``: of the responses to shared probes (1: reacts
        as the query does). ``share``: what the pair's reaction is of the query's own (both are exact where the model has
        fewer weights than there are probes, else estimates). ``same_content``: equal inputs, bit for bit. ``score``: mean
        excesses over the query's own neighbourhood, added over views. ``evidence``: what stands out, in words.

    Raises:
        Error: With where / expected / got / do.

    Example:
        >>> import torch, forwardinf as fi
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(40, 8), torch.randint(2, (40,))
        >>> found = fi.leaks(torch.nn.Linear(8, 2), (x, y), (x[:2], y[:2]), task=fi.Classification(), k=1)
        >>> found.table["train"].tolist(), found.table["same_content"].tolist()
        ([0, 1], [True, True])
    """
    options = Options(batch_size=batch_size, device=device, num_workers=num_workers, progress=progress, seed=seed)
    began, q, count = time.perf_counter(), checked_share("fdr", fdr), checked_count("k", k)
    with stages("leaks", progress) as whole, borrowed(model) as model:
        given = open_inputs(model, task, options, collate_fn, parameters)
        feeds = {"train": given.feed(train, "train", ids), "queries": given.feed(queries, "queries", query_ids)}
        if clean is not None:
            feeds["clean"] = given.feed(clean, "clean")
            if len(feeds["clean"].examples) < LEAST_CLEAN:
                raise DataError("clean", expected=f"at least {LEAST_CLEAN} examples", got=str(len(feeds["clean"].examples)),
                                do="Pass more, or none: the queries are then their own null.")  # fmt: skip
        named = candidate_rows(candidates, feeds)
        expect(whole, feeds, named)
        sides = {name: open_side(given, feed) for name, feed in feeds.items()}
        if "clean" in sides:
            refuse_leaked(sides["clean"], sides["train"])
        read, only = rows_to_read(given, named, sides)
        views, raw = views_of(given, sides, read)
        notes = [*feeds["train"].examples.notes, *feeds["queries"].examples.notes]
        found = best_matches(given, sides, views, read, only, count)
        null = null_of(found, notes)
        table, p_values, threshold = pairs_table(found["queries"], raw, sides, read, null, q)
        baselines = free_alternatives(given, table, sides, count)
    cost = {"seconds": round(time.perf_counter() - began, 3), "probes": raw["train"].shape[1], "gradients_read": len(read),
            "pairs": len(read) * len(sides["queries"].content)}  # fmt: skip
    rate = None if null is None else float(null.p_value(threshold))
    return Leaks(
        "leaks", table, "is_leak", threshold, rate, calibration(null, q), baselines,
        UNITS,
        notes, cost, {"train": sides["train"].feed.examples, "queries": sides["queries"].feed.examples}, p_values, q,
    )  # fmt: skip


def response_cosine(scores: Scores) -> Tensor:
    """Return the cosine of each training example's responses to all queries with each query's own, ``(Q, N)``.

    Any kind of scores will do, finite ones too; at least two queries, and ``cross`` (single queries measured by their loss).
    """
    after = torch.from_numpy(np.nan_to_num(scores.values.astype(np.float64)))
    own = torch.from_numpy(np.nan_to_num(scores.cross.astype(np.float64)))
    return unit(own.T) @ unit(after.T).T


# -- what is read --------------------------------------------------------------------------------------------------------


# -- what it means -------------------------------------------------------------------------------------------------------
