"""Are the texts that a trace names those that taught the fact? They are removed, and the decoder is trained again.

    python benchmarks/evaluate_trace_removal.py      # says its time first; resumable training by training

The decoder of evaluate_trace.py takes half an hour to train: this one is smaller and reads part of the corpus, every text about
a few facts (5 to 12 texts each), the texts that share most words with their questions, and others at random. Each method's ten
best texts of all facts are removed *together*: one training for each method and seed, paired with the full one (same initial
weights, same batches but for what was removed). Writes results/trace_removal.json and a table in docs/trace.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from harness import write
from safetensors.torch import load_file, save_file
from trace_table import write_removal
from webnlg import LONGEST, Question, Recipe, corpus, decoder, questions, rows_of, tokenizer_of, train

import forwardinf as fi
from forwardinf.core.files import write_json, written
from forwardinf.core.fingerprint import digest
from forwardinf.score.agreement import difference, mean_interval, ratio
from forwardinf.use.fuse import reciprocal
from forwardinf.use.lexical import Lexical
from forwardinf.use.retrain import spoken
from forwardinf.use.texts import answer_row

WORK = Path(__file__).parent / ".cache" / "trace-removal"
RANDOM, TRUE = "random", "labelled as stating it"
MASKED, FILLED = "BM25, masked", "BM25, filled"
COSINE, LOSS, OURS = "gradient cosine, by the margin", "unit-whitened, by the loss", "unit-whitened"
FUSED = "unit-whitened + BM25, masked"
GRADIENTS = {COSINE: ("cosine", "margin"), LOSS: ("unit-whitened", "loss"), OURS: ("unit-whitened", "margin")}

ROWS = (TRUE, MASKED, FILLED, COSINE, LOSS, OURS, FUSED)


@dataclass(frozen=True)
class Size:
    """How much of everything; the tests run a small one."""

    facts: int = 24
    texts: int = 700
    lexical: int = 10  # of each fact, its nearest texts by words
    removed: int = 10  # of each fact
    seeds: tuple[int, ...] = (0, 1)
    vocabulary: int = 1024
    width: int = 128
    layers: int = 2
    heads: int = 4
    epochs: int = 30
    rows: tuple[str, ...] = (MASKED, FILLED, COSINE, LOSS, OURS)

    def recipe(self, seed: int) -> Recipe:
        return Recipe(self.vocabulary, self.width, self.layers, self.heads, self.epochs, batch=32, lr=3e-3, warmup=60,
                      seed=seed, kept=())  # fmt: skip


MINUTES = 2.0  # a training


def chosen(size: Size) -> tuple[list[Question], list[str]]:
    """Return facts of 5 to 12 texts, each asked once, and part of the corpus; questions point into that part."""
    draw, texts = random.Random(0), corpus()
    found = {(q.subject, q.obj): q for q in questions() if 5 <= len(q.proponents) <= 12}
    asked = [found[key] for key in sorted(found)]
    draw.shuffle(asked)
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


def log_probabilities(model: Any, tokenizer: Any, asked: Sequence[Question]) -> tuple[list[float], list[bool]]:
    """Return log p(answer | prompt) of each fact, and whether every token is what the model would say."""
    found, right = [], []
    with torch.no_grad():
        for q in asked:
            row = answer_row(tokenizer, q.prompt, q.answer, None, False)
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
            told = model(input_ids=ids).logits[0, :-1].double().log_softmax(1)
            counted = labels != -100
            found.append(float(told[counted].gather(1, labels[counted, None]).sum()))
            right.append(bool((told.argmax(1) == labels)[counted].all()))
    return found, right


class Bench:
    """Facts, texts and tokenizer; trains without some texts, and keeps what became of the facts."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.asked, self.texts = chosen(size)
        self.tokenizer = tokenizer_of(self.texts, size.recipe(0))
        self.rows = rows_of(self.tokenizer, self.texts)

    def full(self) -> Any:
        """Return the full model of the first seed: the one that is asked."""
        recipe = self.size.recipe(self.size.seeds[0])
        path = WORK / "full" / f"{digest(str(recipe), self.texts)}.safetensors"
        if not path.exists():
            made = train(self.rows, recipe, {})
            with written(path) as part:
                save_file({name: p.detach().clone() for name, p in made.named_parameters()}, part)
        model, kept = decoder(recipe), load_file(path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(kept[name])
        return model.eval()

    def outcome(self, seed: int, without: frozenset[int] = frozenset()) -> dict[str, Any]:
        """Return the facts' log-probabilities after a training without some texts; kept."""
        recipe = self.size.recipe(seed)
        path = WORK / "retrained" / f"{digest(str(recipe), self.texts, sorted(without))}.json"
        if not path.exists():
            whole = seed == self.size.seeds[0] and not without
            model = self.full() if whole else train(self.rows, recipe, {}, without=without)
            found, right = log_probabilities(model, self.tokenizer, self.asked)
            write_json(path, {"log p": found, "right": right})
        return json.loads(path.read_text())


def named(bench: Bench) -> dict[str, list[frozenset[int]]]:
    """Return what each method names: a set of texts for each fact."""
    model, k = bench.full(), bench.size.removed
    index = Lexical(bench.texts)
    scores = {
        MASKED: np.stack([index.scores(q.prompt) for q in bench.asked]),
        FILLED: np.stack([index.scores(f"{q.prompt} {q.answer}") for q in bench.asked]),
    }
    prompts, answers = [q.prompt for q in bench.asked], [q.answer for q in bench.asked]
    for name, (how, reading) in GRADIENTS.items():
        traced = fi.trace(model, bench.texts, prompts, answers=answers, tokenizer=bench.tokenizer, how=how, reading=reading,
                          spans=0, max_length=LONGEST, baselines=False, progress=False)  # fmt: skip
        scores[name] = np.asarray(traced.scores.values, dtype=np.float64)
    scores[FUSED] = np.stack(
        [reciprocal([a, b], [1.0, 1.0]) for a, b in zip(scores[OURS], scores[MASKED], strict=True)]
    )
    best: Callable[[Any], frozenset[int]] = lambda row: frozenset(np.argsort(-row, kind="stable")[:k].tolist())  # noqa: E731
    draw = random.Random(1)
    found = {TRUE: [frozenset(draw.sample(q.proponents, min(k, len(q.proponents)))) for q in bench.asked],
             **{name: [best(row) for row in values] for name, values in scores.items()}}  # fmt: skip
    return {name: found[name] for name in bench.size.rows}


def main(size: Size, *, publish: bool = True) -> dict[str, Any]:
    """Run, keep, and write what came out."""
    os.environ.setdefault("FORWARDINF_CACHE", str(WORK / "library"))
    print(
        f"at most {spoken(60 * MINUTES * (2 + len(size.rows)) * len(size.seeds))} on one thread; resumable",
        file=sys.stderr,
        flush=True,
    )
    bench = Bench(size)
    sets = named(bench)
    unions = {name: frozenset[int]().union(*own) for name, own in sets.items()}
    many = round(float(np.mean([len(union) for union in unions.values()])))
    draw = random.Random(2)
    by_chance = {seed: frozenset(draw.sample(range(len(bench.texts)), many)) for seed in size.seeds}
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
        "parameters": sum(p.numel() for p in decoder(size.recipe(0)).parameters()),
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
        write("trace_removal", result)
        write_removal(result)
    return result


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", nargs="+", type=int, default=list(Size().seeds))
    options.add_argument("--rows", nargs="+", default=list(Size().rows), choices=ROWS)
    given = options.parse_args()
    torch.set_num_threads(1)
    main(Size(seeds=tuple(given.seeds), rows=tuple(given.rows)))
