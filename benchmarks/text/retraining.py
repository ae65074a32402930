"""A decoder that is trained again without some texts, and what becomes of the facts that it is asked."""

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kept import kept_json, kept_tensors, place
from benchmarks.text import webnlg
from benchmarks.text.webnlg import Question, Recipe
from forwardinf.core.fingerprint import digest
from forwardinf.use.text.lexical import Lexical

TRUE, MASKED, FILLED = "labelled as stating it", "BM25, masked", "BM25, filled"
COSINE, LOSS, PLAIN = "gradient cosine, by the margin", "unit-whitened, by the loss", "unit-whitened, by the margin"
CURVED, OURS, JOINTLY = "cosine through K-FAC", "unit-whitened through K-FAC", "unit-whitened through K-FAC, jointly"
FUSED = "unit-whitened through K-FAC + BM25, filled"
ROWS = (TRUE, MASKED, FILLED, COSINE, LOSS, PLAIN, CURVED, OURS, JOINTLY, FUSED)
PART = Recipe(1024, 128, 2, 4, epochs=30, batch=32, lr=3e-3, warmup=60, kept=())
Without = frozenset[int]


@dataclass(frozen=True)
class Size:
    """How much of everything; the tests run a small one.

    Attributes:
        facts: How many are asked.
        texts: How much of the corpus there is; None: all of it.
        lexical: Of each fact, how many of its nearest texts by words are in that part.
        proponents: How many texts state a fact, at least and at most.
        known: Only facts are asked that the full model answers right.
        removed: Texts of each fact.
        seeds: Of the trainings; the full model of the first is asked.
        recipe: Of the decoder, but for the seed.
        rows: What is compared.
    """

    facts: int = 24
    texts: int | None = 700
    lexical: int = 10
    proponents: tuple[int, int] = (5, 12)
    known: bool = False
    removed: int = 10
    seeds: tuple[int, ...] = (0, 1)
    recipe: Recipe = PART
    rows: tuple[str, ...] = (TRUE, MASKED, FILLED, COSINE, CURVED, OURS, JOINTLY, FUSED)


SIZES = {"part": Size(), "whole": Size(facts=40, texts=None, proponents=(5, 20), known=True, removed=20, seeds=(0, 1, 2),
                                       recipe=Recipe(kept=()), rows=ROWS)}  # fmt: skip


def chosen(size: Size) -> tuple[list[Question], list[str]]:
    """Return facts of 5 to 12 texts, each asked once, and part of the corpus; questions point into that part."""
    draw, texts = random.Random(0), webnlg.corpus()
    least, most = size.proponents
    found = {(q.subject, q.obj): q for q in webnlg.questions() if least <= len(q.proponents) <= most}
    asked = [found[key] for key in sorted(found)]
    draw.shuffle(asked)
    if size.texts is None:
        return asked, texts
    asked = asked[: size.facts]
    index = Lexical(texts)
    near = {int(at) for q in asked
            for at in np.argsort(-index.scores(f"{q.prompt} {q.answer}"), kind="stable")[: size.lexical]}  # fmt: skip
    part = {*near, *(at for q in asked for at in q.proponents)}
    rest = [at for at in range(len(texts)) if at not in part]
    part |= set(draw.sample(rest, max(0, size.texts - len(part))))
    new = {at: place for place, at in enumerate(sorted(part))}
    for q in asked:
        q.proponents = [new[at] for at in q.proponents]
        q.same_entities = [new[at] for at in q.same_entities if at in new]
    return asked, [texts[at] for at in sorted(part)]


class Bench:
    """Facts, texts and tokenizer; trains without some texts, and keeps what became of the facts."""

    def __init__(self, size: Size, device: str = "cpu") -> None:
        self.size, self.device = size, torch.device(device)
        self.asked, self.texts = chosen(size)
        self.tokenizer = webnlg.tokenizer_of(self.texts, size.recipe)
        self.rows = webnlg.rows_of(self.tokenizer, self.texts)
        if size.known:
            _, right = webnlg.log_probabilities(self.full(), self.tokenizer, self.asked)
            self.asked = [q for q, known in zip(self.asked, right, strict=True) if known]
        self.asked = self.asked[: size.facts]

    def trained(self, seed: int, without: Without = frozenset()) -> Any:
        """Return a model trained without some texts."""
        recipe = replace(self.size.recipe, seed=seed)
        return webnlg.train(self.rows, recipe, {}, tell=False, without=without, device=self.device)

    def full(self) -> Any:
        """Return the full model of the first seed: the one that is asked."""
        recipe = replace(self.size.recipe, seed=self.size.seeds[0])
        key = digest(str(recipe), self.texts, self.device.type)
        path = place("trace-removal", "full", f"{key}.safetensors")
        weights = kept_tensors(path, lambda: dict(self.trained(recipe.seed).named_parameters()))
        model = webnlg.decoder(recipe).to(self.device)
        webnlg.put(model, weights)
        return model.eval()

    def outcome(self, seed: int, without: Without = frozenset()) -> dict[str, Any]:
        """Return the facts' log-probabilities after a training without some texts; kept."""

        def make() -> dict[str, Any]:
            whole = seed == self.size.seeds[0] and not without
            model = self.full() if whole else self.trained(seed, without)
            found, right = webnlg.log_probabilities(model, self.tokenizer, self.asked)
            return {"log p": found, "right": right}

        return kept_json(self.place(seed, without), make)

    def place(self, seed: int, without: Without) -> Path:
        """Return where the outcome of a training is kept."""
        told = [q.query for q in self.asked]
        key = digest(str(replace(self.size.recipe, seed=seed)), self.texts, told, sorted(without), self.device.type)
        return place("trace-removal", "retrained", f"{key}.json")


_bench: Bench  # of a worker


def _start(size: Size, device: str) -> None:
    global _bench
    torch.set_num_threads(1)
    _bench = Bench(size, device)


def _train(seed: int, without: Without) -> None:
    _bench.outcome(seed, without)


def train_all(bench: Bench, jobs: Sequence[tuple[int, Without]], workers: int) -> None:
    """Run the trainings that are not kept yet, several at a time: a small decoder leaves most of a GPU idle."""
    missing = [job for job in dict.fromkeys(jobs) if not bench.place(*job).exists()]
    if workers < 2 or len(missing) < 2:
        return
    torch.cuda.empty_cache()  # what tracing left reserved is the workers'; nothing where there is no GPU
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (bench.size, bench.device.type)) as pool:
        for running in [pool.submit(_train, *job) for job in missing]:
            running.result()
