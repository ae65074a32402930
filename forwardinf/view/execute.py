"""From a run configuration to the call it stands for."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from forwardinf import method
from forwardinf.core.bounds import check_depth
from forwardinf.core.errors import FileError, SettingError, choose
from forwardinf.core.files import written
from forwardinf.data.import_gate import import_name, is_code
from forwardinf.data.load import load_data, select_rows, take_rows
from forwardinf.job.options import Call, Options, as_perturbation, device_of, open_examples, settled
from forwardinf.job.prepare import prepare
from forwardinf.job.settle import show
from forwardinf.models.borrowed import borrowed
from forwardinf.models.load import load_model
from forwardinf.read.predict import misclassified
from forwardinf.score.scores import Scores, load_scores
from forwardinf.score.self_influence import SelfInfluence
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.registry import make_task
from forwardinf.tasks.task import Task, as_task
from forwardinf.truth.bank import load_bank
from forwardinf.truth.evaluate import evaluate as hold
from forwardinf.truth.evaluation import Evaluation
from forwardinf.view.clean import for_csv
from forwardinf.view.config import DataSpec, RunConfig, TaskSpec, as_yaml, split_of
from forwardinf.view.row_texts import keep, told_of
from forwardinf.view.text_data import Texts

WHERE_BATCH = 64


def attribute(config: RunConfig, out: Path | None, overwrite: bool, cache_dir: str | None = None) -> Scores:
    """Run a configuration; its run folder keeps the config that replays it."""
    config = config.model_copy(update={"perturbation": as_perturbation(config.perturbation).to_dict()})
    model, train, queries, task = loaded(config)
    options = Options(output_dir=out, overwrite=overwrite, config=as_yaml(config), cache_dir=cache_dir,
                      **_options(config))  # fmt: skip

    def once(options: Options) -> Scores:
        with borrowed(model) as lent:
            return method.run(prepare(_call(config, lent, train, queries, task, options)))

    if config.checkpoints:
        rule = settled(config.perturbation, task)
        scores = method.over_checkpoints(model, config.checkpoints, config.combine, rule, task, options, once)
    else:
        scores = once(options)
    if out is not None and (told := told_of(scores)) is not None:
        keep(told, out)
    return scores


def plan(config: RunConfig) -> dict[str, Any]:
    """Return what a run would do: settled on a few batches, nothing read, nothing written."""
    as_perturbation(config.perturbation)  # a wrong setting is said before anything is loaded
    model, train, queries, task = loaded(config)
    with borrowed(model) as model:
        settled = show(_call(config, model, train, queries, task, Options(**_options(config))))
    found, opened = settled.plan, settled.opened
    stored = found.queries * opened.train.units if opened.keep == "all" else 2 * found.queries * int(opened.keep)
    if opened.rule.straddles and opened.keep == "all":
        stored *= 2  # an uncertainty for each score
    floor = max(found.rows * found.eager_seconds_per_row, 1e-12)  # F, in seconds
    return {
        "engine": found.engine, "because": found.why, "seconds_by_engine": dict(found.considered), "queries": found.queries,
        "training_rows": found.rows, "training_examples": opened.train.units, "readings_per_query": found.sides,
        "batch_size": found.batch_size, "channels_last": found.channels_last, "baseline": found.baseline,
        "forwards": found.forwards, "seconds": {name: round(value, 3) for name, value in found.seconds.items()},
        "in_F": {"baseline": 1.0 if found.baseline == "read" else 0.0, "reading": round(found.seconds["reading"] / floor, 2),
                 "F_star_over_F": round(found.seconds_per_row / found.eager_seconds_per_row, 3)},
        "direction_bytes": found.direction_bytes, "score_bytes_on_disk": 4 * stored,
        "moved_parameters": sum(p.numel() for p in opened.training.parameters.values()), "perturbation": opened.rule.to_dict(),
    }  # fmt: skip


def _call(config: RunConfig, model: Any, train: Any, queries: Any, task: Task, options: Options) -> Call:
    asked, query_ids = queries
    groups = None if config.groups is None else labels_of(asked, config.groups)
    file = None if config.candidates is None else Path(config.candidates)
    return Call(model=model, train=train, queries=asked, task=task, perturbation=config.perturbation,
                ids=config.options.get("ids"), query_ids=None if groups is not None else query_ids, groups=groups,
                candidates=None if file is None else read_candidates(file, positions=groups is None),
                collate_fn=None if config.collate is None else import_name(config.collate, "batch"),
                options=options)  # fmt: skip


def _options(config: RunConfig) -> dict[str, Any]:
    known = {field.name for field in fields(Options)} - {"output_dir", "overwrite", "config", "cache_dir"} | {"ids"}
    for name in config.options:
        if name not in known:
            raise choose("options", name, known)
    return {name: value for name, value in config.options.items() if name != "ids"}


def self_influence(config: RunConfig) -> tuple[SelfInfluence, Any]:
    """Run self-influence over a configuration's model, data and task; return it and the training data."""
    model, task = model_of(config), task_of(config.task)
    train = Texts(config, task, model).read(config.data, "train")
    found = method.self_influence(model, train, task=task, ids=config.options.get("ids"),
                                  seed=int(config.options.get("seed", 0)))  # fmt: skip
    return found, train


def evaluate(
    scores: Path, bank: Path | None, output: str | None, train: str | None, queries: DataSpec | None, task: TaskSpec,
    options: dict[str, Any],
) -> Evaluation:  # fmt: skip
    """Hold saved scores against a bank, or against retraining by the user's function."""
    spoken = task_of(task)
    asked = None
    if queries is not None:
        asked = load_data(queries.spec, **queries.options)
        asked = asked if queries.where is None else take_rows(asked, select_rows(asked, queries.where))
    yardstick = None
    if bank is not None:
        yardstick = load_bank(bank)
        yardstick = yardstick if output is None else yardstick.named(output)
    elif output is not None:
        raise SettingError("--output", expected="--bank", got="none", do="It names one of a bank's outputs.")
    return hold({scores.stem: read_scores(scores)}, asked, task=spoken, bank=yardstick,
                    train_fn=None if train is None else import_name(train, "training function"), **options)  # fmt: skip


def labels_of(queries: Any, named: str) -> list[Any]:
    """Return a label for each query: a column of theirs, or the lines of a file."""
    path = Path(named)
    if path.is_file():
        return path.read_text(encoding="utf-8").splitlines()
    if isinstance(queries, Mapping) or hasattr(queries, "column_names"):
        columns = list(queries) if isinstance(queries, Mapping) else list(queries.column_names)
        if named in columns:
            column = queries[named]
            return list(column.to_pylist() if hasattr(column, "to_pylist") else column)
        raise choose("--groups", named, columns)
    raise SettingError("--groups", expected="a file with a label a line, or a column of the queries", got=repr(named))


def read_candidates(path: Path, *, positions: bool) -> Any:
    """Return each query's candidates: ``{query id: [training ids]}`` of a JSON file, or positions ``(Q, K)`` of an array.

    ``positions``: queries are known by whole numbers, which JSON writes as text.
    """
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return np.load(file, allow_pickle=False)
        content = path.read_bytes()
        check_depth(content, str(path))
        found = json.loads(content)
    except (OSError, ValueError) as error:
        raise FileError(str(path), expected="candidates: JSON {query id: [training ids]}, or .npy of positions",
                        got=str(error)) from error  # fmt: skip
    if not isinstance(found, dict) or not all(isinstance(ids, list) for ids in found.values()):
        raise FileError(str(path), expected="a JSON object {query id: [training ids]}", got=type(found).__name__)
    return {_position(name) if positions else name: ids for name, ids in found.items()}


def _position(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def read_scores(path: Path) -> Any:
    """Return the scores of a run folder, or an array file ``(Q, N)``."""
    if path.suffix != ".npy":
        return load_scores(path)
    try:
        with path.open("rb") as file:
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FileError(str(path), expected="scores (queries, training examples)", got=str(error)) from error


def write_csv(path: Path, table: Any) -> None:
    """Write a data frame as CSV, whole or not at all; text that a spreadsheet would run as a formula is disarmed."""
    safe = table.map(lambda value: for_csv(value) if isinstance(value, str) else value)
    with written(path) as part:
        safe.to_csv(part, index=False)


def loaded(config: RunConfig) -> tuple[Any, Any, tuple[Any, list[int] | None], Task]:
    """Return (model, training data, queries and their ids, task) that a configuration names."""
    model, task = model_of(config), task_of(config.task)
    texts = Texts(config, task, model)
    return model, texts.read(config.data, "train"), queries_of(config, model, task, texts), task


def model_of(config: RunConfig) -> Any:
    """Return the model that a configuration names."""
    spec = config.model
    return load_model(spec.spec, weights=spec.weights, weights_key=spec.weights_key, factory_options=spec.options or None,
                      dtype=spec.dtype)  # fmt: skip


def task_of(spec: TaskSpec) -> Task:
    """Return the task of a name, or what the user's code gives."""
    if is_code(spec.name):
        made = import_name(spec.name, "task")
        return as_task(made(**spec.options) if spec.options or isinstance(made, type) else made)
    return as_task(make_task(spec.name, spec.options))


def queries_of(config: RunConfig, model: Any, task: Task, texts: Texts | None = None) -> tuple[Any, list[int] | None]:
    """Return (queries, their positions in the data they are taken from: their ids)."""
    spec = config.queries
    if (split := split_of(spec.spec)) is not None:
        spec = config.data.model_copy(update={"options": {**config.data.options, "split": split}, "where": spec.where})
    data = (texts or Texts(config, task, model)).read(spec, "queries")
    if spec.where is None:
        return data, None
    rows = _rows(spec, data, model, task, int(config.options.get("seed", 0)))
    return take_rows(data, rows), rows


def _rows(spec: DataSpec, data: Any, model: Any, task: Task, seed: int) -> list[int]:
    if spec.where != "misclassified":
        return select_rows(data, str(spec.where))
    rows = open_examples(data, "queries", task, None, Options(seed=seed))  # what they draw is what the run will see
    with borrowed(model):
        feed = Feed(model, task, rows, device_of(model, "auto"), seed=seed)
        found = misclassified(feed, WHERE_BATCH)
    if not found:
        raise SettingError("--where misclassified", expected="queries that the model gets wrong", got="none")
    sys.stderr.write(f"forwardinf: {len(found)} of {len(feed.examples)} queries are misclassified\n")
    return found
