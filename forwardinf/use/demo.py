"""The demonstration: a small digit classifier with planted mistakes, and whether attribution finds them.

Real data (scikit-learn's digits), really trained here, no network. Some training labels are flipped, and some test images
are copied into the training set; both are known, so hits and misses can be counted beside free baselines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forwardinf.core.progress import Setting, progress
from forwardinf.core.settings import Perturbation
from forwardinf.method import attribute
from forwardinf.score.scores import Scores
from forwardinf.tasks.task import Classification
from forwardinf.use.demo_planted import Planted, plant
from forwardinf.use.demo_uses import planted_uses
from forwardinf.use.tables import Found

EPOCHS, BATCH = 15, 32
COPIES_ASKED, WRONG_ASKED, RIGHT_ASKED = 6, 4, 4
# Plain: the coarse question, which planted group stands behind a mistake, is the gradient's own. Curvature ranks single examples
# closer to what retraining would do, and for that very reason not all wrong labels above all other rows.
PERTURBATION = Perturbation(rise=0.5, two_sided=True)


@dataclass(frozen=True)
class Demo:
    """What the demonstration found.

    Attributes:
        planted: The data.
        model: Trained here.
        scores: Of the asked test images, by predicted class.
        queries: A row for each: what it is, its strongest proponent and opponent.
        found: How often planted copies and flips are found, beside free baselines.
        accuracy: On the test images that were not copied.
        uses: What :func:`leaks`, :func:`mislabeled` and :func:`memorized` found.
        hits: A row for each use: what was planted, found, missed.
    """

    planted: Planted
    model: nn.Module
    scores: Scores
    queries: pd.DataFrame
    found: pd.DataFrame
    accuracy: float
    uses: dict[str, Found]
    hits: pd.DataFrame


def demonstrate(seed: int = 0, output_dir: str | Path | None = None, progress_bar: Setting = "auto") -> Demo:
    """Train, attribute, run the three uses, and count hits. About a minute on two cores.

    Args:
        seed: Of the split, the planted mistakes and the training.
        output_dir: Run folder, if any.
        progress_bar: As in :func:`forwardinf.attribute`.
    """
    planted = plant(seed)
    model = train_model(planted, seed, progress_bar)
    images, labels = planted.test
    with torch.no_grad():
        guesses = model(images).argmax(1)
    asked = _asked(planted, guesses)
    scores = attribute(
        model, planted.train, (images[asked], labels[asked]), task=Classification(query="predicted"),
        perturbation=PERTURBATION, query_ids=[f"test {row}" for row in asked], output_dir=output_dir, overwrite=True,
        on_bad_query="skip", progress=progress_bar, seed=seed,
    )  # fmt: skip
    fresh = torch.tensor([row for row in range(len(images)) if row not in planted.copies])
    accuracy = float((guesses[fresh] == labels[fresh]).double().mean())
    return Demo(
        planted,
        model,
        scores,
        _queries(planted, asked, guesses, scores),
        _found(planted, asked, guesses, scores),
        accuracy,
        *planted_uses(planted, model, seed, progress_bar),
    )


def train_model(planted: Planted, seed: int, progress_bar: Setting = False) -> nn.Module:
    """Train a small CNN on the planted data until it has begun to fit the wrong labels too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        images, labels = planted.train
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-4)
        with progress("training", EPOCHS, progress_bar) as advance:
            for _ in range(EPOCHS):
                for rows in torch.randperm(len(labels)).split(BATCH):  # type: ignore[no-untyped-call]
                    optimiser.zero_grad()
                    F.cross_entropy(model(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                advance(1)
    return model.eval()


def _asked(planted: Planted, guesses: Tensor) -> list[int]:
    """Return test rows: some copies, some that the model gets wrong, some that it gets right."""
    right = guesses == planted.test[1]
    copies = [row for row in planted.copies if right[row]][:COPIES_ASKED]
    others = [row for row in range(len(guesses)) if row not in planted.copies]
    wrong = [row for row in others if not right[row]][:WRONG_ASKED]
    return copies + wrong + [row for row in others if right[row]][:RIGHT_ASKED]


def _queries(planted: Planted, asked: list[int], guesses: Tensor, scores: Scores) -> pd.DataFrame:
    rows = []
    best, worst = scores.top(1).set_index("query"), scores.bottom(1).set_index("query")
    for place, row in enumerate(asked):
        name = scores.query_ids[place]
        kind = "copied" if row in planted.copies else "wrong" if guesses[row] != planted.test[1][row] else "right"
        for_it, against = _first(best, name), _first(worst, name)
        rows.append({
            "query": name, "kind": kind, "label": int(planted.test[1][row]), "predicted": int(guesses[row]),
            "rise": scores.rise[place], "proponent": _told(planted, for_it[0]), "proponent share": for_it[1],
            "opponent": _told(planted, against[0]), "opponent share": against[1],
        })  # fmt: skip
    return pd.DataFrame(rows)


def _first(table: pd.DataFrame, name: Any) -> tuple[int, float]:
    return (
        (int(table.loc[name, "train"]), float(table.loc[name, "share"])) if name in table.index else (-1, float("nan"))
    )


def _told(planted: Planted, row: int) -> str:
    return "none" if row < 0 else f"{row}: {describe(planted, row)}"


def describe(planted: Planted, row: int) -> str:
    """Return what a training row is, in a few words."""
    given, truth = int(planted.train[1][row]), int(planted.truth[row])
    if given != truth:
        return f"{truth} labelled {given}"
    copied = row in planted.copies.values()
    return f"{given}, in test and training set" if copied else f"{given}"


def _found(planted: Planted, asked: list[int], guesses: Tensor, scores: Scores) -> pd.DataFrame:
    """Count: the query's own copy first in the list; and wrong labels of the predicted class high in the list."""
    images = planted.train[0].flatten(1)
    near = -torch.cdist(planted.test[0][asked].flatten(1), images).numpy()
    draw = np.random.default_rng(0).random(near.shape)
    ways: dict[str, np.ndarray[Any, Any]] = {
        "forwardinf: share nearest to 1": -np.abs(np.nan_to_num(scores.share, nan=np.inf) - 1),
        "forwardinf: highest score": scores.values,
        "pixel neighbour (free)": near,
        "random (free)": draw,
    }
    copied = [(place, planted.copies[row]) for place, row in enumerate(asked) if row in planted.copies]
    wrong = [
        place for place, row in enumerate(asked) if row not in planted.copies and guesses[row] != planted.test[1][row]
    ]
    labels, truth = planted.train[1], planted.truth

    def hit(table: np.ndarray[Any, Any]) -> float:
        return float(np.mean([int(table[place].argmax()) == row for place, row in copied])) if copied else float("nan")

    def culprits(table: np.ndarray[Any, Any]) -> float:
        """Average, over wrong predictions, the chance that a mislabelled row of the predicted class outranks another row."""
        chances = []
        for place in wrong:
            bad = ((labels == guesses[asked[place]]) & (labels != truth)).numpy()
            if bad.any():
                order = table[place].argsort().argsort()
                chances.append((order[bad].mean() - (bad.sum() - 1) / 2) / (~bad).sum())
        return float(np.mean(chances)) if chances else float("nan")

    rows: list[dict[str, Any]] = []
    measures: tuple[tuple[str, Callable[[np.ndarray[Any, Any]], float]], ...] = (
        (f"own copy ranked first ({len(copied)} copied queries)", hit),
        (f"AUROC of wrong labels behind wrong predictions ({len(wrong)} queries)", culprits),
    )
    for name, table in ways.items():
        rows.append({"ranking": name} | {title: measure(table) for title, measure in measures})
    return pd.DataFrame(rows)
