"""The authors' leakage protocol, adapted: exact copies of training images as tests, on a ResNet-20 trained without augmentation.

Theirs: CIFAR-100, ResNet-18, 500 copies, settings chosen on 100. Here: CIFAR-10, the images with exact pixels, a ResNet-20; the
step of ``as_published`` is chosen on some copies and reported on others. Every row is asked for the same copies.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import forwardinf as fi
from benchmarks.data import Examples
from benchmarks.leaks.reading import OURS, read, ways
from benchmarks.runner import say
from forwardinf.use.leaks.evidence import matches

RATES = (5e-3, 1e-3)  # Adam's, of as_published; the first is the authors'
WHOLE, TESTS = 50_000, 10_000  # CIFAR-10


def protocol(model: nn.Module, train: Examples, tune: int, few: int, report: int) -> dict[str, Any]:
    """Return a row for each way: top-1, top-5, seconds once and for each query, and what the whole of CIFAR-10 would take.

    ``as_published``, which reads the training set for every copy, is asked for the first ``few`` of those reported.
    """
    rows = torch.tensor(np.random.default_rng(1).choice(len(train[1]), tune + report, replace=False))
    first, others = rows[:tune], rows[tune:]
    found = [_published(model, train, first, others[:few])]
    found += _products(model, train, others)
    found += _ours(model, train, others)
    return {"tuned on": tune, "few": few, "reported on": report, "N": len(train[1]), "rows": found}


def _published(model: nn.Module, train: Examples, tune: Tensor, report: Tensor) -> dict[str, Any]:
    by_rate = {}
    for rate in RATES:
        scores, _ = _attribute(model, train, tune, fi.Perturbation(lr=rate, behaviour="as_published"))
        by_rate[rate] = _hits(torch.from_numpy(scores), tune)
        say(f"as_published, rate {rate:g}: {by_rate[rate]} of {len(tune)}")
    chosen = max(RATES, key=lambda rate: (by_rate[rate]["top-1"], by_rate[rate]["top-5"]))
    scores, seconds = _attribute(model, train, report, fi.Perturbation(lr=chosen, behaviour="as_published"))
    return {
        "row": "`as_published`", "setting": f"rate {chosen:g}", "by rate": {f"{rate:g}": hits for rate, hits in by_rate.items()},
        **_hits(torch.from_numpy(scores), report), **_by_query(seconds / len(report), len(train[1])),
    }  # fmt: skip


def _by_query(each: float, rows: int) -> dict[str, float]:
    """Return the times of a way that reads the training set for every query."""
    whole = each * WHOLE / rows
    return {"once_s": 0.0, "query_s": round(each, 4), "whole_query_s": round(whole, 2),
            "whole_h": round(whole * TESTS / 3600, 1)}  # fmt: skip


def _products(model: nn.Module, train: Examples, report: Tensor) -> list[dict[str, Any]]:
    """TracIn's score with one checkpoint, the dot product of gradients; exact, all queries in one pass."""
    scores, seconds = _attribute(model, train, report, fi.Perturbation(), engine="factored")
    times = _by_query(seconds / len(report), len(train[1]))
    table = torch.from_numpy(scores)
    own = table[torch.arange(len(report)), report][:, None]  # a copy's product with itself: the query's rise
    return [
        {"row": "gradient products (TracIn, last checkpoint)", "setting": "", **_hits(table, report), **times},
        {"row": "the same as shares, nearest to 1", "setting": "", **_hits(-(table / own - 1).abs(), report), **times},
    ]


def _ours(model: nn.Module, train: Examples, report: Tensor) -> list[dict[str, Any]]:
    asked = (train[0][report], train[1][report])
    sides, took = read(model, {"train": train, "asked": asked})
    best = ways(sides["asked"], sides["train"])
    one = (took["features"] + took["responses"]) / (len(train[1]) + len(report))
    began = time.process_time()
    matches(sides["asked"].views, sides["train"].views, 5)
    pair = (time.process_time() - began) / (len(report) * len(train[1]))
    once, each = one * len(train[1]) + took["whitening"], one + pair * len(train[1])
    whole_once, whole_each = one * WHOLE + took["whitening"], one + pair * WHOLE
    times = {"once_s": round(once, 1), "query_s": round(each, 4), "whole_query_s": round(whole_each, 4),
             "whole_h": round((whole_once + TESTS * whole_each) / 3600, 2), "gradient_s": one, "pair_s": pair}  # fmt: skip
    wanted = {OURS: best[OURS], "responses alone, cosine": best["responses, cosine"],
              "responses alone, whitened": best["responses, whitened"]}  # fmt: skip
    return [
        {"row": name, "setting": "none to choose", "top-1": _share(found.row == report),
         "top-5": _share((found.five == report[:, None]).any(1)), **times}
        for name, found in wanted.items()
    ]  # fmt: skip


def _attribute(model: nn.Module, train: Examples, rows: Tensor, how: fi.Perturbation, **more: Any) -> tuple[Any, float]:
    began = time.process_time()
    asked = (train[0][rows], train[1][rows])
    found = fi.attribute(model, train, asked, task=fi.Classification(), perturbation=how, on_bad_query="skip",
                         progress=False, **more)  # fmt: skip
    return np.nan_to_num(found.values, nan=-np.inf), time.process_time() - began


def _hits(table: Tensor, rows: Tensor) -> dict[str, float]:
    best = table.topk(5, 1).indices
    return {"top-1": _share(best[:, 0] == rows), "top-5": _share((best == rows[:, None]).any(1))}


def _share(hits: Tensor) -> float:
    return round(float(hits.double().mean()), 4)
