"""From the words of a command to a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forwardinf.core.errors import DataError, FileError, SettingError
from forwardinf.data.import_gate import import_extra
from forwardinf.data.load import load_data
from forwardinf.data.saved_settings import config_of
from forwardinf.data.tokenizer import load_tokenizer
from forwardinf.tasks.diffusion import Diffusion
from forwardinf.use.images.trace_images import trace_images
from forwardinf.use.text.trace import trace
from forwardinf.use.traces import Traced
from forwardinf.view import execute
from forwardinf.view.config import RunConfig


def run_trace(
    config: RunConfig, questions: str | None, prompts: list[str] | None, answers: list[str] | None, *,
    text: str, documents: str | None, fuse: str | None, **settings: Any,
) -> Traced:  # fmt: skip
    """Trace questions given as words, or as rows of a file."""
    if (questions is None) == (prompts is None):
        raise SettingError("trace", expected="--prompt or --questions", got="neither" if prompts is None else "both")
    names = None
    if questions is not None:
        prompts, answers, names = _questions(questions)
    read = trace(
        execute.model_of(config), load_data(config.data.spec, **config.data.options), prompts or [],
        tokenizer=load_tokenizer(config.model.tokenizer or config.model.spec), answers=answers or None,
        question_ids=names, text=_columns(text),
        documents=int(documents) if documents is not None and documents.isdecimal() else documents,
        fuse=fuse if fuse is None or fuse == "bm25" else _weight(fuse), **_given(config), **settings,
    )  # fmt: skip
    return read


def run_trace_images(
    config: RunConfig, pipeline: str | None, timesteps: int | None, columns: str, **settings: Any
) -> Traced:
    """Trace images of a pipeline, or of a denoiser with a task of the user's."""
    if (pipeline is None) == (not config.model.spec):
        raise SettingError("trace-images", expected="--pipeline, or --model with --task",
                           got="both" if pipeline else "neither")  # fmt: skip
    if pipeline is not None:
        names = columns.split(",")
        if len(names) != 2:
            raise SettingError("--columns", expected="two names: image,text", got=columns)
        own: dict[str, Any] = {} if timesteps is None else {"timesteps": timesteps}
        model, task = Diffusion.from_pipeline(_pipeline(pipeline), names[0], names[1], **own)
    else:
        if not config.task.name:
            raise SettingError("--task", expected="module:function that gives fi.Diffusion(...)", got="none")
        model, task = execute.model_of(config), execute.task_of(config.task)
    train = load_data(config.data.spec, **config.data.options)
    images, names_of = execute.queries_of(config, model, task)
    return trace_images(model, train, images, task=task, image_ids=names_of, **_given(config), **settings)


def _pipeline(source: str) -> Any:
    diffusers = import_extra("diffusers", extra="diffusion", need=f"the pipeline {source}")
    if Path(source).exists() and not (Path(source) / "model_index.json").is_file():
        raise FileError(source, expected="a folder of a pipeline (model_index.json)", got="none there")
    _refuse_libraries(source, config_of(source, "model_index.json") or {}, diffusers)
    try:
        return diffusers.DiffusionPipeline.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileError(f"pipeline {source}", expected="a pipeline with safetensors", got=str(error)) from error


def _refuse_libraries(source: str, index: dict[str, Any], diffusers: Any) -> None:
    """Refuse a pipeline whose parts come from other modules than the two libraries': diffusers would import any."""
    for name, part in index.items():
        library = part[0] if isinstance(part, list) and part else None
        of_diffusers = isinstance(library, str) and hasattr(diffusers.pipelines, library)
        if library not in (None, "diffusers", "transformers") and not of_diffusers:
            raise FileError(
                f"pipeline {source}: {name}", expected="a part of diffusers or transformers", got=repr(library)
            )
    if isinstance(index.get("_class_name"), list):
        raise FileError(f"pipeline {source}", expected="a pipeline of diffusers", got="one with code of its own")


def _questions(spec: str) -> tuple[list[str], list[str] | None, list[Any] | None]:
    data = load_data(spec)
    rows = data.to_pylist() if hasattr(data, "to_pylist") else list(data)
    for row, one in enumerate(rows):
        if not isinstance(one, dict) or not isinstance(one.get("prompt"), str):
            raise DataError(f"{spec}, row {row}", expected="text in 'prompt'", got=repr(one)[:60])
    with_answers = [one.get("answer") for one in rows]
    if any(one is None for one in with_answers) and any(one is not None for one in with_answers):
        raise DataError(
            spec, expected="an answer in every row, or in none", got=f"row {with_answers.index(None)} has none"
        )
    named = [one.get("id") for one in rows]
    return (
        [one["prompt"] for one in rows],
        None if None in with_answers else with_answers,
        None if None in named else named,
    )


def _columns(text: str) -> str | tuple[str, str]:
    names = text.split(",")
    if len(names) > 2 or not all(names):
        raise SettingError("--text", expected="a column, or two with a comma between", got=repr(text))
    return names[0] if len(names) == 1 else (names[0], names[1])


def _weight(fuse: str) -> float:
    try:
        return float(fuse)
    except ValueError as error:
        raise SettingError("--fuse", expected="bm25 or a number", got=repr(fuse)) from error


def _given(config: RunConfig) -> dict[str, Any]:
    return {name: config.options[name] for name in ("ids", "batch_size", "seed") if name in config.options}
