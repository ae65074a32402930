"""Second stage: how the reading will be done. Engine, batch size, layout and pieces are found on a few batches, or followed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from forwardinf.core.fingerprint import digest
from forwardinf.gradients.directions import Directions
from forwardinf.job.estimate import fit_seconds, query_seconds
from forwardinf.job.open import Opened, open_call
from forwardinf.job.options import Call
from forwardinf.job.run_folder import RunFolder, find_folder
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.gradient import query_gradient
from forwardinf.perturb.push import directions_together
from forwardinf.perturb.registry import DIRECTIONS, passes_of
from forwardinf.read.asked import Asked, Ground
from forwardinf.read.baseline import Baseline, baseline_key, load_baseline
from forwardinf.read.choose import FEW, choose_engine
from forwardinf.read.plan import LEFT, Plan, make_plan
from forwardinf.read.registry import ENGINES
from forwardinf.read.speed_key import same_speed
from forwardinf.read.trunk import TrunkFiles
from forwardinf.read.tune import tune
from forwardinf.tasks.feed import Feed


@dataclass(frozen=True)
class Settled:
    """A call and how it is done.

    Attributes:
        opened: The call.
        place: Where the run is kept.
        plan: How the reading is done.
        train: The model on its training rows, laid out as forward passes read it.
        asking: The queries, laid out likewise.
        known: The baseline of an earlier call, or None.
        baseline_file: Where the baseline is kept for later calls, or None.
        trunk_folder: Where activations of a trunk are kept, or None.
    """

    opened: Opened
    place: RunFolder
    plan: Plan
    train: Feed
    asking: Feed
    known: Baseline | None
    baseline_file: Path | None
    trunk_folder: Path | None

    def fitting(self) -> Fitting:
        """Return what the direction is fitted on."""
        opened = self.opened
        return Fitting(opened.rule, self.train, opened.training.parameters, self.plan.batch_size, opened.training.key,
                       opened.cache, opened.options.progress, opened.notes)  # fmt: skip


def settle(opened: Opened, engine: str | None = None) -> Settled:
    """Settle how a call is done; ``engine`` in place of the one that was asked for.

    Cost: some 8 % of what will be read, or nothing where this model's form has been measured before.

    Raises:
        RunMismatch: The run folder holds another run.
        ModelError: The engine that was asked for cannot read this model.
    """
    place = find_folder(opened)
    plan = place.plan() or _plan(opened, engine or opened.options.engine)
    train = replace(opened.training.feed, channels_last=plan.channels_last)
    placed = replace(train, channels_last=plan.pass_channels_last) if plan.exact else train
    size = plan.batch_size_at(0)
    key = baseline_key(placed, opened.training.model, opened.training.data, opened.training.code, size)
    kept = None if key is None else opened.cache
    name = None if kept is None else digest(key, None if opened.candidates is None else list(opened.rows))
    path = None if kept is None else kept / "baselines" / f"{name}.safetensors"
    trunks = None if kept is None else kept / "trunks" / digest(key)
    known = load_baseline(path, placed, size, opened.notes)
    if not place.begun:
        plan = _with_what_is_kept(plan, opened, known, trunks)
    asking = opened.asking(channels_last=plan.channels_last)
    opened.notes.extend(note for note in opened.queries.notes if note not in opened.notes)  # what they are brought to
    return Settled(opened, place, plan, train, asking, known, path, trunks)


def show(call: Call) -> Settled:
    """Settle a call and estimate what its fit and its queries take, for showing the plan: nothing is read or written."""
    settled = settle(open_call(call))
    opened, plan = settled.opened, settled.plan
    each = query_seconds(
        settled.asking, opened.members[0], opened.training.parameters,
        plan.pass_batch_size if plan.exact else plan.batch_size, exact=plan.exact, rise=opened.rule.rise is not None,
    )  # fmt: skip
    fit = fit_seconds(settled.fitting(), plan.seconds_per_row)
    return replace(settled, plan=replace(plan, fit_seconds=fit, query_seconds=len(opened.query_ids) * each))


def _plan(opened: Opened, engine: str) -> Plan:
    """Return engine, batch size, layout and pieces: found on a few batches, or recalled."""
    rule, options, chosen, cache = opened.rule, opened.options, opened.candidates, opened.cache
    feed, rows, queries = opened.training.feed, opened.rows, len(opened.query_ids)
    parameters = opened.training.parameters
    reading = len(rows) if chosen is None else round(sum(map(len, chosen)) / max(len(chosen), 1))
    sides = 2 if rule.both_sides else 1
    batch_size = None if options.batch_size == "auto" else options.batch_size
    shard_rows = None if options.shard_rows == "auto" else options.shard_rows
    exact = engine in ENGINES and ENGINES[engine].exact
    by_passes = exact or (engine == "auto" and rule.kind == "linear" and queries * sides > FEW)
    work = len(rows) * (1 + (FEW if by_passes else queries * sides))  # the baseline, and what forward passes will read
    form = same_speed(feed, len(rows), options.batch_size, by_passes)
    tuning = tune(feed, rows, batch_size, work, None if cache is None else cache / "tuning" / f"{form}.json")
    making = passes_of(rule.direction, queries, directions_together(parameters), rule.steps) * len(feed.examples)
    plan = make_plan(tuning, rows=reading, queries=queries, sides=sides, shard_rows=shard_rows, direction_rows=making)
    asked = Asked(
        engine=engine, linear=rule.kind == "linear", signed=rule.signed, batch_size=batch_size, shard_rows=shard_rows,
        whitened=DIRECTIONS[rule.direction].examples and rule.fit_examples == "auto",
        kept=None if cache is None else cache / "tuning" / digest(form, sorted(parameters), rule.direction),
    )  # fmt: skip

    def fill(directions: Directions) -> None:
        """Put in what the queries' directions will be like: of few ranks, or of many."""
        gradient = query_gradient(opened.asking(), opened.members[0], parameters, plan.batch_size)
        if not DIRECTIONS[rule.direction].low_rank:
            gradient = {name: torch.randn_like(tensor) for name, tensor in gradient.items()}
        for place in range(len(directions)):
            directions.put(place, gradient)

    chosen_plan, note = choose_engine(asked, plan, Ground(feed, parameters, rows, fill))
    opened.notes.extend([note] if note else [])
    return chosen_plan


def _with_what_is_kept(plan: Plan, opened: Opened, known: Baseline | None, trunks: Path | None) -> Plan:
    """Return the plan with what earlier calls have left, and what an exact pass will leave."""
    passing = plan.exact and opened.candidates is None and not DIRECTIONS[opened.rule.direction].examples
    plan = replace(plan, baseline="cached" if known is not None else LEFT if passing else "read")
    if plan.cut and trunks is not None:
        there = TrunkFiles(trunks / plan.cut).count(plan.batch_size)
        plan = replace(plan, trunk_rows=min(there * plan.batch_size, len(opened.train)))
        plan = replace(plan, considered={**plan.considered, plan.engine: round(plan.seconds["reading"], 4)})
    return plan
