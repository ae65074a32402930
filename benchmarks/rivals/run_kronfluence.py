"""kronfluence: pairwise scores by EK-FAC at given dampings, or by the identity. Writes scores.npz, positive = proponent.

python run_kronfluence.py FOLDER 1e-8 heuristic 1e-3 …
python run_kronfluence.py FOLDER fit          # no scores: the CPU seconds of fitting EK-FAC
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import job
import numpy as np
import torch
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task


class Classify(Task):
    """Cross-entropy for training examples and queries."""

    def compute_train_loss(self, batch, model, sample=False):
        logits = model(batch[0])
        labels = batch[1]
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(logits.detach().softmax(1), 1).flatten()
        return F.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch, model):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def main() -> None:
    folder, settings = Path(sys.argv[1]), sys.argv[2:]
    model, train, queries = job.read(folder)
    torch.manual_seed(0)
    task = Classify()
    model = prepare_model(model, task)
    analyzer = Analyzer("job", model, task, cpu=True, output_dir=str(folder / "kronfluence"), disable_tqdm=True)
    found = {}
    if settings == ["fit"]:
        began = time.process_time()
        analyzer.fit_all_factors(
            "ekfac", train, per_device_batch_size=128, factor_args=FactorArguments(strategy="ekfac")
        )
        np.savez(folder / "scores.npz", fit=np.array([time.process_time() - began]))
        return
    for strategy in dict.fromkeys("identity" if setting == "identity" else "ekfac" for setting in settings):
        analyzer.fit_all_factors(
            strategy, train, per_device_batch_size=128, factor_args=FactorArguments(strategy=strategy)
        )
    for setting in settings:
        damping = None if setting == "heuristic" else float(setting) if setting != "identity" else 1e-8
        strategy = "identity" if setting == "identity" else "ekfac"
        analyzer.compute_pairwise_scores(
            setting.replace(".", "_"), strategy, queries, train, per_device_query_batch_size=len(queries),
            per_device_train_batch_size=128, score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        found[setting] = analyzer.load_pairwise_scores(setting.replace(".", "_"))["all_modules"].float().numpy()
    np.savez(folder / "scores.npz", **found)


if __name__ == "__main__":
    main()
