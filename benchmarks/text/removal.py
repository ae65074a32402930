"""Are the texts that a trace names those that taught the fact? They are removed, and the decoder is trained again.

``--size whole --device cuda --workers 8``: minutes on a GPU, a day on a core.

The decoder of ``trace`` takes half an hour to train: the one of ``part`` is smaller and reads part of the corpus, every
text about a few facts (5 to 12 texts each), the texts that share most words with their questions, and others at random. ``whole``
is that decoder, all texts, and facts that it answers right. Each method's best texts of all facts are removed *together*: one
training for each method and seed, paired with the full one (same initial weights, same batches but for what was removed).
"""

import os
import random
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

import forwardinf as fi
from benchmarks.kept import place
from benchmarks.runner import Found, Part, say
from benchmarks.text import retraining as r
from benchmarks.text.tables import removal_tables as tables
from benchmarks.text.webnlg import AT_ONCE, LONGEST, decoder
from forwardinf.truth.agreement import difference, mean_interval, ratio
from forwardinf.use.text.fuse import reciprocal
from forwardinf.use.text.lexical import Lexical

__all__ = ["options", "parts", "result", "tables"]

PAGE = "trace"
LASTING = False  # its trainings are kept for good
RANDOM = "random"
GRADIENTS = {  # how gradients are compared, what they are of, through which curvature
    r.COSINE: ("cosine", "margin", "none"),
    r.LOSS: ("unit-whitened", "loss", "none"),
    r.PLAIN: ("unit-whitened", "margin", "none"),
    r.CURVED: ("cosine", "margin", "kfac"),
    r.OURS: ("unit-whitened", "margin", "kfac"),
}
MINUTES = {"part": 2.0, "whole": 33.0}  # a training, on one core


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--size", choices=r.SIZES, default="part")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--rows", nargs="+", choices=r.ROWS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1)


def name(given: Namespace) -> str:
    return "trace_removal" if given.size == "part" else f"trace_removal_{given.size}"


def parts(given: Namespace) -> list[Part]:
    own = {what: tuple(value) for what, value in (("seeds", given.seeds), ("rows", given.rows)) if value}
    size = replace(r.SIZES[given.size], **own)

    def run() -> dict[str, Any]:
        torch.set_num_threads(given.threads)
        return evaluate(size, given.device, given.workers)

    seconds = 60 * MINUTES[given.size] * (2 + len(size.rows)) * len(size.seeds)
    return [Part(given.size, run, seconds, (asdict(size), given.device))]


def result(given: Namespace, found: Found) -> Found:
    return found[given.size]


def evaluate(size: r.Size, device: str = "cpu", workers: int = 1) -> dict[str, Any]:
    """Train again without what each method names, and return by how much the facts fade."""
    os.environ.setdefault("FORWARDINF_CACHE", str(place("trace-removal", "library")))
    bench = r.Bench(size, device)
    sets = named(bench)
    unions = {row: frozenset[int]().union(*own) for row, own in sets.items()}
    many = round(float(np.mean([len(union) for union in unions.values()])))
    draw = random.Random(2)
    by_chance = {seed: frozenset(draw.sample(range(len(bench.texts)), many)) for seed in size.seeds}
    r.train_all(bench, [(seed, without) for seed in size.seeds
                      for without in (frozenset[int](), by_chance[seed], *unions.values())], workers)  # fmt: skip
    full = [bench.outcome(seed) for seed in size.seeds]
    falls: dict[str, np.ndarray] = {}
    for row in (RANDOM, *unions):
        own = [bench.outcome(seed, by_chance[seed] if row == RANDOM else unions[row]) for seed in size.seeds]
        falls[row] = np.subtract([one["log p"] for one in full], [one["log p"] for one in own])
        say(f"{row}: {falls[row].mean():.4f}")
    hits = {row: [len(one & set(q.proponents)) / min(size.removed, len(q.proponents))
                  for one, q in zip(own, bench.asked, strict=True)] for row, own in sets.items()}  # fmt: skip
    removed = {RANDOM: many} | {row: len(union) for row, union in unions.items()}
    return {
        "facts": len(bench.asked), "texts": len(bench.texts), "size": asdict(size),
        "parameters": sum(p.numel() for p in decoder(size.recipe).parameters()),
        "log p before": float(np.mean([one["log p"] for one in full])),
        "right before": float(np.mean([one["right"] for one in full])), "rows": _rows(falls, hits, removed),
    }  # fmt: skip


def _rows(falls: dict[str, np.ndarray], hits: dict[str, list[float]], removed: dict[str, int]) -> list[dict[str, Any]]:
    """Return each way's fall of log p over facts, beside random removal's and masked BM25's."""
    means = {row: values.mean(0) for row, values in falls.items()}
    chance = means[RANDOM]
    sure = mean_interval(chance).low > 0
    return [{
        "row": row, "texts removed": removed[row], "P@10": asdict(mean_interval(hits[row])) if row in hits else None,
        "fall": asdict(mean_interval(values)), "above random": asdict(difference(values, chance)),
        "above BM25": asdict(difference(values, means[r.MASKED])),
        "times random": asdict(ratio(values, chance)) if sure else None,
        "by seed": falls[row].mean(1).tolist(), "per fact": values.tolist(),
    } for row, values in means.items()]  # fmt: skip


def named(bench: r.Bench) -> dict[str, list[frozenset[int]]]:
    """Return what each method names: a set of texts for each fact."""
    model, k = bench.full(), bench.size.removed
    index = Lexical(bench.texts)
    prompts, answers = [q.prompt for q in bench.asked], [q.answer for q in bench.asked]
    filled = [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    scores = {
        row: np.stack([index.scores(text) for text in texts])
        for row, texts in ((r.MASKED, prompts), (r.FILLED, filled))
    }
    settings: dict[str, Any] = {"answers": answers, "tokenizer": bench.tokenizer, "spans": 0, "max_length": LONGEST, "k": k,
                                "baselines": False, "progress": False,
                                "batch_size": AT_ONCE[bench.device.type]}  # fmt: skip
    for row in [row for row in GRADIENTS if row in bench.size.rows or row == r.OURS]:
        how, reading, curvature = GRADIENTS[row]
        traced = fi.trace(model, bench.texts, prompts, how=how, reading=reading, curvature=curvature, jointly=row == r.OURS,
                          **settings)  # fmt: skip
        scores[row] = np.asarray(traced.scores.values, dtype=np.float64)
        if row == r.OURS:  # its scores stay each text's own, its table names the texts that count together
            together = traced.table.groupby("question")["train"]
    scores[r.FUSED] = np.stack(
        [reciprocal([a, b], [1.0, 1.0]) for a, b in zip(scores[r.OURS], scores[r.FILLED], strict=True)]
    )
    best: Callable[[Any], frozenset[int]] = lambda row: frozenset(np.argsort(-row, kind="stable")[:k].tolist())  # noqa: E731
    draw = random.Random(1)
    found = {r.TRUE: [frozenset(draw.sample(q.proponents, min(k, len(q.proponents)))) for q in bench.asked],
             **{row: [best(one) for one in values] for row, values in scores.items()},
             r.JOINTLY: [frozenset(map(int, together.get_group(q))) for q in range(len(bench.asked))]}  # fmt: skip
    return {row: found[row] for row in bench.size.rows}
