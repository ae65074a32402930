"""First stage: everything that a call names is opened, checked and known by its content. Nothing is read yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forwardinf.core import machine
from forwardinf.core.errors import DataError, SettingError
from forwardinf.core.fingerprint import code_digest, digest, model_digest, notes_on
from forwardinf.core.progress import progress
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Collate, Examples, Id
from forwardinf.job.options import Call, Options, device_of, open_examples, settled
from forwardinf.perturb.parameters import Parameters, select
from forwardinf.score.top import Ints
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.task import Task, as_task

ALL_UP_TO = 10**8  # scores kept whole by keep="auto"
KEPT_BEYOND = 1000


@dataclass(frozen=True)
class Training:
    """A model and its training set.

    Attributes:
        feed: The model on its training rows, in the ordinary layout.
        data: The digest of the rows.
        code: Of the task's code; None where that cannot be told apart from another's.
        parameters: Those that count.
    """

    feed: Feed
    data: str
    code: str | None
    parameters: Parameters

    @cached_property
    def model(self) -> str:
        """The digest of the model's weights; to be asked for before anything moves them."""
        return model_digest(self.feed.model)

    @property
    def key(self) -> str | None:
        """What a fit on all of it is kept under; None: it is not kept."""
        return None if self.code is None else digest(self.model, self.data, self.code)


@dataclass(frozen=True)
class Opened:
    """A call, opened.

    Attributes:
        training: The model, its task and training rows.
        queries: The rows asked about.
        members: The rows of each query: several for a group.
        query_ids: Their names.
        candidates: Each query's training positions, sorted; None: all.
        rule: How a query moves the model, with what depends on the task decided.
        options: As given.
        asked_for: The digest of the query rows.
        notes: What a person should know; what comes later adds to it.
    """

    training: Training
    queries: Examples
    members: list[list[int]]
    query_ids: list[Id]
    candidates: list[Ints] | None
    rule: Perturbation
    options: Options
    asked_for: str
    notes: list[str] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """What a training example's loss is."""
        return self.training.feed.task

    @property
    def train(self) -> Examples:
        """The training rows."""
        return self.training.feed.examples

    @cached_property
    def rows(self) -> Sequence[int]:
        """Training rows that are read: all, or those that hold some query's candidates."""
        if self.candidates is None:
            return range(len(self.train))
        return self.train.rows_of(sorted({int(unit) for chosen in self.candidates for unit in chosen}))

    @cached_property
    def cache(self) -> Path | None:
        """Where baselines, fits and tunings are kept between calls."""
        return self.options.cache

    @property
    def keep(self) -> int | str:
        """``"all"`` scores, or how many best and worst of each query."""
        if self.options.keep != "auto":
            return self.options.keep
        return "all" if len(self.query_ids) * self.train.units <= ALL_UP_TO else KEPT_BEYOND

    def asking(self, *, channels_last: bool = False) -> Feed:
        """Return the queries brought to the model, as they are asked."""
        feed = self.training.feed
        return Feed(feed.model, self.task.whole(), self.queries, feed.device, channels_last, self.options.seed, asked={},
                    recorders=feed.recorders)  # fmt: skip

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """What the scores depend on: a run folder holds those of one such set."""
        options, chosen = self.options, self.candidates
        return {
            "model": self.training.model, "data": self.training.data, "queries": self.asked_for, "task": self.training.code,
            "ids": digest(self.train.ids, self.query_ids, self.members),
            "candidates": None if chosen is None else digest([list(map(int, c)) for c in chosen]),
            "perturbation": digest(self.rule.to_dict()), "seed": options.seed, "keep": options.keep,
            "engine": options.engine, "batch_size": options.batch_size, "shard_rows": options.shard_rows,
            "on_bad_query": options.on_bad_query, "device": self.training.feed.device.type,
        }  # fmt: skip

    def about(self) -> dict[str, Any]:
        """Return what the scores mean."""
        rule = self.rule
        return {"kind": rule.kind, "unit": rule.unit_of(self.task.unit), "signed": rule.signed,
                "perturbation": rule.to_dict(), "notes": [*self.train.notes, *self.queries.notes], "kept": self.keep,
                "versions": machine.versions()}  # fmt: skip


def open_call(call: Call) -> Opened:
    """Open what a call names. Cost: one read over the data, for its digest.

    Raises:
        Error: Of whatever does not fit: the model, the data, ids, groups, candidates, settings.
    """
    task, options = as_task(call.task), call.options
    rule = settled(call.perturbation, task)
    device = device_of(call.model, options.device)
    train = open_examples(call.train, "train", task, call.collate_fn, options)
    queries = open_examples(call.queries, "queries", task, call.collate_fn, options)
    members, names = _groups(queries, call.groups, call.query_ids)
    with progress("hashing", len(train) + len(queries), options.progress) as advance:
        data = train.seal(range(len(train)), advance, task.parts if task.packed else None, call.ids)
        asked_for = queries.seal(range(len(queries)), advance, None)
    candidates = _candidates(call.candidates, train, names)
    training = _training(call.model, task, train, device, data, rule.parameters, options)
    opened = Opened(training, queries, members, names, candidates, rule, options, asked_for)
    opened.notes.extend([*train.notes, *queries.notes, *notes_on(call.model)])
    return opened


def open_training(
    model: nn.Module, train: Any, *, task: Any, parameters: Sequence[str] | None, ids: str | Sequence[Id] | None,
    collate_fn: Collate | None, options: Options,
) -> Training:  # fmt: skip
    """Open a model and its training set alone, where there is no query."""
    spoken, device = as_task(task), device_of(model, options.device)
    rows, data = open_rows(train, "train", spoken, collate_fn, options, ids)
    return _training(model, spoken, rows, device, data, parameters, options)


def open_rows(
    data: Any,
    name: str,
    task: Task,
    collate_fn: Collate | None,
    options: Options,
    ids: str | Sequence[Id] | None = None,
) -> tuple[Examples, str]:
    """Return (data in any form as rows that are named and may not change any more, their digest)."""
    rows = open_examples(data, name, task, collate_fn, options)
    label = "hashing" if name == "train" else f"{name}: hashing"
    with progress(label, len(rows), options.progress) as advance:
        return rows, rows.seal(range(len(rows)), advance, task.parts if task.packed else None, ids)


def _training(
    model: nn.Module, task: Task, rows: Examples, device: torch.device, data: str,
    parameters: Sequence[str] | None, options: Options,
) -> Training:  # fmt: skip
    code = code_digest(task, getattr(task, "version", None))  # before the task has read anything, which may change it
    return Training(Feed(model, task, rows, device, seed=options.seed), data, code, select(model, parameters))


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
