"""Train the user's model again on parts of the data, and keep what each training gave: whole files, resumable."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forwardinf.core.errors import DataError, FileError, RunMismatch, SettingError
from forwardinf.core.files import read_json, sweep, write_json, written
from forwardinf.core.fingerprint import code_digest, differences, digest
from forwardinf.core.progress import Setting, progress, spoken
from forwardinf.data import noise
from forwardinf.truth.agreement import Array

FORMAT = "forwardinf.retrainings/1"
Train = Callable[[Array, int], Any]  # (positions, seed) -> model
Ask = Callable[[Any], Mapping[str, Any]]  # model -> outputs by name, each (Q,)


def half_subsets(size: int, subsets: int, share: float, seed: int) -> Array:
    """Return random subsets as masks ``(subsets, size)`` bool, each with ``round(share · size)`` members.

    Args:
        size: Training examples.
        subsets: How many.
        share: Of the training examples in each (α of the literature).
        seed: Of the draw.
    """
    if not 0 < share < 1 or subsets < 1:
        raise SettingError("subsets", expected="at least one, with a share between 0 and 1", got=f"{subsets}, {share}")
    draw = np.random.default_rng(seed)
    masks = np.zeros((subsets, size), dtype=bool)
    for row in masks:
        row[draw.permutation(size)[: round(share * size)]] = True
    return masks


def retrain(
    train_fn: Train,
    members: Sequence[Any],
    ask: Ask,
    *,
    seeds: Sequence[Sequence[int]],
    folder: str | Path | None = None,
    title: str = "retraining",
    progress_bar: Setting = "auto",
) -> dict[str, Array]:
    """Train on each list of positions and return what ``ask`` says of each model: ``{name: (M, seeds, Q)}`` float64.

    The caller's random state is given back. A killed call with a ``folder`` resumes where it was: one file for each
    training, written whole. The time for all is said after the first.

    Args:
        train_fn: ``train_fn(positions, seed) -> model``; Python's, NumPy's and torch's generators are seeded before. A
            folder knows it by its code, or by its attribute ``version`` where it has one.
        members: M lists of training positions.
        ask: ``ask(model) -> {name: (Q,)}``.
        seeds: For each of the M, its seeds (equally many).
        folder: Where each training's outputs are kept.
        title: Of the progress bar.
        progress_bar: As in :func:`forwardinf.attribute`.

    Raises:
        RunMismatch: The folder holds other trainings.
        DataError: A model's outputs are not one finite number for each query.
    """
    rows = [np.asarray(list(row), dtype=np.int64) for row in members]
    if len(rows) != len(seeds) or not rows or len({len(some) for some in seeds}) != 1 or not len(seeds[0]):
        raise SettingError("retrain(seeds=)", expected="equally many seeds for each subset", got=f"{len(seeds)} lists")
    kept = None if folder is None else _claim(Path(folder), train_fn, rows, seeds)
    done: dict[tuple[int, int], dict[str, Array]] = {}
    todo = []
    for job in ((m, s) for s in range(len(seeds[0])) for m in range(len(rows))):
        if kept is not None and _file(kept, *job).exists():
            done[job] = _load(_file(kept, *job))
        else:
            todo.append(job)

    def work(m: int, s: int) -> None:
        done[m, s] = _train(train_fn, rows[m], int(seeds[m][s]), ask)
        if kept is not None:
            _save(_file(kept, m, s), done[m, s])

    if todo:
        began = time.monotonic()
        work(*todo[0])
        left = (time.monotonic() - began) * len(todo[1:])
        with progress(f"{title} {len(todo)} times, about {spoken(left)}", len(todo[1:]), progress_bar) as advance:
            for job in todo[1:]:
                work(*job)
                advance(1)
    shapes = {tuple((name, len(values)) for name, values in sorted(found.items())) for found in done.values()}
    if len(shapes) != 1:
        raise DataError("retraining", expected="the same outputs of every model", got=f"{len(shapes)} different kinds")
    return {name: np.stack([np.stack([done[m, s][name] for s in range(len(seeds[0]))]) for m in range(len(rows))])
            for name in done[0, 0]}  # fmt: skip


def _train(train_fn: Train, rows: Array, seed: int, ask: Ask) -> dict[str, Array]:
    with noise.own_state():
        noise.seed_all(seed)
        model = train_fn(rows, seed)
        if model is None:
            raise SettingError("train_fn", expected="a trained model", got="None", do="Return the model.")
        found = {name: np.asarray(values, dtype=np.float64) for name, values in ask(model).items()}
    for name, values in found.items():
        if values.ndim != 1 or not np.isfinite(values).all():
            raise DataError(f"{name} after retraining", expected="one finite number for each query",
                            got="NaN or inf" if values.ndim == 1 else f"shape {values.shape}",
                            do="Look at that training: it may have diverged.")  # fmt: skip
    return found


def _claim(folder: Path, train_fn: Train, rows: Sequence[Array], seeds: Sequence[Sequence[int]]) -> Path:
    """Make the folder these trainings', or find that it is theirs already."""
    made_from = {"members": digest([row.tolist() for row in rows]), "seeds": digest([list(map(int, s)) for s in seeds]),
                 "train_fn": code_digest(getattr(train_fn, "version", train_fn))}  # fmt: skip
    path = folder / "retrainings.json"
    if path.exists():
        differs = differences(read_json(path, FORMAT, what="retrainings")["made_from"], made_from)
        if differs:
            raise RunMismatch(str(folder), differs=differs, do="Choose another folder, or delete this one.")
        sweep(folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise FileError(str(folder), expected="an empty folder, or one of ours", got="a folder with other files",
                        do="Choose another.")  # fmt: skip
    else:
        write_json(path, {"format": FORMAT, "made_from": made_from, "trainings": len(rows), "seeds": len(seeds[0])})
    return folder


def _file(folder: Path, m: int, s: int) -> Path:
    return folder / f"t-{m:05d}-s-{s:03d}.npz"


def _save(path: Path, found: Mapping[str, Array]) -> None:
    with written(path) as part, part.open("wb") as file:
        np.savez(file, **dict(found))  # type: ignore[arg-type]


def _load(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:  # a damaged file is closed too
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(str(path), expected="the outputs of one training", got=f"a damaged file ({error})",
                        do="Delete this file: only that training is repeated.") from error  # fmt: skip
