"""What the caller gives beside model and data, in every form, checked at birth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from forwardinf.core import machine
from forwardinf.core.cache import usable
from forwardinf.core.errors import ModelError, SettingError, choose
from forwardinf.core.paths import as_path
from forwardinf.core.progress import Setting
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Collate, Examples, Id, examples
from forwardinf.read.registry import ENGINES
from forwardinf.tasks.task import Task
from forwardinf.tasks.text import Seq2Seq


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of :func:`forwardinf.attribute` that say how, checked at birth; see there for their meaning."""

    engine: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    shard_rows: int | Literal["auto"] = "auto"
    device: str = "auto"
    keep: int | Literal["all", "auto"] = "auto"
    num_workers: int = 0
    output_dir: str | Path | None = None
    overwrite: bool = False
    cache_dir: str | Path | None = None
    on_bad_query: str = "raise"
    progress: Setting = "auto"
    seed: int = 0
    config: str | None = None  # what replays a command-line run; kept in its folder

    def __post_init__(self) -> None:
        engines = ("auto", *ENGINES)
        if self.engine == "probes":
            raise SettingError("engine", expected=f"one of {', '.join(map(repr, engines))}", got="'probes'",
                               do="Responses to shared probes are an index: fi.ProbeIndex.build(...).query(...).")  # fmt: skip
        if self.engine not in engines:
            raise choose("engine", str(self.engine), engines)
        if self.on_bad_query not in ("raise", "skip"):
            raise choose("on_bad_query", str(self.on_bad_query), ("raise", "skip"))
        if self.progress not in (True, False, "auto"):
            raise SettingError("progress", expected="True, False or 'auto'", got=repr(self.progress))
        for name, words in (("batch_size", ("auto",)), ("shard_rows", ("auto",)), ("keep", ("all", "auto"))):
            value = getattr(self, name)
            if value not in words and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                told = " or ".join(map(repr, words))
                raise SettingError(name, expected=f"a whole number ≥ 1, or {told}", got=repr(value))
        for name in ("num_workers", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SettingError(name, expected="a whole number ≥ 0", got=repr(value))
        for name in ("output_dir", "cache_dir"):
            if (given := getattr(self, name)) is not None:
                as_path(name, given)

    @property
    def cache(self) -> Path | None:
        """Where baselines and tunings are kept between calls."""
        return usable(machine.cache_folder(self.cache_dir))


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a caller asks, and of what; see :func:`forwardinf.attribute`."""

    model: nn.Module
    train: Any
    queries: Any
    task: Any
    options: Options
    perturbation: Perturbation | str | Mapping[str, Any] | None = None
    ids: str | Sequence[Id] | None = None
    query_ids: str | Sequence[Id] | None = None
    groups: Sequence[Id] | None = None
    candidates: Any = None
    collate_fn: Collate | None = None


def as_perturbation(value: Perturbation | str | Mapping[str, Any] | None) -> Perturbation:
    """Return a perturbation from one, the name of a preset or direction, its settings, or None (the preset ``"linear"``)."""
    if isinstance(value, Perturbation):
        return value
    if value is None or isinstance(value, str):
        return Perturbation.preset("linear" if value is None else value)
    if isinstance(value, Mapping):
        return Perturbation.from_dict(value)
    raise SettingError(
        "perturbation", expected="fi.Perturbation(...), or a preset's or direction's name", got=repr(value)
    )


def settled(value: Perturbation | str | Mapping[str, Any] | None, task: Task) -> Perturbation:
    """Return the perturbation with what depends on the task decided."""
    return as_perturbation(value).for_task(type(task).__name__, root=task.rooted)


def device_of(model: nn.Module, asked: str) -> torch.device:
    """Return where the model's parameters are; a user's model is never moved."""
    if not isinstance(model, nn.Module):
        raise ModelError("model", expected="a torch.nn.Module", got=type(model).__name__)
    devices = {parameter.device for parameter in model.parameters()}
    if not devices:
        raise ModelError("model", expected="parameters", got="none")
    found = next(model.parameters()).device
    if asked != "auto" and torch.device(asked).type != found.type:
        raise SettingError("device", expected=f"'auto' or {found.type!r}, where the model is", got=repr(asked),
                           do="Move the model there first: model.to(...).")  # fmt: skip
    return found


def open_examples(data: Any, name: str, task: Task, collate_fn: Collate | None, options: Options) -> Examples:
    """Return data in any form as rows read by position, joined as the user or the task says."""
    workers = options.num_workers if name == "train" else 0
    found = examples(
        data, name=name, collate_fn=collate_fn, task_collate=task.collate, seed=options.seed, num_workers=workers
    )
    found.two_texts = isinstance(task, Seq2Seq)
    return found
