"""Are the texts that a trace names those that taught the fact? They are removed, and the decoder is trained again.

    python benchmarks/evaluate_trace_removal.py      # says its time first; resumable training by training
    python benchmarks/evaluate_trace_removal.py --size whole --device cuda --workers 8      # minutes on a GPU, a day on a core

The decoder of evaluate_trace.py takes half an hour to train: the one of ``part`` is smaller and reads part of the corpus, every
text about a few facts (5 to 12 texts each), the texts that share most words with their questions, and others at random. ``whole``
is that decoder, all texts, and facts that it answers right. Each method's best texts of all facts are removed *together*: one
training for each method and seed, paired with the full one (same initial weights, same batches but for what was removed).
Writes results/trace_removal.json (trace_removal_whole.json) and a table in docs/trace.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from harness import write
from safetensors.torch import load_file, save_file
from trace_table import write_removal
from webnlg import (
    AT_ONCE,
    LONGEST,
    Question,
    Recipe,
    corpus,
    decoder,
    log_probabilities,
    put,
    questions,
    rows_of,
    tokenizer_of,
    train,
)

import forwardinf as fi
from forwardinf.core.files import write_json, written
from forwardinf.core.fingerprint import digest
from forwardinf.truth.agreement import difference, mean_interval, ratio
from forwardinf.truth.retrain import spoken
from forwardinf.use.text.fuse import reciprocal
from forwardinf.use.text.lexical import Lexical

WORK = Path(__file__).parent / ".cache" / "trace-removal"
RANDOM, TRUE = "random", "labelled as stating it"
MASKED, FILLED = "BM25, masked", "BM25, filled"
COSINE, LOSS, PLAIN = "gradient cosine, by the margin", "unit-whitened, by the loss", "unit-whitened, by the margin"
CURVED, OURS, JOINTLY = "cosine through K-FAC", "unit-whitened through K-FAC", "unit-whitened through K-FAC, jointly"
FUSED = "unit-whitened through K-FAC + BM25, filled"
GRADIENTS = {  # how gradients are compared, what they are of, through which curvature
    COSINE: ("cosine", "margin", "none"), LOSS: ("unit-whitened", "loss", "none"), PLAIN: ("unit-whitened", "margin", "none"),
    CURVED: ("cosine", "margin", "kfac"), OURS: ("unit-whitened", "margin", "kfac"),
}  # fmt: skip

ROWS = (TRUE, MASKED, FILLED, COSINE, LOSS, PLAIN, CURVED, OURS, JOINTLY, FUSED)


PART = Recipe(1024, 128, 2, 4, epochs=30, batch=32, lr=3e-3, warmup=60, kept=())


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
MINUTES = {"part": 2.0, "whole": 33.0}  # a training, on one core


def chosen(size: Size) -> tuple[list[Question], list[str]]:
    """Return facts of 5 to 12 texts, each asked once, and part of the corpus; questions point into that part."""
    draw, texts = random.Random(0), corpus()
    least, most = size.proponents
    found = {(q.subject, q.obj): q for q in questions() if least <= len(q.proponents) <= most}
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
    place = {at: new for new, at in enumerate(sorted(part))}
    for q in asked:
        q.proponents = [place[at] for at in q.proponents]
        q.same_entities = [place[at] for at in q.same_entities if at in place]
    return asked, [texts[at] for at in sorted(part)]


class Bench:
    """Facts, texts and tokenizer; trains without some texts, and keeps what became of the facts."""

    def __init__(self, size: Size, device: str = "cpu") -> None:
        self.size, self.device = size, torch.device(device)
        self.asked, self.texts = chosen(size)
        self.tokenizer = tokenizer_of(self.texts, size.recipe)
        self.rows = rows_of(self.tokenizer, self.texts)
        if size.known:
            _, right = log_probabilities(self.full(), self.tokenizer, self.asked)
            self.asked = [q for q, known in zip(self.asked, right, strict=True) if known]
        self.asked = self.asked[: size.facts]

    def trained(self, seed: int, without: frozenset[int] = frozenset()) -> Any:
        """Return a model trained without some texts."""
        recipe = replace(self.size.recipe, seed=seed)
        return train(self.rows, recipe, {}, tell=False, without=without, device=self.device)

    def full(self) -> Any:
        """Return the full model of the first seed: the one that is asked."""
        recipe = replace(self.size.recipe, seed=self.size.seeds[0])
        path = WORK / "full" / f"{digest(str(recipe), self.texts, self.device.type)}.safetensors"
        if not path.exists():
            made = self.trained(recipe.seed)
            with written(path) as part:
                save_file({name: p.detach().cpu().clone() for name, p in made.named_parameters()}, part)
        model = decoder(recipe).to(self.device)
        put(model, load_file(path))
        return model.eval()

    def outcome(self, seed: int, without: frozenset[int] = frozenset()) -> dict[str, Any]:
        """Return the facts' log-probabilities after a training without some texts; kept."""
        path = self.place(seed, without)
        if not path.exists():
            whole = seed == self.size.seeds[0] and not without
            found, right = log_probabilities(
                self.full() if whole else self.trained(seed, without), self.tokenizer, self.asked
            )
            write_json(path, {"log p": found, "right": right})
        return json.loads(path.read_text())

    def place(self, seed: int, without: frozenset[int]) -> Path:
        """Return where the outcome of a training is kept."""
        told = [q.query for q in self.asked]
        key = digest(str(replace(self.size.recipe, seed=seed)), self.texts, told, sorted(without), self.device.type)
        return WORK / "retrained" / f"{key}.json"


_bench: Bench  # of a worker


def _start(size: Size, device: str) -> None:
    global _bench
    torch.set_num_threads(1)
    _bench = Bench(size, device)


def _train(seed: int, without: frozenset[int]) -> None:
    _bench.outcome(seed, without)


def train_all(bench: Bench, jobs: Sequence[tuple[int, frozenset[int]]], workers: int) -> None:
    """Run the trainings that are not kept yet, several at a time: a small decoder leaves most of a GPU idle."""
    missing = [job for job in dict.fromkeys(jobs) if not bench.place(*job).exists()]
    if workers < 2 or len(missing) < 2:
        return
    torch.cuda.empty_cache()  # what tracing left reserved is the workers'; nothing where there is no GPU
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (bench.size, bench.device.type)) as pool:
        for running in [pool.submit(_train, *job) for job in missing]:
            running.result()


def named(bench: Bench) -> dict[str, list[frozenset[int]]]:
    """Return what each method names: a set of texts for each fact."""
    model, k = bench.full(), bench.size.removed
    index = Lexical(bench.texts)
    scores = {
        MASKED: np.stack([index.scores(q.prompt) for q in bench.asked]),
        FILLED: np.stack([index.scores(f"{q.prompt} {q.answer}") for q in bench.asked]),
    }
    prompts, answers = [q.prompt for q in bench.asked], [q.answer for q in bench.asked]
    settings: dict[str, Any] = {"answers": answers, "tokenizer": bench.tokenizer, "spans": 0, "max_length": LONGEST, "k": k,
                                "baselines": False, "progress": False,
                                "batch_size": AT_ONCE[bench.device.type]}  # fmt: skip
    for name in [name for name in GRADIENTS if name in bench.size.rows or name == OURS]:
        how, reading, curvature = GRADIENTS[name]
        traced = fi.trace(model, bench.texts, prompts, how=how, reading=reading, curvature=curvature, jointly=name == OURS,
                          **settings)  # fmt: skip
        scores[name] = np.asarray(traced.scores.values, dtype=np.float64)
        if name == OURS:  # its scores stay each text's own, its table names the texts that count together
            together = traced.table.groupby("question")["train"]
    scores[FUSED] = np.stack(
        [reciprocal([a, b], [1.0, 1.0]) for a, b in zip(scores[OURS], scores[FILLED], strict=True)]
    )
    best: Callable[[Any], frozenset[int]] = lambda row: frozenset(np.argsort(-row, kind="stable")[:k].tolist())  # noqa: E731
    draw = random.Random(1)
    found = {TRUE: [frozenset(draw.sample(q.proponents, min(k, len(q.proponents)))) for q in bench.asked],
             **{name: [best(row) for row in values] for name, values in scores.items()},
             JOINTLY: [frozenset(map(int, together.get_group(q))) for q in range(len(bench.asked))]}  # fmt: skip
    return {name: found[name] for name in bench.size.rows}


def main(size: Size, device: str = "cpu", workers: int = 1, minutes: float = 2.0, publish: str = "") -> dict[str, Any]:
    """Run, keep, and write what came out; ``publish``: under which name."""
    os.environ.setdefault("FORWARDINF_CACHE", str(WORK / "library"))
    took = spoken(60 * minutes * (2 + len(size.rows)) * len(size.seeds))
    print(f"at most {took} on one core; resumable", file=sys.stderr, flush=True)
    bench = Bench(size, device)
    sets = named(bench)
    unions = {name: frozenset[int]().union(*own) for name, own in sets.items()}
    many = round(float(np.mean([len(union) for union in unions.values()])))
    draw = random.Random(2)
    by_chance = {seed: frozenset(draw.sample(range(len(bench.texts)), many)) for seed in size.seeds}
    train_all(bench, [(seed, without) for seed in size.seeds
                      for without in (frozenset[int](), by_chance[seed], *unions.values())], workers)  # fmt: skip
    full = {seed: bench.outcome(seed) for seed in size.seeds}
    falls: dict[str, np.ndarray] = {}
    for name in (RANDOM, *unions):
        own = [bench.outcome(seed, by_chance[seed] if name == RANDOM else unions[name]) for seed in size.seeds]
        before = [full[seed]["log p"] for seed in size.seeds]
        falls[name] = np.subtract(before, [one["log p"] for one in own])
        print(name, falls[name].mean(), flush=True)
    hits = {name: [len(one & set(q.proponents)) / min(size.removed, len(q.proponents))
                   for one, q in zip(own, bench.asked, strict=True)] for name, own in sets.items()}  # fmt: skip
    chance = falls[RANDOM].mean(0)
    sure = mean_interval(chance).low > 0
    result = {
        "question": "does a fact fade when the texts that were named are removed", "facts": len(bench.asked),
        "texts": len(bench.texts), "size": asdict(size),
        "parameters": sum(p.numel() for p in decoder(size.recipe).parameters()),
        "log p before": float(np.mean([full[seed]["log p"] for seed in size.seeds])),
        "right before": float(np.mean([full[seed]["right"] for seed in size.seeds])),
        "rows": [{
            "row": name, "texts removed": many if name == RANDOM else len(unions[name]),
            "P@10": asdict(mean_interval(hits[name])) if name in hits else None,
            "fall": asdict(mean_interval(values.mean(0))),
            "above random": asdict(difference(values.mean(0), chance)),
            "above BM25": asdict(difference(values.mean(0), falls[MASKED].mean(0))),
            "times random": asdict(ratio(values.mean(0), chance)) if sure else None,
            "by seed": values.mean(1).tolist(), "per fact": values.mean(0).tolist(),
        } for name, values in falls.items()],
    }  # fmt: skip
    if publish:
        write("trace_removal" if publish == "part" else f"trace_removal_{publish}", result)
        write_removal(result, publish)
    return result


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=SIZES, default="part")
    options.add_argument("--seeds", nargs="+", type=int)
    options.add_argument("--rows", nargs="+", choices=ROWS)
    options.add_argument("--device", default="cpu")
    options.add_argument("--workers", type=int, default=1, help="trainings at a time")
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    own = {name: tuple(value) for name, value in (("seeds", given.seeds), ("rows", given.rows)) if value}
    main(replace(SIZES[given.size], **own), given.device, given.workers, MINUTES[given.size], given.size)
