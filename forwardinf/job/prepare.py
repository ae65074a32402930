"""Everything that is settled before the first reading.

Data in every form, queries checked, batch size and layout found, baseline read or recalled, run folder claimed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forwardinf.core import machine
from forwardinf.core.errors import DataError, SettingError
from forwardinf.core.files import read_table
from forwardinf.core.fingerprint import code_digest, digest, model_digest, notes_on
from forwardinf.core.progress import progress
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Collate, Examples, Id
from forwardinf.gradients.directions import Directions
from forwardinf.job.baseline import Before
from forwardinf.job.estimate import fit_seconds, query_seconds
from forwardinf.job.job import Job
from forwardinf.job.options import Options, device_of, open_examples, settled
from forwardinf.job.resume import must_reproduce, same_plan
from forwardinf.models.feed import Feed
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.gradient import query_gradient
from forwardinf.perturb.parameters import Parameters, select
from forwardinf.perturb.push import OFF_RATE, Pusher, Query, directions_together
from forwardinf.perturb.registry import passes_of
from forwardinf.read.baseline import baseline_key, load_baseline
from forwardinf.read.choose import FEW, Asked, choose_engine
from forwardinf.read.factored import FactoredEngine
from forwardinf.read.forward import ForwardEngine
from forwardinf.read.noise_floor import noise_floor
from forwardinf.read.plan import LEFT, Plan, make_plan
from forwardinf.read.predict import misclassified
from forwardinf.read.speed_key import same_speed
from forwardinf.read.trunk import TrunkFiles
from forwardinf.read.tune import tune
from forwardinf.score.store import QUERIES, Folder, id_column, plain_ids
from forwardinf.score.top import Ints
from forwardinf.tasks.task import Classification, as_task

ALL_UP_TO = 10**8  # scores kept whole by keep="auto"
KEPT_BEYOND = 1000
LOW_RANK = ("plain", "sign", "kfac", "hold")  # read along the few ranks of a query's gradient (hold: and then whitened)


def prepare(
    model: nn.Module,
    train: Any,
    queries: Any,
    *,
    task: Any,
    perturbation: Perturbation | str | Mapping[str, Any] | None,
    ids: str | Sequence[Id] | None,
    query_ids: str | Sequence[Id] | None,
    groups: Sequence[Id] | None,
    candidates: Any,
    collate_fn: Collate | None,
    options: Options,
    dry: bool = False,
) -> Job:
    """Settle everything before the first reading; see :func:`forwardinf.attribute`. Call it with the model borrowed.

    ``dry`` stops short of the baseline and of the run folder: for showing the plan.
    """
    clock = {
        "started": time.perf_counter(),
        "resident_bytes": float(machine.resident_bytes()),
        "baseline_s": 0.0,
        "queries_s": 0.0,
    }
    spoken = as_task(task)
    rule = settled(perturbation, spoken)
    device = device_of(model, options.device)
    cache = options.cache
    rows = open_examples(train, "train", spoken, collate_fn, options)
    questions = open_examples(queries, "queries", spoken, collate_fn, options)
    members, names = _groups(questions, groups, query_ids)

    with progress("hashing", len(rows) + len(questions), options.progress) as advance:
        data = rows.seal(range(len(rows)), advance, spoken.parts if spoken.packed else None, ids)
        asked_for = questions.seal(range(len(questions)), advance, None)
    chosen = _candidates(candidates, rows, names)
    code = code_digest(spoken, getattr(spoken, "version", None))
    whole = model_digest(model)
    feed = Feed(model, spoken, rows, device, seed=options.seed)
    made_from = {
        "model": whole, "data": data, "queries": asked_for, "task": code, "ids": digest(rows.ids, names, members),
        "candidates": None if chosen is None else digest([list(map(int, c)) for c in chosen]),
        "perturbation": digest(rule.to_dict()), "seed": options.seed, "keep": options.keep,
        "engine": options.engine, "batch_size": options.batch_size, "shard_rows": options.shard_rows,
        "on_bad_query": options.on_bad_query, "device": device.type,
    }  # fmt: skip
    folder = _folder(options, code)
    kept = folder is not None and not options.overwrite and folder.has("plan.json")
    keep_rule: int | str = options.keep
    if keep_rule == "auto":
        keep_rule = "all" if len(names) * rows.units <= ALL_UP_TO else KEPT_BEYOND
    about = {"kind": rule.kind, "unit": rule.unit_of(spoken.unit), "signed": rule.signed,
             "perturbation": rule.to_dict(), "notes": [*rows.notes, *questions.notes], "kept": keep_rule,
             "versions": machine.versions()}  # fmt: skip
    if folder is not None and kept:
        _claim(folder, made_from, about, options)  # refuses another run before anything long starts

    read_rows = range(len(rows)) if chosen is None else rows.rows_of(sorted({int(u) for c in chosen for u in c}))
    parameters = select(model, rule.parameters)
    notes = [*rows.notes, *questions.notes]
    if folder is not None and kept:
        plan = Plan.from_dict(folder.plan())
    else:
        first = Feed(model, spoken.whole(), questions, device, seed=options.seed, asked={}, recorders=feed.recorders)
        plan, note = _plan(feed, read_rows, chosen, len(names), rule, parameters, (first, members[0]), options)
        notes += [note] if note else []
    feed = replace(feed, channels_last=plan.channels_last)
    placed = replace(feed, channels_last=plan.pass_channels_last) if plan.exact else feed
    key = baseline_key(placed, whole, data, code, plan.batch_size_at(0))
    name = digest(key, None if chosen is None else list(read_rows)) if key is not None and cache is not None else None
    path = cache / "baselines" / f"{name}.safetensors" if name is not None and cache is not None else None
    known = load_baseline(path, placed, plan.batch_size_at(0), notes)
    trunks = cache / "trunks" / digest(key) if key is not None and cache is not None else None
    if not kept:
        passing = plan.exact and chosen is None and rule.direction != "hold"
        plan = replace(plan, baseline="cached" if known is not None else LEFT if passing else "read")
        if plan.engine == "trunk" and trunks is not None:
            there = TrunkFiles(trunks / plan.cut).count(plan.batch_size)
            plan = replace(plan, trunk_rows=min(there * plan.batch_size, len(rows)))
            plan = replace(plan, considered={**plan.considered, "trunk": round(plan.seconds["reading"], 4)})

    floor = known.floor if known is not None else noise_floor(feed, read_rows, plan.batch_size)
    asking = Feed(model, spoken.whole(), questions, device, plan.channels_last, options.seed, asked={},
                  recorders=feed.recorders)  # fmt: skip
    notes += [*(note for note in questions.notes if note not in notes), *notes_on(model)]
    known_fit = None if code is None else digest(whole, data, code)
    fitting = Fitting(rule, feed, parameters, plan.batch_size, known_fit, cache, options.progress, notes)
    if dry:  # a run shows its progress instead
        together = plan.pass_batch_size if plan.exact else plan.batch_size
        each = query_seconds(asking, members[0], parameters, together, exact=plan.exact, rise=rule.rise is not None)
        plan = replace(plan, fit_seconds=fit_seconds(fitting, plan.seconds_per_row), query_seconds=len(names) * each)
    asked, block = list[Query](), None
    pusher = Pusher(asking, fitting, exact=plan.exact, together=plan.pass_batch_size, members=members)
    known_queries = folder is not None and kept and folder.has("queries.parquet")
    if folder is not None and known_queries:
        asked = _load_queries(folder)
    elif not dry:
        began = time.perf_counter()
        asked, block = _checked(pusher, names, plan, options)
        if options.engine == "auto" and plan.engine == "forward" and any(query.status == OFF_RATE for query in asked):
            notes.append("a short push moves the losses otherwise than their gradients say (half precision, detached terms, "
                         "gradients of its own): read by gradients")  # fmt: skip
            plan, note = _plan(feed, read_rows, chosen, len(names), rule, parameters, (asking, members[0]),
                               replace(options, engine="factored"))  # fmt: skip
            notes += [note] if note else []
            pusher = Pusher(asking, fitting, exact=True, together=plan.pass_batch_size, members=members)
            asked, block = _checked(pusher, names, plan, options)
        clock["queries_s"] = time.perf_counter() - began - pusher.fit_seconds

    clock["setup_s"] = time.perf_counter() - clock["started"] - pusher.fit_seconds
    before = Before(rows, read_rows, plan.shard_rows, floor, known, folder, path)
    aside = frozenset(row for query in asked if not query.usable for row in query.rows)
    read_as_rows = replace(asking, asked=None, skipped=aside)
    job = Job(feed, read_as_rows, pusher, rule, options, members, names, chosen, made_from, plan, keep_rule,
              asked, before, torch.empty(0), folder, notes, clock)  # fmt: skip
    if block is not None and all(query.usable for query in asked):  # what checking has made need not be made again
        job._block = tuple(range(len(names))), block
    pusher.take = None
    job.trunk_folder = trunks
    if not dry:
        if not known_queries:
            job.settle_rises()
        if folder is not None and not kept:
            _claim(folder, made_from, about, options)
            if not same_plan(folder.write_plan(plan.to_dict()), plan):  # an equal call was first: all follow its plan
                return prepare(
                    model, train, queries, task=task, perturbation=perturbation, ids=ids, query_ids=query_ids, groups=groups,
                    candidates=candidates, collate_fn=collate_fn, options=replace(options, overwrite=False),
                )  # fmt: skip
        if folder is not None:
            if not known_queries:
                _save_queries(folder, job)
            job.asked = _load_queries(folder)
            if kept:
                must_reproduce(job, folder)
        _start(job)
    return job


def _checked(
    pusher: Pusher, names: Sequence[Id], plan: Plan, options: Options
) -> tuple[list[Query], Directions | None]:
    """Return (what has to be known of every query, their directions where checking has made them)."""
    asked, block = list[Query](), None
    if plan.exact and pusher.perturbation.direction != "hold" and len(names) <= plan.query_block:
        block = FactoredEngine(pusher.train, pusher.parameters, 1).directions(len(names))
        pusher.take = lambda rows, direction: block.put(pusher.places[rows], direction)
    with progress("queries", len(names), options.progress) as advance:
        for group, called in zip(pusher.members, names, strict=True):
            asked.append(pusher.check(group, called, skip=options.on_bad_query == "skip"))
            advance(1)
    pusher.forget()
    return asked, block


def _plan(
    feed: Feed, rows: Sequence[int], chosen: list[Ints] | None, queries: int, rule: Perturbation, parameters: Parameters,
    first: tuple[Feed, list[int]], options: Options,
) -> tuple[Plan, str]:  # fmt: skip
    """Return (engine, batch size, layout and pieces: found on a few batches, or recalled; a note, or nothing)."""
    reading = len(rows) if chosen is None else round(sum(map(len, chosen)) / max(len(chosen), 1))
    sides, cache = 2 if rule.both_sides else 1, options.cache
    batch_size = None if options.batch_size == "auto" else options.batch_size
    shard_rows = None if options.shard_rows == "auto" else options.shard_rows
    by_passes = options.engine == "factored" or (
        options.engine == "auto" and rule.kind == "linear" and queries * sides > FEW
    )
    work = len(rows) * (1 + (FEW if by_passes else queries * sides))  # the baseline, and what forward passes will read
    known = same_speed(feed, len(rows), options.batch_size, by_passes)
    kept = None if cache is None else cache / "tuning" / f"{known}.json"
    tuning = tune(feed, rows, batch_size, work, kept)
    making = passes_of(rule.direction, queries, directions_together(parameters), rule.steps) * len(feed.examples)
    plan = make_plan(tuning, rows=reading, queries=queries, sides=sides, shard_rows=shard_rows, direction_rows=making)
    moved = digest(known, sorted(parameters), rule.direction)
    asked = Asked(
        engine=options.engine, linear=rule.kind == "linear", signed=rule.signed,
        whitened=rule.direction == "hold" and rule.fit_examples == "auto",
        batch_size=batch_size, shard_rows=shard_rows,
        kept=None if cache is None else cache / "tuning" / moved,
    )  # fmt: skip

    def fill(directions: Directions) -> None:
        """Put in what the queries' directions will be like: of few ranks, or of many."""
        gradient = query_gradient(*first, parameters, plan.batch_size)
        if rule.direction not in LOW_RANK:
            gradient = {name: torch.randn_like(tensor) for name, tensor in gradient.items()}
        for place in range(len(directions)):
            directions.put(place, gradient)

    return choose_engine(asked, plan, feed, parameters, rows, fill)


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


def _groups(
    questions: Examples, groups: Sequence[Id] | None, query_ids: str | Sequence[Id] | None
) -> tuple[list[list[int]], list[Id]]:
    """Return each query's rows and name. A group is one query: its members' mean is perturbed."""
    if groups is None:
        questions.label_with(query_ids)
        return [[row] for row in range(len(questions))], questions.ids
    if query_ids is not None:
        raise SettingError("query_ids", expected="none beside groups (the group's label is its id)", got="both")
    labels = [value.item() if isinstance(value, np.generic | Tensor) else value for value in groups]
    if len(labels) != len(questions):
        raise DataError("groups", expected=f"{len(questions)} labels, one for each query", got=str(len(labels)))
    found: dict[Id, list[int]] = {}
    for row, label in enumerate(labels):
        found.setdefault(label, []).append(row)
    return list(found.values()), list(found)


def _candidates(candidates: Any, rows: Examples, names: list[Id]) -> list[Ints] | None:
    """Return each query's candidate positions, sorted, each once."""
    if candidates is None:
        return None
    if isinstance(candidates, Mapping):
        unknown = [key for key in candidates if key not in set(names)]
        missing = [name for name in names if name not in candidates]
        if unknown or missing:
            raise DataError("candidates", expected="an entry for each query id",
                            got=f"unknown {unknown[:3]}, missing {missing[:3]}")  # fmt: skip
        place = {value: position for position, value in enumerate(rows.ids)}
        lists = []
        for name in names:
            strange = [value for value in candidates[name] if value not in place]
            if strange:
                raise DataError(f"candidates of query {name!r}", expected="training ids", got=repr(strange[0]))
            lists.append([place[value] for value in candidates[name]])
    else:
        plain = candidates.tolist() if isinstance(candidates, np.ndarray | Tensor) else candidates
        if len(plain) != len(names):
            raise DataError("candidates", expected=f"a list for each of {len(names)} queries", got=str(len(plain)))
        lists = [list(entry) for entry in plain]
    found = []
    for name, entry in zip(names, lists, strict=True):
        array = np.unique(np.asarray(entry, dtype=np.int64))
        if len(array) == 0:
            raise DataError(f"candidates of query {name!r}", expected="at least one", got="none")
        if array[0] < 0 or array[-1] >= rows.units:
            bad = array[0] if array[0] < 0 else array[-1]
            raise DataError(
                f"candidates of query {name!r}", expected=f"positions from 0 to {rows.units - 1}", got=str(bad)
            )
        found.append(array)
    return found


def _folder(options: Options, code: str | None) -> Folder | None:
    if options.output_dir is None:
        return None
    if code is None:
        raise SettingError(
            "output_dir", expected="a task whose code can be told apart from another's", got="one that holds something opaque",
            do="Give the function a `version` attribute and keep state out of it, or drop output_dir.",
        )  # fmt: skip
    return Folder(Path(options.output_dir).expanduser())


def _claim(folder: Folder, made_from: dict[str, Any], about: dict[str, Any], options: Options) -> None:
    resumed = folder.claim(made_from, about, overwrite=options.overwrite, config=options.config)
    folder.event("resumed" if resumed else "started")


def _save_queries(folder: Folder, job: Job) -> None:
    """Write what is known of the queries: a resumed run pushes them the same way."""
    columns: dict[str, Any] = {"id": id_column(job.query_ids)}
    records = [asdict(query) for query in job.asked]
    for name in records[0]:
        if name != "rows":
            columns[name if name != "baseline" else "query_baseline"] = [record[name] for record in records]
    columns["rows"] = [list(record["rows"]) for record in records]
    columns["noise_floor"] = job.floor()
    folder.write_columns("queries.parquet", columns, QUERIES)


def _load_queries(folder: Folder) -> list[Query]:
    path = folder.path / "queries.parquet"
    records = read_table(path, QUERIES, what="the queries of a run").to_pylist()
    plain_ids(path, "id", QUERIES)
    return [
        Query(tuple(record["rows"]), record["grad_norm"], record["query_baseline"], record["size"], record["length"],
              record["step"], record["rise"], record["status"], record["usable"], record["share_moved"],
              record.get("direction_norm", math.nan))
        for record in records
    ]  # fmt: skip
