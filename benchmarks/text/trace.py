"""Fact tracing on WebNLG: which texts taught a small decoder a fact, beside lexical search, hidden states and gradients.

About 80 minutes on one core, and half an hour more to train the decoder once; ``--size large --device cuda``: 27 million
parameters, minutes on a GPU.

Protocol of FTRACE (Akyürek et al. 2022): for each question the candidates are its proponents, BM25's first 100 (answer filled
in), 100 texts with the same object and 100 at random; texts with another fact about the same two entities are left out.
Questions that the model answers right are split: settings (the fusion's) are chosen on the first 200, figures are of the others.
Index and checkpoints lie in the cache folder: a run that was stopped goes on there.
"""

import random
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.results import commit, earlier
from benchmarks.runner import Found, Part
from benchmarks.text.candidates import Array, candidates, measured
from benchmarks.text.fusions import fusions
from benchmarks.text.rankings import FREE, GRADIENTS, PUSHES, rankings
from benchmarks.text.tables import trace_tables as tables
from benchmarks.text.webnlg import AT_ONCE, RECIPES, Question, corpus, log_probabilities, questions, trained
from forwardinf.truth.agreement import difference, mean_interval
from forwardinf.use.text.lexical import Lexical

__all__ = ["options", "parts", "result", "tables"]

PAGE = "trace"
LASTING = False
TUNE, MOST, WRONG = 200, 300, 200


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--pushed", type=int, default=60, help="questions of the rows that need whole gradients")
    parser.add_argument("--most", type=int, default=MOST, help="questions that are reported")
    parser.add_argument("--size", choices=RECIPES, default="small", help="of the decoder")
    parser.add_argument("--device", choices=AT_ONCE, default="cpu")
    parser.add_argument(
        "--rows", nargs="+", choices=[*GRADIENTS, *PUSHES], default=[], help="only these; the others stay"
    )
    parser.add_argument("--threads", type=int, default=1)


def name(given: Namespace) -> str:
    return "trace" if given.size == "small" else f"trace_{given.size}"


def parts(given: Namespace) -> list[Part]:
    how = (given.size, given.device, given.pushed, given.most, given.rows)

    def run() -> dict[str, Any]:
        torch.set_num_threads(given.threads)
        return evaluate(*how)

    return [Part(given.size, run, 80 * 60, how)]


def result(given: Namespace, found: Found) -> Found:
    """With some rows only, the others are taken from the results that are there."""
    new = found[given.size]
    return joined(earlier(name(given)), new) if given.rows else new


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return earlier results with these rows in place of theirs of the same name, or after them."""
    whole = {**old, **new, "seconds": {**old["seconds"], **new["seconds"]}}
    for kind in ("answered right", "answered wrong"):
        lines = {line["row"]: line for line in old[kind]}
        lines |= {line["row"]: {**line, "commit": commit()} for line in new[kind] if line["row"] not in FREE}
        whole[kind] = list(lines.values())
    return whole


def evaluate(size: str, device: str, pushed: int, most: int, rows: Sequence[str]) -> dict[str, Any]:
    """Rank every question's candidates by every method, and measure."""
    model, everything = trained(RECIPES[size], device=torch.device(device)), questions()
    if size == "large":  # one state of it is asked
        model.checkpoints = model.checkpoints[-1:]
    _, right = log_probabilities(model.model, model.tokenizer, everything)
    sure, unsure = ([at for at, known in enumerate(right) if known is wanted] for wanted in (True, False))
    for some in (sure, unsure):
        random.Random(0).shuffle(some)
    sure, unsure = sure[: TUNE + most], unsure[:WRONG]
    asked = [everything[at] for at in [*sure, *unsure]]
    lexical, lexical_s = _lexical(asked)
    chosen = candidates(asked, lexical["BM25, filled"])
    # pushes cost by the question: those that are reported come first
    order = [*range(TUNE, len(sure)), *range(TUNE), *range(len(sure), len(asked))]
    asked, chosen = [asked[at] for at in order], [chosen[at] for at in order]
    lexical = {name: values[order] for name, values in lexical.items()}
    test = list(range(len(sure) - TUNE))
    tune = list(range(len(test), len(sure)))
    found, costs = rankings(model, asked, chosen, lexical, pushed, rows or [*GRADIENTS, *PUSHES])
    settings = fusions(found, chosen, asked, tune)
    return {
        "model": model.name, "parameters": sum(p.numel() for p in model.model.parameters()), "texts": len(model.texts),
        "questions": {"with the mask at the end": len(everything), "answered right": int(sum(right)), "tuning": len(tune),
                      "reported": len(test), "answered wrong, reported": len(unsure)},
        "candidates": float(np.mean([len(places) for places in chosen])),
        "proponents, median": float(np.median([len(question.proponents) for question in asked])),
        "seconds": {**costs, "BM25, masked": {"question_s": round(lexical_s, 5)}},
        "answered right": rows_of(found, chosen, asked, test, settings),
        "answered wrong": rows_of(found, chosen, asked, list(range(len(sure), len(asked))), settings),
    }  # fmt: skip


def _lexical(asked: Sequence[Question]) -> tuple[dict[str, Array], float]:
    """Return BM25's scores of all texts, of prompts alone and with the answers, and the seconds of a prompt."""
    index, began = Lexical(corpus()), time.perf_counter()
    masked = np.stack([index.scores(question.prompt) for question in asked])
    each = (time.perf_counter() - began) / len(asked)
    filled = np.stack([index.scores(f"{question.prompt} {question.answer}") for question in asked])
    return {"BM25, masked": masked, "BM25, filled": filled}, each


def rows_of(
    found: dict[str, list[Array]],
    chosen: list[Array],
    asked: Sequence[Question],
    rows: list[int],
    settings: dict[str, str],
) -> list[dict[str, Any]]:
    """Return a row for each method over these questions, with its differences from filled BM25 on the same ones."""
    lines = []
    for method, scores in found.items():
        there = [q for q in rows if q < len(scores)]
        if not there:
            continue
        places, some = [chosen[q] for q in there], [asked[q] for q in there]
        own, base = (measured([each[q] for q in there], places, some) for each in (scores, found["BM25, filled"]))
        lines.append({
            "row": method, "setting": settings.get(method, ""),
            **{kind: asdict(mean_interval(values)) for kind, values in own.items()},
            "beside filled BM25": {kind: asdict(difference(own[kind], base[kind])) for kind in ("MRR", "P@10")},
        })  # fmt: skip
    return lines
