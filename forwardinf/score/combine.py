"""Scores of several checkpoints or seeds made one, with how far they agree as its uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from forwardinf.core.errors import DataError, SettingError, choose
from forwardinf.score.scores import Scores, write_scores
from forwardinf.score.store import Folder

Array = np.ndarray[Any, np.dtype[Any]]

HOWS = ("mean", "standardized")
SAME = ("ids", "query_ids", "kind", "unit", "signed", "perturbation")


def combine(parts: Sequence[Scores], how: str = "mean") -> Scores:
    """Return the scores of several checkpoints or seeds as one.

    ``"mean"``: values, rises, cross, baselines and lengths are means over the checkpoints, in the task's unit; a share is
    the mean score over the mean rise. ``"standardized"``: each checkpoint's scores of a query are first made z-scores
    over the training examples, so that none outweighs the others by the size of its gradients; the rise and the
    cross scores are put on the same scale, so that an exact copy of the query still has share 1. Unit None.

    ``uncertainty`` is the standard error of the mean over checkpoints (sample standard deviation / √n), and never below the
    noise floor: with few checkpoints scores may agree by chance. With one checkpoint it is the noise floor, which says
    how exactly that model was read and nothing about another training run. A query that is unusable under some
    checkpoints is combined over the others.

    Args:
        parts: One for each checkpoint: the same queries, training examples and perturbation; all scores kept.
        how: ``"mean"`` or ``"standardized"``.

    Raises:
        SettingError: An unknown ``how``, nothing to combine, or only the best and worst scores were kept.
        DataError: The parts are not of the same queries, examples or settings.
    """
    if how not in HOWS:
        raise choose("combine", str(how), HOWS)
    if not parts:
        raise SettingError("combine", expected="scores of at least one checkpoint", got="none")
    first = parts[0]
    for number, part in enumerate(parts):
        for name in SAME:
            if getattr(part, name) != getattr(first, name):
                raise DataError(
                    f"scores of checkpoint {number}", expected=f"the same {name} as checkpoint 0", got="others"
                )
    values = np.stack([part.values.astype(np.float64) for part in parts])  # (C, Q, N)
    rise, floor = _stacked(parts, "rise"), _stacked(parts, "noise_floor")
    cross = _stacked(parts, "cross")
    notes = _notes(parts)
    if how == "standardized":
        values, rise, cross, floor = _standardized(values, rise, cross, floor, notes)
    count = (~np.isnan(values)).sum(axis=0)
    noise = _mean(floor)  # not smaller for more checkpoints: rounding need not be independent between them
    mean = _mean(values)
    spread = np.sqrt(_mean((values - mean) ** 2) / np.maximum(count - 1, 1))
    uncertainty = np.where(count > 0, np.fmax(np.where(count > 1, spread, 0.0), noise[:, None]), np.nan)
    usable = np.asarray(~np.isnan(values).all(axis=2))  # (C, Q)
    notes.append(_told(how, usable.sum(axis=0), len(parts)))
    return replace(
        first, dense=mean.astype(np.float32), best=[], kept="all", uncertainty=uncertainty.astype(np.float32),
        rise=_mean(rise), noise_floor=noise,
        cross=_mean(cross).astype(np.float32).astype(np.float64), baseline=_mean(_stacked(parts, "baseline")),
        query_baseline=_mean(_stacked(parts, "query_baseline")), length=_mean(_stacked(parts, "length")),
        step=_mean(_stacked(parts, "step")), status=[_status(parts, usable, q) for q in range(len(first.query_ids))],
        unit=None if how == "standardized" else first.unit, cost=_cost(parts), notes=notes,
        made_from={**first.made_from, "model": [part.made_from.get("model") for part in parts], "combine": how},
    )  # fmt: skip


def into_folder(
    path: Path | None,
    made_from: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    overwrite: bool,
    config: str | None = None,
) -> Callable[[Scores], Scores]:
    """Claim a folder for combined scores, before the first checkpoint is read; return what puts them there.

    The checkpoints' own runs are its sub-folders ``checkpoint-000`` and so on; ``overwrite`` clears them too.

    Args:
        path: The folder; None: nothing is kept.
        made_from: The checkpoints' digests: what tells this run from another (the sub-folders tell the rest).
        about: What the combined numbers mean, as :meth:`Scores.about` says it.
        overwrite: Start over.
        config: What replays a command-line run.

    Raises:
        RunMismatch: It belongs to other checkpoints.
        FileError: It holds something that is not a run.
    """
    if path is None:
        return lambda scores: scores
    folder = Folder(path)
    if overwrite:
        for own in sorted(path.glob("checkpoint-[0-9]*")):  # first: what is left without run.json would not be ours
            Folder(own).clear()
            if own.is_dir() and not any(own.iterdir()):
                own.rmdir()
    folder.claim(made_from, about, overwrite=overwrite, config=config)

    def keep(scores: Scores) -> Scores:
        if not folder.has("done.json"):
            done = {"cost": dict(scores.cost), "notes": list(scores.notes), "made_from": dict(scores.made_from)}
            write_scores(folder, scores, done)
        folder.leave()
        return scores

    return keep


def _stacked(parts: Sequence[Scores], name: str) -> Array:
    return np.stack([np.asarray(getattr(part, name), dtype=np.float64) for part in parts])


def _mean(stack: Array) -> Array:
    """Return the mean over checkpoints of what is there; NaN where nothing is."""
    there = ~np.isnan(stack)
    with np.errstate(invalid="ignore", divide="ignore"):
        return cast("Array", np.where(there, stack, 0.0).sum(axis=0) / there.sum(axis=0))


def _standardized(
    values: Array, rise: Array, cross: Array, floor: Array, notes: list[str]
) -> tuple[Array, Array, Array, Array]:
    there = ~np.isnan(values)
    count = np.maximum(there.sum(axis=2), 1)
    centre = np.where(there, values, 0.0).sum(axis=2) / count
    scale = np.sqrt(np.where(there, values - centre[:, :, None], 0.0).__pow__(2).sum(axis=2) / count)
    flat = there.any(axis=2) & ~(scale > 0)
    if flat.any():
        notes.append(f"{int(flat.sum())} times a checkpoint scored all training examples alike: left out of the mean")
    scale = np.where(scale > 0, scale, np.nan)
    return ((values - centre[:, :, None]) / scale[:, :, None], (rise - centre) / scale,
            (cross - centre[:, :, None]) / scale[:, :, None], floor / scale)  # fmt: skip


def _status(parts: Sequence[Scores], usable: Array, query: int) -> str:
    """Return the status of the checkpoints that count: the worst told first, ``ok`` only where all say so."""
    told = [part.status[query] for number, part in enumerate(parts) if usable[number, query]]
    told = told or [part.status[query] for part in parts]
    return next((status for status in told if status != "ok"), "ok")


def _cost(parts: Sequence[Scores]) -> dict[str, Any]:
    """Return sums over checkpoints; of the peak, the largest."""
    names = [name for name in parts[0].cost if all(isinstance(part.cost.get(name), int | float) for part in parts)]
    return {name: (max if name == "peak_bytes" else sum)(part.cost[name] for part in parts) for name in names}


def _notes(parts: Sequence[Scores]) -> list[str]:
    """Return every note once, with the checkpoints it holds for unless it holds for all."""
    found: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        for note in dict.fromkeys(part.notes):
            found.setdefault(note, []).append(number)
    return [
        note if len(where) == len(parts) else f"checkpoint {', '.join(map(str, where))}: {note}"
        for note, where in found.items()
    ]


def _told(how: str, usable: Array, count: int) -> str:
    what = "mean" if how == "mean" else "mean z-score"
    if count == 1:
        return (
            f"{what} of one checkpoint: the uncertainty is the noise floor and says nothing about other training runs"
        )
    some = int(((usable > 0) & (usable < count)).sum())
    rest = f"; {some} queries are usable under some of them only" if some else ""
    return f"{what} of {count} checkpoints; uncertainty: its standard error over them{rest}"
