"""One rival on one job, timed: the seconds of its fit and of its scores, its peak memory, and the scores themselves.

Runs in the rivals' environment: python timed.py FOLDER RIVAL. Writes scores.npz (scores (Q, N), positive = proponent) and
timed.json. Times are CPU seconds of the process, one thread.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import job
import numpy as np
import torch
import torch.nn.functional as F


def kronfluence(folder, model, train, queries, strategy):
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from run_kronfluence import Classify

    task = Classify()
    analyzer = Analyzer(
        "job", prepare_model(model, task), task, cpu=True, output_dir=str(folder / "kron"), disable_tqdm=True
    )

    def fit():
        analyzer.fit_all_factors(
            strategy, train, per_device_batch_size=128, factor_args=FactorArguments(strategy=strategy)
        )

    def score():
        settings = {"per_device_query_batch_size": len(queries), "per_device_train_batch_size": 128}
        analyzer.compute_pairwise_scores("s", strategy, queries, train, score_args=ScoreArguments(damping_factor=1e-8),
                                         **settings)  # fmt: skip
        return analyzer.load_pairwise_scores("s")["all_modules"].float().numpy()

    return fit, score


def tracin(folder, model, train, queries, fast):
    from captum.influence import TracInCP, TracInCPFast

    weights = folder / "captum.pt"
    torch.save(model.state_dict(), weights)

    def load(net, path):
        net.load_state_dict(torch.load(path, weights_only=True))
        return 1.0

    settings = {"checkpoints_load_func": load, "batch_size": 64}
    if fast:
        found = TracInCPFast(model, list(model.children())[-1], train, [str(weights)],
                             loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"), **settings)  # fmt: skip
    else:
        found = TracInCP(model, train, [str(weights)], loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
                         sample_wise_grads_per_batch=True, **settings)  # fmt: skip
    inputs, labels = queries.tensors
    return (lambda: None), (lambda: found.influence((inputs, labels)).numpy())


def trak(folder, model, train, queries, _):
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader

    def log_probability(params, pair):
        inputs, label = pair
        return -F.cross_entropy(torch.func.functional_call(model, params, (inputs[None],)), label[None])

    def margin(params, pair):
        log_p = log_probability(params, pair)
        return log_p - torch.log1p(-torch.exp(log_p).clamp_max(1 - 1e-6))

    attributor = TRAKAttributor(AttributionTask(loss_func=margin, model=model, checkpoints=model.state_dict()),
                                lambda params, pair: torch.exp(log_probability(params, pair)),
                                projector_kwargs={"proj_dim": 512, "proj_seed": 0, "device": "cpu"}, device="cpu")  # fmt: skip

    def fit():
        with torch.no_grad():
            attributor.cache(DataLoader(train, batch_size=64))

    def score():
        with torch.no_grad():
            return attributor.attribute(DataLoader(queries, batch_size=64)).T.float().numpy()

    return fit, score


RIVALS = {
    "kronfluence identity": (kronfluence, "identity"), "kronfluence EK-FAC": (kronfluence, "ekfac"),
    "captum TracInCP": (tracin, False), "captum TracInCPFast": (tracin, True), "dattri TRAK 512": (trak, None),
}  # fmt: skip


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    model, train, queries = job.read(folder)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    make, setting = RIVALS[name]
    fit, score = make(folder, model, train, queries, setting)
    began = time.process_time()
    fit()
    fitted = time.process_time()
    scores = score()
    done = time.process_time()
    np.savez(folder / "scores.npz", scores=scores)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    (folder / "timed.json").write_text(
        json.dumps({"fit_s": fitted - began, "score_s": done - fitted, "peak_bytes": peak})
    )


if __name__ == "__main__":
    main()
