"""Which labels are wrong? Every detector there is, weighted by how far they agree."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError
from forwardinf.core.progress import ARITHMETIC, Advance, Setting, Stages, stages
from forwardinf.core.progress import progress as shown
from forwardinf.data.examples import Collate, Id
from forwardinf.job.options import Options
from forwardinf.models.borrowed import borrowed
from forwardinf.tasks.feed import Feed
from forwardinf.use.features import MOST_WIDTH, NAMES
from forwardinf.use.inputs import open_inputs
from forwardinf.use.labels.consensus import Array, ranks, weights
from forwardinf.use.labels.leave_one_out import Without, leave_one_out, margin, multiplications
from forwardinf.use.labels.neighbours import neighbours_labels
from forwardinf.use.labels.readings import DIRECTIONS, WIDTH, Readings, checked_size, expect_readings, readings
from forwardinf.use.leaks.fdr import LEAST_CLEAN
from forwardinf.use.tables import Found, id_index

LEAST = 20
FIT = "fit"
CLEAN = "clean_reaction"
UNITS = {
    "label_score": "0 = the most doubtful label, 1 = the least; from ranks, so not a probability", "loss": "nats",
    "self_influence": "nats per unit step",
    "leave_one_out": "best other class minus the given one, predicted by all other examples; above 0 = another class fits better",
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Mislabeled(Found):
    """What :func:`mislabeled` returns.

    Attributes:
        weights: What each detector counted for, by name; they add up to 1.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def decided(self) -> str:
        """How many labels look wrong, in words."""
        return f"{int(self.table[self.decision].sum()):,} of {len(self.table):,} labels look wrong"

    @property
    def rule(self) -> str:
        """What was decided by, in words."""
        return f"label_score of at most {self.threshold:.3g}"

    @property
    def rate(self) -> str:
        """How often a right label is accused, in words."""
        return super().rate + (" (clean= would give one)" if self.false_positive_rate is None else "")

    def facts(self) -> dict[str, Any]:
        """Return everything but the rows, as plain values."""
        return {**super().facts(), "weights": dict(self.weights)}


def mislabeled(
    model: nn.Module,
    train: Any,
    *,
    task: Any,
    clean: Any = None,
    ids: str | Sequence[Id] | None = None,
    parameters: str | Sequence[str] | None = None,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    progress: Setting = "auto",
    seed: int = 0,
) -> Mislabeled:
    """Score how likely each training label is to be right, and decide which are not.

    Detectors: the label as the *other* examples predict it, by ridge regression in closed form, from the responses of the
    model's logits (leave-one-out) and from inputs, early and last features (what neighbours are labelled); the model's own
    fit (loss and self-influence, one vote); with ``clean``, the reaction to it. Their ranks are averaged with weights from
    how far the detectors agree (``use/labels/consensus.py``): no tuning, before memorisation as after it.

    Cost: about 27 F (features, and one gradient pass for the loss and four directions of the logits), and one
    eigendecomposition of at most 2,048 × 2,048 for each view.

    Args:
        model: As in :func:`attribute`; trained on ``train``.
        train: As in :func:`attribute`; at least 20 examples.
        task: A classification: ``fi.Classification()``, or one with ``logits`` and ``split``.
        clean: Examples whose labels are known to be right and that the model was not trained on (at least 20). They give
            the false-positive rate of the decision, and the reaction to them is one more detector.
        ids: As in :func:`attribute`.
        parameters: Globs over the names of the parameters whose responses count.
        collate_fn: As in :func:`attribute`.
        num_workers: As in :func:`attribute`.
        batch_size: Examples at a time in forward passes.
        device: As in :func:`attribute`.
        progress: As in :func:`attribute`.
        seed: Of the probes and of what the data draws.

    Returns:
        :class:`Mislabeled`. ``table``, indexed by id: ``is_label_issue``, ``label_score`` (low = bad), ``given_label``,
        ``predicted_label`` (by the others), ``loss``, ``self_influence``, and each view's margin (best other class minus the
        given one). How many are issues is estimated as in confident learning (Northcutt et al. 2021): in each class, what share
        the others put elsewhere of those that they put anywhere with that class's usual confidence. The lowest scores are then
        the issues.

    Raises:
        Error: With where / expected / got / do.

    Example:
        >>> import torch, forwardinf as fi
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 2
        >>> x[:, 0] = 4.0 * y - 2
        >>> y[7] = 1 - y[7]
        >>> model = torch.nn.Linear(4, 2)
        >>> _ = model.load_state_dict({"weight": torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]), "bias": torch.zeros(2)})
        >>> found = fi.mislabeled(model, (x, y), task=fi.Classification())
        >>> int(found.table["label_score"].idxmin()), int(found.table.loc[7, "predicted_label"])
        (7, 1)
    """
    options = Options(batch_size=batch_size, device=device, num_workers=num_workers, progress=progress, seed=seed)
    began = time.perf_counter()
    with stages("mislabeled", progress) as whole:
        with borrowed(model) as model:
            given = open_inputs(model, task, options, collate_fn, parameters)
            feed = given.feed(train, "train", ids)
            checked_size(feed, LEAST)
            trusted = None if clean is None else given.feed(clean, "clean")
            if trusted is not None and len(trusted.examples) < LEAST_CLEAN:
                raise DataError("clean", expected=f"at least {LEAST_CLEAN} examples", got=str(len(trusted.examples)))
            _expect(whole, feed, trusted)
            own, centre = readings(given, feed, reaction=trusted is not None)
            known = None if trusted is None else readings(given, trusted, centre, reaction=True)[0]
        with shown("predictions by the others", len(own.views()), progress) as advance:
            others = _by_others(own, advance)
        with shown("neighbours", len(own.features), progress) as advance:
            baselines = _baselines(own, id_index(feed.examples.ids), advance)
    detectors = _detectors(own, others, known)
    share = dict(zip(detectors, weights(np.stack(list(detectors.values()))), strict=True))
    doubt = np.asarray(sum(share[name] * values for name, values in detectors.items()))
    pooled = _pooled(others, share)
    count = _issues(pooled, own.labels)
    order = np.argsort(-doubt, kind="stable")
    issue = np.zeros(len(doubt), dtype=bool)
    issue[order[:count]] = True
    threshold = float(1 - doubt[order[count - 1]]) if count else float(1 - doubt.max() - 1e-9)
    table = pd.DataFrame(
        {
            "is_label_issue": issue, "label_score": 1 - doubt, "given_label": own.labels.numpy(),
            "predicted_label": pooled.argmax(1).numpy(), "loss": own.loss.numpy(), "self_influence": own.self_influence.numpy(),
            "leave_one_out": margin(others["responses"].predicted, own.labels).numpy(),
            **{f"{view}_margin": margin(others[view].predicted, own.labels).numpy() for view in own.features},
            **({CLEAN: detectors[CLEAN]} if CLEAN in detectors else {}),
        },
        index=id_index(feed.examples.ids),
    )  # fmt: skip
    rate = None if known is None else _false_positives(known, own, others, share, threshold)
    notes = [*feed.examples.notes, *_remarks(own, others)]
    cost = {
        "seconds": round(time.perf_counter() - began, 3),
        "examples": len(table),
        "ridge": {v: o.ridge for v, o in others.items()},
    }
    told = "how many labels are wrong: by confident learning" + (
        f"; the rate: on {len(known.labels):,} clean examples"
        if known is not None
        else "; no clean examples, so no rate"
    )
    return Mislabeled(
        "mislabeled", table, "is_label_issue", threshold, rate, told, baselines, UNITS, notes, cost,
        {"train": feed.examples}, {name: round(float(value), 4) for name, value in share.items()},
    )  # fmt: skip


def _expect(whole: Stages, feed: Feed, clean: Feed | None) -> None:
    """Say what the call will do, for its progress."""
    size = len(feed.examples)
    whole.say(training_rows=size, backward_passes=(DIRECTIONS + 1) * (size + (0 if clean is None else len(clean.examples))),
              memory_bytes=8 * size * WIDTH + 32 * min(size, WIDTH) ** 2)  # fmt: skip
    for part in (feed, clean):
        if part is not None:
            expect_readings(whole, part)
    others = multiplications(size, WIDTH) + len(NAMES) * multiplications(size, MOST_WIDTH)
    whole.expect("predictions by the others", others, ARITHMETIC)
    whole.expect("neighbours", len(NAMES) * MOST_WIDTH * size**2, ARITHMETIC)


def _by_others(own: Readings, advance: Advance) -> dict[str, Without]:
    """Return, by view, what the other examples say of each label."""
    found = {}
    for view, values in own.views().items():
        found[view] = leave_one_out(values, own.labels, own.classes)
        advance(1)
    return found


def _detectors(own: Readings, others: Mapping[str, Without], clean: Readings | None) -> dict[str, Array]:
    """Return each detector's ranks, high = the label looks wrong."""
    found = {view: ranks(margin(one.predicted, own.labels).numpy()) for view, one in others.items()}
    found[FIT] = ranks(ranks(own.loss.numpy()) + ranks(own.self_influence.numpy()))
    if clean is not None:
        found[CLEAN] = ranks(-_reaction(own.losses, clean.losses).numpy())
    return found


def _reaction(train: Tensor, clean: Tensor) -> Tensor:
    """Return how far each training example supports the clean group: linear scores whitened by K, ``(N,)``.

    λ is the mean ‖gᵢ‖²; solved among the probes.
    """
    rows, group = train.double(), clean.double().mean(0)
    inner = rows.T @ rows
    inner.diagonal().add_(float(rows.square().sum(1).mean()))
    whitened: Tensor = torch.linalg.solve(inner, group)
    return rows @ whitened


def _pooled(others: Mapping[str, Without], share: Mapping[str, float]) -> Tensor:
    """Return the others' prediction over all views, ``(N, C)``: clipped to probabilities, weighted as the views are."""
    total = sum(share[view] for view in others)
    parts = []
    for view, one in others.items():
        clipped = one.predicted.clamp_min(0)
        weight = share[view] / total if total > 0 else 1 / len(others)
        parts.append(weight * clipped / clipped.sum(1, keepdim=True).clamp_min(1e-12))
    return torch.stack(parts).sum(0)


def _issues(pooled: Tensor, labels: Tensor) -> int:
    """Return how many labels are wrong by the confident joint of the pooled predictions, calibrated.

    Of the rows of each given class that the others put anywhere with confidence, the share that they put elsewhere stands for
    the whole class. The plain count would leave out what nobody is confident of.
    """
    classes = pooled.shape[1]
    own = torch.nn.functional.one_hot(labels, classes).double()
    usual = (pooled * own).sum(0) / own.sum(0).clamp_min(1)
    usual = torch.where(own.sum(0) > 0, usual, torch.full_like(usual, torch.inf))
    confident = torch.where(pooled >= usual, pooled, torch.full_like(pooled, -torch.inf))
    best = confident.max(1)
    sure = best.values > -torch.inf
    there = own[sure].sum(0)
    elsewhere = own[sure & (best.indices != labels)].sum(0)
    return round(float((own.sum(0) * elsewhere / there.clamp_min(1)).sum()))


def _false_positives(
    clean: Readings, own: Readings, others: Mapping[str, Without], share: Mapping[str, float], threshold: float
) -> float:
    """Return how often a clean example would have been an issue: by the views alone, as it was not trained on."""
    doubt, total = np.zeros(len(clean.labels)), sum(share[view] for view in others)
    for view, one in others.items():
        reference = np.sort(margin(one.predicted, own.labels).numpy())
        found = margin(one.predict(clean.views()[view]), clean.labels).numpy()
        doubt += share[view] / max(total, 1e-12) * np.searchsorted(reference, found) / len(reference)
    return float(np.mean(1 - doubt <= threshold))


def _remarks(own: Readings, others: Mapping[str, Without]) -> list[str]:
    right = float((own.probabilities.argmax(1) == own.labels).double().mean())
    there = float((others["responses"].predicted.argmax(1) == own.labels).double().mean())
    if right - there > 0.1:
        return [f"the model fits {100 * right:.0f} % of the labels, and the other examples predict {100 * there:.0f} %: it has "
                "memorised some labels, so a low loss does not mean that a label is right"]  # fmt: skip
    return []


def _baselines(own: Readings, index: Any, advance: Advance) -> pd.DataFrame:
    """Return what is free: the loss, the model's own margin, what the nearest neighbours are labelled. High = wrong."""
    columns = {"loss": own.loss.numpy(), "model_margin": margin(own.probabilities, own.labels).numpy(),
               "self_influence": own.self_influence.numpy()}  # fmt: skip
    for view, values in own.features.items():
        near = neighbours_labels(values, own.labels, own.classes)
        columns[f"{view}_neighbours"] = margin(near, own.labels).numpy()
        advance(1)
    return pd.DataFrame(columns, index=index)


def best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows, the most doubtful label first."""
    return rows.sort_values("label_score", kind="stable")
