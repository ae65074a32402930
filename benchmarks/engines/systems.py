"""Time, memory and agreement of each system, ours and rivals, on the same work: each in a process of its own."""

import tempfile
from argparse import Namespace
from functools import partial
from typing import Any

import numpy as np

import forwardinf as fi
from benchmarks import page, pictures
from benchmarks.apart import apart
from benchmarks.attribution.bench import Bench
from benchmarks.banks import use
from benchmarks.engines.timing import Clock
from benchmarks.rivals import run as rivals
from benchmarks.runner import Found, Part
from forwardinf.core.machine import peak_bytes

OURS = {
    "forwardinf forward": ("plain", "forward"), "forwardinf factored": ("plain", "factored"),
    "forwardinf EK-FAC": ("ekfac", "factored"), "forwardinf hold": ("hold", "factored"),
}  # fmt: skip
SYSTEMS = (*OURS, *rivals.TIMED)
SAME = {"kronfluence identity": "forwardinf factored", "captum TracInCP": "forwardinf factored",
        "kronfluence EK-FAC": "forwardinf EK-FAC", "forwardinf forward": "forwardinf factored"}  # fmt: skip


def _bank(given: Namespace) -> str:
    return "digits-short" if given.small else "fashion"


def _counts(given: Namespace) -> tuple[int, ...]:
    return (1, 10) if given.small else (1, 10, 100)


def parts(given: Namespace) -> list[Part]:
    bank = _bank(given)
    return [Part(f"rival {bank} {count} {name}", partial(measure, bank, count, name), 30)
            for count in _counts(given) for name in SYSTEMS]  # fmt: skip


def measure(bank: str, count: int, name: str) -> dict[str, Any]:
    """Return times, memory and scores of one system; or why it could not be run."""
    use.full_model(bank, 0)
    try:
        if name in OURS:
            scores, told = apart(ours, bank, count, *OURS[name])
        else:
            tables, told = rivals.ask(Bench(bank, 0, np.arange(count)), *rivals.TIMED[name])
            (scores,) = tables.values()
    except RuntimeError as reason:
        return {"not run": str(reason).strip().splitlines()[-1][:300]}
    return {**told, "scores": scores.astype(np.float32).round(6).tolist()}


def ours(bank: str, count: int, direction: str, engine: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return (scores, times) of a call of ours, everything counted but what a fit costs apart."""
    bench, clock = Bench(bank, 0, np.arange(count)), Clock("cpu")
    before, began = peak_bytes(), clock.perf_counter()
    folder = None if direction == "plain" else tempfile.mkdtemp(prefix="forwardinf-bench-")
    scores = fi.attribute(bench.model, bench.train, bench.queries, task=fi.Classification(), engine=engine,
                          perturbation=fi.Perturbation(direction), cache_dir=folder, progress=False,
                          on_bad_query="skip")  # fmt: skip
    took = clock.perf_counter() - began
    fit = float(scores.cost["fit_s"])
    return scores.values, {"fit_s": fit, "score_s": took - fit, "peak_bytes": peak_bytes() - before}


def result(given: Namespace, found: Found) -> Found:
    bank, by_count = _bank(given), {}
    for count in _counts(given):
        rows = {name: found.get(f"rival {bank} {count} {name}", {"not run": rivals.ABSENT}) for name in SYSTEMS}
        for name, row in rows.items():
            other = rows.get(SAME.get(name, ""), {})
            if "scores" in row and "scores" in other:
                pairs = zip(row["scores"], other["scores"], strict=True)
                row["agreement"] = round(float(np.median([np.corrcoef(one, two)[0, 1] for one, two in pairs])), 5)
        by_count[str(count)] = {name: {k: v for k, v in row.items() if k != "scores"} for name, row in rows.items()}
    parameters = sum(p.numel() for p in use.full_model(bank, 0).parameters())
    return {"clock": "cpu", "bank": bank, "parameters": parameters, "by Q": by_count}


def draw(part: dict[str, Any]) -> None:
    """Draw time against Q, one line for each system, fits counted."""
    lines = {
        name: [
            (int(q), rows[name]["fit_s"] + rows[name]["score_s"])
            for q, rows in part["by Q"].items()
            if "fit_s" in rows[name]
        ]
        for name in SYSTEMS
    }
    title = f"{part['bank']}: {part['parameters']:,} parameters, one thread"
    pictures.lines(lines, page.DOCS / "engines.png", across="queries", up="CPU seconds, fit counted", title=title)
