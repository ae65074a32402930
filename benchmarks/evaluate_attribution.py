"""How faithful is each way of scoring? The linear datamodelling score on the committed banks. One question, one table.

Every row is scored against exact retraining on 100 random halves (mean per-query Spearman, signed; 95 % interval over
queries; split-half ceiling). Where a row has a radius or a damping to choose, it is chosen on one half of the queries; every
row is reported on the other half. Two full models, each scored alone; "both" adds their standardised scores up.

python benchmarks/evaluate_attribution.py [--banks digits sst2] [--rows ekfac] [--again]      # says its time first
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from attribution_rows import BASELINES, NAMED_ONLY, OURS, Bench, NotThere
from attribution_table import write_docs
from banks import use
from harness import commit, write
from rivals import run as rivals

from forwardinf.core.files import write_json
from forwardinf.truth.agreement import mean_interval, ratio
from forwardinf.truth.retrain import spoken

WORK = Path(__file__).parent / ".cache" / "attribution"
ROWS = {**BASELINES, **OURS, **rivals.ROWS}
ASKED = {"cifar": 100}  # of its 500 queries; the others ask all 200
SEEDS = {"cifar": (0,)}  # full models; the others (0, 1)
REFERENCE = "kronfluence EK-FAC, default damping"


def asked_of(bank: str, most: int | None = None) -> np.ndarray:
    """Return which queries are asked: equally many of each half, in order; ``most``: so many at most."""
    queries = len(use.recipes.data_of(bank).query_ids)
    each = min(ASKED.get(bank, queries), most or queries) // 2
    return np.sort(np.concatenate([half[:each] for half in use.halves(queries)]))


def evaluate(bank: str, name: str, again: bool) -> dict[str, Any] | str:
    """Return the entry of a row, from its file or by running it; or why it cannot be run."""
    path = _kept(bank, name)
    if path.exists() and not again:
        return json.loads(path.read_text())
    asked, seeds = asked_of(bank, getattr(ROWS[name], "most", None)), SEEDS.get(bank, (0, 1))
    yardstick = use.bank_of(bank).queries(asked)
    per_query: dict[str, list[np.ndarray]] = {}
    standardised: dict[str, np.ndarray] = {}
    began = time.perf_counter()
    for seed in seeds:
        try:
            found = ROWS[name](Bench(bank, seed, asked))
        except (NotThere, rivals.NoVenv) as reason:
            return str(reason)
        for setting, scores in found.items():
            scores = np.nan_to_num(
                np.asarray(scores, dtype=np.float64)
            )  # a query that was skipped is a miss, not a gap
            per_query.setdefault(setting, []).append(np.nan_to_num(use.lds_of(yardstick, scores).per_query))
            spread = scores.std(1, keepdims=True)
            standardised[setting] = standardised.get(setting, 0) + scores / np.where(spread > 0, spread, 1)
    entry = {
        "bank": bank, "row": name, "seeds": list(seeds), "queries": asked.tolist(), "commit": commit(),
        "seconds": round(time.perf_counter() - began, 2), "threads": torch.get_num_threads(),
        "settings": {setting: [each.round(5).tolist() for each in rows] for setting, rows in per_query.items()},
        "both": {setting: np.nan_to_num(use.lds_of(yardstick, scores).per_query).round(5).tolist()
                 for setting, scores in standardised.items()} if len(seeds) > 1 else {},
    }  # fmt: skip
    write_json(path, entry)
    return entry


def summary(entry: dict[str, Any], ceiling: np.ndarray) -> dict[str, Any]:
    """Choose the setting on one half of the queries, report on the other."""
    asked = np.asarray(entry["queries"])
    tune, report = (np.isin(asked, half) for half in use.halves(len(use.recipes.data_of(entry["bank"]).query_ids)))
    tables = {setting: np.mean(rows, 0) for setting, rows in entry["settings"].items()}
    chosen = max(tables, key=lambda setting: tables[setting][tune].mean())
    where = report if len(tables) > 1 else np.ones_like(report)
    found = mean_interval(tables[chosen][where])
    return {
        "row": entry["row"], "setting": chosen, "tried": len(tables), "mean": round(found.mean, 4),
        "low": round(found.low, 4), "high": round(found.high, 4), "queries": found.count,
        "report half": round(float(tables[chosen][report].mean()), 4),
        "by seed": [round(float(np.mean(np.asarray(rows)[where])), 4) for rows in entry["settings"][chosen]],
        "both models": round(float(np.mean(np.asarray(entry["both"][chosen])[where])), 4) if entry["both"] else None,
        "ceiling": round(float(np.nanmean(ceiling[asked][where])), 4), "seconds": entry["seconds"], "commit": entry["commit"],
        "per query": tables[chosen].round(4).tolist(), "reported": where.tolist(), "queries asked": asked.tolist(),
    }  # fmt: skip


def beside(rows: list[dict[str, Any]]) -> None:
    """Add each row's paired ratio to the reference, on the queries that both report."""
    reference = next((row for row in rows if row["row"] == REFERENCE), None)
    for row in rows if reference is not None else []:
        own, others = (dict(zip(np.asarray(each["queries asked"])[each["reported"]],
                                np.asarray(each["per query"])[each["reported"]], strict=True))
                       for each in (row, reference))  # fmt: skip
        both = sorted(own.keys() & others.keys())
        found = ratio(np.array([own[query] for query in both]), np.array([others[query] for query in both]))
        row["times reference"] = {
            "mean": round(found.mean, 3),
            "low": round(found.low, 3),
            "high": round(found.high, 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banks", nargs="+", default=use.names(), choices=use.names())
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows whose name has one of these words in it")
    parser.add_argument("--again", action="store_true", help="run the rows named by --rows though they are there")
    parser.add_argument("--table", action="store_true", help="run nothing: only write the table from what is there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [name for name in ROWS if any(word in name for word in given.rows)]
    if given.rows == [""]:
        wanted = [name for name in wanted if not name.startswith(NAMED_ONLY)]
    if not given.table:
        _say_time(given.banks, wanted)
        for bank in given.banks:
            for name in wanted:
                found = evaluate(bank, name, given.again)
                told = found if isinstance(found, str) else _short(found)
                print(f"{bank:13} {name:45} {told}", file=sys.stderr, flush=True)
    results = {}
    for bank in use.names():
        ceiling, entries = use.bank_of(bank).ceiling(), []
        for name in ROWS:
            path = _kept(bank, name)
            if path.exists():
                entries.append(summary(json.loads(path.read_text()), ceiling))
        beside(entries)
        results[bank] = entries
    write("attribution", {"question": "how faithful is each way of scoring", "metric": "mean per-query Spearman, signed",
                          "reference": REFERENCE, "bootstrap seed": 0, "banks": results})  # fmt: skip
    write_docs(results, {bank: use.bank_of(bank).meta for bank in results})


def _kept(bank: str, name: str) -> Path:
    """Return where a row's entry is kept."""
    return WORK / bank / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"


def _short(entry: dict[str, Any]) -> str:
    best = max(np.mean(rows) for rows in entry["settings"].values())
    return f"{best:.3f}   {entry['seconds']:.0f} s"


def _say_time(banks: list[str], wanted: list[str]) -> None:
    total = 0.0
    for bank in banks:
        todo = [name for name in wanted if not _kept(bank, name).exists()]
        bench = Bench(bank, 0, asked_of(bank))
        forwards = sum(_forwards(name, len(bench.asked)) for name in todo)
        total += len(SEEDS.get(bank, (0, 1))) * bench.forward_s * forwards
    print(f"about {spoken(total)} on this machine, one thread; resumable", file=sys.stderr, flush=True)


def _forwards(name: str, queries: int) -> float:
    """Return about how many F a row takes."""
    row = ROWS[name]
    return getattr(row, "forwards", 0) * min(getattr(row, "most", queries), queries) + 40


if __name__ == "__main__":
    main()
