"""The three uses on the demonstration's planted cases: what each finds, misses, and wrongly accuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from forwardinf.core.progress import Setting
from forwardinf.tasks.task import Classification
from forwardinf.use.demo_planted import Planted
from forwardinf.use.labels.memorized import memorized
from forwardinf.use.labels.mislabeled import mislabeled
from forwardinf.use.leaks.leaks import leaks
from forwardinf.use.tables import Found

CLEAN = 100  # test images, none of them copied, that are known to be clean


def planted_uses(
    planted: Planted, model: nn.Module, seed: int, progress: Setting
) -> tuple[dict[str, Found], pd.DataFrame]:
    """Return what the three uses find, and how that compares with what was planted: a row for each use."""
    images, labels = planted.test
    fresh = [row for row in range(len(labels)) if row not in planted.copies]
    clean = (images[fresh[:CLEAN]], labels[fresh[:CLEAN]])
    asked = sorted([*planted.copies, *fresh[CLEAN:]])
    names = [f"test {row}" for row in asked]
    task = Classification()
    leaked = leaks(model, planted.train, (images[asked], labels[asked]), task=task, clean=clean, query_ids=names, k=1,
                   progress=progress, seed=seed)  # fmt: skip
    wrong = mislabeled(model, planted.train, task=task, clean=clean, progress=progress, seed=seed)
    heart = memorized(model, planted.train, (images[asked], labels[asked]), task=task, query_ids=names, k=1,
                      progress=progress, seed=seed)  # fmt: skip

    is_copy = np.array([row in planted.copies for row in asked])
    flipped = (planted.train[1] != planted.truth).numpy()
    with torch.no_grad():
        fits = (model(planted.train[0]).argmax(1) == planted.train[1]).numpy()
    by_heart = heart.table[fits]
    hits = pd.DataFrame([
        _row("leaks", "test images copied into the training set", is_copy, leaked.table["is_leak"], leaked.table["score"],
             {"input": leaked.baselines["input_similarity"], "last layer": leaked.baselines["last_similarity"]}),
        _row("mislabeled", "training labels flipped", flipped, wrong.table["is_label_issue"], -wrong.table["label_score"],
             {"loss": wrong.table["loss"], "neighbours": wrong.baselines["last_neighbours"]}),
        _row("memorized", "flipped labels that the model fits all the same", flipped[fits], by_heart["is_memorized"],
             by_heart["memorization"], {"loss": by_heart["loss"], "self-influence": by_heart["self_influence"]}),
    ])  # fmt: skip
    return {"leaks": leaked, "mislabeled": wrong, "memorized": heart}, hits


def _row(use: str, planted: str, truth: Any, flagged: Any, score: Any, free: dict[str, Any]) -> dict[str, Any]:
    """Count hits and misses of one use; the free alternatives' ranking beside its own."""
    said = np.asarray(flagged, dtype=bool)
    best = max((auroc(truth, values), name) for name, values in free.items())
    return {
        "use": use, "planted": planted, "hits": int((said & truth).sum()), "misses": int((~said & truth).sum()),
        "false alarms": int((said & ~truth).sum()), "of": int((~truth).sum()), "AUROC": auroc(truth, score),
        "best free AUROC": best[0], "free": best[1],
    }  # fmt: skip


def auroc(truth: Any, score: Any) -> float:
    """Return the chance that a planted row outranks another one, ties counted half."""
    values, is_it = np.asarray(score, dtype=np.float64), np.asarray(truth, dtype=bool)
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    inside = int(is_it.sum())
    return float((rank[is_it].sum() - inside * (inside + 1) / 2) / (inside * (len(values) - inside)))
