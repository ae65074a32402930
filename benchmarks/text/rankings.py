"""Every way of ranking a question's candidates: free ones, gradients in the index, and perturbations."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import forwardinf as fi
from benchmarks.runner import say
from benchmarks.text.candidates import Array
from benchmarks.text.webnlg import AT_ONCE, Question, Trained, put, rows_of
from forwardinf.core.machine import cache_folder
from forwardinf.data.examples import examples
from forwardinf.tasks.feed import Feed
from forwardinf.use.text.documents import answer_row
from forwardinf.use.text.hidden_states import hidden_states

GRADIENTS = {  # row: how gradients are compared, what they are of, through which curvature, over all checkpoints
    "gradient dot": ("dot", "loss", "none", False),
    "gradient cosine": ("cosine", "loss", "none", False),
    "TracIn: gradient dot, 3 checkpoints": ("dot", "loss", "none", True),
    "whitened, by the loss": ("whitened", "loss", "none", False),
    "unit-whitened, by the loss": ("unit-whitened", "loss", "none", False),
    "unit-whitened, by the root": ("unit-whitened", "root", "none", False),
    "gradient cosine, by the margin": ("cosine", "margin", "none", False),
    "whitened": ("whitened", "margin", "none", False),
    "unit-whitened": ("unit-whitened", "margin", "none", False),
    "unit-whitened, 3 checkpoints": ("unit-whitened", "margin", "none", True),
    "cosine through K-FAC": ("cosine", "margin", "kfac", False),
    "unit-whitened through K-FAC": ("unit-whitened", "margin", "kfac", False),
}
PLAIN_DAMPING = 0.2  # where curvature is "none" and N is many times the sketch's width, anything up to .2 ranks alike
PUSHES = {  # row: by fi.attribute, whole gradients or forward passes, and what they are of; the first questions only
    "EK-FAC": (fi.Perturbation("ekfac", fit_examples=2000), "loss"),
    "EK-FAC, by the margin": (fi.Perturbation("ekfac", fit_examples=2000), "margin"),
    "hold": (fi.Perturbation("hold"), "loss"),
    "forward passes: ascent, rise .5": (fi.Perturbation(rise=0.5), "loss"),
    "forward passes: ascent, rise .5, by the margin": (fi.Perturbation(rise=0.5), "margin"),
}
FREE = ("random", "BM25, masked", "BM25, filled", "hidden states")
Scores = dict[str, list[Array]]
Costs = dict[str, dict[str, float]]


def rankings(
    model: Trained,
    asked: Sequence[Question],
    chosen: list[Array],
    lexical: dict[str, Array],
    pushed: int,
    rows: Sequence[str],
) -> tuple[Scores, Costs]:
    """Return each method's scores of each question's candidates, and what it cost."""
    draw = np.random.default_rng(0)
    found: Scores = {"random": [draw.random(len(places)) for places in chosen]}
    costs: Costs = {name: {} for name in ("random", *lexical)}
    found |= {name: _of(values, chosen) for name, values in lexical.items()}
    began = time.perf_counter()
    found["hidden states"] = _of(_hidden(model, asked), chosen)
    costs["hidden states"] = {"index_s": round(time.perf_counter() - began, 1)}
    prompts, answers = [question.prompt for question in asked], [question.answer for question in asked]

    def trace(name: str, count: int, **how: Any) -> None:
        traced = fi.trace(model.model, model.texts, prompts[:count], answers=answers[:count], tokenizer=model.tokenizer, spans=0,
                          baselines=False, k=10, progress=False, cache_dir=cache_folder(), **how)  # fmt: skip
        found[name], costs[name] = _of(traced.scores.values, chosen[:count]), dict(traced.cost)
        say(f"{name}: {traced.cost}")

    for name, (how, reading, curvature, every) in GRADIENTS.items():
        if name in rows and not (every and len(model.checkpoints) == 1):
            trace(name, len(asked), how=how, reading=reading, curvature=curvature, batch_size=AT_ONCE[model.model.device.type],
                  damping=PLAIN_DAMPING if curvature == "none" else None,
                  checkpoints=model.checkpoints[:-1] if every else None)  # fmt: skip
            put(model.model, model.checkpoints[-1])
    for name, (rule, reading) in PUSHES.items() if pushed else ():
        if name in rows:
            trace(name, pushed, perturbation=rule, reading=reading, candidates=chosen[:pushed], batch_size="auto")
    return found, costs


def _of(values: Array, chosen: Sequence[Array]) -> list[Array]:
    return [np.asarray(row[places], dtype=np.float64) for row, places in zip(values, chosen, strict=True)]


def _hidden(model: Trained, asked: Sequence[Question]) -> Array:
    """Return the products of last hidden states, questions by texts."""
    task = fi.CausalLM(pad_token_id=1)

    def feed(rows: list[Any]) -> Feed:
        return Feed(model.model, task, examples(rows, task_collate=task.collate), model.model.device)

    rows = rows_of(model.tokenizer, model.texts)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    filled = [answer_row(model.tokenizer, question.prompt, question.answer, None, False) for question in asked]
    states = torch.empty(len(rows), model.model.config.n_embd)
    states[order] = hidden_states(feed([{"input_ids": row} for row in rows]), order, 32).cpu()
    return (hidden_states(feed(filled), range(len(asked)), 1).cpu().double() @ states.double().T).numpy()
