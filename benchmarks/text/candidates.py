"""Which texts each question's proponents are ranked among, and how well a ranking does."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.text.webnlg import Question, read

Array = np.ndarray[Any, np.dtype[np.float64]]


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
