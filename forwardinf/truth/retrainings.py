"""What really happens when the model is trained without some examples: banks of subsets, leave-one-out, removals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from forwardinf.core.errors import SettingError, TaskError
from forwardinf.core.fingerprint import digest
from forwardinf.core.progress import Setting
from forwardinf.data.examples import Collate, Examples
from forwardinf.job.options import Options, device_of, open_examples
from forwardinf.models.borrowed import borrowed
from forwardinf.score.top import order
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.task import Batch, Task, as_task
from forwardinf.truth.agreement import Array
from forwardinf.truth.bank import Bank
from forwardinf.truth.retrain import Ask, Train, half_subsets, retrain

BANK_SEEDS = 1000  # a bank's trainings have seeds of their own, from here on


class Asking:
    """Ask any model about the queries: ``asking(model) -> {"measure": (Q,), "predicted": (Q,)}``.

    ``predicted`` (the class with the largest logit) is there only where the task has logits.
    """

    def __init__(
        self,
        queries: Any,
        task: Any,
        model: nn.Module | None,
        *,
        collate_fn: Collate | None,
        batch_size: int,
        seed: int,
    ) -> None:
        """Open the queries. ``model`` decides what is asked, for tasks that leave it to the model (the predicted label)."""
        self.task: Task = as_task(task).whole()
        self.examples: Examples = open_examples(queries, "queries", self.task, collate_fn, Options(seed=seed))
        self.rows, self.batch_size, self.seed = range(len(self.examples)), batch_size, seed
        self.filled: dict[tuple[int, ...], Batch] = {}
        if self.task.asks:
            if model is None:
                raise SettingError("evaluate(model=)", expected="the model whose predictions are asked about", got="none",
                                   do="Give model=, or a task that asks about the label.")  # fmt: skip
            self(model)

    def __call__(self, model: nn.Module) -> dict[str, Array]:
        """Return what each query measures under ``model``, which is given back as it was."""
        with borrowed(model) as model:
            feed = Feed(model, self.task, self.examples, device_of(model, "auto"), seed=self.seed, asked=self.filled)
            found = {"measure": feed.measures(self.rows, self.batch_size).numpy()}
            predicted = self._predicted(feed)
        return found if predicted is None else {**found, "predicted": predicted}

    @torch.no_grad()
    def _predicted(self, feed: Feed) -> Array | None:
        try:
            parts = [
                logits.argmax(-1).double().cpu() for logits in feed.each(self.task.logits, self.rows, self.batch_size)
            ]
        except TaskError:
            return None
        found = torch.cat(parts)
        return found.numpy() if found.shape == (len(self.rows),) else None


@dataclass(frozen=True)
class Trainer:
    """The user's ``train_fn`` with all that its retrainings share."""

    train_fn: Train
    size: int
    ask: Ask
    seeds: int = 1
    seed: int = 0
    folder: Path | None = None
    progress: Setting = "auto"

    def run(self, name: str, members: Sequence[Any], seeds: Sequence[Sequence[int]] | None = None) -> dict[str, Array]:
        """Train on each list of positions, with the same seeds for all unless told otherwise: paired runs."""
        same = list(range(self.seed, self.seed + self.seeds))
        folder = None if self.folder is None else self.folder / name
        return retrain(self.train_fn, members, self.ask, seeds=seeds or [same] * len(members), folder=folder,
                       title=f"{name}: training", progress_bar=self.progress)  # fmt: skip

    def without(self, name: str, removed: Sequence[Any]) -> dict[str, Array]:
        """Train without each list of positions."""
        return self.run(
            name, [np.setdiff1d(np.arange(self.size), np.asarray(gone, dtype=np.int64)) for gone in removed]
        )


def make_bank(trainer: Trainer, *, subsets: int, share: float, meta: Mapping[str, Any] | None = None) -> Bank:
    """Train on random subsets, every training with a seed of its own, and return the bank.

    Args:
        trainer: Who trains and is asked.
        subsets: How many.
        share: Of the training examples in each.
        meta: Whatever should stand beside the bank's own facts.
    """
    masks = half_subsets(trainer.size, subsets, share, trainer.seed)
    first, each = trainer.seed + BANK_SEEDS, trainer.seeds
    seeds = [[first + each * m + s for s in range(each)] for m in range(subsets)]
    found = trainer.run("subsets", [row.nonzero()[0] for row in masks], seeds)
    facts = {"share": share, "drawn_by": trainer.seed, "training_seeds": f"{first} + {each} m + s", **(meta or {})}
    return Bank(masks, found["measure"], "measure", meta=facts)


def leave_one_out(trainer: Trainer, full: Array, left_out: Sequence[int]) -> Array:
    """Return how much each query's measurement falls when one example is left out, ``(Q, n)``: positive = proponent.

    Args:
        trainer: Who trains and is asked.
        full: ``(seeds, Q)``: what the queries measure after training on everything, under the same seeds.
        left_out: The n positions.
    """
    found = trainer.without("leave-one-out", [[place] for place in left_out])["measure"]
    return np.asarray((full[None] - found).mean(1).T)


@dataclass(frozen=True)
class Removal:
    """What removing one query's k strongest proponents did to it, beside removing k at random.

    Attributes:
        k: How many were removed.
        query: Position of the query.
        fall: Of its measurement, mean over seeds.
        flipped: Share of seeds in which the predicted class changed; None where the task has no logits.
        random_fall: The same for k random examples.
        random_flipped: Likewise.
    """

    k: int
    query: int
    fall: float
    flipped: float | None
    random_fall: float
    random_flipped: float | None


def removals(
    trainer: Trainer, full: Mapping[str, Array], scores: Array, name: str, ks: Sequence[int], queries: Sequence[int]
) -> list[Removal]:
    """Remove each query's k best-scored examples, train again, and see how far the query falls (brittleness).

    The random removals are drawn once for each k and serve every query and every method.

    Args:
        trainer: Who trains and is asked.
        full: Outputs after training on everything, by name, each ``(seeds, Q)``.
        scores: ``(Q, N)``, positive = proponent.
        name: Of the method, for its folder.
        ks: How many to remove.
        queries: Positions of the queries to do it for.
    """
    draw = np.random.default_rng(trainer.seed)
    at_random = trainer.without("removed-at-random", [draw.choice(trainer.size, k, replace=False) for k in ks])
    places = np.arange(trainer.size)
    best = {q: order(scores[q].astype(np.float32), places, best=True) for q in queries}
    pairs = [(k, q) for k in ks for q in queries]
    plain_name = "".join(letter if letter.isalnum() else "-" for letter in name)
    found = trainer.without(f"removed-{plain_name}-{digest(name)[:6]}", [best[q][:k] for k, q in pairs])

    def change(outputs: Mapping[str, Array], row: int, q: int) -> tuple[float, float | None]:
        fall = float((full["measure"][:, q] - outputs["measure"][row, :, q]).mean())
        if "predicted" not in full:
            return fall, None
        return fall, float((full["predicted"][:, q] != outputs["predicted"][row, :, q]).mean())

    return [
        Removal(k, q, *change(found, row, q), *change(at_random, ks.index(k), q)) for row, (k, q) in enumerate(pairs)
    ]
