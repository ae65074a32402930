"""The method, whole. Read this file first.

perturb   the query moves the trained weights a little: θ → θ′
read      every training example's loss under θ′, by forward passes (under θ they were read once: the baseline)
score     the difference: positive = proponent

A linear score is the limit of that difference for a short move, gᵢᵀP g_q. For many queries it is read from the other side,
exactly: each training example's gradient along all queries' directions, in one pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from forwardinf.core.errors import ModelError, SettingError, choose
from forwardinf.core.progress import Setting, stages
from forwardinf.core.settings import OF_RATES, Perturbation
from forwardinf.data.examples import Collate, Id
from forwardinf.gradients.per_example import recorder_of
from forwardinf.job.job import Job
from forwardinf.job.options import Call, Options, settled
from forwardinf.job.prepare import prepare
from forwardinf.job.result import scores_of
from forwardinf.job.self_influence import prepare_self
from forwardinf.models.borrowed import bare, borrowed
from forwardinf.models.checkpoints import Checkpoints
from forwardinf.perturb.swap import lend, tensors_of
from forwardinf.read.plan import Unit
from forwardinf.score.combine import HOWS, into_folder
from forwardinf.score.combine import combine as combine_scores
from forwardinf.score.influence import influence, rate, residual
from forwardinf.score.scores import Scores
from forwardinf.score.self_influence import SelfInfluence
from forwardinf.tasks.task import Task, as_task


def run(job: Job) -> Scores:
    """Perturb, read, score: the only place where the three meet."""
    for unit in job.pending():
        job.keep(unit, *([rates(job, unit)] if job.exact else differences(job, unit)))
    return scores_of(job)


def differences(job: Job, unit: Unit) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Move the model, read the losses again, compare: any length, any model, a forward for each query and example.

    Two sides of one straight push also tell how far from straight the losses run between them.
    """
    scores, bends = {}, {}
    for query in unit.queries:
        push = job.pusher.push(job.asked[query])
        before, after = (
            job.before(unit),
            list(job.read(unit, [partial(lend, job.pusher.live, moved) for moved in push.sides])),
        )
        scores[query] = influence(before, after, job.perturbation, push.step)
        if job.perturbation.straddles:
            bends[query] = residual(before, after, job.perturbation)
    return scores, bends


def rates(job: Job, unit: Unit) -> dict[int, Tensor]:
    """Take every example's gradient along the queries' directions: the limit of the same, exact, for all queries at once."""
    if job.pusher.whitened:
        found = job.whitened(unit)
    else:
        found = dict(zip(unit.queries, job.read(unit, job.directions(unit.queries)), strict=True))
    before = job.before(unit)
    return {query: rate(change, before, job.perturbation) for query, change in found.items()}


def attribute(
    model: nn.Module,
    train: Any,
    queries: Any,
    *,
    task: Any,
    perturbation: Perturbation | str | Mapping[str, Any] | None = None,
    engine: str = "auto",
    ids: str | Sequence[Id] | None = None,
    query_ids: str | Sequence[Id] | None = None,
    groups: Sequence[Id] | None = None,
    candidates: Any = None,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    shard_rows: int | Literal["auto"] = "auto",
    device: str = "auto",
    keep: int | Literal["all", "auto"] = "auto",
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    on_bad_query: str = "raise",
    progress: Setting = "auto",
    seed: int = 0,
    checkpoints: Sequence[Any] | None = None,
    combine: str = "mean",
) -> Scores:
    """Score how much every training example supports each query: positive = proponent.

    The query moves the model a little away from itself; training examples whose loss rises with it are those that made
    the model behave so, by the Mirrored Influence Hypothesis (Ko et al., CVPR 2024, arXiv:2402.08922).

    Cost: the baseline, one forward pass per training example (kept in ``cache_dir`` for later calls), then one forward
    pass per training example and query (two with ``two_sided``), and a few forwards and backwards of the query itself.
    Linear scores of many queries: one forward and one backward per training example and block of queries instead.
    Memory: one copy of the parameters that move (two with ``two_sided``; for a block of linear queries one each), the
    losses, and a batch.

    Args:
        model: Any module. Put in eval mode for the call, perturbed in place and given back bit for bit, flags included;
            never moved to another device.
        train: Tensors, arrays, a dataset, a list of rows, a data frame, an Arrow table or a DataLoader; read in index order.
            Floating numbers are brought to the model's dtype where it does not take them as they are; a note says so.
        queries: The examples to explain, in the same forms.
        task: What an example's loss is: ``fi.Classification()`` and so on, or any ``(model, batch) -> (B,)``.
        perturbation: :class:`Perturbation`, the name of a preset or of a direction (``"ekfac"``), or its settings; None:
            the preset ``"linear"``.
        engine: ``"forward"``: one forward pass per query and example, any perturbation and model. ``"factored"``: exact
            linear scores of all queries in one pass of a few F (one example at a time, with a note, where a batch's
            gradients cannot be taken apart); refuses finite lengths. ``"auto"``: the faster of the two where they mean the
            same; the plan says which. Or one that was added (docs/extending.md).
        ids: Training ids: a list of unique values, or a column's name; default the position.
        query_ids: Query ids, likewise.
        groups: One label for each query: the members' mean is one query, named by the label.
        candidates: ``(Q, K)`` training positions, or ``{query id: training ids}``: only those are read; the rest is NaN.
        collate_fn: Joins rows into a batch, as in a DataLoader.
        num_workers: Worker processes that fetch rows.
        batch_size: Examples at a time; ``"auto"``: the fastest found on a few batches. Halved where memory runs out.
        shard_rows: Rows of one unit of work (what a killed run loses at most); ``"auto"``: about ten seconds' worth.
        device: ``"auto"``: where the model is.
        keep: ``"all"`` scores, or the k best and worst of each query; ``"auto"``: all up to 1e8 scores.
        output_dir: A run folder: the same call resumes it or returns what it holds.
        overwrite: Start the run folder over.
        cache_dir: Where baselines are kept (``"off"``: nowhere); default ``$FORWARDINF_CACHE``, else ``~/.cache/forwardinf``.
        on_bad_query: ``"raise"`` where a query has no gradient, or ``"skip"`` (its row is NaN, its status says why).
        progress: Show progress on stderr.
        seed: Of everything that is drawn: the dataset's transforms, diffusion noise.
        checkpoints: Other states of the model (training checkpoints, other seeds) to score under and combine: paths (weights
            in safetensors or tensors only, folders of transformers or diffusers, ``checkpoint-500`` of a Trainer,
            adapters), state dicts, modules; the model itself stands for its own weights. Each costs a whole call;
            scores gain an ``uncertainty``, all scores are kept, and an ``output_dir`` holds each one's run.
        combine: ``"mean"`` of the scores (task units) or ``"standardized"``: mean of z-scores per query (no unit).

    Returns:
        :class:`Scores`: ``values (Q, N)``, ``share``, ``top(k)``, ``report(path)`` and more.

    Raises:
        Error: With where / expected / got / do; see ``forwardinf/core/errors.py``. Nothing half-written is left behind.

    Example:
        >>> import torch, forwardinf as fi
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> y = torch.tensor([0, 1, 1])
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(2, 2)
        >>> scores = fi.attribute(model, (x, y), (x[:1], y[:1]), task=fi.Classification())
        >>> scores.top(1)["train"].item(), round(float(scores.share[0, 0]), 2)
        (0, 1.0)
    """
    options = Options(
        engine=engine, batch_size=batch_size, shard_rows=shard_rows, device=device, keep=keep, num_workers=num_workers,
        output_dir=output_dir, overwrite=overwrite, cache_dir=cache_dir, on_bad_query=on_bad_query, progress=progress,
        seed=seed,
    )  # fmt: skip
    call = Call(model=model, train=train, queries=queries, task=task, perturbation=perturbation, ids=ids, query_ids=query_ids,
                groups=groups, candidates=candidates, collate_fn=collate_fn, options=options)  # fmt: skip

    def once(options: Options) -> Scores:
        with borrowed(model) as lent:
            return run(prepare(replace(call, model=lent, options=options)))

    if checkpoints is None:
        return once(options)
    spoken = as_task(task)
    return over_checkpoints(bare(model), checkpoints, combine, settled(perturbation, spoken), spoken, options, once)


def over_checkpoints(
    model: nn.Module, given: Sequence[Any], how: str, rule: Perturbation, task: Task, options: Options,
    once: Callable[[Options], Scores],
) -> Scores:  # fmt: skip
    """Score under each checkpoint, as its own resumable run, and combine; see :func:`attribute`."""
    if isinstance(options.keep, int):
        raise SettingError("keep", expected="'all' or 'auto' beside checkpoints=", got=str(options.keep),
                           do="The best of each checkpoint are not the best of the mean.")  # fmt: skip
    if how not in HOWS:
        raise choose("combine", str(how), HOWS)
    checkpoints = Checkpoints(model, given)
    path = Path(options.output_dir).expanduser() if options.output_dir is not None else None
    made_from = {"model": checkpoints.digests, "combine": how}
    unit = None if how == "standardized" else rule.unit_of(task.unit)
    meaning: dict[str, Any] = {
        "kind": rule.kind, "unit": unit, "signed": rule.signed, "perturbation": rule.to_dict(), "kept": "all", "notes": [],
    }  # fmt: skip
    finish = into_folder(path, made_from, meaning, overwrite=options.overwrite, config=options.config)
    parts = []
    for number, digest in enumerate(checkpoints.digests):
        own = path / f"checkpoint-{number:03d}" if path is not None else None
        with lend(tensors_of(model), checkpoints.read(number)):
            parts.append(once(replace(options, keep="all", output_dir=own, overwrite=False, config=None)))
        if parts[-1].made_from["model"] != digest:
            raise ModelError(f"checkpoints[{number}]", expected="the weights that were there at the start of the call",
                             got="others", do="Let nothing write to a checkpoint that is being read.")  # fmt: skip
    combined = combine_scores(parts, how)
    combined.pictured = parts[-1].pictured
    return finish(combined)


def self_influence(
    model: nn.Module,
    train: Any,
    *,
    task: Any,
    direction: str | Perturbation = "plain",
    parameters: str | Sequence[str] | None = None,
    ids: str | Sequence[Id] | None = None,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    cache_dir: str | Path | None = None,
    progress: Setting = "auto",
    seed: int = 0,
) -> SelfInfluence:
    """Return gᵢᵀ P gᵢ of every training example: how strongly it acts on its own loss (Koh & Liang 2017; TracIn 2020).

    It is the linear score of the example asked about itself. High values mark the unusual, the mislabelled and the
    memorised; so does the loss alone, which is returned beside it.

    Cost: one pass of about 3 F, and the direction's fit. Where P cannot be applied to factors (``"cg"``) or a layer is not
    known, per-example gradients one at a time: a few F and slower by the loss of batching; a note says why.

    Args:
        model: As in :func:`attribute`.
        train: As in :func:`attribute`.
        task: As in :func:`attribute`.
        direction: P: ``"plain"`` (‖gᵢ‖²), ``"sign"`` (‖gᵢ‖₁), or a fitted one (``"ekfac"``, ``"hold"``, …; see
            :class:`Perturbation`), or a :class:`Perturbation` with its damping and so on (its length does not count).
        parameters: Globs over the names of the parameters that count.
        ids: As in :func:`attribute`.
        collate_fn: As in :func:`attribute`.
        num_workers: As in :func:`attribute`.
        batch_size: Examples at a time; ``"auto"``: the fastest found on a few batches.
        device: As in :func:`attribute`.
        cache_dir: Where fits are kept, as in :func:`attribute`.
        progress: As in :func:`attribute`.
        seed: As in :func:`attribute`.

    Returns:
        :class:`SelfInfluence`: ``values (N,)``, ``loss (N,)``, ``ids``, ``notes``. ``scores.cosine(found)`` divides linear
        scores by it.

    Example:
        >>> import torch, forwardinf as fi
        >>> found = fi.self_influence(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), task=fi.Classification())
        >>> found.values.shape
        (2,)
    """
    options = Options(
        batch_size=batch_size, device=device, num_workers=num_workers, cache_dir=cache_dir, progress=progress, seed=seed
    )
    asked = direction if isinstance(direction, Perturbation) else Perturbation(direction)
    chosen = (
        asked.parameters if parameters is None else [parameters] if isinstance(parameters, str) else list(parameters)
    )
    kept = {name: getattr(asked, name) for name in (*OF_RATES, "seed")} | {"parameters": chosen}
    rule = settled(kept, as_task(task))
    with stages("self-influence", progress) as whole, borrowed(model) as model:
        job = prepare_self(
            model, train, task=task, perturbation=rule, ids=ids, collate_fn=collate_fn, options=options, whole=whole
        )
        began = time.perf_counter()
        values, losses = job.read()
        told = recorder_of(job.feed, job.parameters).told()
        notes = [*job.notes, *([told] if told else [])]
    cost = {**job.clock, "read_s": time.perf_counter() - began, "forwards": len(values)}
    return SelfInfluence(
        values.numpy(),
        losses.numpy(),
        job.feed.examples.ids,
        rule.unit_of(job.feed.task.unit),
        cost,
        notes,
        rule.to_dict(),
    )
