"""The rows of the table of faithfulness: baselines, our settings, rivals. A new setting of ours is one line in OURS.

A row is a function ``(Bench) -> {setting: (Q, N) scores}``: where it gives several settings, the one that is best on one
half of the queries is reported on the other.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch.nn.functional as F

import forwardinf as fi
from benchmarks.attribution.bench import Bench, gradient_products
from benchmarks.banks import models, use
from benchmarks.rivals import run as rivals
from benchmarks.runner import CannotRun
from forwardinf.perturb.registry import DIRECTIONS, passes_of

Found = dict[str, np.ndarray]
Row = Callable[[Bench], Found]


# -- baselines ---------------------------------------------------------------------------------------------------------


def random(bench: Bench) -> Found:
    draw = np.random.default_rng(bench.seed)
    return {"": draw.normal(size=(len(bench.asked), len(bench.train[1])))}


def neighbours(bench: Bench) -> Found:
    """Cosine of what the last layer sees, positive for the query's own label and negative for the others."""
    sides = (models.last_hidden(bench.model, part[0]) for part in (bench.queries, bench.train))
    one, other = (F.normalize(seen, dim=1) for seen in sides)
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


def ours(*settings: Mapping[str, Any], most: int | None = None) -> Row:
    """Return the row of these perturbations; ``most``: a slow row is asked so many of the queries only."""

    def run(bench: Bench) -> Found:
        return {_told(given, settings): attribute(bench, given) for given in settings}

    sides = [(2 if s.get("two_sided") is True else 1) + (0.5 if s.get("rise") else 0) for s in settings]
    making = [passes_of(s.get("direction", ""), 32, 32) / 32 if s.get("rise") else 0 for s in settings]
    run.forwards = sum(sides) + sum(making)  # type: ignore[attr-defined]  # F for each query: what the time is told by
    run.most = most  # type: ignore[attr-defined]
    return run


def attribute(bench: Bench, given: Mapping[str, Any]) -> np.ndarray:
    """Return the scores of one perturbation."""
    try:
        rule = fi.Perturbation(**given)
    except (fi.SettingError, TypeError) as error:
        raise CannotRun(str(error)) from error
    if rule.direction not in DIRECTIONS:
        raise CannotRun(f"direction {rule.direction!r} is not in this version")
    scores = fi.attribute(bench.model, bench.train, bench.queries, task=fi.Classification(), perturbation=rule,
                          on_bad_query="skip", progress=False)  # fmt: skip
    return scores.values


def tuned(name: str, values: tuple[float, ...], **more: Any) -> Row:
    """Return the row of a setting at several values."""
    return ours(*({**more, name: value} for value in values))


def _told(given: Mapping[str, Any], all_of_them: tuple[Mapping[str, Any], ...]) -> str:
    """Return what sets this setting apart from the row's others."""
    differ = {k: v for k, v in given.items() if any(other.get(k) != v for other in all_of_them)}
    return ", ".join(f"{name}={value}" for name, value in differ.items())


SLOW = "cg"  # over half a minute a query on digits: hours, so only where --only names it
DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)  # multiples of the mean diagonal
FINITE: dict[str, Any] = {"rise": 0.5, "two_sided": True}
ROOT: dict[str, Any] = {"reading": "root"}
EMPIRICAL: dict[str, Any] = {"fisher": "empirical"}
REPLAY: dict[str, Any] = {"replay": 20, "lr": 0.01}


def of(direction: str, *more: Mapping[str, Any], most: int | None = None) -> Row:
    """Return the row of a direction with some settings."""
    return ours({"direction": direction, **{k: v for each in more for k, v in each.items()}}, most=most)


BASELINES: dict[str, Row] = {
    "random": random,
    "feature neighbours (last layer)": neighbours,
    "gradient cosine": gradient_cosine,
    "TracIn, 5 checkpoints": tracin,
}
OURS: dict[str, Row] = {
    "plain, linear (gradient dot product)": ours({}),
    "plain, linear, root": ours(ROOT),
    "plain, ascent, length tuned": tuned("length", (0.01, 0.03, 0.1)),
    "plain, two-sided rise .5": ours(FINITE),
    "plain, two-sided rise .5, root": ours(FINITE | ROOT),
    "diagonal, linear": of("diagonal"),
    "diagonal, linear, root": of("diagonal", ROOT),
    "kfac, linear": of("kfac"),
    "kfac, linear, root": of("kfac", ROOT),
    "ekfac, linear": of("ekfac"),
    "ekfac, linear, damping tuned": tuned("damping", DAMPINGS, direction="ekfac"),
    "ekfac, empirical Fisher, linear": of("ekfac", EMPIRICAL),
    "ekfac, linear, root": of("ekfac", ROOT),
    "ekfac, empirical Fisher, linear, root": of("ekfac", EMPIRICAL, ROOT),
    "ekfac, two-sided rise .5": of("ekfac", FINITE),
    "ekfac, two-sided rise .5, root": of("ekfac", FINITE, ROOT),
    "gfim, linear": of("gfim"),
    "gfim, linear, damping tuned": tuned("damping", DAMPINGS, direction="gfim"),
    "gfim, empirical Fisher, linear": of("gfim", EMPIRICAL),
    "gfim, linear, root (preset linear)": of("gfim", ROOT),
    "gfim, linear, root, damping tuned": tuned("damping", DAMPINGS, direction="gfim", **ROOT),
    "gfim, empirical Fisher, linear, root": of("gfim", EMPIRICAL, ROOT),
    "gfim, two-sided rise .5": of("gfim", FINITE),
    "gfim, two-sided rise .5, root": of("gfim", FINITE, ROOT),
    "gfim, two-sided, rise tuned, root": tuned("rise", (0.1, 0.5, 1.0, 2.0), direction="gfim", two_sided=True, **ROOT),
    "cg, linear": of("cg", most=40),
    "cg, linear, root": of("cg", ROOT, most=40),
    "hold, linear": of("hold"),
    "hold, not tempered, linear": of("hold", {"temper": 0.0}),
    "hold, linear, root": of("hold", ROOT),
    "hold, linear, root, damping tuned": tuned("damping", (0.3, 1.0, 3.0, 10.0), direction="hold", **ROOT),
    "hold, two-sided rise .5": of("hold", FINITE),
    "hold, two-sided rise .5, root (preset finite)": of("hold", FINITE, ROOT, most=100),
    "replay 20 steps, two-sided": ours(REPLAY, most=40),
    "replay 20 steps, two-sided, root": ours(REPLAY | ROOT, most=40),
}
ROWS: dict[str, Row] = {**BASELINES, **OURS, **rivals.ROWS}
