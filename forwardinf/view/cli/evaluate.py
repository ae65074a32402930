"""Scores held against retraining: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from forwardinf.core.errors import SettingError
from forwardinf.view.cli.app import app, people, print_json
from forwardinf.view.cli.options import DataOption, Json, Seed, TaskArg, TaskOption


@app.command()
def evaluate(
    scores: Annotated[Path, typer.Argument(help="A finished run folder, or an array file (queries × training examples).")],
    bank: Annotated[Path | None, typer.Option(help="A bank's folder: masks.npy, outputs.npy, meta.json.")] = None,
    output: Annotated[str | None, typer.Option(help="Another of the bank's outputs, like margin.")] = None,
    train: Annotated[
        str | None, typer.Option(help="module:function that is called with (positions, seed) and returns a trained model.")
    ] = None,
    queries: Annotated[str | None, typer.Option(help="The queries that were scored: a data word. For --train.")] = None,
    data_option: DataOption = None,
    where: Annotated[str | None, typer.Option(help="Which of the queries: 0:100, 3,5,9, or a file of positions.")] = None,
    task: TaskArg = "classification", task_option: TaskOption = None,
    subsets: Annotated[int, typer.Option(help="Train on this many random subsets.")] = 0,
    share: Annotated[float, typer.Option(help="Of the training examples in each subset.")] = 0.5,
    seeds: Annotated[int, typer.Option(help="Trainings of each; two or more give a ceiling.")] = 1,
    leave_out: Annotated[int, typer.Option(help="Leave out this many training examples one by one.")] = 0,
    remove: Annotated[str, typer.Option(help="Remove each query's best so many, like 10,50.")] = "",
    remove_queries: Annotated[int, typer.Option(help="For how many queries.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Folder for tables, bank and trainings; the same call resumes there.")] = None,
    seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """Hold scores against what retraining really does, beside controls that must fail."""
    from forwardinf.view import execute
    from forwardinf.view.config import DataSpec, TaskSpec, pair

    def named(pairs: list[str] | None, flag: str) -> dict[str, Any]:
        return dict(pair(text, flag) for text in pairs or ())

    if not all(part.strip().isdecimal() for part in remove.split(",") if remove):
        raise SettingError("--remove", expected="numbers like 10,50", got=repr(remove))
    asked = (
        None if queries is None else DataSpec(spec=queries, options=named(data_option, "--data-option"), where=where)
    )
    found = execute.evaluate(
        scores, bank, output, train, asked, TaskSpec(name=task, options=named(task_option, "--task-option")),
        {"subsets": subsets, "share": share, "seeds": seeds, "leave_out": leave_out, "remove_queries": remove_queries,
         "remove": [int(part) for part in remove.split(",") if remove], "output_dir": out, "seed": seed},
    )  # fmt: skip
    if out is not None:
        found.save(out)
    if as_json:
        print_json(found.to_dict())
        return
    from forwardinf.view.terminal import table as show

    show(found.table, people(), title="Against retraining (mean over queries; controls should be near 0)")
    if len(found.curve):
        show(found.curve, people(), title="Fall of the query when its best-scored examples are removed")
