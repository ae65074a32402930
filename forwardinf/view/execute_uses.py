"""From a run configuration to the use it stands for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from forwardinf.core.errors import SettingError
from forwardinf.core.registry import brought
from forwardinf.use.labels.memorized import Memorized, memorized
from forwardinf.use.labels.mislabeled import Mislabeled, mislabeled
from forwardinf.use.leaks.leaks import Leaks, leaks
from forwardinf.use.registry import USES
from forwardinf.use.tables import Found
from forwardinf.view import execute
from forwardinf.view.config import DataSpec, RunConfig


def run_leaks(config: RunConfig, clean: str | None, clean_where: str | None, **settings: Any) -> Leaks:
    """Find leaks."""
    model, train, (queries, query_ids), task = execute.loaded(config)
    return leaks(model, train, queries, task=task, query_ids=query_ids, clean=_clean(config, model, task, clean, clean_where),
                 **_given(config), **settings)  # fmt: skip


def run_mislabeled(config: RunConfig, clean: str | None, clean_where: str | None) -> Mislabeled:
    """Find wrong labels."""
    model, train, _, task = execute.loaded(config)
    return mislabeled(model, train, task=task, clean=_clean(config, model, task, clean, clean_where), **_given(config))


def run_memorized(config: RunConfig, with_queries: bool, **settings: Any) -> Memorized:
    """Find what is memorised."""
    model, train, (queries, query_ids), task = execute.loaded(config)
    asked = {"queries": queries, "query_ids": query_ids} if with_queries else {}
    return memorized(model, train, task=task, **asked, **_given(config), **settings)


def run_use(name: str, config: RunConfig, with_queries: bool, settings: Mapping[str, Any]) -> Found:
    """Run a use by its name, with as much of the run as it takes.

    Raises:
        SettingError: There is no such use, or it has no such arguments.
    """
    function = brought(USES.named(name, "use").function)
    model, train, (queries, query_ids), task = execute.loaded(config)
    given = _given(config) | ({"queries": queries, "query_ids": query_ids} if with_queries else {})
    signature = inspect.signature(function)
    given = {key: value for key, value in given.items() if key in signature.parameters}
    try:
        signature.bind(model, train, task=task, **{**given, **settings})
    except TypeError as error:
        raise SettingError(f"--option for {name}", expected="arguments of the use", got=str(error)) from error
    found: Found = function(model, train, task=task, **{**given, **settings})
    return found


def _given(config: RunConfig) -> dict[str, Any]:
    return {name: config.options[name] for name in ("ids", "batch_size", "seed") if name in config.options}


def _clean(config: RunConfig, model: Any, task: Any, spec: str | None, where: str | None) -> Any:
    if spec is None:
        return None
    asked = DataSpec(spec=spec, options=config.data.options, where=where)
    return execute.queries_of(config.model_copy(update={"queries": asked}), model, task)[0]
