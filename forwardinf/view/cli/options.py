"""The flags that commands share, each declared once; and the run that they describe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from forwardinf.core.settings import DIRECTIONS
from forwardinf.tasks.registry import TASKS

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
        help=f"{', '.join(TASKS)}, or module:function.",
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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda …: where the model must be.")]
Workers = Annotated[int, typer.Option("--num-workers", help="Worker processes that fetch training rows.")]
ShardRows = Annotated[str, typer.Option(help="auto, or rows of one unit of work: what a killed run loses at most.")]
Collate = Annotated[str | None, typer.Option(help="module:function that joins rows into a batch.")]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Ask about groups of queries: a column of labels, or a file with a label for each query, one a line."
    ),
]
Candidates = Annotated[
    Path | None,
    typer.Option(help="Score only these: JSON {query id: [training ids]}, or .npy of positions (queries, K)."),
]
CacheDir = Annotated[
    str | None, typer.Option(help="Where baselines and fits are kept; off: nowhere. Default $FORWARDINF_CACHE.")
]
Out = Annotated[Path | None, typer.Option(help="Run folder; the same run resumes there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start the run folder over.")]
Report = Annotated[Path | None, typer.Option(help="Write an HTML report to this file.")]
Top = Annotated[int, typer.Option("-k", "--top", help="How many proponents and opponents to print.")]
Json = Annotated[bool, typer.Option("--json", help="Print results on stdout as JSON.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Import the module:function words of a configuration.")]


def run_config(
    model: ModelArg, data: DataArg, queries: QueriesArg, weights: Weights = None, weights_key: WeightsKey = None,
    model_option: ModelOption = None, data_option: DataOption = None, where: Where = None, task: TaskArg = "classification",
    task_option: TaskOption = None, perturbation: Perturb = "linear", perturb: Perturbing = None, ids: Ids = None,
    keep: Keep = "auto", batch_size: BatchSize = "auto", seed: Seed = 0, on_bad_query: OnBad = "raise",
    engine: Engine = "auto", checkpoint: Checkpoint = None, combine: Combine = "mean", tokenizer: TokenizerArg = None,
    device: Device = "auto", num_workers: Workers = 0, shard_rows: ShardRows = "auto", collate: Collate = None,
    groups: Groups = None, candidates: Candidates = None,
) -> Any:  # fmt: skip
    """Return the run that these flags describe."""
    from forwardinf.view.config import pair, parse

    def named(pairs: list[str] | None, flag: str) -> dict[str, Any]:
        return dict(pair(text, flag) for text in pairs or ())

    def count(text: str) -> int | str:
        return int(text) if text.isdecimal() else text

    reading = named(data_option, "--data-option")
    options = {"keep": count(keep), "batch_size": count(batch_size), "seed": seed,
               "on_bad_query": on_bad_query, "engine": engine, "device": device, "num_workers": num_workers,
               "shard_rows": count(shard_rows)}  # fmt: skip
    if ids is not None:
        options["ids"] = ids
    return parse({
        "model": {"spec": model, "weights": weights, "weights_key": weights_key,
                  "options": named(model_option, "--model-option"), "tokenizer": tokenizer},
        "data": {"spec": data, "options": reading},
        "queries": {"spec": queries, "options": reading, "where": where},
        "task": {"name": task, "options": named(task_option, "--task-option")},
        "perturbation": {"preset": perturbation, **named(perturb, "--perturb")},
        "checkpoints": checkpoint or [], "combine": combine, "collate": collate, "groups": groups,
        "candidates": None if candidates is None else str(candidates),
        "options": options,
    }, "command line")  # fmt: skip


def model_config(
    model: ModelArg, data: DataArg, weights: Weights = None, weights_key: WeightsKey = None, model_option: ModelOption = None,
    data_option: DataOption = None, ids: Ids = None, batch_size: BatchSize = "auto", seed: Seed = 0,
    tokenizer: TokenizerArg = None,
) -> Any:  # fmt: skip
    """Return what these flags say of a model whose task is known, and of its training data."""
    return run_config(model, data, data, weights, weights_key, model_option, data_option, ids=ids, batch_size=batch_size,
                      seed=seed, tokenizer=tokenizer)  # fmt: skip


def training_config(
    model: ModelArg, data: DataArg, weights: Weights = None, weights_key: WeightsKey = None, model_option: ModelOption = None,
    data_option: DataOption = None, task: TaskArg = "classification", task_option: TaskOption = None, ids: Ids = None,
    batch_size: BatchSize = "auto", seed: Seed = 0, tokenizer: TokenizerArg = None,
) -> Any:  # fmt: skip
    """Return what these flags say of a model and its training data; who asks about other examples adds them."""
    return run_config(model, data, data, weights, weights_key, model_option, data_option, task=task, task_option=task_option,
                      ids=ids, batch_size=batch_size, seed=seed, tokenizer=tokenizer)  # fmt: skip


def asked_about(config: Any, queries: str, where: str | None) -> Any:
    """Return the run with its queries, read as the training data are."""
    asked = config.queries.model_copy(update={"spec": queries, "where": where})
    return config.model_copy(update={"queries": asked})


def takes(asked: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
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
