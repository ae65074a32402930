"""One rival on one job: its scores, the seconds of its fit and of its scores, and its peak memory.

Runs in the rivals' environment: python score.py FOLDER RIVAL SETTING… Reads the network with its weights and the data from the
folder; writes scores.npz (for each setting (Q, N), positive = proponent) and timed.json: CPU seconds of the process, one thread.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.banks import models


class Kronfluence:
    """EK-FAC at a damping, or the identity: pairwise scores."""

    def __init__(self, folder, model, train, queries):
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments

        self.factors, self.scores = FactorArguments, ScoreArguments
        task = self._task()
        self.train, self.queries, self.fitted = train, queries, set()
        self.analyzer = Analyzer("job", prepare_model(model, task), task, cpu=True, output_dir=str(folder / "kronfluence"),
                                 disable_tqdm=True)  # fmt: skip

    @staticmethod
    def _task():
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

        return Classify()

    def fit(self, setting):
        strategy = "identity" if setting == "identity" else "ekfac"
        if strategy not in self.fitted:
            factors = self.factors(strategy=strategy)
            self.analyzer.fit_all_factors(strategy, self.train, per_device_batch_size=128, factor_args=factors)
            self.fitted.add(strategy)

    def score(self, setting):
        strategy = "identity" if setting == "identity" else "ekfac"
        damping = None if setting == "heuristic" else 1e-8 if setting == "identity" else float(setting)
        name = setting.replace(".", "_")
        self.analyzer.compute_pairwise_scores(
            name, strategy, self.queries, self.train, per_device_query_batch_size=len(self.queries),
            per_device_train_batch_size=128, score_args=self.scores(damping_factor=damping),
        )  # fmt: skip
        return self.analyzer.load_pairwise_scores(name)["all_modules"].float().numpy()


class Captum:
    """TracIn at one checkpoint, by all parameters or by the last layer's."""

    def __init__(self, folder, model, train, queries):
        from captum.influence import TracInCP, TracInCPFast  # here: what importing takes is no fit

        self.all, self.last = TracInCP, TracInCPFast
        self.model, self.train, self.queries, self.weights = model, train, queries, folder / "captum.pt"
        torch.save(model.state_dict(), self.weights)

    def fit(self, setting):
        def load(net, path):
            net.load_state_dict(torch.load(path, weights_only=True))
            return 1.0

        settings = {
            "checkpoints_load_func": load,
            "batch_size": 64,
            "loss_fn": torch.nn.CrossEntropyLoss(reduction="sum"),
        }
        checkpoints = [str(self.weights)]
        if setting == "last layer":
            last = list(self.model.children())[-1]
            self.found = self.last(self.model, last, self.train, checkpoints, **settings)
        else:
            self.found = self.all(self.model, self.train, checkpoints, sample_wise_grads_per_batch=True, **settings)

    def score(self, setting):
        return self.found.influence(self.queries.tensors).numpy()


class Dattri:
    """TRAK (Park et al. 2023) on one checkpoint; the setting is the number of random projections."""

    def __init__(self, folder, model, train, queries):
        from dattri.algorithm.trak import TRAKAttributor
        from dattri.task import AttributionTask

        self.trak, self.task = TRAKAttributor, AttributionTask
        self.model, self.train, self.queries = model, train, queries

    def fit(self, setting):
        def log_probability(params, pair):
            inputs, label = pair
            logits = torch.func.functional_call(self.model, params, (inputs[None],))
            return -F.cross_entropy(logits, label[None])

        def margin(params, pair):
            log_p = log_probability(params, pair)
            return log_p - torch.log1p(-torch.exp(log_p).clamp_max(1 - 1e-6))

        task = self.task(loss_func=margin, model=self.model, checkpoints=self.model.state_dict())
        projector = {"proj_dim": int(setting), "proj_seed": 0, "device": "cpu"}
        self.found = self.trak(
            task,
            lambda params, pair: torch.exp(log_probability(params, pair)),
            projector_kwargs=projector,
            device="cpu",
        )
        with torch.no_grad():
            self.found.cache(DataLoader(self.train, batch_size=64))

    def score(self, setting):
        with torch.no_grad():
            return self.found.attribute(DataLoader(self.queries, batch_size=64)).T.float().numpy()


RIVALS = {"kronfluence": Kronfluence, "captum": Captum, "dattri": Dattri}


def read(folder):
    """Return (model, train, queries) of a job."""
    job = json.loads((folder / "job.json").read_text())
    model = getattr(models, job["function"])(*job["arguments"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with np.load(folder / "data.npz", allow_pickle=False) as kept:
        part = {name: torch.from_numpy(kept[name]) for name in kept.files}
    sides = (TensorDataset(part[f"x_{side}"], part[f"y_{side}"]) for side in ("train", "query"))
    return model.eval(), *sides


def main(folder, name, settings):
    """Run a rival at each setting, and write what it gave."""
    torch.set_num_threads(1)
    job = read(folder)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rival, scores, times = RIVALS[name](folder, *job), {}, {"fit_s": 0.0, "score_s": 0.0}
    for setting in settings:
        began = time.process_time()
        rival.fit(setting)
        fitted = time.process_time()
        scores[setting] = rival.score(setting)
        times["fit_s"] += fitted - began
        times["score_s"] += time.process_time() - fitted
    np.savez(folder / "scores.npz", **scores)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    (folder / "timed.json").write_text(json.dumps({**times, "peak_bytes": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
