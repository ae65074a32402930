"""Scores: attribute, plan, run, resume, top, self-influence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forwardinf.core.errors import SettingError
from forwardinf.view.cli.app import app, finite, people, print_json, records
from forwardinf.view.cli.options import (
    AllowCode,
    CacheDir,
    Json,
    Out,
    Overwrite,
    Report,
    Top,
    run_config,
    takes,
    training_config,
)

if TYPE_CHECKING:
    from forwardinf.score.scores import Scores
    from forwardinf.view.row_texts import Told


@app.command()
@takes(run_config)
def attribute(
    config: Any, out: Out = None, overwrite: Overwrite = False, report: Report = None, k: Top = 5, as_json: Json = False,
    cache_dir: CacheDir = None,
) -> None:  # fmt: skip
    """Score every training example for every query."""
    _attribute(config, out=out, overwrite=overwrite, report=report, k=k, as_json=as_json, cache_dir=cache_dir)


@app.command()
@takes(run_config)
def plan(config: Any, as_json: Json = False) -> None:
    """Say what `attribute` would do, and how long it would take; reads a few batches only.

    `forwardinf plan trace …` says it of a use: trace, trace-images, leaks, mislabeled or memorized, with its own flags.
    """
    from forwardinf.view import execute

    found = execute.plan(config)
    if as_json:
        print_json(found)
    else:
        from forwardinf.view.terminal import plan_panel

        plan_panel(found, people())


@app.command()
def run(
    path: Annotated[Path, typer.Argument(help="A run configuration (YAML), as in a run folder.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="a.b=c: change a setting; repeatable.")] = None,
    out: Out = None, overwrite: Overwrite = False, report: Report = None, k: Top = 5, as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:  # fmt: skip
    """Run a configuration: write it by hand, or replay a run folder's config.yaml."""
    from forwardinf.view.config import read_config

    config = read_config(path, change)
    with _given(config, allow_code, str(path)):
        _attribute(config, out=out, overwrite=overwrite, report=report, k=k, as_json=as_json)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    report: Report = None, k: Top = 5, as_json: Json = False, allow_code: AllowCode = False,
) -> None:  # fmt: skip
    """Finish a run that was interrupted; nothing that was read is read again."""
    from forwardinf.core.errors import FileError
    from forwardinf.score.store import Folder
    from forwardinf.view.config import read_config

    Folder(folder).replayed()
    if not (folder / "config.yaml").is_file():
        raise FileError(str(folder), expected="a command-line run, with its config.yaml", got="a Python call's folder",
                        do="Make the same Python call again with the same output_dir: it resumes.")  # fmt: skip
    config = read_config(folder / "config.yaml")
    with _given(config, allow_code, str(folder)):
        _attribute(config, out=folder, overwrite=False, report=report, k=k, as_json=as_json)


@app.command()
def top(
    folder: Annotated[Path, typer.Argument(help="A finished run folder.")],
    k: Top = 10,
    query: Annotated[list[str] | None, typer.Option(help="A query's id; repeatable. Default: all queries.")] = None,
    opponents: Annotated[bool, typer.Option("--opponents", help="The most negative instead.")] = False,
    as_json: Json = False,
) -> None:
    """Print the strongest proponents (or opponents) from a run folder."""
    from forwardinf.score.scores import load_scores
    from forwardinf.view.row_texts import kept

    scores, told = load_scores(folder), kept(folder)
    wanted = None if not query else [_id(one, scores.query_ids) for one in query]
    table = scores.bottom(k, wanted) if opponents else scores.top(k, wanted)
    if as_json:
        print_json(records(table if told is None else told.beside(table, scores)))
    else:
        _asked_texts(table, scores, told)
        _table(table, scores, "opponents" if opponents else "proponents", told)


def _id(told: str, ids: list[Any]) -> int | str:
    """Return an id as typed, or the whole number that it is, where no id is spelt so."""
    return int(told) if told not in ids and told.lstrip("-").isdecimal() else told


@app.command("self-influence")
@takes(training_config)
def self_influence(
    config: Any, k: Top = 10, out: Annotated[Path | None, typer.Option(help="Write all values to this CSV file.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Rank training examples by how strongly they act on their own loss."""
    from forwardinf.view import execute
    from forwardinf.view.row_texts import of_rows

    found, train = execute.self_influence(config)
    if out is not None:
        execute.write_csv(out, found.to_pandas().reset_index())
    table = of_rows(found.top(k).reset_index(), found.ids, train)
    if as_json:
        print_json(records(table))
    else:
        from forwardinf.view.terminal import table as show

        show(table, people(), title=f"self-influence ({found.unit} per unit step), with the loss beside it")


def _attribute(
    config: Any,
    *,
    out: Path | None,
    overwrite: bool,
    report: Path | None,
    k: int,
    as_json: bool,
    cache_dir: str | None = None,
) -> None:
    from forwardinf.view import execute
    from forwardinf.view.row_texts import told_of

    scores = execute.attribute(config, out, overwrite, cache_dir)
    if report is not None:
        scores.report(report)
    told = told_of(scores, k)
    if as_json:
        print_json(_result(scores, k, out, report, told))
        return
    table = scores.top(k)
    _asked_texts(table, scores, told)
    _table(table, scores, "proponents", told)
    if scores.signed:
        _table(scores.bottom(k), scores, "opponents", told)
    for note in scores.notes:
        sys.stderr.write(f"note: {note}\n")
    if out is not None:
        sys.stderr.write(f"run folder: {out}\n")
    if report is not None:
        sys.stderr.write(f"report: {report}\n")


@contextmanager
def _given(config: Any, allowed: bool, where: str) -> Iterator[None]:
    """Run what a file says: nothing that it names is imported unless that is allowed."""
    from forwardinf.data.import_gate import code_from

    if config.code and not allowed:
        raise SettingError(where, expected="words that need no code", got=", ".join(config.code),
                           do="Look at that code, then say --allow-code.")  # fmt: skip
    with code_from("here" if allowed else "nowhere"):
        yield


def _result(scores: Scores, k: int, out: Path | None, report: Path | None, told: Told | None) -> dict[str, Any]:
    def rows(table: Any) -> list[dict[str, Any]]:
        return records(table if told is None else told.beside(table, scores))

    return {
        "kind": scores.kind, "unit": scores.unit, "signed": scores.signed, "run": str(out) if out else None,
        "report": str(report) if report else None, "cost": dict(scores.cost), "notes": scores.notes,
        "queries": [
            {"query": name, **({} if told is None else {"text": told.queries.get(q)}), "status": scores.status[q],
             "rise": finite(scores.rise[q]),
             "top": rows(scores.top(k, name)), "bottom": rows(scores.bottom(k, name)) if scores.signed else []}
            for q, name in enumerate(scores.query_ids)
        ],
    }  # fmt: skip


def _asked_texts(table: Any, scores: Scores, told: Told | None) -> None:
    """Print what the queries of a table say, where they are texts."""
    if told is not None:
        from forwardinf.view.terminal import table as show

        show(told.asked(scores, table), people(), title="queries")


def _table(table: Any, scores: Scores, title: str, told: Told | None = None) -> None:
    from forwardinf.view.terminal import scores_table

    table = table if told is None else told.beside(table, scores)
    unit = f"{scores.unit} per unit step" if scores.kind == "linear" and scores.unit else scores.unit
    scores_table(table, people(), title=title, unit=unit, signed=scores.signed)
