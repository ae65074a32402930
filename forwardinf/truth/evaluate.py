"""Are the scores true? Held against exact retraining, beside controls that must fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from forwardinf.core.errors import DataError, SettingError
from forwardinf.core.paths import as_path
from forwardinf.core.progress import Setting
from forwardinf.data.examples import Collate
from forwardinf.score.scores import Scores
from forwardinf.truth.agreement import Array, mean_interval, pearson, spearman, top_overlap
from forwardinf.truth.bank import Bank, load_bank
from forwardinf.truth.controls import UNTRAINED, free_controls, redrawn
from forwardinf.truth.evaluation import Evaluation, Rows, curve_of
from forwardinf.truth.lds import as_table, lds
from forwardinf.truth.retrain import Train
from forwardinf.truth.retrainings import Asking, Removal, Trainer, leave_one_out, make_bank, removals


def evaluate(
    scores: Any,
    queries: Any = None,
    *,
    task: Any = None,
    bank: Bank | str | Path | None = None,
    train_fn: Train | None = None,
    subsets: int = 0,
    share: float = 0.5,
    seeds: int = 1,
    leave_out: int | Sequence[int] = 0,
    remove: Sequence[int] = (),
    remove_queries: int = 20,
    model: nn.Module | None = None,
    attribute_fn: Callable[[nn.Module], Any] | None = None,
    k: int = 10,
    ci: float = 0.95,
    collate_fn: Collate | None = None,
    batch_size: int = 256,
    output_dir: str | Path | None = None,
    progress: Setting = "auto",
    seed: int = 0,
) -> Evaluation:
    """Hold scores against what retraining really does, beside controls that must fail.

    Three truths, each as far as it is asked for: **lds** (linear datamodelling score on random subsets), **loo** (exact
    leave-one-out) and the curve of **removals** (the query's own fall when its k best-scored examples are removed).
    Controls: the scores shuffled over training examples; another query's scores; and, with ``attribute_fn``, scores of
    the model with its weights drawn anew (Adebayo et al., Sanity Checks, 2018).

    Cost: ``subsets · seeds`` trainings for lds, ``(leave_out + 1) · seeds`` for loo, and for removals
    ``(methods · remove_queries + 1) · len(remove) · seeds``. The time is said after the first training of each; a call
    with ``output_dir`` resumes, losing at most one training.

    Args:
        scores: :class:`Scores`, an array ``(Q, N)``, or ``{name: either}``; positive = proponent.
        queries: The queries that were scored; needed where anything is trained.
        task: As in :func:`attribute`. What a query measures (default: −loss) is what has to come out.
        bank: A bank, or its folder, instead of ``subsets``.
        train_fn: ``train_fn(positions, seed) -> model``. The same positions and seed should give the same model.
        subsets: How many random subsets to train on; 100 is usual.
        share: Of the training examples in each subset.
        seeds: Trainings for each subset, left-out example or removal; two or more give a ceiling.
        leave_out: How many training examples (drawn by ``seed``) to leave out one by one, or which positions.
        remove: How many best-scored examples to remove, like ``(10, 50)``.
        remove_queries: For how many of the queries (the first ones).
        model: The model that was scored; for ``attribute_fn``, and for tasks that ask about its own prediction.
        attribute_fn: ``attribute_fn(model) -> scores``: makes the same scores of any model.
        k: For the overlap of the k best with the k best of leave-one-out.
        ci: Coverage of the intervals over queries.
        collate_fn: Of the queries, as in a DataLoader.
        batch_size: Queries at a time.
        output_dir: Where trainings are kept.
        progress: Show progress on stderr.
        seed: Of subsets, left-out examples, training seeds and controls.

    Raises:
        SettingError: Nothing to hold the scores against, or something needed for it is missing.
        DataError: Shapes do not fit.
        RunMismatch: ``output_dir`` holds the trainings of other settings.

    Example:
        >>> import numpy as np
        >>> masks = np.random.default_rng(0).random((50, 8)) < 0.5
        >>> truth = np.random.default_rng(1).normal(size=(6, 8))
        >>> found = evaluate({"planted": truth}, bank=Bank(masks, masks @ truth.T, "measure"))
        >>> found.table.set_index(["scores", "metric"]).loc[("planted", "spearman"), "mean"].round(6).item()
        1.0
    """
    methods = _methods(scores)
    count, size = next(iter(methods.values())).shape
    left_out = _left_out(leave_out, size, seed)
    ks = _removals(remove, size)
    yardstick = load_bank(bank) if isinstance(bank, str | Path) else bank
    if yardstick is not None and subsets:
        raise SettingError("evaluate()", expected="bank= or subsets=", got="both", do="Keep one.")
    training = bool(subsets or left_out or ks)
    if not training and yardstick is None:
        raise SettingError("evaluate()", expected="something to hold the scores against", got="nothing",
                           do="Give bank=, or train_fn= with subsets=, leave_out= or remove=.")  # fmt: skip
    if training and (train_fn is None or queries is None or task is None):
        raise SettingError("evaluate()", expected="train_fn=, queries and task= to train again", got="not all of them")

    notes: list[str] = []
    curve: list[tuple[str, Removal]] = []
    realised = None
    if training:
        assert train_fn is not None
        ask = Asking(queries, task, model, collate_fn=collate_fn, batch_size=batch_size, seed=seed)
        if len(ask.rows) != count:
            raise DataError(
                "evaluate(queries)", expected=f"the {count} queries that were scored", got=str(len(ask.rows))
            )
        folder = None if output_dir is None else as_path("output_dir", output_dir) / "trainings"
        trainer = Trainer(train_fn, size, ask, seeds, seed, folder, progress)
        if subsets:
            yardstick = make_bank(trainer, subsets=subsets, share=share)
        if left_out or ks:
            full = {name: found[0] for name, found in trainer.without("full", [[]]).items()}
            if left_out:
                realised = leave_one_out(trainer, full["measure"], left_out)
            asked = range(min(remove_queries, count))
            for name, table in methods.items() if ks else ():
                curve += [(name, found) for found in removals(trainer, full, table, name, ks, asked)]

    rows = Rows(ci, seed)
    controls = free_controls(methods, seed)
    if attribute_fn is not None:
        controls[UNTRAINED] = _untrained(methods, model, attribute_fn, seed, notes)
    for name, table in {**methods, **controls}.items():
        if yardstick is not None:
            for metric in ("spearman", "pearson"):
                found = lds(table, yardstick.masks, yardstick.outputs, outputs_are=yardstick.outputs_are, metric=metric)
                top = float(np.nanmean(found.ceiling)) if not np.isnan(found.ceiling).all() else float("nan")
                rows.add(name, "lds", metric, found.per_query, top if metric == "spearman" else float("nan"))
        if realised is not None:
            told = table[:, left_out]
            rows.add(name, "loo", "spearman", spearman(told, realised))
            rows.add(name, "loo", "pearson", pearson(told, realised))
            rows.add(name, "loo", f"top {min(k, len(left_out))}", top_overlap(told, realised, min(k, len(left_out))))
    return Evaluation(table=rows.table, curve=curve_of(curve, ci, seed), per_query=rows.per_query, bank=yardstick,
                      leave_one_out=realised, left_out=left_out, notes=notes)  # fmt: skip


def _methods(scores: Any) -> dict[str, Array]:
    given = dict(scores) if isinstance(scores, Mapping) else {"scores": scores}
    if not given:
        raise SettingError("evaluate(scores)", expected="scores", got="none")
    tables: dict[str, Array] = {}
    for name, table in given.items():
        plain = (
            table.values if isinstance(table, Scores) else table.detach().cpu() if hasattr(table, "detach") else table
        )
        shape = np.shape(plain) if not tables else next(iter(tables.values())).shape
        if len(shape) != 2 or 0 in shape:
            raise DataError(f"scores {name!r}", expected="(queries, training examples)", got=f"shape {shape}")
        tables[str(name)] = as_table(table, int(shape[0]), int(shape[1]), f"scores {name!r}")
    return tables


def _untrained(
    methods: Mapping[str, Array],
    model: nn.Module | None,
    attribute_fn: Callable[[nn.Module], Any],
    seed: int,
    notes: list[str],
) -> Array:
    """Return the scores of the model with its weights drawn anew; note how like them the real ones are."""
    if model is None:
        raise SettingError("evaluate(attribute_fn=)", expected="model= too", got="none")
    queries, size = next(iter(methods.values())).shape
    untrained = as_table(attribute_fn(redrawn(model, seed)), queries, size, "attribute_fn(model)")
    for name, table in methods.items():
        alike = mean_interval(spearman(table, untrained), seed=seed)
        notes.append(f"{name}: Spearman {alike.mean:.2f} [{alike.low:.2f}, {alike.high:.2f}] with the scores of the "
                     "untrained model; near 0 means that the scores depend on what was learnt")  # fmt: skip
    return untrained


def _left_out(leave_out: int | Sequence[int], size: int, seed: int) -> list[int]:
    if isinstance(leave_out, bool) or (isinstance(leave_out, int) and not 0 <= leave_out <= size):
        raise SettingError(
            "evaluate(leave_out=)", expected=f"a number from 0 to {size}, or positions", got=repr(leave_out)
        )
    if isinstance(leave_out, int):
        return sorted(int(place) for place in np.random.default_rng(seed).choice(size, leave_out, replace=False))
    places = [int(place) for place in leave_out]
    if len(set(places)) < len(places) or any(not 0 <= place < size for place in places):
        raise SettingError("evaluate(leave_out=)", expected=f"different positions below {size}", got=str(places[:5]))
    if len(places) == 1:
        raise SettingError("evaluate(leave_out=)", expected="two positions or more: they are ranked", got="one")
    return places


def _removals(remove: Sequence[int], size: int) -> list[int]:
    ks = [int(k) for k in remove]
    if any(not 0 < k < size for k in ks) or len(set(ks)) < len(ks):
        raise SettingError(
            "evaluate(remove=)", expected=f"different numbers from 1 to {size - 1}", got=str(list(remove))
        )
    return ks
