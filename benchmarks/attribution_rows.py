"""The rows of the table of faithfulness: baselines, our settings, rivals. A new setting of ours is one line in OURS.

A row is a function ``(Bench) -> {setting: (Q, N) scores}``: where it gives several settings, the one that is best on one
half of the queries is reported on the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from banks import use
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import forwardinf as fi
from forwardinf.perturb.registry import MAKERS, passes_of

Found = dict[str, np.ndarray]


class NotThere(Exception):
    """A setting that this version does not have yet."""


@dataclass
class Bench:
    """One bank and one full model, with what the rows need of them."""

    bank: str
    seed: int
    asked: np.ndarray  # which queries

    @cached_property
    def model(self) -> nn.Module:
        return use.full_model(self.bank, self.seed)

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        return use.data(self.bank)[0]

    @cached_property
    def queries(self) -> tuple[Tensor, Tensor]:
        inputs, labels = use.data(self.bank)[1]
        return inputs[self.asked], labels[self.asked]

    @cached_property
    def network(self) -> dict[str, Any]:
        """How the model is built: for rivals, who build it elsewhere."""
        return use.recipes.network(self.bank)

    @cached_property
    def forward_s(self) -> float:
        """Seconds of one plain forward pass over the training set."""
        took = []
        for _ in range(2):
            began = time.perf_counter()
            use.recipes.ask(self.model, self.train)
            took.append(time.perf_counter() - began)
        return min(took)

    @cached_property
    def products(self) -> tuple[np.ndarray, np.ndarray]:
        """(gᵢᵀ g_q as (Q, N), ‖gᵢ‖ as (N,)) of the full model."""
        return gradient_products(self.model, self.train, self.queries)


def gradient_products(model: nn.Module, train: Any, queries: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return (dot products (Q, N), norms (N,)) of per-example gradients by autograd, the slow and obvious way."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    fixed = dict(model.named_buffers())

    def loss(moving: dict[str, Tensor], inputs: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (moving, fixed), (inputs[None],)), label[None])

    per_example = vmap(grad(loss), (None, 0, 0))

    def rows(inputs: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([part.flatten(1) for part in per_example(weights, inputs, labels).values()], 1)

    asked = torch.cat([rows(*some) for some in zip(queries[0].split(50), queries[1].split(50), strict=True)])
    dots, norms = [], []
    for inputs, labels in zip(train[0].split(50), train[1].split(50), strict=True):
        found = rows(inputs, labels)
        dots.append(asked @ found.T)
        norms.append(found.norm(dim=1))
    return torch.cat(dots, 1).numpy(), torch.cat(norms).numpy()


# -- baselines ---------------------------------------------------------------------------------------------------------


def random(bench: Bench) -> Found:
    draw = np.random.default_rng(bench.seed)
    return {"": draw.normal(size=(len(bench.asked), len(bench.train[1])))}


def neighbours(bench: Bench) -> Found:
    """Cosine of what the last layer sees, positive for the query's own label and negative for the others."""
    one, other = (
        F.normalize(use.recipes.models.last_hidden(bench.model, part[0]), dim=1)
        for part in (bench.queries, bench.train)
    )
    near = (one @ other.T).numpy()
    same = (bench.queries[1][:, None] == bench.train[1][None]).numpy()
    return {"same label, else 0": near * same, "other labels negative": near * np.where(same, 1.0, -1.0)}


def gradient_cosine(bench: Bench) -> Found:
    dots, norms = bench.products
    return {"": dots / np.maximum(norms, 1e-30)}  # ‖g_q‖ is the same for a whole row


def tracin(bench: Bench) -> Found:
    """Σ over checkpoints of rate · gᵢᵀ g_q (Pruthi et al. 2020)."""
    return {"": sum(rate * gradient_products(model, bench.train, bench.queries)[0]
                    for model, rate in use.checkpoints(bench.bank, bench.seed))}  # fmt: skip


# -- ours --------------------------------------------------------------------------------------------------------------


def ours(*settings: Mapping[str, Any]) -> Callable[[Bench], Found]:
    """Return the row of these perturbations."""

    def run(bench: Bench) -> Found:
        found = {}
        for given in settings:
            found[_told(given, settings)] = attribute(bench, given)
        return found

    sides = [(2 if s.get("two_sided") is True else 1) + (0.5 if s.get("rise") else 0) for s in settings]
    making = [passes_of(s.get("direction", ""), 32, 32) / 32 if s.get("rise") else 0 for s in settings]
    run.forwards = sum(sides) + sum(making)  # type: ignore[attr-defined]  # F for each query: what the time is told by
    return run


def attribute(bench: Bench, given: Mapping[str, Any]) -> np.ndarray:
    try:
        rule = fi.Perturbation(**given)
    except (fi.SettingError, TypeError) as error:
        raise NotThere(str(error)) from error
    if rule.direction not in MAKERS:
        raise NotThere(f"direction {rule.direction!r} is not in this version")
    scores = fi.attribute(bench.model, bench.train, bench.queries, task=fi.Classification(), perturbation=rule,
                          on_bad_query="skip", progress=False)  # fmt: skip
    return scores.values


def damped(direction: str, **more: Any) -> Callable[[Bench], Found]:
    """Return the linear row of a direction at several dampings, as multiples of the mean diagonal."""
    return ours(*({"direction": direction, "damping": c, **more} for c in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)))


def _told(given: Mapping[str, Any], all_of_them: tuple[Mapping[str, Any], ...]) -> str:
    """Return what sets this setting apart from the row's others."""
    differ = {k: v for k, v in given.items() if any(other.get(k) != v for other in all_of_them)}
    return ", ".join(f"{name}={value}" for name, value in differ.items())


def few(run: Callable[[Bench], Found], queries: int) -> Callable[[Bench], Found]:
    """Let a slow row be asked so many of the queries only, equally many of each half."""
    run.most = queries  # type: ignore[attr-defined]
    return run


NAMED_ONLY = "cg"  # over half a minute a query on digits: hours, so only where --rows asks for it
RISES = (0.1, 0.5, 1.0, 2.0)
FINITE: dict[str, Any] = {"rise": 0.5, "two_sided": True}
ROOT: dict[str, Any] = {"reading": "root"}
BASELINES: dict[str, Callable[[Bench], Found]] = {
    "random": random,
    "feature neighbours (last layer)": neighbours,
    "gradient cosine": gradient_cosine,
    "TracIn, 5 checkpoints": tracin,
}
OURS: dict[str, Callable[[Bench], Found]] = {
    "plain, linear (gradient dot product)": ours({}),
    "plain, linear, root": ours(ROOT),
    "plain, ascent, length tuned": ours({"length": 0.01}, {"length": 0.03}, {"length": 0.1}),
    "plain, two-sided rise .5": ours(FINITE),
    "plain, two-sided rise .5, root": ours(FINITE | ROOT),
    "diagonal, linear": ours({"direction": "diagonal"}),
    "diagonal, linear, root": ours({"direction": "diagonal"} | ROOT),
    "kfac, linear": ours({"direction": "kfac"}),
    "kfac, linear, root": ours({"direction": "kfac"} | ROOT),
    "ekfac, linear": ours({"direction": "ekfac"}),
    "ekfac, linear, damping tuned": damped("ekfac"),
    "ekfac, empirical Fisher, linear": ours({"direction": "ekfac", "fisher": "empirical"}),
    "ekfac, linear, root": ours({"direction": "ekfac"} | ROOT),
    "ekfac, empirical Fisher, linear, root": ours({"direction": "ekfac", "fisher": "empirical"} | ROOT),
    "ekfac, two-sided rise .5": ours({"direction": "ekfac", **FINITE}),
    "ekfac, two-sided rise .5, root": ours({"direction": "ekfac", **FINITE} | ROOT),
    "gfim, linear": ours({"direction": "gfim"}),
    "gfim, linear, damping tuned": damped("gfim"),
    "gfim, empirical Fisher, linear": ours({"direction": "gfim", "fisher": "empirical"}),
    "gfim, linear, root (preset linear)": ours({"direction": "gfim"} | ROOT),
    "gfim, linear, root, damping tuned": damped("gfim", **ROOT),
    "gfim, empirical Fisher, linear, root": ours({"direction": "gfim", "fisher": "empirical"} | ROOT),
    "gfim, two-sided rise .5": ours({"direction": "gfim", **FINITE}),
    "gfim, two-sided rise .5, root": ours({"direction": "gfim", **FINITE} | ROOT),
    "gfim, two-sided, rise tuned, root": ours(
        *({"direction": "gfim", "rise": r, "two_sided": True} | ROOT for r in RISES)
    ),
    "cg, linear": few(ours({"direction": "cg"}), 40),
    "cg, linear, root": few(ours({"direction": "cg"} | ROOT), 40),
    "hold, linear": ours({"direction": "hold"}),
    "hold, not tempered, linear": ours({"direction": "hold", "temper": 0.0}),
    "hold, linear, root": ours({"direction": "hold"} | ROOT),
    "hold, linear, root, damping tuned": ours(
        *({"direction": "hold", "damping": c} | ROOT for c in (0.3, 1.0, 3.0, 10.0))
    ),
    "hold, two-sided rise .5": ours({"direction": "hold", **FINITE}),
    "hold, two-sided rise .5, root (preset finite)": few(ours({"direction": "hold", **FINITE} | ROOT), 100),
    "replay 20 steps, two-sided": few(ours({"replay": 20, "lr": 0.01}), 40),
    "replay 20 steps, two-sided, root": few(ours({"replay": 20, "lr": 0.01} | ROOT), 40),
}
