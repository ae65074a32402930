"""From a run configuration to the call it stands for."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from forwardinf import method
from forwardinf.core.borrow import borrowed
from forwardinf.core.errors import SettingError, choose
from forwardinf.core.feed import Feed
from forwardinf.core.files import written
from forwardinf.core.load_code import CODE, import_name
from forwardinf.core.load_data import load_data, select_rows
from forwardinf.core.load_model import load_model
from forwardinf.core.task import Classification, MultiLabel, Regression, Task, as_task
from forwardinf.core.task_text import CausalLM, Seq2Seq, SequenceClassification
from forwardinf.job import Job, Options, as_perturbation, device_of, open_examples, prepare
from forwardinf.read.predict import misclassified
from forwardinf.score.scores import Scores
from forwardinf.score.self_influence import SelfInfluence
from forwardinf.view.clean import for_csv
from forwardinf.view.config import DataSpec, RunConfig, as_yaml

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "regression": Regression,
    "multi-label": MultiLabel,
    "sequence-classification": SequenceClassification,
    "causal-lm": CausalLM,
    "seq2seq": Seq2Seq,
}
WHERE_BATCH = 64


def attribute(config: RunConfig, out: Path | None, overwrite: bool) -> Scores:
    """Run a configuration; its run folder keeps the config that replays it."""
    config = config.model_copy(update={"perturbation": as_perturbation(config.perturbation).to_dict()})
    model, train, queries, task = _loaded(config)
    options = Options(output_dir=out, overwrite=overwrite, config=as_yaml(config), **_options(config))
    with borrowed(model):
        return method.run(_prepared(config, model, train, queries, task, options))


def plan(config: RunConfig) -> dict[str, Any]:
    """Return what a run would do: settled on a few batches, nothing read, nothing written."""
    perturbation = as_perturbation(config.perturbation)  # a wrong setting is said before anything is loaded
    model, train, queries, task = _loaded(config)
    with borrowed(model):
        job = _prepared(config, model, train, queries, task, Options(**_options(config)), dry=True)
    found = job.plan
    stored = (
        found.queries * job.train.examples.units if job.keep_rule == "all" else 2 * found.queries * int(job.keep_rule)
    )
    return {
        "engine": found.engine, "queries": found.queries, "training_rows": found.rows,
        "training_examples": job.train.examples.units, "readings_per_query": found.sides, "batch_size": found.batch_size,
        "channels_last": found.channels_last, "baseline": found.baseline, "forwards": found.forwards,
        "seconds": {name: round(value, 2) for name, value in found.seconds.items()},
        "in_F": {"baseline": 0.0 if found.baseline == "cached" else 1.0, "reading": round(found.forwards / max(found.rows, 1), 2),
                 "F_star_over_F": round(found.seconds_per_row / found.eager_seconds_per_row, 3)},
        "score_bytes_on_disk": 4 * stored, "moved_parameters": sum(p.numel() for p in job.pusher.parameters.values()),
        "perturbation": perturbation.to_dict(),
    }  # fmt: skip


def _prepared(
    config: RunConfig, model: Any, train: Any, queries: Any, task: Task, options: Options, *, dry: bool = False
) -> Job:
    asked, query_ids = queries
    return prepare(
        model, train, asked, task=task, perturbation=config.perturbation, ids=config.options.get("ids"),
        query_ids=query_ids, groups=None, candidates=None, collate_fn=None, options=options, dry=dry,
    )  # fmt: skip


def _options(config: RunConfig) -> dict[str, Any]:
    known = {field.name for field in fields(Options)} - {"output_dir", "overwrite", "config"} | {"ids"}
    for name in config.options:
        if name not in known:
            raise choose("options", name, known)
    return {name: value for name, value in config.options.items() if name != "ids"}


def self_influence(config: RunConfig) -> SelfInfluence:
    """Run self-influence over a configuration's model, data and task."""
    model = _model(config)
    train = load_data(config.data.spec, **config.data.options)
    return method.self_influence(model, train, task=_task(config), ids=config.options.get("ids"),
                                 seed=int(config.options.get("seed", 0)))  # fmt: skip


def write_csv(path: Path, table: Any) -> None:
    """Write a data frame as CSV, whole or not at all; text that a spreadsheet would run as a formula is disarmed."""
    safe = table.map(lambda value: for_csv(value) if isinstance(value, str) else value)
    with written(path) as part:
        safe.to_csv(part, index=False)


def _loaded(config: RunConfig) -> tuple[Any, Any, tuple[Any, list[int] | None], Task]:
    model, task = _model(config), _task(config)
    train = load_data(config.data.spec, **config.data.options)
    return model, train, _queries(config, model, task), task


def _model(config: RunConfig) -> Any:
    spec = config.model
    return load_model(spec.spec, weights=spec.weights, weights_key=spec.weights_key, factory_options=spec.options or None,
                      dtype=spec.dtype)  # fmt: skip


def _task(config: RunConfig) -> Task:
    name = config.task.name
    if name in TASKS:
        try:
            return TASKS[name](**config.task.options)
        except TypeError as error:
            raise SettingError(f"--task-option for {name}", expected="arguments of the task", got=str(error)) from error
    if CODE.fullmatch(name):
        made = import_name(name)
        return as_task(made(**config.task.options) if config.task.options or isinstance(made, type) else made)
    raise choose("--task", name, TASKS)


def _queries(config: RunConfig, model: Any, task: Task) -> tuple[Any, list[int] | None]:
    """Return (queries, their positions in the data they are taken from: their ids)."""
    spec = config.queries
    if spec.spec.startswith("data:"):
        split = spec.spec.removeprefix("data:")
        data = load_data(config.data.spec, **{**config.data.options, "split": split})
    else:
        data = load_data(spec.spec, **spec.options)
    if spec.where is None:
        return data, None
    rows = _rows(spec, data, model, task)
    return load_rows(data, rows), rows


def load_rows(data: Any, rows: list[int]) -> Any:
    """Return these rows of data in any of the readers' forms."""
    if isinstance(data, tuple):
        return tuple(column[rows] for column in data)
    if hasattr(data, "take"):
        return data.take(rows)
    return data.select(rows) if hasattr(data, "select") else [data[row] for row in rows]


def _rows(spec: DataSpec, data: Any, model: Any, task: Task) -> list[int]:
    if spec.where != "misclassified":
        return select_rows(data, str(spec.where))
    feed = Feed(model, task, open_examples(data, "queries", task, None, Options()), device_of(model, "auto"))
    with borrowed(model):
        found = misclassified(feed, WHERE_BATCH)
    if not found:
        raise SettingError("--where misclassified", expected="queries that the model gets wrong", got="none")
    sys.stderr.write(f"forwardinf: {len(found)} of {len(feed.examples)} queries are misclassified\n")
    return found
