"""The check with networks: a CNN trained without a group of examples, against one trained with the tests added.

The published protocol, with three repairs: seeds seed (initial weights and batches), the second quantity is trained once and
not once for each group (it does not depend on the group), and beside the published groups, whose share of wrong labels goes
from 0 to 1, stand groups that all have the same share: the sweep alone can make any two measures agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forwardinf.core.fingerprint import digest
from forwardinf.core.progress import Setting
from forwardinf.truth.agreement import Array, pearson
from forwardinf.truth.mirror import Mirror
from forwardinf.truth.retrain import retrain
from forwardinf.truth.verify_data import Pictures, split

PUBLISHED = {
    "mnist": {"pearson": 0.9864, "spearman": 0.9915},
    "fashion": {"pearson": 0.9752, "spearman": 0.9915},
    "cifar10": {"pearson": 0.8971, "spearman": 0.9551},
}
SWEEP, SAME = "groups, wrong labels from 0 to 1", "groups, equal share of wrong labels"
WRONG_SEED, GROUP_SEED = 1, 2  # added to the split's


@dataclass(frozen=True)
class GroupPlan:
    """Sizes and training of one group check.

    Attributes:
        train: Training images.
        validation: Validation images, of which the tests are a balanced part.
        tests: Test images, equally many of each class.
        wrong: Share of training labels that are made wrong; a group is as large as their number.
        epochs: Of training.
        groups: In each of the two series.
        lr: Of SGD.
        momentum: Of SGD.
        weight_decay: Of SGD.
        batch: Rows of a batch.
    """

    train: int
    validation: int
    tests: int
    wrong: float
    epochs: int
    groups: int = 30
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.001
    batch: int = 64


PLANS = {
    "mnist": GroupPlan(1050, 5000, 500, wrong=0.3, epochs=10),
    "fashion": GroupPlan(1050, 5000, 500, wrong=0.5, epochs=10),
    "cifar10": GroupPlan(900, 5000, 500, wrong=0.5, epochs=20),
    "digits": GroupPlan(800, 900, 400, wrong=0.3, epochs=30),
}
QUICK = GroupPlan(300, 900, 200, wrong=0.3, epochs=20, groups=10)


@dataclass(frozen=True)
class Groups:
    """What is trained: images with some labels wrong, tests, and the groups that are taken away.

    Attributes:
        images: Training images, then tests, ``(n + T, channels, height, width)`` float32.
        labels: Likewise; those of ``wrong`` are not the true ones.
        train: n.
        wrong: ``(n,)`` bool.
        sweep: Groups with a share of wrong labels from 0 to 1, each ``(size,)`` positions.
        same: Groups drawn from all: their share of wrong labels is that of the training set, exactly.
    """

    images: Tensor
    labels: Tensor
    train: int
    wrong: Array
    sweep: list[Array]
    same: list[Array]


def make_groups(pictures: Pictures, plan: GroupPlan, seed: int) -> Groups:
    """Draw the training set, its wrong labels, the tests and the groups."""
    train, validation = split(len(pictures.labels), plan.train, plan.validation, seed)
    labels = pictures.labels.numpy()
    classes = int(labels.max()) + 1
    draw = np.random.default_rng(seed + WRONG_SEED)
    count = plan.train - int((1 - plan.wrong) * plan.train)
    bad = draw.permutation(plan.train)[:count]
    given = labels[train].copy()
    given[bad] = (given[bad] + draw.integers(1, classes, count)) % classes
    each = plan.tests // classes
    tests = np.concatenate([draw.permutation(validation[labels[validation] == one])[:each] for one in range(classes)])
    images, truth = pictures.take(np.concatenate([train, tests]))
    wrong = np.isin(np.arange(plan.train), bad)
    draw = np.random.default_rng(seed + GROUP_SEED)
    right = np.flatnonzero(~wrong)

    def group(wrong_ones: int) -> Array:
        chosen = [draw.permutation(right)[: count - wrong_ones], draw.permutation(bad)[:wrong_ones]]
        return np.sort(np.concatenate(chosen))

    sweep = [group(int(count * share)) for share in np.linspace(0, 1, plan.groups)]
    same = [group(round(count * count / plan.train)) for _ in range(plan.groups)]
    every = torch.cat([torch.from_numpy(given), truth[plan.train :]])
    return Groups(images.float(), every, plan.train, wrong, sweep, same)


def network(images: Tensor, classes: int) -> nn.Module:
    """Return the published CNN (5×5 convolutions, 28×28 and larger); on smaller images 3×3 ones that keep the size."""
    channels, side = images.shape[1], images.shape[2]
    kernel, pad = (5, 0) if side >= 20 else (3, 1)
    left = ((side - kernel + 1 + 2 * pad) // 2 - kernel + 1 + 2 * pad) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel, padding=pad), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel, padding=pad), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * left * left, 128), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip


def train_on(groups: Groups, plan: GroupPlan) -> Callable[[Array, int], nn.Module]:
    """Return a training function: ``(positions, seed) -> model``. The generators are seeded by who calls it."""

    def train(rows: Array, seed: int) -> nn.Module:
        images, labels = groups.images[torch.from_numpy(rows)], groups.labels[torch.from_numpy(rows)]
        model = network(images, int(groups.labels.max()) + 1)
        optimiser = torch.optim.SGD(
            model.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay
        )
        for _ in range(plan.epochs):
            for batch in torch.randperm(len(rows)).split(plan.batch):  # type: ignore[no-untyped-call]
                optimiser.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return model.eval()

    train.version = digest([asdict(plan), groups.labels.tolist(), groups.images.sum().item()])  # type: ignore[attr-defined]
    return train


def group_check(
    pictures: Pictures, plan: GroupPlan, folder: Path | None, seed: int, seeds: Sequence[int], progress_bar: Setting
) -> list[Mirror]:
    """Return both series of groups; influences are means over seeds, as published.

    Args:
        pictures: The data.
        plan: Sizes and training.
        folder: Where trainings are kept, a folder for each seed.
        seed: Of the split, the wrong labels and the groups.
        seeds: Of the trainings.
        progress_bar: As in :func:`forwardinf.attribute`.
    """
    groups = make_groups(pictures, plan, seed)
    tests, train = [], []
    for one in seeds:
        found = group_losses(groups, plan, one, None if folder is None else folder / f"seed-{one:05d}", progress_bar)
        tests.append(found["tests"][:, 0])
        train.append(found["train"][:, 0])
    return group_mirrors(pictures.name, groups, np.array(tests), np.array(train), list(seeds))


def group_losses(
    groups: Groups, plan: GroupPlan, seed: int, folder: Path | None, progress_bar: Setting
) -> dict[str, Array]:
    """Train with everything, with the tests added, and without each group; return the losses of tests and of training rows."""
    n, every = groups.train, np.arange(len(groups.labels))
    without = [np.setdiff1d(every[:n], group) for group in (*groups.sweep, *groups.same)]
    members = [every[:n], every, *without]

    @torch.no_grad()
    def ask(model: nn.Module) -> dict[str, Any]:
        losses = F.cross_entropy(model(groups.images).double(), groups.labels, reduction="none")
        return {"tests": losses[n:].mean()[None].numpy(), "train": losses[:n].numpy()}

    return _two_names(retrain(
        train_on(groups, plan), members, ask, seeds=[[seed]] * len(members), folder=folder,
        title=f"groups, seed {seed}: training", progress_bar=progress_bar,
    ))  # fmt: skip


def _two_names(found: dict[str, Array]) -> dict[str, Array]:
    """Return ``tests (M, 1)`` and ``train (M, 1, n)`` without the seed's axis of the tests."""
    return {"tests": found["tests"][:, :, 0], "train": found["train"]}


def group_mirrors(name: str, groups: Groups, tests: Array, train: Array, seeds: list[int]) -> list[Mirror]:
    """Return the two series from ``tests (seeds, M)`` and ``train (seeds, M, n)``: with all, with tests, without each group."""
    found, at = [], 2
    for title, members in ((SWEEP, groups.sweep), (SAME, groups.same)):
        removal = tests[:, at : at + len(members)] - tests[:, :1]
        gone = train[:, 0] - train[:, 1]
        addition = np.stack([gone[:, group].mean(1) for group in members], 1)
        shares = [float(groups.wrong[group].mean()) for group in members]
        facts = {
            "n": groups.train, "group_size": len(members[0]), "seeds": seeds, "wrong_share": shares,
            "pearson_of_each_seed": pearson(removal, addition).tolist(), "removal_by_seed": removal.tolist(),
            "addition_by_seed": addition.tolist(), "noise_ceiling": ceiling(removal, addition),
        }  # fmt: skip
        found.append(Mirror(name, title, removal.mean(0)[None], addition.mean(0)[None], [f"{len(seeds)} seeds"],
                            list(range(len(members))), PUBLISHED.get(name, {}) if title == SWEEP else {}, facts))  # fmt: skip
        at += len(members)
    return found


def ceiling(removal: Array, addition: Array) -> float:
    """Return the Pearson correlation that two perfectly mirrored influences would reach with this much noise between seeds.

    The geometric mean of both reliabilities: Spearman–Brown from the mean correlation between seeds (Spearman 1904, 1910).
    NaN with one seed, or where seeds do not agree at all.
    """
    seeds = len(removal)
    if seeds < 2:
        return float("nan")
    kept = []
    for table in (removal, addition):
        between = float(np.mean([np.corrcoef(table[a], table[b])[0, 1] for a in range(seeds) for b in range(a)]))
        kept.append(max(0.0, seeds * between / (1 + (seeds - 1) * between)) if between > 0 else float("nan"))
    return float(np.sqrt(kept[0] * kept[1]))
