"""Fact tracing on WebNLG: which texts taught a small decoder a fact, beside lexical search, hidden states and gradients.

    python benchmarks/evaluate_trace.py          about 80 minutes on one core, and half an hour more to train the decoder once
    python benchmarks/evaluate_trace.py --size large --device cuda          27 million parameters, minutes on a GPU

Protocol of FTRACE (Akyürek et al. 2022): for each question the candidates are its proponents, BM25's first 100 (answer filled
in), 100 texts with the same object and 100 at random; texts with another fact about the same two entities are left out.
Questions that the model answers right are split: settings (the fusion's) are chosen on the first 200, figures are of the others.
Index and checkpoints lie in the cache folder: a run that was stopped goes on there. Writes results/trace.json (trace_large.json)
and docs/trace.md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from harness import RESULTS, commit, write
from trace_table import write_docs
from webnlg import (
    AT_ONCE,
    RECIPES,
    Question,
    Trained,
    corpus,
    log_probabilities,
    put,
    questions,
    read,
    rows_of,
    trained,
)

import forwardinf as fi
from forwardinf.core.machine import cache_folder
from forwardinf.data.examples import examples
from forwardinf.tasks.feed import Feed
from forwardinf.truth.agreement import difference, mean_interval
from forwardinf.use.text.documents import answer_row
from forwardinf.use.text.fuse import CONSTANT, WEIGHT, reciprocal
from forwardinf.use.text.hidden_states import hidden_states
from forwardinf.use.text.lexical import Lexical

Array = np.ndarray[Any, np.dtype[np.float64]]
TUNE, MOST, WRONG = 200, 300, 200
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
OURS = ("unit-whitened", "whitened", "cosine through K-FAC", "unit-whitened through K-FAC")  # fused with the free ones
PUSHES = {  # row: by fi.attribute, whole gradients or forward passes, and what they are of; the first questions only
    "EK-FAC": (fi.Perturbation("ekfac", fit_examples=2000), "loss"),
    "EK-FAC, by the margin": (fi.Perturbation("ekfac", fit_examples=2000), "margin"),
    "hold": (fi.Perturbation("hold"), "loss"),
    "forward passes: ascent, rise .5": (fi.Perturbation(rise=0.5), "loss"),
    "forward passes: ascent, rise .5, by the margin": (fi.Perturbation(rise=0.5), "margin"),
}
FREE = ("random", "BM25, masked", "BM25, filled", "hidden states")
WEIGHTS, CONSTANTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), (1.0, 3.0, 10.0, 30.0, 60.0)


def candidates(asked: Sequence[Question], filled: Array) -> list[Array]:
    """Return each question's candidates, in random order."""
    facts, same = {row["fact"]: row for row in read("facts")}, defaultdict(set)
    texts = read("corpus")
    for text in texts:
        for fact in text["facts"]:
            same[facts[fact]["object"]].add(text["id"])
    draw, found = random.Random(0), []
    for question, lexical in zip(asked, filled, strict=True):
        others = sorted(same[question.obj])
        draw.shuffle(others)
        chosen = {*question.proponents, *np.argsort(-lexical, kind="stable")[:100].tolist(), *others[:100],
                  *draw.sample(range(len(texts)), 100)}  # fmt: skip
        order = sorted(chosen - (set(question.same_entities) - set(question.proponents)))
        draw.shuffle(order)
        found.append(np.asarray(order))
    return found


def measured(scores: Sequence[Array], chosen: Sequence[Array], asked: Sequence[Question]) -> dict[str, Array]:
    """Return each question's reciprocal rank of the first proponent, recall and precision of the first ten.

    Precision is out of the most that can be found: min(10, proponents). Ties stand in the candidates' random order.
    """
    found: dict[str, list[float]] = {"MRR": [], "Recall@10": [], "P@10": []}
    for own, places, question in zip(scores, chosen, asked, strict=True):
        true = np.isin(places[np.argsort(-own, kind="stable")], question.proponents)
        hits = float(true[:10].sum())
        found["MRR"].append(1 / (1 + int(true.argmax())))
        found["Recall@10"].append(hits / float(true.sum()))
        found["P@10"].append(hits / min(10.0, float(true.sum())))
    return {name: np.asarray(values) for name, values in found.items()}


def rankings(model: Trained, asked: Sequence[Question], chosen: list[Array], lexical: dict[str, Array],
             pushed: int, rows: Sequence[str]) -> tuple[dict[str, list[Array]], dict[str, dict[str, float]]]:  # fmt: skip
    """Return each method's scores of each question's candidates, and what it cost."""
    draw = np.random.default_rng(0)
    found = {"random": [draw.random(len(places)) for places in chosen]}
    costs: dict[str, dict[str, float]] = {"random": {}}
    for name, values in lexical.items():
        found[name], costs[name] = _of(values, chosen), {}
    began = time.perf_counter()
    found["hidden states"] = _of(_hidden(model, asked), chosen)
    costs["hidden states"] = {"index_s": round(time.perf_counter() - began, 1)}
    settings: dict[str, Any] = {"tokenizer": model.tokenizer, "answers": [question.answer for question in asked], "spans": 0,
                                "baselines": False, "k": 10, "progress": False, "cache_dir": cache_folder(),
                                "batch_size": AT_ONCE[model.model.device.type]}  # fmt: skip
    prompts = [question.prompt for question in asked]
    for name, (how, reading, curvature, every) in GRADIENTS.items():
        if name not in rows or (every and len(model.checkpoints) == 1):
            continue
        traced = fi.trace(model.model, model.texts, prompts, how=how, reading=reading, curvature=curvature,
                          damping=PLAIN_DAMPING if curvature == "none" else None,
                          checkpoints=model.checkpoints[:-1] if every else None, **settings)  # fmt: skip
        put(model.model, model.checkpoints[-1])
        found[name], costs[name] = _of(traced.scores.values, chosen), dict(traced.cost)
        print(name, traced.cost, flush=True)
    for name, (rule, reading) in PUSHES.items() if pushed else ():
        if name not in rows:
            continue
        few = {**settings, "answers": settings["answers"][:pushed], "batch_size": "auto"}
        traced = fi.trace(
            model.model,
            model.texts,
            prompts[:pushed],
            perturbation=rule,
            reading=reading,
            candidates=chosen[:pushed],
            **few,
        )
        found[name], costs[name] = _of(traced.scores.values, chosen[:pushed]), dict(traced.cost)
        print(name, traced.cost, flush=True)
    return found, costs


def _of(values: Array, chosen: Sequence[Array]) -> list[Array]:
    return [np.asarray(row[places], dtype=np.float64) for row, places in zip(values, chosen, strict=True)]


def _hidden(model: Trained, asked: Sequence[Question]) -> Array:
    task = fi.CausalLM(pad_token_id=1)
    rows = rows_of(model.tokenizer, model.texts)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    texts = Feed(model.model, task, examples([{"input_ids": row} for row in rows], task_collate=task.collate),
                 model.model.device)  # fmt: skip
    filled = [answer_row(model.tokenizer, question.prompt, question.answer, None, False) for question in asked]
    ours = Feed(model.model, task, examples(filled, task_collate=task.collate), model.model.device)
    states = torch.empty(len(rows), model.model.config.n_embd)
    states[order] = hidden_states(texts, order, 32).cpu()
    return (hidden_states(ours, range(len(asked)), 1).cpu().double() @ states.double().T).numpy()


def fused(one: list[Array], other: list[Array], weight: float, constant: float) -> list[Array]:
    """Return the fusion of two methods, the second one weighted."""
    return [reciprocal([a, b], [1.0, weight], constant) for a, b in zip(one, other, strict=True)]


def fusions(
    found: dict[str, list[Array]], chosen: list[Array], asked: Sequence[Question], tune: list[int]
) -> dict[str, str]:
    """Add the fusions to the rankings, as they are by default and with the weight and constant that were best on ``tune``."""
    settings = {}
    for ours in ("hidden states", *OURS):
        for lexical in ("BM25, masked", "BM25, filled", "hidden states"):
            if ours == lexical or ours not in found:
                continue
            name = f"{ours} + {lexical}"
            found[name] = fused(found[ours], found[lexical], WEIGHT, CONSTANT)
            one, other, places = ([each[q] for q in tune] for each in (found[ours], found[lexical], chosen))
            best = max(
                ((w, c) for w in WEIGHTS for c in CONSTANTS),
                key=lambda pair: sum(  # MRR and P@10 count alike
                    float(values.mean())
                    for kind, values in measured(fused(one, other, *pair), places, [asked[q] for q in tune]).items()
                    if kind != "Recall@10"
                ),
            )
            found[f"{name}, tuned"] = fused(found[ours], found[lexical], *best)
            settings[f"{name}, tuned"] = f"weight {best[0]:g}, constant {best[1]:g}"
    return settings


def table(found: dict[str, list[Array]], chosen: list[Array], asked: Sequence[Question], rows: list[int],
          settings: dict[str, str]) -> list[dict[str, Any]]:  # fmt: skip
    """Return a row for each method over these questions, with its differences from filled BM25 on the same ones."""
    lines = []
    for name, scores in found.items():
        there = [q for q in rows if q < len(scores)]
        if not there:
            continue
        places, some = [chosen[q] for q in there], [asked[q] for q in there]
        own = measured([scores[q] for q in there], places, some)
        base = measured([found["BM25, filled"][q] for q in there], places, some)
        lines.append({
            "row": name, "setting": settings.get(name, ""),
            **{kind: asdict(mean_interval(values)) for kind, values in own.items()},
            "beside filled BM25": {kind: asdict(difference(own[kind], base[kind])) for kind in ("MRR", "P@10")},
        })  # fmt: skip
    return lines


def main(size: str, device: str, pushed: int, most: int, rows: Sequence[str]) -> None:
    """Run the evaluation; with some ``rows`` only, the others are taken from the results that are there."""
    model, everything = trained(RECIPES[size], device=torch.device(device)), questions()
    if size == "large":  # one state of it is asked
        model.checkpoints = model.checkpoints[-1:]
    _, right = log_probabilities(model.model, model.tokenizer, everything)
    sure, unsure = ([at for at, known_ in enumerate(right) if known_ is wanted] for wanted in (True, False))
    random.Random(0).shuffle(sure)
    random.Random(0).shuffle(unsure)
    sure, unsure = sure[: TUNE + most], unsure[:WRONG]
    asked = [everything[at] for at in [*sure, *unsure]]
    index = Lexical(corpus())
    began = time.perf_counter()
    lexical = {"BM25, masked": np.stack([index.scores(question.prompt) for question in asked])}
    lexical_s = (time.perf_counter() - began) / len(asked)
    lexical["BM25, filled"] = np.stack([index.scores(f"{question.prompt} {question.answer}") for question in asked])
    chosen = candidates(asked, lexical["BM25, filled"])
    # pushes cost by the question: those that are reported come first
    order = [*range(TUNE, len(sure)), *range(TUNE), *range(len(sure), len(asked))]
    asked, chosen = [asked[at] for at in order], [chosen[at] for at in order]
    lexical = {name: values[order] for name, values in lexical.items()}
    test = list(range(len(sure) - TUNE))
    tune = list(range(len(test), len(sure)))
    found, costs = rankings(model, asked, chosen, lexical, pushed, rows or [*GRADIENTS, *PUSHES])
    settings = fusions(found, chosen, asked, tune)
    result = {
        "model": model.name, "parameters": sum(p.numel() for p in model.model.parameters()), "texts": len(model.texts),
        "questions": {"with the mask at the end": len(everything), "answered right": int(sum(right)), "tuning": len(tune),
                      "reported": len(test), "answered wrong, reported": len(unsure)},
        "candidates": float(np.mean([len(places) for places in chosen])),
        "proponents, median": float(np.median([len(question.proponents) for question in asked])),
        "seconds": {**costs, "BM25, masked": {"question_s": round(lexical_s, 5)}},
        "answered right": table(found, chosen, asked, test, settings),
        "answered wrong": table(found, chosen, asked, list(range(len(sure), len(asked))), settings),
    }  # fmt: skip
    name = "trace" if size == "small" else f"trace_{size}"
    if rows:
        result = joined(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")), result)
    write(name, result)
    write_docs(result, size)


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return earlier results with these rows in place of theirs of the same name, or after them."""
    whole = {**old, **new, "seconds": {**old["seconds"], **new["seconds"]}}
    for kind in ("answered right", "answered wrong"):
        lines = {line["row"]: line for line in old[kind]}
        lines |= {line["row"]: {**line, "commit": commit()} for line in new[kind] if line["row"] not in FREE}
        whole[kind] = list(lines.values())
    return whole


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--pushed", type=int, default=60, help="questions of the rows that need whole gradients")
    options.add_argument("--most", type=int, default=MOST, help="questions that are reported")
    options.add_argument("--size", choices=RECIPES, default="small", help="of the decoder")
    options.add_argument("--device", choices=AT_ONCE, default="cpu")
    options.add_argument(
        "--rows", nargs="+", choices=[*GRADIENTS, *PUSHES], default=[], help="only these; the others stay"
    )
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    main(given.size, given.device, given.pushed, given.most, given.rows)
