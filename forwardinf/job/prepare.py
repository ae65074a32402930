"""Everything that is settled before the first reading: open, plan, check the queries, claim the folder, find the baseline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from forwardinf.core import machine
from forwardinf.core.progress import progress
from forwardinf.gradients.directions import Directions
from forwardinf.job.baseline import Before
from forwardinf.job.job import Job
from forwardinf.job.open import open_call
from forwardinf.job.options import Call
from forwardinf.job.reproduce import must_reproduce
from forwardinf.job.run_folder import claim, follow, load_queries, save_queries
from forwardinf.job.settle import Settled, settle
from forwardinf.perturb.push import OFF_RATE, Pusher, Query
from forwardinf.perturb.registry import DIRECTIONS
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.noise_floor import Floor, noise_floor
from forwardinf.read.plan import LEFT
from forwardinf.read.predict import misclassified
from forwardinf.tasks.task import Classification


@dataclass(frozen=True)
class Checked:
    """Queries that can be read.

    Attributes:
        settled: How.
        pusher: Makes their pushes, or directions.
        asked: What has to be known of each.
        block: Their directions, where checking has made them all.
        seconds: What checking took, the fit apart.
        recalled: Whether the run folder knew them.
    """

    settled: Settled
    pusher: Pusher
    asked: list[Query]
    block: Directions | None
    seconds: float
    recalled: bool = False


def prepare(call: Call) -> Job:
    """Settle everything before the first reading; see :func:`forwardinf.attribute`. Call it with the model borrowed."""
    began, resident = time.perf_counter(), machine.resident_bytes()
    settled = settle(open_call(call))
    floor = floor_of(settled)
    checked = check_queries(settled)
    fit = checked.pusher.fit_seconds
    clock = {"resident_bytes": float(resident), "baseline_s": 0.0, "queries_s": checked.seconds,
             "setup_s": time.perf_counter() - began - fit}  # fmt: skip
    job = _job(checked, floor, clock)
    if not checked.recalled:
        job.settle_rises()
    if checked.settled.place.folder is not None and not _claimed(job, checked):
        return prepare(replace(call, options=replace(call.options, overwrite=False)))
    _start(job)
    return job


def check_queries(settled: Settled) -> Checked:
    """Check every query, or recall what the run folder knows of them.

    Where a short push turns out to move losses otherwise than their gradients say, and the engine was ours to choose, the
    scores are read by gradients instead.

    Raises:
        QueryError: A gradient is zero or not finite.
    """
    there = settled.place.queries()
    if there is not None:
        return Checked(settled, _pusher(settled), there, None, 0.0, recalled=True)
    checked = _check(settled)
    opened = settled.opened
    free = opened.options.engine == "auto" and settled.plan.engine == "forward" and not settled.place.begun
    if free and any(query.status == OFF_RATE for query in checked.asked):
        opened.notes.append("a short push moves the losses otherwise than their gradients say (half precision, detached terms, "
                            "gradients of its own): read by gradients")  # fmt: skip
        checked = _check(settle(opened, "factored"))
    return checked


def _check(settled: Settled) -> Checked:
    began, opened, plan, block = time.perf_counter(), settled.opened, settled.plan, None
    pusher, asked = _pusher(settled), list[Query]()
    take: Callable[..., None] | None = None
    if plan.exact and not DIRECTIONS[opened.rule.direction].examples and len(opened.query_ids) <= plan.query_block:
        block = FactoredEngine(pusher.train, pusher.parameters, 1).directions(len(opened.query_ids))
        take = lambda rows, direction: block.put(pusher.places[rows], direction)  # noqa: E731
    with progress("queries", len(opened.query_ids), opened.options.progress) as advance:
        for rows, name in zip(pusher.members, opened.query_ids, strict=True):
            asked.append(pusher.check(rows, name, skip=opened.options.on_bad_query == "skip", take=take))
            advance(1)
    pusher.forget()
    whole = block if all(query.usable for query in asked) else None
    return Checked(settled, pusher, asked, whole, time.perf_counter() - began - pusher.fit_seconds)


def _pusher(settled: Settled) -> Pusher:
    plan = settled.plan
    return Pusher(settled.asking, settled.fitting(), exact=plan.exact, together=plan.pass_batch_size,
                  members=settled.opened.members)  # fmt: skip


def floor_of(settled: Settled) -> Floor:
    """Return what a reading cannot tell apart: a few rows are read twice, unless an earlier call has left it.

    Raises:
        NoiseError: The two readings differ by more than rounding.
        TaskError: A loss is not finite.
    """
    if settled.known is not None:
        return settled.known.floor
    return noise_floor(settled.train, settled.opened.rows, settled.plan.batch_size)


def _job(checked: Checked, floor: Floor, clock: dict[str, float]) -> Job:
    """Put together what the reading needs."""
    settled, opened, plan = checked.settled, checked.settled.opened, checked.settled.plan
    before = Before(
        opened.train, opened.rows, plan.shard_rows, floor, settled.known, settled.place.folder, settled.baseline_file
    )
    aside = frozenset(row for query in checked.asked if not query.usable for row in query.rows)
    as_rows = replace(settled.asking, asked=None, skipped=aside)
    return Job(settled, as_rows, checked.pusher, checked.asked, before, checked.block, clock)


def _claimed(job: Job, checked: Checked) -> bool:
    """Claim the run folder; return False where an equal call was first with another plan, which all follow then."""
    settled, folder = checked.settled, job.folder
    assert folder is not None
    if not settled.place.begun:
        claim(settled.opened, folder)
        if not follow(folder, job.plan):
            return False
    if not checked.recalled:
        save_queries(folder, settled.opened.query_ids, job.asked, job.floor())
        job.asked = load_queries(folder)  # as a resumed run will have them
    if settled.place.begun:
        must_reproduce(job, folder)
    return True


def _start(job: Job) -> None:
    """Recall or read the baseline, but for what an exact pass will leave; guard the shards, read the queries' own losses."""
    began = time.perf_counter()
    for unit in job.units():
        if unit.of == "train" and isinstance(unit.rows, range):
            job.train.examples.guard(unit.rows)
    engine, missing = ForwardEngine(job.train, job.plan.batch_size_at(0), job.halved), job.baseline.recall()
    if job.plan.baseline != LEFT:
        with progress("baseline", missing, job.options.progress) as advance:
            job.baseline.read(engine, advance)
    if isinstance(job.queries.task, Classification) and job.queries.task.query == "label":
        wrong = len(misclassified(job.queries, job.plan.batch_size))
        if wrong:
            job.notes.append(f"{wrong} of {len(job.queries.examples)} queries are misclassified: asked by their true label, what "
                             "made the model answer as it did is among the opponents; ask query='predicted' to see it as "
                             "proponents")  # fmt: skip
    job.query_baseline = job.queries.losses(range(len(job.queries.examples)), job.plan.batch_size)
    job.forwards += engine.forwards
    job.clock["baseline_s"] = time.perf_counter() - began
