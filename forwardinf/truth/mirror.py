"""Two ways to ask one question, side by side: take a training example away and look at the test, or the reverse.

``removal[q, i] = L(A(D − i), q) − L(A(D), q)`` and ``addition[q, i] = L(A(D), i) − L(A(D ∪ q), i)``: for both, positive =
proponent, as everywhere here (the paper's train→test and test→train influences are minus these). The Mirrored Influence
Hypothesis (Ko et al., CVPR 2024) says that over i the two are highly correlated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from forwardinf.core.errors import RunMismatch
from forwardinf.core.files import read_json, write_json
from forwardinf.truth.agreement import Array, pearson, spearman, top_overlap

FORMAT = "forwardinf.verify/1"
TOP = 50  # of the top-k overlap, or half the examples where there are fewer than a hundred


@dataclass(frozen=True, eq=False, repr=False)
class Mirror:
    """One experiment: both influences of M training examples (or groups) on Q tests.

    Attributes:
        data: Name of the data set.
        experiment: What was done, in a few words.
        removal: ``(Q, M)``: train → test, positive = proponent.
        addition: ``(Q, M)``: test → train, positive = proponent.
        tests: Names of the Q tests.
        rows: Names of the M training examples or groups.
        published: What the authors report for it: ``{"pearson": …, "spearman": …}``, or nothing.
        facts: How it was made: tolerances reached, times, seeds.
    """

    data: str
    experiment: str
    removal: Array
    addition: Array
    tests: list[Any]
    rows: list[Any]
    published: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        alike = f"Pearson {self.pearson.mean():.3f}, Spearman {self.spearman.mean():.3f}"
        return f"Mirror({self.data}, {self.experiment}: {len(self.tests)} × {len(self.rows)}, {alike})"

    @property
    def pearson(self) -> Array:
        """``(Q,)``: over training examples, for each test."""
        return pearson(self.removal, self.addition)

    @property
    def spearman(self) -> Array:
        """``(Q,)``: likewise. A few large influences make a high Pearson; this one hears the small ones too."""
        return spearman(self.removal, self.addition)

    @property
    def k(self) -> int:
        """How many the overlap compares."""
        return max(1, min(TOP, len(self.rows) // 2))

    @property
    def overlap(self) -> Array:
        """``(Q,)``: the share of the ``k`` strongest proponents that both name."""
        return top_overlap(self.removal, self.addition, self.k)

    def only(self, rows: Sequence[Any], experiment: str) -> Mirror:
        """Return the same experiment on some of its rows."""
        place = {row: at for at, row in enumerate(self.rows)}
        at = [place[row] for row in rows]
        return Mirror(self.data, experiment, self.removal[:, at], self.addition[:, at], self.tests, list(rows),
                      self.published, self.facts)  # fmt: skip


class Learner(Protocol):
    """A deterministic training algorithm A with its training set D and its tests."""

    def base(self) -> tuple[Array, Array]:
        """Return the losses under A(D): ``(T,)`` of the tests, ``(n,)`` of the training examples."""
        ...

    def without(self, rows: Sequence[int]) -> tuple[Array, Array]:
        """Return the tests' losses under A(D − i), ``(T, rows)``, and the gradient left in each fit, ``(rows,)``."""
        ...

    def with_tests(self) -> tuple[Array, Array]:
        """Return the training examples' losses under A(D ∪ t), ``(T, n)``, and the gradient left, ``(T,)``."""
        ...


def mirror_losses(
    make: Callable[[], Learner], rows: Sequence[int], keep: Keep, name: str, chunk: int, advance: Callable[[int], None]
) -> tuple[Array, Array, dict[str, Any]]:
    """Return (removal, addition, how it went), ``(T, rows)`` each. Every chunk is kept as soon as it is done.

    Args:
        make: Makes the learner; not called where everything is kept already.
        rows: The training examples that are left out, one at a time.
        keep: Where chunks are kept.
        name: Under which.
        chunk: How many at a time.
        advance: Told the number of fits done.
    """
    made: list[Learner] = []

    def learner() -> Learner:
        if not made:
            made.append(make())
        return made[0]

    def timed(work: Callable[[], tuple[Array, Array]]) -> Array:
        """Return losses, gradients and seconds a fit as one table, a column for each fit."""
        learner()  # the full fit is not part of their time
        began = time.perf_counter()
        losses, gradient = work()
        return np.vstack([losses, gradient, np.full_like(gradient, (time.perf_counter() - began) / len(gradient))])

    found = []
    for at in range(0, len(rows), chunk):
        piece = list(rows[at : at + chunk])
        found.append(keep(f"{name}/without-{at:05d}", lambda piece=piece: timed(lambda: learner().without(piece))))  # type: ignore[misc]
        advance(len(piece))
    after = keep(f"{name}/with-tests", lambda: timed(lambda: _turned(learner().with_tests())))
    advance(after.shape[1])
    tests, train = (
        keep(f"{name}/base-tests", lambda: learner().base()[0]),
        keep(f"{name}/base-train", lambda: learner().base()[1]),
    )
    without = np.concatenate(found, 1)
    facts = {"fits": without.shape[1] + after.shape[1], "seconds_a_fit": float(np.mean(without[-1])),
             "largest_gradient": float(max(without[-2].max(), after[-2].max()))}  # fmt: skip
    return without[:-2] - tests[:, None], (train[None] - after[:-2].T)[:, list(rows)], facts


def _turned(found: tuple[Array, Array]) -> tuple[Array, Array]:
    return found[0].T, found[1]


class Keep:
    """Remembers arrays by name in a folder, so that a run that was interrupted goes on where it was.

    Args:
        folder: Where; None: nowhere.
        settings: What the arrays depend on. A folder made under other settings is refused.
        overwrite: Start the folder over.

    Raises:
        RunMismatch: The folder belongs to another run.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        """Open the folder, or make it."""
        self.folder = folder
        if folder is None:
            return
        path = folder / "settings.json"
        if path.is_file() and not overwrite:
            kept = read_json(path, FORMAT, what="a verification's folder")["settings"]
            if differs := {name: (kept.get(name), settings.get(name)) for name in sorted({*kept, *settings})
                           if kept.get(name) != settings.get(name)}:  # fmt: skip
                raise RunMismatch(str(folder), differs=differs, do="Choose another folder, or say overwrite=True.")
            return
        if overwrite:
            for part in folder.glob("fits/**/*.json"):
                part.unlink()
        write_json(path, {"format": FORMAT, "settings": dict(settings)})

    def __call__(self, name: str, make: Callable[[], Array]) -> Array:
        """Return what is kept under this name, or make it and keep it."""
        path = None if self.folder is None else self.folder / "fits" / f"{name}.json"
        if path is not None and path.is_file():
            return np.array(read_json(path, FORMAT, what="fits of a verification")["values"], dtype=np.float64)
        made = np.asarray(make(), dtype=np.float64)
        if path is not None:
            write_json(path, {"format": FORMAT, "values": made.tolist()})
        return made
