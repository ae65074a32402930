"""How strongly each training example acts on its own loss: a table that ranks the unusual and the memorised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from forwardinf.core.errors import SettingError
from forwardinf.score.store import id_index

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False, repr=False)
class SelfInfluence:
    """What :func:`forwardinf.self_influence` returns.

    Attributes:
        values: ``(N,)`` float64: gᵢᵀ P gᵢ, the rate at which an example moves its own loss. Never negative.
        loss: ``(N,)`` float64: the training losses, the free baseline beside it.
        ids: Training ids, in order.
        unit: Of the loss, or of its root (``reading``); values are per unit step.
        cost: ``setup_s``, ``fit_s``, ``read_s``, ``forwards``.
        notes: What a person should know.
        perturbation: The settings of P, plain.
    """

    values: Array
    loss: Array
    ids: list[int | str]
    unit: str | None
    cost: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    perturbation: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        rule = f", {self.perturbation['direction']}" if "direction" in self.perturbation else ""
        unit = f", {self.unit} per unit step" if self.unit else ""
        return f"SelfInfluence({len(self.values):,} training examples{rule}{unit}; see .top(k), .to_pandas())"

    def __len__(self) -> int:
        """Return how many training examples there are."""
        return len(self.values)

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame indexed by training id: ``self_influence, loss``."""
        return pd.DataFrame({"self_influence": self.values, "loss": self.loss}, index=id_index(self.ids, "train"))

    def top(self, k: int = 10) -> pd.DataFrame:
        """Return the k examples with the highest self-influence, highest first, with their losses."""
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise SettingError("top(k=)", expected="a whole number ≥ 1", got=repr(k))
        return self.to_pandas().sort_values("self_influence", ascending=False, kind="stable").head(k)
