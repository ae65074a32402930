"""Tables of generated images and the training images behind them, and what pixels alone say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from forwardinf.score.scores import Scores
from forwardinf.use.jointly import Turn
from forwardinf.use.traces import ranked

Array = np.ndarray[Any, np.dtype[np.float64]]
TABLE = ["image", "rank", "train", "score", "share", "pixel_similarity"]


def scores_table(scores: Scores, pixels: Array | None, k: int, turns: list[Turn]) -> pd.DataFrame:
    """Return the k best training images of each generated one; of those named jointly, by turn."""
    records, share = [], scores.share
    for q, name in enumerate(scores.query_ids):
        best = ranked(scores.values[q], k)
        best, shown = turns[q] if turns else (best, scores.values[q, best])
        records += [
            {"image": name, "rank": rank, "train": scores.ids[place], "score": float(score),
             "share": float(share[q, place]), "pixel_similarity": np.nan if pixels is None else float(pixels[q, place])}
            for rank, (place, score) in enumerate(zip(best, shown, strict=True), start=1)
        ]  # fmt: skip
    return pd.DataFrame(records, columns=TABLE)


def pixels_table(scores: Scores, pixels: Array | None, k: int) -> pd.DataFrame:
    """Return what pixel neighbours alone would have named."""
    records: list[dict[str, Any]] = []
    for q, name in enumerate(scores.query_ids if pixels is not None else ()):
        there = np.where(np.isfinite(scores.values[q]), pixels[q], np.nan)  # type: ignore[index]
        records += [
            {"image": name, "method": "pixels", "rank": rank, "train": scores.ids[place], "score": float(there[place])}
            for rank, place in enumerate(ranked(there, k), start=1)
        ]  # fmt: skip
    return pd.DataFrame(records, columns=["image", "method", "rank", "train", "score"])
