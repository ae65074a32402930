"""Make a bank: train on 100 random halves with two seeds each, keep every query's loss and margin. Resumable.

python -m benchmarks.banks.make digits sst2 fashion cifar      # minutes for the first three, about an hour for the last
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks.banks import recipes
from benchmarks.kept import place
from forwardinf.core import machine
from forwardinf.truth.bank import Bank
from forwardinf.truth.retrain import half_subsets, retrain, spoken

HERE = Path(__file__).parent
USED = ("python", "torch", "numpy", "scikit-learn")


def make(name: str) -> Bank:
    """Train what is not yet trained, and write ``benchmarks/banks/<name>``."""
    data = recipes.data_of(name)
    masks = half_subsets(len(data.train_ids), recipes.SUBSETS, recipes.SHARE, recipes.DRAWN_BY)
    seeds = [[1000 + recipes.SEEDS * m + s for s in range(recipes.SEEDS)] for m in range(len(masks))]

    def train_fn(rows: object, seed: int) -> torch.nn.Module:
        return recipes.train(name, rows, seed)

    train_fn.version = recipes.describe(name)  # type: ignore[attr-defined]  # told by its recipe
    began = time.monotonic()
    found = retrain(train_fn, [row.nonzero()[0] for row in masks], lambda model: recipes.ask(model, data.queries),
                    seeds=seeds, folder=place("banks", name), title=f"{name}: training", progress_bar=True)  # fmt: skip
    told = {part: version for part, version in machine.versions().items() if part in USED}
    meta = {**recipes.describe(name), "subset_seeds": "1000 + 2 m + s", "full_seeds": list(recipes.FULL_SEEDS),
            "margin": "log p/(1 - p) of the true label", "versions": told,
            "processor": machine.describe()["processor"]}  # fmt: skip
    bank = Bank(masks, found["loss"].astype("float32"), "loss", {"margin": found["margin"].astype("float32")}, meta)
    bank.save(HERE / name)
    print(f"{name}: {len(masks)} subsets × {recipes.SEEDS} seeds, {bank.outputs.shape[2]} queries, "
          f"ceiling {bank.ceiling().mean():.3f} (loss), {bank.named('margin').ceiling().mean():.3f} (margin), "
          f"{spoken(time.monotonic() - began)}", flush=True)  # fmt: skip
    return bank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("banks", nargs="+", choices=list(recipes.RECIPES))
    torch.set_num_threads(1)
    for name in parser.parse_args().banks:
        make(name)


if __name__ == "__main__":
    main()
