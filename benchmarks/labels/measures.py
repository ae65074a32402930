"""How well a score finds what was planted: AUROC, average precision, and paired intervals by the bootstrap over examples."""

from typing import Any

import numpy as np

from forwardinf.use.demo_uses import auroc

DRAWS = 400


def average_precision(truth: Any, score: Any) -> float:
    """Return the mean precision at each planted example, ties at their worst order-free value (as scikit-learn does)."""
    is_it, values = np.asarray(truth, dtype=bool), np.asarray(score, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(is_it[order])
    last = np.append(values[order][1:] != values[order][:-1], True)  # only where a run of equal values ends
    recall, precision = hits[last] / is_it.sum(), hits[last] / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


MEASURES = {"AUROC": auroc, "AP": average_precision}


def measured(truth: Any, score: Any) -> dict[str, float]:
    """Return every measure of one score."""
    return {name: round(float(of(truth, score)), 4) for name, of in MEASURES.items()}


def beside(truth: Any, one: Any, other: Any, draws: int = DRAWS) -> dict[str, dict[str, float]]:
    """Return each measure of one score minus the other's, with the 95 % interval: the same examples drawn for both."""
    is_it, one, other = np.asarray(truth, dtype=bool), np.asarray(one), np.asarray(other)
    draw, rows = np.random.default_rng(0), np.arange(len(is_it))
    drawn: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(draws):
        some = draw.choice(rows, len(rows))
        if 0 < is_it[some].sum() < len(some):
            for name, of in MEASURES.items():
                drawn[name].append(of(is_it[some], one[some]) - of(is_it[some], other[some]))
    return {
        name: {"mean": round(of(is_it, one) - of(is_it, other), 4), **_ends(drawn[name])}
        for name, of in MEASURES.items()
    }


def _ends(values: list[float]) -> dict[str, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return {"low": round(float(low), 4), "high": round(float(high), 4)}
