"""How faithful is each way of scoring? The linear datamodelling score on the committed banks. One question, one table.

Every row is scored against exact retraining on 100 random halves (mean per-query Spearman, signed; 95 % interval over
queries; split-half ceiling). Where a row has a radius or a damping to choose, it is chosen on one half of the queries; every
row is reported on the other half. Two full models, each scored alone; "both" adds their standardised scores up.
"""

import time
from argparse import Namespace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks.attribution.bench import Bench, asked_of
from benchmarks.attribution.rows import ROWS, SLOW
from benchmarks.attribution.tables import tables as tables
from benchmarks.banks import recipes, use
from benchmarks.results import commit
from benchmarks.runner import Found, Part, say
from forwardinf.truth.agreement import mean_interval, ratio

PAGE = "faithfulness"
SEEDS = {"cifar": (0,)}  # full models; the others (0, 1)
REFERENCE = "kronfluence EK-FAC, default damping"


def parts(given: Namespace) -> list[Part]:
    found = []
    for bank in use.names():
        for name in ROWS:
            slow = SLOW if name.startswith(SLOW) else ""
            run, takes = partial(evaluate, bank, name), partial(seconds, bank, name)
            found.append(Part(f"{bank} {name}", run, takes, by_name=slow))
    return found


@cache
def _forward_s(bank: str) -> float:
    return Bench(bank, 0, asked_of(bank)).forward_s


def seconds(bank: str, name: str) -> float:
    """Return about how long a row takes."""
    return _forward_s(bank) * len(SEEDS.get(bank, (0, 1))) * _forwards(name, len(asked_of(bank)))


def _forwards(name: str, queries: int) -> float:
    """Return about how many F a row takes."""
    row = ROWS[name]
    return getattr(row, "forwards", 0) * min(getattr(row, "most", None) or queries, queries) + 40


def evaluate(bank: str, name: str) -> dict[str, Any]:
    """Return each query's agreement with retraining, by setting and full model."""
    asked, seeds = asked_of(bank, getattr(ROWS[name], "most", None)), SEEDS.get(bank, (0, 1))
    yardstick = use.bank_of(bank).queries(asked)
    per_query: dict[str, list[np.ndarray]] = {}
    standardised: dict[str, np.ndarray] = {}
    began = time.perf_counter()

    def agreement(scores: np.ndarray) -> np.ndarray:
        return np.nan_to_num(use.lds_of(yardstick, scores).per_query).round(5)

    for seed in seeds:
        for setting, scores in ROWS[name](Bench(bank, seed, asked)).items():
            scores = np.nan_to_num(np.asarray(scores, np.float64))  # a query that was skipped is a miss, not a gap
            per_query.setdefault(setting, []).append(agreement(scores))
            spread = scores.std(1, keepdims=True)
            standardised[setting] = standardised.get(setting, 0) + scores / np.where(spread > 0, spread, 1)
    settings = {setting: [each.tolist() for each in rows] for setting, rows in per_query.items()}
    both = {setting: agreement(scores).tolist() for setting, scores in standardised.items()} if len(seeds) > 1 else {}
    seconds = round(time.perf_counter() - began, 2)
    say(f"{bank:13} {name:45} {max(np.mean(rows) for rows in settings.values()):.3f}   {seconds:.0f} s")
    return {"bank": bank, "row": name, "seeds": list(seeds), "queries": asked.tolist(), "commit": commit(),
            "seconds": seconds, "threads": torch.get_num_threads(), "settings": settings, "both": both}  # fmt: skip


def result(given: Namespace, found: Found) -> Found:
    banks = {}
    for bank in use.names():
        ceiling, entries = use.bank_of(bank).ceiling(), [found.get(f"{bank} {name}") for name in ROWS]
        banks[bank] = [summary(entry, ceiling) for entry in entries if entry]
        beside(banks[bank])
    return {"metric": "mean per-query Spearman, signed", "reference": REFERENCE, "bootstrap seed": 0, "banks": banks}


def summary(entry: dict[str, Any], ceiling: np.ndarray) -> dict[str, Any]:
    """Choose the setting on one half of the queries, report on the other."""
    asked = np.asarray(entry["queries"])
    tune, report = (np.isin(asked, half) for half in use.halves(len(recipes.data_of(entry["bank"]).query_ids)))
    means = {setting: np.mean(rows, 0) for setting, rows in entry["settings"].items()}
    chosen = max(means, key=lambda setting: means[setting][tune].mean())
    where = report if len(means) > 1 else np.ones_like(report)
    found = mean_interval(means[chosen][where])
    return {
        "row": entry["row"], "setting": chosen, "tried": len(means), "mean": round(found.mean, 4),
        "low": round(found.low, 4), "high": round(found.high, 4), "queries": found.count,
        "report half": round(float(means[chosen][report].mean()), 4),
        "by seed": [round(float(np.mean(np.asarray(rows)[where])), 4) for rows in entry["settings"][chosen]],
        "both models": round(float(np.mean(np.asarray(entry["both"][chosen])[where])), 4) if entry["both"] else None,
        "ceiling": round(float(np.nanmean(ceiling[asked][where])), 4), "seconds": entry["seconds"], "commit": entry["commit"],
        "per query": means[chosen].round(4).tolist(), "reported": where.tolist(), "queries asked": asked.tolist(),
    }  # fmt: skip


def beside(rows: list[dict[str, Any]]) -> None:
    """Add each row's paired ratio to the reference, on the queries that both report."""
    reference = next((row for row in rows if row["row"] == REFERENCE), None)
    for row in rows if reference is not None else []:
        own, others = (dict(zip(np.asarray(each["queries asked"])[each["reported"]],
                                np.asarray(each["per query"])[each["reported"]], strict=True))
                       for each in (row, reference))  # fmt: skip
        both = sorted(own.keys() & others.keys())
        found = ratio(*(np.array([side[query] for query in both]) for side in (own, others)))
        row["times reference"] = {end: round(getattr(found, end), 3) for end in ("mean", "low", "high")}
