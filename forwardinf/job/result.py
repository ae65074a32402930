"""The last stage: what was read is joined into the result, and the run folder is finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from forwardinf.core import machine
from forwardinf.core.errors import FileError
from forwardinf.job.job import Job
from forwardinf.perturb.push import OFF_RATE
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.plan import Unit
from forwardinf.score.scores import Scores, gather, write_facts
from forwardinf.score.store import REPAIR, Entry


def scores_of(job: Job) -> Scores:
    """Join what was read into the result; mark the run folder as finished."""
    job.baseline.read(ForwardEngine(job.train, job.plan.batch_size_at(0)), lambda done: None)  # what no pass has left
    size = len(job.asked)
    dense, best = gather(_found(job, "train"), size, job.train.examples.units, job.keep_rule)
    cross, _ = gather(_found(job, "queries"), size, size, "all")
    assert cross is not None
    uncertainty = None
    if job.perturbation.straddles and job.keep_rule == "all":
        uncertainty, _ = gather(_found(job, "uncertainty"), size, job.train.examples.units, "all")

    def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.asarray([getattr(query, name) for query in job.asked], dtype=np.float64)

    scores = Scores(
        ids=job.train.examples.ids, query_ids=job.query_ids, baseline=job.baseline.losses.numpy(), dense=dense,
        best=best, cross=cross.astype(np.float64), query_baseline=column("baseline"),
        rise=column("rise"),
        length=column("length"), step=column("step"), status=[query.status for query in job.asked],
        noise_floor=job.floor(), kind=job.perturbation.kind,
        uncertainty=uncertainty,
        unit=job.perturbation.unit_of(job.train.task.unit),
        signed=job.perturbation.signed, kept=job.keep_rule, perturbation=job.perturbation.to_dict(),
        plan=job.plan.to_dict(), cost=_cost(job), notes=[*job.notes, *_remarks(job)], made_from=job.opened.made_from,
        pictured=(job.train.examples, job.queries.examples),
    )  # fmt: skip
    if job.folder is not None:
        job.folder.must_stand()  # or what was joined is another run's
    if job.folder is not None and not job.folder.has("done.json"):
        write_facts(job.folder, scores)
        job.folder.finish({"cost": dict(scores.cost), "notes": _remarks(job)})
    elif job.folder is not None:
        job.folder.leave()
    return scores


def _found(job: Job, what: str) -> Iterator[Entry]:
    """Yield what was kept: of ``"train"``, ``"queries"`` or ``"uncertainty"``; all of it, or an error that names it."""
    sums = {} if job.folder is None else job.folder.sums()
    for unit in job.units():
        if (unit.of == "queries") != (what == "queries"):
            continue
        name = unit.beside(what) if what == "uncertainty" else unit.name
        there = job.memory[what, unit.block, unit.shard] if job.folder is None else job.folder.entries([name], sums)
        found = list(there)
        _whole(job, unit, name, found)
        yield from found


def _whole(job: Job, unit: Unit, name: str, found: Sequence[Entry]) -> None:
    """Refuse a unit of which some row was never read, or that is another plan's."""
    places = {query: at for query, at, _ in found}
    for query in unit.queries:
        wanted = np.arange(len(job.members))
        if unit.of == "train":
            wanted = job.train.examples.units_of(unit.rows)
            wanted = wanted if job.candidates is None else wanted[np.isin(wanted, job.candidates[query])]
        got = places.pop(query, np.empty(0, np.int64))
        some = isinstance(job.keep_rule, int) and unit.of == "train"
        if not (
            np.isin(got, wanted).all() and bool(len(got)) == bool(len(wanted)) if some else np.array_equal(got, wanted)
        ):
            raise FileError(
                name if job.folder is None else str(job.folder.path / name),
                expected=f"scores of {len(wanted)} examples for query {job.query_ids[query]!r}",
                got=f"those of {len(got)}" if len(got) != len(wanted) else "those of others", do=REPAIR,
            )  # fmt: skip
    if places:
        raise FileError(name, expected=f"scores of {len(unit.queries)} queries", got="of others too", do=REPAIR)


def _cost(job: Job) -> dict[str, Any]:
    peak = machine.peak_bytes() - int(job.clock.get("resident_bytes", 0))
    if job.train.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(job.train.device)
    expected = job.plan.seconds["reading"]
    return {"fit_s": round(job.pusher.fit_seconds, 4), "setup_s": round(job.clock["setup_s"], 4),
            "queries_s": round(job.clock["queries_s"], 4), "baseline_s": round(job.clock["baseline_s"], 4),
            "read_s": round(job.clock["read_s"] + job.clock.get("whitened_s", 0.0), 4),
            "expected_read_s": round(expected, 4),
            "forwards": job.forwards, "peak_bytes": max(peak, 0)}  # fmt: skip


def _remarks(job: Job) -> list[str]:
    """Return what the numbers themselves call for."""
    remarks = []
    shares = [query.share_moved for query in job.asked if query.usable]
    if shares and min(shares) < 0.5:
        remarks.append(f"only {min(shares):.0%} of the weights moved after rounding to the model's dtype")
    for status in ("capped", "unreachable"):
        count = sum(query.status == status for query in job.asked)
        if count:
            remarks.append(f"{count} of {len(job.asked)} queries: rise {status}")
    off = sum(query.status == OFF_RATE for query in job.asked)
    if off:
        remarks.append(f"{off} of {len(job.asked)} queries: a short push moves their loss otherwise than its gradient says, "
                       "by more than 10 %: these scores are what happens, not what gradients say")  # fmt: skip
    skipped = sum(not query.usable for query in job.asked)
    if skipped:
        remarks.append(f"{skipped} of {len(job.asked)} queries skipped: their rows are NaN, status says why")
    return remarks
