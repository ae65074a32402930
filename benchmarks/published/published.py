"""What does `as_published` do differently from the clean default, and by how much? One question, on two real models.

A ResNet-20 (BatchNorm) on 4,000 CIFAR-10 images, and a CNN without BatchNorm trained here on digits. The queries are training
images themselves, so that each has its exact copy in the training set: a score made for finding copies should rank it first.
"""

from argparse import ArgumentParser, Namespace
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import forwardinf as fi
from benchmarks import data
from benchmarks.runner import Found, Part, say
from benchmarks.sets import example

LASTING = False
SETTINGS = {
    "as_published": fi.Perturbation.preset("as_published"),
    "as_published, lr → 0 (running statistics alone)": fi.Perturbation(lr=1e-12, behaviour="as_published"),
    "clean, sign, lr 5e-3 (Adam's first step, eval mode)": fi.Perturbation("sign", lr=5e-3),
    "clean, plain, linear": fi.Perturbation(),
    "clean, plain, rise .5, two-sided": fi.Perturbation(rise=0.5, two_sided=True),
}
Work = tuple[nn.Module, Any, Any]


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--queries", type=int, default=20)


def parts(given: Namespace) -> list[Part]:
    return [Part(name, lambda of=of: measure(*of(), given.queries), 300, given.queries) for name, of in MODELS.items()]


def result(given: Namespace, found: Found) -> Found:
    return {"seed": 0, "results": found}


def resnet20() -> Work:
    data.data_folder()
    images, labels, _ = example("common").cifar_lossless()
    models = example("models_resnet")
    return models.load(depth=20), models.pixels_to_input(images), torch.from_numpy(labels)


def digits_cnn() -> Work:
    images, labels, _ = data.digits()
    images, labels = images[:1400], labels[:1400]
    return example("digits").train_model(images, labels, epochs=8), images, labels


MODELS = {"ResNet-20, CIFAR-10": resnet20, "CNN, digits": digits_cnn}


def measure(model: nn.Module, images: Any, labels: Any, count: int) -> dict[str, Any]:
    """Return what each setting says of copies of training images, beside the published one."""
    rows = np.random.default_rng(0).choice(len(labels), count, replace=False)
    found = {}
    for name, setting in SETTINGS.items():
        found[name] = fi.attribute(model, (images, labels), (images[rows], labels[rows]), task=fi.Classification(),
                                   perturbation=setting, on_bad_query="skip")  # fmt: skip
        say(f"{name}: {found[name].cost['read_s']} s")
    published = found["as_published"]
    return {"N": len(labels), "settings": {name: _entry(scores, published, rows) for name, scores in found.items()}}


def _entry(scores: fi.Scores, published: fi.Scores, rows: np.ndarray) -> dict[str, Any]:
    size, usual = np.abs(scores.values), published.values
    usable = [q for q in range(len(rows)) if np.isfinite(size[q]).all() and np.isfinite(usual[q]).all()]
    alive = [q for q in usable if size[q].any()]  # without BatchNorm a push of length 0 changes nothing at all
    ranks = [int((size[q] > size[q][rows[q]]).sum()) + 1 for q in alive]
    entry = {
        "queries": len(usable), "queries for which any loss changes": len(alive),
        "own copy first, by |score|": _mean([size[q].argmax() == rows[q] for q in alive]),
        "own copy's median rank": float(np.median(ranks)) if ranks else None,
        "mean |change of loss|, times the published one": None if scores.kind == "linear" else round(
            float(np.median([size[q].mean() / usual[q].mean() for q in usable])), 4),
        "Spearman of |score| with as_published (median)": None if not alive else round(
            float(np.median([spearmanr(size[q], usual[q])[0] for q in alive])), 3),
        "median length ‖Δθ‖/‖θ‖": float(f"{np.nanmedian(scores.length):.3g}"),
    }  # fmt: skip
    if not scores.signed:
        return {**entry, "queries resampled": sum(status == "resampled" for status in scores.status)}
    near = np.abs(scores.share - 1)
    shared = [q for q in usable if np.isfinite(near[q]).any()]
    others = [(near[q] <= 1e-3).sum() - (near[q][rows[q]] <= 1e-3) for q in shared]
    return {
        **entry, "queries with a share": len(shared),
        "own copy first, by share nearest 1": _mean([np.nanargmin(near[q]) == rows[q] for q in shared]),
        "own copy within .001 of share 1": _mean([near[q][rows[q]] <= 1e-3 for q in shared]),
        "others within .001 of share 1 (median)": float(np.median(others)),
        "share of negative scores (lost by the absolute value)": round(float((scores.values[usable] < 0).mean()), 3),
    }  # fmt: skip


def _mean(hits: list[Any]) -> float | None:
    return round(float(np.mean(hits)), 3) if hits else None
