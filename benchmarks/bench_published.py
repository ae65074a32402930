"""What does `as_published` do differently from the clean default, and by how much? One question, on two real models.

A ResNet-20 (BatchNorm) on 4,000 CIFAR-10 images, and a CNN without BatchNorm trained here on digits. The queries are training
images themselves, so that each has its exact copy in the training set: a score made for finding copies should rank it first.

python benchmarks/bench_published.py        # about ten minutes; needs FORWARDINF_DATA
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import data_folder, write
from scipy.stats import spearmanr
from torch import nn

import forwardinf as fi

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

SETTINGS = {
    "as_published": fi.Perturbation.preset("as_published"),
    "as_published, lr → 0 (running statistics alone)": fi.Perturbation(lr=1e-12, behaviour="as_published"),
    "clean, sign, lr 5e-3 (Adam's first step, eval mode)": fi.Perturbation("sign", lr=5e-3),
    "clean, plain, linear": fi.Perturbation(),
    "clean, plain, rise .5, two-sided": fi.Perturbation(rise=0.5, two_sided=True),
}


def resnet20() -> tuple[nn.Module, Any, Any]:
    import models_resnet
    from common import cifar_lossless  # the examples' own

    data_folder()
    images, labels, _ = cifar_lossless()
    return models_resnet.load(depth=20), models_resnet.pixels_to_input(images), torch.from_numpy(labels)


def digits_cnn() -> tuple[nn.Module, Any, Any]:
    import digits
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images[:, None] / 16).astype(np.float32))[:1400]
    labels = torch.from_numpy(found.target[:1400])
    return digits.train_model(images, labels, epochs=8), images, labels


def measure(model: nn.Module, images: Any, labels: Any, count: int) -> dict[str, Any]:
    rows = np.random.default_rng(0).choice(len(labels), count, replace=False)
    found = {}
    for name, setting in SETTINGS.items():
        found[name] = fi.attribute(model, (images, labels), (images[rows], labels[rows]), task=fi.Classification(),
                                   perturbation=setting, on_bad_query="skip")  # fmt: skip
        print(name, found[name].cost["read_s"], flush=True)
    published = found["as_published"]
    report = {}
    for name, scores in found.items():
        size = np.abs(scores.values)
        usable = [q for q in range(count) if np.isfinite(size[q]).all() and np.isfinite(published.values[q]).all()]
        alive = [q for q in usable if size[q].any()]  # without BatchNorm a push of length 0 changes nothing at all
        first = _mean([size[q].argmax() == rows[q] for q in alive])
        ranks = [int((size[q] > size[q][rows[q]]).sum()) + 1 for q in alive]
        entry = {
            "queries": len(usable), "queries for which any loss changes": len(alive),
            "own copy first, by |score|": first, "own copy's median rank": float(np.median(ranks)) if ranks else None,
            "mean |change of loss|, times the published one": None if scores.kind == "linear" else round(
                float(np.median([size[q].mean() / published.values[q].mean() for q in usable])), 4),
            "Spearman of |score| with as_published (median)": None if not alive else round(
                float(np.median([spearmanr(size[q], published.values[q])[0] for q in alive])), 3),
            "median length ‖Δθ‖/‖θ‖": float(f"{np.nanmedian(scores.length):.3g}"),
        }  # fmt: skip
        if scores.signed:
            near = np.abs(scores.share - 1)
            shared = [q for q in usable if np.isfinite(near[q]).any()]
            entry["queries with a share"] = len(shared)
            entry["own copy first, by share nearest 1"] = _mean([np.nanargmin(near[q]) == rows[q] for q in shared])
            entry["own copy within .001 of share 1"] = _mean([near[q][rows[q]] <= 1e-3 for q in shared])
            entry["others within .001 of share 1 (median)"] = float(
                np.median([(near[q] <= 1e-3).sum() - (near[q][rows[q]] <= 1e-3) for q in shared])
            )
            entry["share of negative scores (lost by the absolute value)"] = round(
                float((scores.values[usable] < 0).mean()), 3
            )
        else:
            entry["queries resampled"] = sum(status == "resampled" for status in scores.status)
        report[name] = entry
    return {"N": len(labels), "settings": report}


def _mean(hits: list[Any]) -> float | None:
    return round(float(np.mean(hits)), 3) if hits else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=20)
    given = parser.parse_args()
    results = {
        "ResNet-20, CIFAR-10": measure(*resnet20(), given.queries),
        "CNN, digits": measure(*digits_cnn(), given.queries),
    }
    write("published", {"question": "as_published beside the clean settings", "seed": 0, "results": results})


if __name__ == "__main__":
    main()
