"""Everything that :func:`forwardinf.leaks` compares, read once, so that every single view can be tried beside the whole."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import forwardinf as fi
from forwardinf.job.options import Options
from forwardinf.models.borrowed import borrowed
from forwardinf.use.features import features, find_layers
from forwardinf.use.inputs import NONE, open_inputs
from forwardinf.use.leaks.evidence import Views, as_views, matches, whitening
from forwardinf.use.leaks.matching import content
from forwardinf.use.responses import Probes, responses, unit

PROBES = 2048  # as fi.leaks takes for sets of this size
VIEWS = {"response": "responses, cosine", "whitened": "responses, whitened", "input": "nearest input (free)",
         "early": "early layer (free)", "last": "last layer (free)"}  # fmt: skip
OURS, SHARE = "all together (`fi.leaks`)", "share nearest to 1"
HASH, LOSS = "content hash (free)", "loss (free; no pair)"


@dataclass(frozen=True)
class Side:
    """What is known of some examples: views as unit rows, plain responses, digests of the inputs, losses."""

    views: Views
    raw: Tensor
    content: list[bytes]
    loss: Tensor


@dataclass(frozen=True)
class Best:
    """Each query's best training row by one way of comparing, how good it is, and the five best rows."""

    row: Tensor
    score: Tensor
    five: Tensor


def read(model: nn.Module, sets: Mapping[str, Any]) -> tuple[dict[str, Side], dict[str, float]]:
    """Return a side for each set of ``(inputs, labels)``, ``"train"`` among them, and the seconds of each part."""
    raw, plain, took = {}, {}, {"features": 0.0, "responses": 0.0}
    with borrowed(model):
        given = open_inputs(model, fi.Classification(), Options(progress=False), None, None)
        probes = Probes(given.parameters, PROBES, 0)
        for name, data in sets.items():
            feed = given.feed(data, name)
            began = time.process_time()
            plain[name] = features(feed, given.batch_size, NONE, find_layers(feed)), content(feed.examples, given.task)
            between = time.process_time()
            raw[name] = responses(feed, given.parameters, probes)
            took["features"] += between - began
            took["responses"] += time.process_time() - between
    began = time.process_time()
    whiten = whitening(unit(raw["train"].values))
    took["whitening"] = time.process_time() - began
    sides = {
        name: Side(as_views(plain[name][0], found.values, whiten), found.values, plain[name][1], found.asked)
        for name, found in raw.items()
    }
    return sides, took


def ways(asked: Side, train: Side) -> dict[str, Best]:
    """Return the best match of every query by each way."""
    whole = matches(asked.views, train.views, 5)
    found = {OURS: Best(whole.rows[:, 0], whole.score[:, 0], whole.rows)}
    for view, name in VIEWS.items():
        if view in asked.views:
            found[name] = _best(asked.views[view] @ train.views[view].T)
    share = (asked.raw @ train.raw.T) / asked.raw.square().sum(1, keepdim=True).clamp_min(1e-30)
    found[SHARE] = _best(-(share - 1).abs())
    known = {key: row for row, key in reversed(list(enumerate(train.content)))}
    rows = torch.tensor([known.get(key, -1) for key in asked.content])
    found[HASH] = Best(rows, (rows >= 0).float(), rows[:, None])
    found[LOSS] = Best(torch.full_like(rows, -1), -asked.loss, torch.full_like(rows, -1)[:, None])
    return found


def _best(score: Tensor) -> Best:
    found = score.topk(5, 1)
    return Best(found.indices[:, 0], found.values[:, 0], found.indices)
