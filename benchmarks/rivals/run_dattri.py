"""dattri: TRAK (Park et al. 2023) on one checkpoint. Writes scores.npz (Q, N), positive = proponent.

python run_dattri.py FOLDER 512 1024        # numbers of random projections
"""

from __future__ import annotations

import sys
from pathlib import Path

import job
import numpy as np
import torch
import torch.nn.functional as F
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch.utils.data import DataLoader


def main() -> None:
    folder, settings = Path(sys.argv[1]), sys.argv[2:]
    model, train, queries = job.read(folder)

    def log_probability(params, pair):
        inputs, label = pair
        logits = torch.func.functional_call(model, params, (inputs[None],))
        return -F.cross_entropy(logits, label[None])

    def margin(params, pair):
        log_p = log_probability(params, pair)
        return log_p - torch.log1p(-torch.exp(log_p).clamp_max(1 - 1e-6))

    def probability(params, pair):
        return torch.exp(log_probability(params, pair))

    found = {}
    for setting in settings:
        task = AttributionTask(loss_func=margin, model=model, checkpoints=model.state_dict())
        attributor = TRAKAttributor(
            task,
            probability,
            projector_kwargs={"proj_dim": int(setting), "proj_seed": 0, "device": "cpu"},
            device="cpu",
        )
        with torch.no_grad():
            attributor.cache(DataLoader(train, batch_size=64))
            found[setting] = attributor.attribute(DataLoader(queries, batch_size=64)).T.float().numpy()
    np.savez(folder / "scores.npz", **found)


if __name__ == "__main__":
    main()
