"""The commands of the uses: leaks, mislabeled, memorized. Each prints its table with the free alternatives beside."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from forwardinf.view.cli.app import app, people, print_json
from forwardinf.view.cli.options import Json, QueriesArg, Where, asked_about, takes, training_config

Rows = Annotated[int, typer.Option("-k", "--top", help="How many rows to print.")]
Pairs = Annotated[int, typer.Option(help="Training examples for each query.")]
Own = Annotated[str, typer.Option("--direction", help="P of the column self_influence: plain (free), gfim, ekfac, …")]
Saved = Annotated[Path | None, typer.Option("--out", help="Folder for the tables (Parquet) and the facts (JSON).")]
Page = Annotated[Path | None, typer.Option("--report", help="Write an HTML report to this file.")]
Clean = Annotated[
    str | None, typer.Option(help="A data word: examples that are known to be clean; data:test is a split of --data.")
]
CleanWhere = Annotated[str | None, typer.Option(help="Which of them: 0:100, 3,5,9, or a file of positions.")]
Fdr = Annotated[float, typer.Option(help="False-discovery rate of the decision over the queries.")]
Candidates = Annotated[str, typer.Option(help="auto, all, or neighbours (two stages, for large sets).")]

Only = Annotated[
    bool, typer.Option("--plan", help="Say what it would do and how long it would take; measured for a second.")
]

Traced = Annotated[
    str | None, typer.Option(help="Test examples whose predictions are traced; data:test is a split of --data.")
]

Asked = Annotated[str | None, typer.Option("--queries", help="Another data word; data:test is a split of --data.")]
Settings = Annotated[list[str] | None, typer.Option("--option", help="name=value for the use; repeatable.")]


@app.command()
@takes(training_config)
def leaks(
    config: Any, queries: QueriesArg, where: Where = None, clean: Clean = None, clean_where: CleanWhere = None,
    candidates: Candidates = "auto", fdr: Fdr = 0.05, pairs: Pairs = 3, k: Rows = 20, out: Saved = None, report: Page = None,
    as_json: Json = False, only: Only = False,
) -> None:  # fmt: skip
    """Is this test example, or a near copy, in the training set?"""
    from forwardinf.view.execute_uses import run_leaks

    asked = asked_about(config, queries, where)
    found = functools.partial(run_leaks, asked, clean, clean_where, candidates=candidates, fdr=fdr, k=pairs)
    _told(found, k, out, report, as_json, only)


@app.command()
@takes(training_config)
def mislabeled(
    config: Any, clean: Clean = None, clean_where: CleanWhere = None, k: Rows = 20, out: Saved = None, report: Page = None,
    as_json: Json = False, only: Only = False,
) -> None:  # fmt: skip
    """Which training labels are wrong?"""
    from forwardinf.view.execute_uses import run_mislabeled

    _told(functools.partial(run_mislabeled, config, clean, clean_where), k, out, report, as_json, only)


@app.command()
@takes(training_config)
def memorized(
    config: Any, queries: Traced = None, where: Where = None, pairs: Pairs = 5, direction: Own = "plain", k: Rows = 20,
    out: Saved = None, report: Page = None, as_json: Json = False, only: Only = False,
) -> None:  # fmt: skip
    """Which examples does the model know by heart, and which predictions rest on them?"""
    from forwardinf.view.execute_uses import run_memorized

    asked = config if queries is None else asked_about(config, queries, where)
    found = functools.partial(run_memorized, asked, queries is not None, k=pairs, direction=direction)
    _told(found, k, out, report, as_json, only)


@app.command("use")
@takes(training_config)
def use(
    config: Any, name: Annotated[str, typer.Argument(help="The name under which it was added.")], queries: Asked = None,
    where: Where = None, option: Settings = None, k: Rows = 20, out: Saved = None, report: Page = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Run a use of your own by its name (docs/extending.md); the built-in ones have commands of their own."""
    from forwardinf.view.config import pair
    from forwardinf.view.execute_uses import run_use

    settings = dict(pair(text, "--option") for text in option or ())
    asked = config if queries is None else asked_about(config, queries, where)
    found = functools.partial(run_use, name, asked, queries is not None, settings)
    _told(found, k, out, report, as_json, False)


def say_plan(call: Callable[[], object], as_json: bool) -> None:
    """Print what a use would do."""
    from forwardinf.core.progress import planned
    from forwardinf.view.terminal import plan_panel

    found = planned(call)
    if as_json:
        print_json(found)
    else:
        plan_panel(found, people())


def _told(call: Callable[[], Any], k: int, out: Path | None, report: Path | None, as_json: bool, only: bool) -> None:
    from forwardinf.view.use_pages import show

    tell(call, show, k, out, report, as_json, only)


def tell(
    call: Callable[[], Any], show: Callable[[Any, Any, int], None], k: int, out: Path | None, report: Path | None, as_json: bool,
    only: bool,
) -> None:  # fmt: skip
    """Do it, or plan it; save, write the page, and print to whom it is asked for; ``show`` prints to people."""
    if only:
        say_plan(call, as_json)
        return
    found = call()
    if out is not None:
        found.save(out)
    if report is not None:
        found.report(report)
    if as_json:
        print_json(found.to_dict())
        return
    show(found, people(), k)
    for what, path in (("tables", out), ("report", report)):
        if path is not None:
            sys.stderr.write(f"{what}: {path}\n")
