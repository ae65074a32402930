"""The command line: parse, call, print. Results on stdout as JSON with ``--json``, people on stderr, exit code 0, 1 or 2.

torch is imported inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from forwardinf import __version__
from forwardinf.core.errors import Error, SettingError
from forwardinf.core.settings import DIRECTIONS

if TYPE_CHECKING:
    from forwardinf.score.scores import Scores
    from forwardinf.view.told import Told


class _Commands(typer.core.TyperGroup):
    """The commands; ``plan USE …`` is ``USE … --plan``: it takes the flags of the use."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that these words name."""
        if args[:1] == ["plan"] and args[1:2] and args[1] in USES:
            args = [args[1], *args[2:], "--plan"]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands, name="forwardinf", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help is plain text: as markup, module:factory: has a picture of a factory in it
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which training examples made the model behave like this? Positive scores are proponents.",
)  # fmt: skip

USES = ("leaks", "mislabeled", "memorized", "trace", "trace-images")

ModelArg = Annotated[str, typer.Option("--model", help="module:factory, or a Hugging Face folder or id.")]
Weights = Annotated[str | None, typer.Option(help="Weights for module:factory: safetensors, or a plain state dict.")]
WeightsKey = Annotated[str | None, typer.Option(help="Where the state dict is inside the weights file.")]
ModelOption = Annotated[list[str] | None, typer.Option(help="name=value for the factory; repeatable.")]
DataArg = Annotated[
    str,
    typer.Option("--data", help="npz, parquet, jsonl, csv, image folder, Hugging Face folder or id, module:function."),
]
DataOption = Annotated[
    list[str] | None, typer.Option(help="name=value for the reader (scale, mean, text, max_length …); repeatable.")
]
TokenizerArg = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Folder or hub id of the tokenizer, for rows of text. Default: the model's."),
]
QueriesArg = Annotated[str, typer.Option(help="Another data word; data:test is the test split of --data.")]
Where = Annotated[str | None, typer.Option(help="Which queries: misclassified, 0:100, 3,5,9, or a file of positions.")]
TaskArg = Annotated[
    str,
    typer.Option(
        "--task",
        help="classification, regression, multi-label, sequence-classification, causal-lm, seq2seq, or module:function.",
    ),
]
TaskOption = Annotated[list[str] | None, typer.Option(help="name=value for the task (query=predicted …); repeatable.")]
Perturb = Annotated[
    str,
    typer.Option(
        "--perturbation",
        help=f"A preset (linear, finite, as_published) or a direction ({', '.join(DIRECTIONS)}).",
    ),
]
Perturbing = Annotated[
    list[str] | None,
    typer.Option("--perturb", help="name=value over the preset (direction, length, rise, lr …); repeatable."),
]
Ids = Annotated[str | None, typer.Option(help="Column that holds the training ids.")]
Keep = Annotated[str, typer.Option(help="all, auto, or how many best and worst of each query.")]
BatchSize = Annotated[str, typer.Option(help="auto, or how many examples at a time.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Engine = Annotated[str, typer.Option(help="auto, forward, or factored (linear scores of many queries).")]
OnBad = Annotated[str, typer.Option("--on-bad-query", help="raise, or skip.")]
Checkpoint = Annotated[
    list[str] | None, typer.Option("--checkpoint", help="Weights to score under and combine; repeatable.")
]
Combine = Annotated[str, typer.Option(help="Over checkpoints: mean, or standardized (mean of z-scores).")]
Out = Annotated[Path | None, typer.Option(help="Run folder; the same run resumes there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start the run folder over.")]
Report = Annotated[Path | None, typer.Option(help="Write an HTML report to this file.")]
Top = Annotated[int, typer.Option("-k", "--top", help="How many proponents and opponents to print.")]
Json = Annotated[bool, typer.Option("--json", help="Print results on stdout as JSON.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Import the module:function words of a configuration.")]


def _asked(
    model: ModelArg, data: DataArg, queries: QueriesArg, weights: Weights = None, weights_key: WeightsKey = None,
    model_option: ModelOption = None, data_option: DataOption = None, where: Where = None, task: TaskArg = "classification",
    task_option: TaskOption = None, perturbation: Perturb = "linear", perturb: Perturbing = None, ids: Ids = None,
    keep: Keep = "auto", batch_size: BatchSize = "auto", seed: Seed = 0, on_bad_query: OnBad = "raise",
    engine: Engine = "auto", checkpoint: Checkpoint = None, combine: Combine = "mean", tokenizer: TokenizerArg = None,
) -> Any:  # fmt: skip
    """Return the run that these flags describe."""
    from forwardinf.view.config import pair, parse

    def named(pairs: list[str] | None, flag: str) -> dict[str, Any]:
        return dict(pair(text, flag) for text in pairs or ())

    def count(text: str) -> int | str:
        return int(text) if text.isdecimal() else text

    reading = named(data_option, "--data-option")
    options = {"keep": count(keep), "batch_size": count(batch_size), "seed": seed,
               "on_bad_query": on_bad_query, "engine": engine}  # fmt: skip
    if ids is not None:
        options["ids"] = ids
    return parse({
        "model": {"spec": model, "weights": weights, "weights_key": weights_key,
                  "options": named(model_option, "--model-option"), "tokenizer": tokenizer},
        "data": {"spec": data, "options": reading},
        "queries": {"spec": queries, "options": reading, "where": where},
        "task": {"name": task, "options": named(task_option, "--task-option")},
        "perturbation": {"preset": perturbation, **named(perturb, "--perturb")},
        "checkpoints": checkpoint or [], "combine": combine,
        "options": options,
    }, "command line")  # fmt: skip


def _takes(asked: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command ``(config, …)`` the flags of ``asked`` in place of its config."""

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        flags = list(inspect.signature(asked, eval_str=True).parameters.values())
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "config"]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            config = asked(**{flag.name: given.pop(flag.name) for flag in flags})
            command(config=config, **given)

        parameters = [flag.replace(kind=flag.KEYWORD_ONLY) for flag in [*flags, *own]]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return wrap


@app.command()
@_takes(_asked)
def attribute(
    config: Any, out: Out = None, overwrite: Overwrite = False, report: Report = None, k: Top = 5, as_json: Json = False
) -> None:
    """Score every training example for every query."""
    _attribute(config, out=out, overwrite=overwrite, report=report, k=k, as_json=as_json)


@app.command()
@_takes(_asked)
def plan(config: Any, as_json: Json = False) -> None:
    """Say what `attribute` would do, and how long it would take; reads a few batches only.

    `forwardinf plan trace …` says it of a use: trace, trace-images, leaks, mislabeled or memorized, with its own flags.
    """
    from forwardinf.view import execute

    found = execute.plan(config)
    if as_json:
        _out(found)
    else:
        from forwardinf.view.terminal import plan_panel

        plan_panel(found, _people())


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
    from forwardinf.view.told import kept

    scores, told = load_scores(folder), kept(folder)
    wanted = None if not query else [_id(one, scores.query_ids) for one in query]
    table = scores.bottom(k, wanted) if opponents else scores.top(k, wanted)
    if as_json:
        _out(_records(table if told is None else told.beside(table, scores)))
    else:
        _asked_texts(table, scores, told)
        _table(table, scores, "opponents" if opponents else "proponents", told)


def _id(told: str, ids: list[Any]) -> int | str:
    """Return an id as typed, or the whole number that it is, where no id is spelt so."""
    return int(told) if told not in ids and told.lstrip("-").isdecimal() else told


@app.command("self-influence")
def self_influence(
    model: ModelArg, data: DataArg, weights: Weights = None, weights_key: WeightsKey = None, model_option: ModelOption = None,
    data_option: DataOption = None, task: TaskArg = "classification", task_option: TaskOption = None, ids: Ids = None,
    k: Top = 10, out: Annotated[Path | None, typer.Option(help="Write all values to this CSV file.")] = None,
    seed: Seed = 0, tokenizer: TokenizerArg = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Rank training examples by how strongly they act on their own loss."""
    from forwardinf.view import execute
    from forwardinf.view.told import of_rows

    config = _asked(model, data, data, weights, weights_key, model_option, data_option, task=task, task_option=task_option,
                    ids=ids, seed=seed, tokenizer=tokenizer)  # fmt: skip
    found, train = execute.self_influence(config)
    if out is not None:
        execute.write_csv(out, found.to_pandas().reset_index())
    table = of_rows(found.top(k).reset_index(), found.ids, train)
    if as_json:
        _out(_records(table))
    else:
        from forwardinf.view.terminal import table as show

        show(table, _people(), title=f"self-influence ({found.unit} per unit step), with the loss beside it")


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
        _out(found.to_dict())
        return
    from forwardinf.view.terminal import table as show

    show(found.table, _people(), title="Against retraining (mean over queries; controls should be near 0)")
    if len(found.curve):
        show(found.curve, _people(), title="Fall of the query when its best-scored examples are removed")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and the run.")] = Path("forwardinf-demo"),
    as_json: Json = False,
) -> None:
    """Train a small digit classifier with planted mistakes, and find what made it behave so. No network, about a minute."""
    from forwardinf.view import demo as shown

    found = shown.demo(out, _people())
    if as_json:
        _out(found)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Option(help="Look at a model's parameters too.")] = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Check versions, devices, disk and known breakages."""
    from forwardinf.view.doctor import examine

    given = None
    if model is not None:
        from forwardinf.core.load_model import load_model

        given = load_model(model, weights=weights)
    facts, findings = examine(given)
    if as_json:
        _out({**facts, "findings": [vars(finding) for finding in findings]})
    else:
        from forwardinf.view.terminal import plan_panel
        from forwardinf.view.terminal import table as show

        plan_panel(facts, _people(), title="This machine")
        show([vars(finding) for finding in findings], _people())
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    from forwardinf.core.load_code import code_from

    context.with_resource(code_from("here"))  # what is named on the command line may lie in the current folder
    if version:
        sys.stdout.write(f"forwardinf {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Run the command line; every error of ours is one line on stderr and exit code 1."""
    try:
        app()
    except Error as error:
        from forwardinf.view.clean import for_terminal

        sys.stderr.write(f"forwardinf: {for_terminal(str(error))}\n")
        raise SystemExit(2 if isinstance(error, SettingError) else 1) from None
    except KeyboardInterrupt:
        sys.stderr.write("forwardinf: interrupted; a run folder can be resumed\n")
        raise SystemExit(1) from None
    except BrokenPipeError:
        raise SystemExit(1) from None


def _attribute(config: Any, *, out: Path | None, overwrite: bool, report: Path | None, k: int, as_json: bool) -> None:
    from forwardinf.view import execute
    from forwardinf.view.told import told_of

    scores = execute.attribute(config, out, overwrite)
    if report is not None:
        scores.report(report)
    told = told_of(scores, k)
    if as_json:
        _out(_result(scores, k, out, report, told))
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
    from forwardinf.core.load_code import code_from

    if config.code and not allowed:
        raise SettingError(where, expected="words that need no code", got=", ".join(config.code),
                           do="Look at that code, then say --allow-code.")  # fmt: skip
    with code_from("here" if allowed else "nowhere"):
        yield


def _result(scores: Scores, k: int, out: Path | None, report: Path | None, told: Told | None) -> dict[str, Any]:
    def rows(table: Any) -> list[dict[str, Any]]:
        return _records(table if told is None else told.beside(table, scores))

    return {
        "kind": scores.kind, "unit": scores.unit, "signed": scores.signed, "run": str(out) if out else None,
        "report": str(report) if report else None, "cost": dict(scores.cost), "notes": scores.notes,
        "queries": [
            {"query": name, **({} if told is None else {"text": told.queries.get(q)}), "status": scores.status[q],
             "rise": _finite(scores.rise[q]),
             "top": rows(scores.top(k, name)), "bottom": rows(scores.bottom(k, name)) if scores.signed else []}
            for q, name in enumerate(scores.query_ids)
        ],
    }  # fmt: skip


def _records(table: Any) -> list[dict[str, Any]]:
    return [{name: _finite(value) for name, value in row.items()} for row in table.to_dict("records")]


def _finite(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and plain - plain != 0 else plain


def _asked_texts(table: Any, scores: Scores, told: Told | None) -> None:
    """Print what the queries of a table say, where they are texts."""
    if told is not None:
        from forwardinf.view.terminal import table as show

        show(told.asked(scores, table), _people(), title="queries")


def _table(table: Any, scores: Scores, title: str, told: Told | None = None) -> None:
    from forwardinf.view.terminal import scores_table

    table = table if told is None else told.beside(table, scores)
    unit = f"{scores.unit} per unit step" if scores.kind == "linear" and scores.unit else scores.unit
    scores_table(table, _people(), title=title, unit=unit, signed=scores.signed)


def _people() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _out(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


from forwardinf.view import cli_cache, cli_check, cli_traces, cli_uses, cli_verify  # noqa: E402, F401  (their commands join `app`)

for _command in app.registered_commands:
    _command.short_help = inspect.getdoc(_command.callback)  # said in full in the list of commands too
