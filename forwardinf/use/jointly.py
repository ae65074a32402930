"""Which training examples count *together*: look-alikes stand in for one another, so that each of them alone counts for little.

A whitened score sᵢ = ĝᵢᵀ(GᵀG + λN)⁻¹g_q is what example i adds while all others stay. Leave i out for good, and those that say
the same take its place: with H = G(GᵀG + λN)⁻¹Gᵀ, the examples' answers to one another, the others' scores become
sⱼ + Hⱼᵢ sᵢ/(1 − Hᵢᵢ), and what was lost is sᵢ/(1 − Hᵢᵢ) (the downdate of a ridge regression, one row at a time). So a set is
named one by one, each next to those that are out already: greedy, and exact in the linear model at every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.errors import SettingError
from forwardinf.use.sketch import Compared

Array = np.ndarray[Any, np.dtype[Any]]
POOL = 512  # the best by themselves, among which a set is sought: H of these is formed for each query
Turn = tuple[Array, Array]  # places in the order of leaving, and what each took with it


def jointly(
    found: Compared, count: int, candidates: Sequence[Array] | None = None,
    places: Array | None = None, pool: int = POOL,
) -> list[Turn]:  # fmt: skip
    """Return, of each query, the places of the examples in the order of leaving, and what each took with it.

    Args:
        found: What :func:`~forwardinf.use.sketch.compared` made of N training gradients, whitened by them.
        count: How many are named, at most.
        candidates: For each query the places that may be named; default all.
        places: ``(N,)``, rising: where the rows stand; default 0, 1, 2, …
        pool: The set is sought among so many of the best by themselves, four times ``count`` at least.

    Cost: for each query a solve for the pool's gradients and pool · count² multiplications.

    Example:
        >>> from forwardinf.use.sketch import compared
        >>> train = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.5]])
        >>> jointly(compared(train, train[:1], "whitened"), 2)[0][0].tolist()
        [0, 1]
    """
    assert found.whitening is not None, "dot products and cosines answer for one example each"
    everywhere = np.arange(found.scores.shape[1])
    where = everywhere if places is None else places
    turns = []
    for q, scores in enumerate(found.scores):
        there = torch.from_numpy(everywhere if candidates is None else np.searchsorted(where, candidates[q]))
        best = there[torch.argsort(scores[there], descending=True, stable=True)[: max(pool, 4 * count)]]
        order, gains = _leaving(scores[best], found.whitening.answers(best), count)
        turns.append((where[best[order].numpy()], gains.numpy()))
    return turns


def alone(where: str, how: str | None, others: Mapping[str, Any]) -> None:
    """Refuse what cannot be named jointly."""
    if how in ("dot", "cosine"):
        raise SettingError(where, expected="how='whitened' or 'unit-whitened'", got=repr(how),
                           do="Without whitening examples do not answer one another.")  # fmt: skip
    for name, value in others.items():
        if value is not None:
            raise SettingError(where, expected=f"no {name}", got=f"{name} too", do="Keep one.")


def _leaving(scores: Tensor, answers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (order of leaving, gains) of examples with these scores; ``answers``: their part of H.

    After each turn H is H + c cᵀ/(1 − Hᵢᵢ) with c its column of who left: only the diagonal and the columns are kept.
    """
    scores, diagonal = scores.clone(), answers.diagonal().clone()
    left = torch.ones(len(scores), dtype=torch.bool)
    columns = torch.zeros(len(scores), min(count, len(scores)), dtype=scores.dtype)  # each over √(1 − Hᵢᵢ)
    order, gains = [], []
    for turn in range(columns.shape[1]):
        gain = scores / (1 - diagonal)
        first = int(gain.masked_fill(~left, -torch.inf).argmax())
        order.append(first)
        gains.append(gain[first].clone())
        left[first] = False
        column = answers[:, first] + columns[:, :turn] @ columns[first, :turn]
        scores += column * gain[first]
        columns[:, turn] = column / (1 - diagonal[first]).sqrt()
        diagonal += columns[:, turn].square()
    return torch.tensor(order), torch.stack(gains)
