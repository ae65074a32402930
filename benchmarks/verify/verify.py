"""Does the Mirrored Influence Hypothesis hold? Exact retraining, by the authors' protocol, their numbers beside ours.

Two checks on each data set: `convex` (logistic regression, leave-one-out against add-one) and `groups` (a CNN trained without
a group, against one trained with the tests added). Every chunk of fits and every training is kept: a killed run goes on.
"""

import time
from argparse import Namespace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks.kept import place
from benchmarks.results import RESULTS, earlier, facts
from benchmarks.runner import Found, Part
from benchmarks.verify.tables import tables as tables
from forwardinf.truth import verify_convex, verify_groups
from forwardinf.truth.convex import TOLERANCE
from forwardinf.truth.verify import PARTS, SEEDS, Verification, plain, verify

PAGE = "verify"
FOLDER = RESULTS / "verify"
DATA = ("mnist", "fashion", "cifar10", "digits")
SEED = 42  # the published split
# Seconds on one core of the machine on which PACE was taken: before the first fit, for each fit, for each fit of
# scikit-learn's; for each training of a CNN.
PACE = 1.27
CONVEX = {"mnist": (140, 0.17, 5.5), "fashion": (140, 0.2, 6), "cifar10": (600, 1.5, 30), "digits": (2, 0.01, 0.1)}
GROUPS = {"mnist": 9.0, "fashion": 6.5, "cifar10": 8.5, "digits": 2.5}


def parts(given: Namespace) -> list[Part]:
    return [Part(f"{data} {part}", partial(checked, data, part), partial(expected, data, part))
            for part in PARTS for data in DATA]  # fmt: skip


def expected(data: str, part: str) -> float:
    """Return the seconds that are left of one check, from what is kept already."""
    slow, folder = _pace() / PACE, place("verify", data)
    if part == "groups":
        kept = len(list((folder / "groups").glob("seed-*/t-*.npz")))
        return slow * GROUPS[data] * (len(SEEDS) * (2 + 2 * verify_groups.PLANS[data].groups) - kept)
    first, each, library = CONVEX[data]
    plan, fits = verify_convex.PLANS[data], folder / "fits" / "convex"
    cold = plan.library + plan.tests
    quick = verify_convex.convex_fits(plan) - cold
    quick -= verify_convex.CHUNK * sum(len(list((fits / name).glob("without-*"))) for name in ("published", "fixed"))
    cold -= 10 * len(list((fits / "library").glob("without-*")))
    return slow * (first + each * max(quick, 0) + library * max(cold, 0))


def checked(data: str, part: str) -> dict[str, Any]:
    """Run one check and return its entry; the influences and the picture go where they are committed."""
    when, began = facts(), time.perf_counter()
    found = verify(data, parts=[part], seed=SEED, output_dir=place("verify", data), progress=True)  # type: ignore[list-item]
    took = round(time.perf_counter() - began, 1)
    _save(found, f"{data}-{part}")
    per_query = plain(found.per_query)
    return {
        **when, "data": data, "part": part, "seed": SEED, "seeds": list(SEEDS) if part == "groups" else [],
        "tolerance": TOLERANCE if part == "convex" else None, "seconds_of_last_call": took,
        "threads": torch.get_num_threads(),
        "experiments": [
            {**row, "per_query": [each for each in per_query if each["experiment"] == row["experiment"]],
             "facts": {name: value for name, value in told.items() if not name.endswith("_by_seed")}}
            for row, told in zip(plain(found.table), found.to_dict()["facts"], strict=True)
        ],
    }  # fmt: skip


def _save(found: Verification, name: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for at, one in enumerate(found.mirrors):
        told = {"removal": one.removal, "addition": one.addition}
        told |= {each: one.facts[each] for each in ("removal_by_seed", "addition_by_seed") if each in one.facts}
        arrays |= {f"{at}-{each}": np.asarray(values, dtype=np.float32) for each, values in told.items()}
        arrays[f"{at}-rows"] = np.asarray(one.rows, dtype=np.int32)
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    found.plot(FOLDER / f"{name}.png")


def result(given: Namespace, found: Found) -> Found:
    """Return the checks that are there: kept ones, and committed ones."""
    checks = {(each["data"], each["part"]): each for each in earlier("verify").get("checks", [])}
    order = [(data, part) for part in PARTS for data in DATA]
    checks |= {(data, part): found[f"{data} {part}"] for data, part in order if f"{data} {part}" in found}
    return {"metric": "Pearson and Spearman over training examples, mean over tests",
            "checks": [checks[each] for each in order if each in checks]}  # fmt: skip


@cache
def _pace() -> float:
    """Return the seconds of a fixed piece of work, the better of two."""
    table = torch.ones(1500, 1500, dtype=torch.float64)
    times = []
    for _ in range(2):
        began = time.perf_counter()
        for _ in range(3):
            table @ table
        times.append(time.perf_counter() - began)
    return min(times)
