"""The commands of the uses on generative models: trace and trace-images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from forwardinf.view.cli.app import app
from forwardinf.view.cli.options import (
    BatchSize,
    DataArg,
    DataOption,
    Ids,
    Json,
    ModelOption,
    QueriesArg,
    Seed,
    Weights,
    WeightsKey,
    Where,
    model_config,
    run_config,
    takes,
)
from forwardinf.view.cli.uses import Only, Page, Rows, Saved, tell

Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="What the model reads; repeatable.")]
Answers = Annotated[
    list[str] | None,
    typer.Option("--answer", help="What is explained, one for each prompt. Default: the model's own continuation."),
]
Questions = Annotated[
    str | None,
    typer.Option(
        help="In place of --prompt: a data word with the columns prompt and, where they are known, answer and id."
    ),
]
Span = Annotated[str | None, typer.Option(help="A part of each answer: only its tokens are asked about.")]
Text = Annotated[str, typer.Option(help="The column of text; prompt,answer for pairs of an encoder-decoder.")]
Documents = Annotated[
    str | None, typer.Option(help="Packed rows: the column, or the token id, that tells documents apart.")
]
Stage = Annotated[
    str | None, typer.Option("--candidates", help="two-stage, bm25 or neighbours: score only what these name.")
]
Fuse = Annotated[str | None, typer.Option(help="bm25, or BM25's weight: rank by reciprocal ranks of both.")]
How = Annotated[str | None, typer.Option(help="unit-whitened (default), whitened, cosine or dot.")]
Reading = Annotated[
    str | None,
    typer.Option(help="Of what gradients are, token by token: margin (default), root or loss."),
]
Curvature = Annotated[str | None, typer.Option(help="Through what gradients are taken: kfac (default) or none.")]
Seen = Annotated[str | None, typer.Option("--reading", help="Of what gradients are: both (default), loss or picture.")]
Jointly = Annotated[
    bool, typer.Option("--jointly", help="Name those that count together: look-alikes stand in for one another.")
]
Forward = Annotated[
    str | None,
    typer.Option("--perturbation", help="In place of --how: a preset or a direction, read by forward passes."),
]
Longest = Annotated[int | None, typer.Option(help="Cut training texts to so many tokens.")]
Marked = Annotated[int, typer.Option(help="In how many top documents of each question words are marked.")]
Side = Annotated[int | None, typer.Option(help="Numbers that each side of a weight is sketched to. Default: 16 to 64.")]
Memory = Annotated[int | None, typer.Option(help="Megabytes that sketches and comparing them may take.")]
Kept = Annotated[int, typer.Option("--keep", help="How many training examples of each question are kept.")]
Pipeline = Annotated[
    str | None, typer.Option(help="In place of --model and --task: a diffusers pipeline's folder or hub id.")
]
Denoising = Annotated[
    str | None, typer.Option("--task", help="module:function that gives the fi.Diffusion task of --model.")
]
ModelOrNone = Annotated[str | None, typer.Option("--model", help="module:factory, or a Hugging Face folder or id.")]
Timesteps = Annotated[int | None, typer.Option(help="With --pipeline: how many timesteps, spread evenly.")]
Columns = Annotated[str, typer.Option(help="With --pipeline: the columns of images and of texts or classes.")]


@app.command()
@takes(model_config)
def trace(
    config: Any, prompt: Prompts = None, answer: Answers = None, questions: Questions = None, span: Span = None,
    text: Text = "text", documents: Documents = None, candidates: Stage = None, fuse: Fuse = None, how: How = None,
    reading: Reading = None, curvature: Curvature = None, jointly: Jointly = False, perturbation: Forward = None,
    max_length: Longest = None, spans: Marked = 3, keep: Kept = 20, side: Side = None, memory: Memory = None, k: Rows = 5,
    out: Saved = None, report: Page = None, as_json: Json = False, only: Only = False,
) -> None:  # fmt: skip
    """Which training text taught the model this?"""
    from forwardinf.view.execute_traces import run_trace

    _traced(lambda: run_trace(
        config, questions, prompt, answer, span=span, text=text, documents=documents,
        candidates=candidates, fuse=fuse, how=how, reading=reading, curvature=curvature, jointly=jointly,
        perturbation=perturbation, max_length=max_length, spans=spans, k=keep, side=side, memory=_bytes(memory),
    ), k, out, report, as_json, only)  # fmt: skip


@app.command("trace-images")
def trace_images(
    data: DataArg, queries: QueriesArg, pipeline: Pipeline = None, model: ModelOrNone = None, task: Denoising = None,
    timesteps: Timesteps = None, columns: Columns = "image,text", how: How = None, reading: Seen = None,
    jointly: Jointly = False, perturbation: Forward = None, weights: Weights = None, weights_key: WeightsKey = None,
    model_option: ModelOption = None, data_option: DataOption = None, where: Where = None, ids: Ids = None, keep: Kept = 20,
    side: Side = None, memory: Memory = None, batch_size: BatchSize = "auto", seed: Seed = 0, k: Rows = 5, out: Saved = None,
    report: Page = None, as_json: Json = False, only: Only = False,
) -> None:  # fmt: skip
    """Which training images made this image? With --perturbation unlearning: by Attribution by Unlearning."""
    from forwardinf.view.execute_traces import run_trace_images

    config = run_config(model or "", data, queries, weights, weights_key, model_option, data_option, where, task or "", ids=ids,
                    batch_size=batch_size, seed=seed)  # fmt: skip
    _traced(lambda: run_trace_images(
        config, pipeline, timesteps, columns, how=how, reading=reading, jointly=jointly, perturbation=perturbation, k=keep,
        side=side, memory=_bytes(memory),
    ), k, out, report, as_json, only)  # fmt: skip


def _bytes(megabytes: int | None) -> int | None:
    return None if megabytes is None else megabytes * 2**20


def _traced(call: Callable[[], Any], k: int, out: Path | None, report: Path | None, as_json: bool, only: bool) -> None:
    from forwardinf.view.trace_pages import show_images, show_trace

    def show(found: Any, console: Any, k: int) -> None:
        (show_trace if found.use == "trace" else show_images)(found, console, k)
        for note in found.notes:
            sys.stderr.write(f"note: {note}\n")

    tell(call, show, k, out, report, as_json, only)
