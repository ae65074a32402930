"""Which examples does the model know by heart, and which test predictions rest on them?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forwardinf.core.progress import ARITHMETIC, Advance, Setting, Stages, stages
from forwardinf.core.progress import progress as shown
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Collate, Id
from forwardinf.job.options import Options, settled
from forwardinf.method import self_influence
from forwardinf.models.borrowed import borrowed
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.root import slope
from forwardinf.tasks.task import Task
from forwardinf.use.inputs import checked_count, open_inputs
from forwardinf.use.labels.leave_one_out import Without, leave_one_out, multiplications
from forwardinf.use.labels.readings import DIRECTIONS, WIDTH, Readings, checked_size, expect_readings, readings
from forwardinf.use.tables import Found, id_index, id_values

LEAST = 20
MEMORIZED, INFLUENTIAL = 0.25, 0.15  # Feldman & Zhang 2020: what counts as memorised, and as a pair of high influence
BLOCK = 2**24
UNITS = {
    "memorization": "predicted probability of its own label, with the example in the training set minus without it",
    "loss": "nats",
    "gradient_norm": "nats per unit of length",
    "influence": "predicted probability of the query's label, with the training example minus without it",
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Memorized(Found):
    """What :func:`memorized` returns.

    Attributes:
        pairs: ``query, train, influence``: the k training examples that each query rests on most, strongest first.
    """

    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def decided(self) -> str:
        """How many training examples are memorised, in words."""
        return f"{int(self.table[self.decision].sum()):,} of {len(self.table):,} training examples are memorised"

    @property
    def rule(self) -> str:
        """What was decided by, in words."""
        return f"memorization of at least {self.threshold:.3g}"

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables by name."""
        return {**super().frames, "pairs": self.pairs}


def memorized(
    model: nn.Module,
    train: Any,
    queries: Any = None,
    *,
    task: Any,
    k: int = 5,
    direction: str | Perturbation = "plain",
    ids: str | Sequence[Id] | None = None,
    query_ids: str | Sequence[Id] | None = None,
    parameters: str | Sequence[str] | None = None,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    progress: Setting = "auto",
    seed: int = 0,
) -> Memorized:
    """Score how far each training example is known by heart: its own label with it in the training set, minus without.

    Both are predictions of the label by ridge regression on the responses of the logits to shared probes: the model's tangent
    space, leave-one-out in closed form. Retraining on random subsets (Feldman & Zhang 2020) estimates the same difference,
    for hundreds of trainings. With ordinary labels self-influence along ``gfim``, by the root, ranks closer to that
    (docs/memorized.md): ``direction="gfim"`` puts it into the same table. Labels that are wrong and fitted all the same are
    found best by ``memorization``, which has the scale of a probability.

    Cost: about 27 F, and one eigendecomposition of at most 2,048 × 2,048. With queries: the same passes over them. A
    direction other than ``"plain"``: its fit and one more pass.

    Args:
        model: As in :func:`attribute`; trained on ``train``.
        train: As in :func:`attribute`; at least 20 examples.
        queries: Test examples whose predictions are traced to memorised training examples; None: no pairs.
        task: A classification: ``fi.Classification()``, or one with ``logits`` and ``split``.
        k: Pairs for each query.
        direction: P of the column ``self_influence``, as in :func:`self_influence`. ``"plain"``: ‖gᵢ‖², from the passes that
            are made anyway. Nothing is decided by it.
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
        :class:`Memorized`. ``table``, indexed by id: ``memorization`` in [−1, 1], ``self_influence`` (gᵢᵀ P gᵢ, of losses read as
        :func:`attribute` reads them: a classifier's by their root), ``loss``, ``is_memorized`` (memorisation of at least .25,
        the convention of Feldman & Zhang; no false-positive rate can be had).
        ``pairs``: ``query, train, influence``.

    Raises:
        Error: With where / expected / got / do.

    Example:
        >>> import torch, forwardinf as fi
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 2
        >>> found = fi.memorized(torch.nn.Linear(4, 2), (x, y), (x[:2], y[:2]), task=fi.Classification(), k=1)
        >>> list(found.table.columns), list(found.pairs.columns)
        (['memorization', 'self_influence', 'loss', 'is_memorized'], ['query', 'train', 'influence'])
    """
    options = Options(batch_size=batch_size, device=device, num_workers=num_workers, progress=progress, seed=seed)
    began, count = time.perf_counter(), checked_count("k", k)
    rule = direction if isinstance(direction, Perturbation) else Perturbation(direction, reading="auto")
    with stages("memorized", progress) as whole:
        with borrowed(model) as model:
            given = open_inputs(model, task, options, collate_fn, parameters)
            feed = given.feed(train, "train", ids)
            checked_size(feed, LEAST)
            asked = None if queries is None else given.feed(queries, "queries", query_ids)
            _expect(whole, feed, asked, fitted=direction != "plain")
            own, _ = readings(given, feed, looks=False)
            test = None if asked is None else readings(given, asked, looks=False)[0]
        if direction == "plain":
            strength, unit = _plain(own, settled(rule, given.task), given.task)
        else:
            apart = self_influence(
                model, train, task=task, direction=rule, parameters=parameters, ids=ids, collate_fn=collate_fn,
                num_workers=num_workers, batch_size=batch_size, device=device, progress=progress, seed=seed,
            )  # fmt: skip
            strength, unit = apart.values, apart.unit
        with shown("predictions by the others", 1, progress) as advance:
            others = leave_one_out(own.logits, own.labels, own.classes)
            advance(1)
        pairs = pd.DataFrame(columns=["query", "train", "influence"])
        if asked is not None and test is not None:
            with shown("pairs", len(asked.examples), progress) as advance:
                pairs = _pairs(others, test, feed, asked, count, advance)
    known = memorization(others, own.labels)
    table = pd.DataFrame(
        {"memorization": known, "self_influence": strength, "loss": own.loss.numpy(),
         "is_memorized": known >= MEMORIZED},
        index=id_index(feed.examples.ids),
    )  # fmt: skip
    baselines = pd.DataFrame({"gradient_norm": own.self_influence.sqrt().numpy(), "loss": table["loss"],
                              "leverage": others.leverage.numpy()}, index=table.index)  # fmt: skip
    pictured = {"train": feed.examples} | ({"queries": asked.examples} if asked is not None else {})
    cost = {"seconds": round(time.perf_counter() - began, 3), "examples": len(table), "ridge": others.ridge}
    units = UNITS | {"self_influence": f"{unit} per unit step"}
    return Memorized("memorized", table, "is_memorized", MEMORIZED, None, "threshold of Feldman & Zhang 2020",
                     baselines, units, feed.examples.notes, cost, pictured, pairs)  # fmt: skip


def memorization(others: Without, labels: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the prediction of each label with the row itself minus without it: what its pair with itself would have.

    Not the model's own probability minus the others' prediction: two predictors that differ in how sure they are.
    """
    return (others.fitted - others.predicted).gather(1, labels[:, None])[:, 0].numpy()


def _plain(own: Readings, rule: Perturbation, task: Task) -> tuple[np.ndarray[Any, np.dtype[np.float64]], str | None]:
    """Return (‖gᵢ‖² of losses as the rule reads them, its unit): what :func:`self_influence` would say, without its pass."""
    factor = slope(own.loss).square() if rule.reading == "root" else torch.ones_like(own.loss)
    return (own.self_influence * factor).numpy(), rule.unit_of(task.unit)


def _expect(whole: Stages, feed: Feed, asked: Feed | None, *, fitted: bool) -> None:
    """Say what the call will do, for its progress."""
    size = len(feed.examples)
    read = size + (0 if asked is None else len(asked.examples))
    whole.say(training_rows=size, queries=read - size, backward_passes=(DIRECTIONS + 1) * read + 2 * size,
              memory_bytes=8 * size * WIDTH + 32 * min(size, WIDTH) ** 2)  # fmt: skip
    for part in (feed, asked):
        if part is not None:
            expect_readings(whole, part)
    whole.expect("fitting", 4 * size * fitted)
    whole.expect("self-influence", 4 * size * fitted)
    whole.expect("predictions by the others", multiplications(size, WIDTH), ARITHMETIC)
    if asked is not None:
        whole.expect("pairs", len(asked.examples) * size * (WIDTH + 2 * min(size, WIDTH)), ARITHMETIC)


def _pairs(others: Without, test: Readings, feed: Feed, asked: Feed, count: int, advance: Advance) -> pd.DataFrame:
    """Return each query's strongest pairs, of its own label."""
    queries, trains, influences = list[Id](), list[Id](), list[float]()
    step, size = max(1, BLOCK // len(feed.examples)), min(count, len(feed.examples))
    for start in range(0, len(asked.examples), step):
        rows = slice(start, start + step)
        found: Tensor = others.influence(test.logits[rows], test.labels[rows])
        best = torch.topk(found, size, 1)
        for place in range(len(found)):
            queries += [asked.examples.ids[start + place]] * size
            trains += [feed.examples.ids[int(row)] for row in best.indices[place]]
            influences += best.values[place].tolist()
        advance(len(found))
    return pd.DataFrame({"query": id_values(queries), "train": id_values(trains), "influence": influences})


def best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows, the most memorised first."""
    return rows.sort_values("memorization", ascending=False, kind="stable")
