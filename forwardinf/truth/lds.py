"""The linear datamodelling score: do the scores of a subset's members add up to what training on that subset did?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from forwardinf.core.errors import DataError, SettingError, choose
from forwardinf.score.scores import Scores
from forwardinf.truth.agreement import Array, Interval, mean_interval, pearson, spearman
from forwardinf.truth.bank import OUTPUTS_ARE, ceiling, checked_masks, checked_outputs, goodness

METRICS = {"spearman": spearman, "pearson": pearson}


@dataclass(frozen=True)
class Lds:
    """What :func:`lds` returns.

    Attributes:
        per_query: ``(Q,)`` correlations; NaN where a query's scores or outputs do not vary, or a score was not read.
        mean: Over queries.
        low: Lower end of the interval over queries.
        high: Upper end.
        ci: Its coverage.
        ceiling: ``(Q,)``: what training noise leaves to reach (NaN with one seed for each subset).
    """

    per_query: Array
    mean: float
    low: float
    high: float
    ci: float
    ceiling: Array

    def __repr__(self) -> str:
        top = "" if np.isnan(self.ceiling).all() else f", ceiling {np.nanmean(self.ceiling):.3f}"
        told = f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"Lds({told} over {int((~np.isnan(self.per_query)).sum())} queries{top})"

    @property
    def table(self) -> pd.DataFrame:
        """A row for each query: ``query, lds, ceiling``."""
        return pd.DataFrame({"query": np.arange(len(self.per_query)), "lds": self.per_query, "ceiling": self.ceiling})

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "ci": self.ci,
                "per_query": self.per_query.tolist(), "ceiling": self.ceiling.tolist()}  # fmt: skip


def lds(
    scores: Any,
    masks: Any,
    outputs: Any,
    *,
    outputs_are: str,
    ci: float = 0.95,
    metric: str = "spearman",
    seed: int = 0,
) -> Lds:
    """Return the linear datamodelling score (Park et al., TRAK, ICML 2023, §2; after Ilyas et al., Datamodels, 2022).

    For each query, the correlation over subsets between the sum of the scores of a subset's members and how well the
    query came out after training on that subset; then the mean over queries. 1 is perfect, 0 is chance; negative scores
    have the wrong sign. Nothing is made absolute.

    Cost: one ``(M, N) · (N, Q)`` product. No training: that is what made the bank.

    Args:
        scores: :class:`Scores` or an array ``(Q, N)``, positive = proponent: training on it lowers the query's loss.
        masks: ``(M, N)`` bool: who was trained on.
        outputs: ``(M, Q)`` or ``(M, seeds, Q)``: what came out; averaged over seeds.
        outputs_are: ``"loss"`` (larger = worse for the query) or ``"measure"`` (a margin, a log-probability: larger =
            better). There is no default: a guess would turn the sign.
        ci: Coverage of the bootstrap interval over queries.
        metric: ``"spearman"`` or ``"pearson"``.
        seed: Of the bootstrap.

    Raises:
        DataError: Shapes do not fit (where they fit transposed, the error says so), or outputs are not finite.

    Example:
        >>> import numpy as np
        >>> masks = np.random.default_rng(0).random((50, 8)) < 0.5
        >>> truth = np.random.default_rng(1).normal(size=(3, 8))
        >>> found = lds(truth, masks, -(masks @ truth.T), outputs_are="loss")
        >>> round(found.mean, 6)
        1.0
    """
    if outputs_are not in OUTPUTS_ARE:
        raise choose("lds(outputs_are=)", str(outputs_are), OUTPUTS_ARE)
    if metric not in METRICS:
        raise choose("lds(metric=)", str(metric), METRICS)
    masks = checked_masks(masks)
    good = goodness(checked_outputs(outputs, len(masks), "lds(outputs)"), outputs_are)
    if len(masks) < 3:
        raise DataError("lds(masks)", expected="at least 3 subsets", got=str(len(masks)))
    table = as_table(scores, good.shape[2], masks.shape[1], "lds(scores)")
    predicted = table @ masks.T.astype(np.float64)  # (Q, M): how good each subset is for each query, if scores add up
    per_query = METRICS[metric](predicted, good.mean(1).T)
    found: Interval = mean_interval(per_query, ci, seed)
    return Lds(per_query, found.mean, found.low, found.high, ci, ceiling(good))


def as_table(scores: Any, queries: int, size: int, where: str) -> Array:
    """Return scores as ``(Q, N)`` float64; refuse another shape, and scores without a sign."""
    if isinstance(scores, Scores):
        if not scores.signed:
            raise SettingError(
                where, expected="signed scores", got="preset('as_published'), whose scores are magnitudes"
            )
        scores = scores.values
    elif hasattr(scores, "detach"):
        scores = scores.detach().cpu()
    table = np.asarray(scores, dtype=np.float64)
    if table.shape != (queries, size):
        fix = "Transpose it: rows are queries." if table.shape == (size, queries) else ""
        raise DataError(where, expected=f"({queries} queries, {size} training examples)", got=str(table.shape), do=fix)
    return table
