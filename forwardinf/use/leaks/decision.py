"""From matches to a decision: the null distribution, the table of pairs, and the free alternatives beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from forwardinf.core.progress import progress
from forwardinf.data.examples import Id
from forwardinf.use.features import NAMES
from forwardinf.use.inputs import Inputs
from forwardinf.use.leaks.evidence import (
    STANDS_OUT,
    Matches,
    counted_views,
    matches,
)
from forwardinf.use.leaks.fdr import LEAST_CLEAN, LEAST_QUERIES, Null, benjamini_hochberg, from_clean, from_test_set
from forwardinf.use.leaks.matching import (
    Side,
)
from forwardinf.use.responses import unit
from forwardinf.use.tables import id_index, id_values

COLUMNS = ("query", "rank", "train", "cosine", "share", "input_similarity", "feature_similarity", "same_content", "score",
           "is_leak", "evidence")  # fmt: skip


def null_of(found: Mapping[str, Matches], notes: list[str]) -> Null | None:
    """Return how high clean queries' best matches score; None, with a note, where nothing tells."""
    if "clean" in found:
        return from_clean(found["clean"].score[:, 0].numpy())
    best = found["queries"].score[:, 0].numpy()
    if len(best) >= LEAST_QUERIES:
        notes.append(
            "no clean examples were given: the middle of the queries' own scores stands for what is clean, "
            "which holds while fewer than 15 % of the queries leaked"
        )
        return from_test_set(best)
    notes.append(
        f"uncalibrated: for a false-positive rate pass clean=, at least {LEAST_CLEAN} examples that are not in the training set, "
        f"or at least {LEAST_QUERIES} queries"
    )
    return None


def calibration(null: Null | None, q: float) -> str:
    """Say what the decision rests on."""
    if null is None:
        return "uncalibrated"
    return f"null: {null.source}; Benjamini–Hochberg over the queries, q = {q:g}"


def pairs_table(
    found: Matches, raw: Mapping[str, Tensor], sides: Mapping[str, Side], read: list[int], null: Null | None, q: float
) -> tuple[pd.DataFrame, pd.Series[float], float]:
    """Return (the pairs, p-values by query, threshold of the score)."""
    asked, rows = sides["queries"], sides["train"]
    best = found.score[:, 0].double().numpy()
    if null is None:
        p = np.full(len(best), np.nan)
        threshold = STANDS_OUT * counted_views(found.z)
    else:
        p = null.p_value(best)
        rejected = benjamini_hochberg(p, q)
        cut = q * max(1, int(rejected.sum())) / len(p)  # where Benjamini–Hochberg stopped
        threshold = null.value_at(cut) if cut < null.share else float(best[rejected].min())
    kept: list[dict[str, Any]] = []
    names = list[Id](), list[Id]()
    feature = next((name for name in ("early", "last") if name in found.cosine), None)
    for query, name in enumerate(asked.feed.examples.ids):
        own = raw["queries"][query]
        power = float(own @ own)
        for rank in range(found.rows.shape[1]):
            at, score = int(found.rows[query, rank]), float(found.score[query, rank])
            if score == -np.inf:  # fewer candidates than rows
                continue
            same = rows.content[read[at]] == asked.content[query]
            names[0].append(name)
            names[1].append(rows.feed.examples.ids[read[at]])
            kept.append({
                "rank": rank + 1,
                "cosine": float(found.cosine["response"][query, rank]),
                "share": float(raw["train"][at] @ own) / power if power > 0 else float("nan"),
                "input_similarity": _at(found, "input", query, rank),
                "feature_similarity": _at(found, feature, query, rank),
                "same_content": same, "score": score, "is_leak": bool(same or score >= threshold),
                "evidence": _evidence(found, query, rank, same, null),
            })  # fmt: skip
    table = pd.DataFrame(kept).assign(query=id_values(names[0]), train=id_values(names[1]))[list(COLUMNS)]
    return table, pd.Series(p, index=id_index(asked.feed.examples.ids, "query"), name="p_value"), threshold


def _at(found: Matches, view: str | None, query: int, rank: int) -> float:
    return float(found.cosine[view][query, rank]) if view in found.cosine else float("nan")


def _evidence(found: Matches, query: int, rank: int, same: bool, null: Null | None) -> str:
    """Say which views the pair stands out in."""
    names = {
        "response": "responses",
        "whitened": "whitened responses",
        "input": "input",
        "early": "early layer",
        "last": "last layer",
    }
    told = ["same content"] if same else []
    told += [names[view] for view, z in found.z.items() if float(z[query, rank]) >= STANDS_OUT]
    return ", ".join(told) + (" (uncalibrated)" if told and null is None else "")


def free_alternatives(given: Inputs, table: pd.DataFrame, sides: Mapping[str, Side], count: int) -> pd.DataFrame:
    """Return, for each query and rank, what each free view alone would have named."""
    asked, rows = sides["queries"], sides["train"]
    frame: dict[str, Any] = {"query": table["query"], "rank": table["rank"]}
    place = {value: at for at, value in enumerate(asked.feed.examples.ids)}
    at = [(place[query], rank - 1) for query, rank in zip(frame["query"], frame["rank"], strict=True)]
    views = [view for view in NAMES if view in asked.features and view in rows.features]
    with progress("free alternatives", len(views), given.options.progress) as advance:
        for view in views:
            size = len(rows.content)
            best = matches({view: unit(asked.features[view])}, {view: unit(rows.features[view])}, min(count, size))
            near = [rows.feed.examples.ids[int(best.rows[query, rank])] for query, rank in at]
            frame[f"{view}_neighbour"] = id_values(near)
            frame[f"{view}_similarity"] = [float(best.cosine[view][query, rank]) for query, rank in at]
            advance(1)
    known = set(rows.content)
    frame["same_content"] = [asked.content[query] in known for query, _ in at]
    return pd.DataFrame(frame)


def best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows query by query, those with a leak first, the strongest first."""
    order = rows.groupby("query", sort=False)["score"].transform("max")
    keys = pd.DataFrame({"leak": ~rows.groupby("query", sort=False)["is_leak"].transform("any"), "score": -order})
    return rows.loc[keys.assign(rank=rows["rank"]).sort_values(["leak", "score", "rank"], kind="stable").index]
