"""Does the Mirrored Influence Hypothesis hold? Exact retraining, by the authors' protocol, their numbers beside ours.

Two checks on each data set: `convex` (logistic regression, leave-one-out against add-one) and `groups` (a CNN trained without
a group, against one trained with the tests added). Every chunk of fits and every training is kept: a killed run goes on.

python benchmarks/evaluate_verify.py [--data mnist cifar10] [--parts convex] [--docs]      # says its time first
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from harness import RESULTS, commit, write
from verify_docs import write_docs

from forwardinf.core import machine
from forwardinf.core.files import write_json
from forwardinf.truth import verify_convex, verify_groups
from forwardinf.truth.convex import TOLERANCE
from forwardinf.truth.retrain import spoken
from forwardinf.truth.verify import PARTS, SEEDS, plain, verify

WORK = Path(__file__).parent / ".cache" / "verify"
DATA = ("mnist", "fashion", "cifar10", "digits")
SEED = 42  # the published split
COMMIT = commit()  # when the run begins: that is the code it runs
# Seconds on one core of the machine on which PACE was taken: before the first fit, for each fit, for each fit of
# scikit-learn's; for each training of a CNN.
PACE = 1.27
CONVEX = {"mnist": (140, 0.17, 5.5), "fashion": (140, 0.2, 6), "cifar10": (600, 1.5, 30), "digits": (2, 0.01, 0.1)}
GROUPS = {"mnist": 9.0, "fashion": 6.5, "cifar10": 8.5, "digits": 2.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--docs", action="store_true", help="run nothing: only write the JSON and the page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    todo = [(data, part) for part in given.parts for data in given.data if not _done(data, part).exists()]
    if given.docs:
        todo = []
    elif todo:
        slow = _pace() / PACE
        left = sum(slow * expected(data, part) for data, part in todo)
        print(f"about {spoken(left)} on this machine, one thread; resumable", file=sys.stderr, flush=True)
    for data, part in todo:
        run(data, part)
        collect()
    if not todo:
        collect()


def expected(data: str, part: str) -> float:
    """Return the seconds that are left of one check, from what is kept already."""
    if part == "groups":
        kept = len(list((WORK / data / "groups").glob("seed-*/t-*.npz")))
        return GROUPS[data] * (len(SEEDS) * (2 + 2 * verify_groups.PLANS[data].groups) - kept)
    first, each, library = CONVEX[data]
    plan, fits = verify_convex.PLANS[data], WORK / data / "fits" / "convex"
    slow = plan.library + plan.tests
    quick = verify_convex.convex_fits(plan) - slow
    quick -= verify_convex.CHUNK * sum(len(list((fits / name).glob("without-*"))) for name in ("published", "fixed"))
    slow -= 10 * len(list((fits / "library").glob("without-*")))
    return first + each * max(quick, 0) + library * max(slow, 0)


def run(data: str, part: str) -> None:
    """Run one check and keep its entry; the influences and the picture go where they are committed."""
    began = time.perf_counter()
    found = verify(data, parts=[part], seed=SEED, output_dir=WORK / data, progress=True)  # type: ignore[list-item]
    took = round(time.perf_counter() - began, 1)
    per_query = plain(found.per_query)
    entry = {
        "data": data, "part": part, "seed": SEED, "seeds": list(SEEDS) if part == "groups" else [],
        "tolerance": TOLERANCE if part == "convex" else None, "commit": COMMIT, "seconds_of_last_call": took,
        "machine": {name: value for name, value in machine.describe().items() if name != "free_disk_gib"},
        "versions": machine.versions(), "date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads(),
        "experiments": [
            {**row, "per_query": [each for each in per_query if each["experiment"] == row["experiment"]],
             "facts": {name: value for name, value in facts.items() if not name.endswith("_by_seed")}}
            for row, facts in zip(plain(found.table), found.to_dict()["facts"], strict=True)
        ],
    }  # fmt: skip
    folder = RESULTS / "verify"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for place, one in enumerate(found.mirrors):
        for name, table in (("removal", one.removal), ("addition", one.addition)):
            arrays[f"{place}-{name}"] = table.astype(np.float32)
        arrays[f"{place}-rows"] = np.asarray(one.rows, dtype=np.int32)
        for name in ("removal_by_seed", "addition_by_seed"):
            if name in one.facts:
                arrays[f"{place}-{name}"] = np.asarray(one.facts[name], dtype=np.float32)
    np.savez_compressed(folder / f"{data}-{part}.npz", **arrays)
    found.plot(folder / f"{data}-{part}.png")
    write_json(_done(data, part), entry)


def collect() -> None:
    """Write results/verify.json and docs/verify.md from the checks that are there: kept ones, and committed ones."""
    path = RESULTS / "verify.json"
    before = json.loads(path.read_text())["checks"] if path.exists() else []
    checks: dict[tuple[str, str], dict[str, Any]] = {(each["data"], each["part"]): each for each in before}
    for data in DATA:
        for part in PARTS:
            if _done(data, part).exists():
                checks[data, part] = json.loads(_done(data, part).read_text())
    ordered = [checks[data, part] for part in PARTS for data in DATA if (data, part) in checks]
    write("verify", {"question": "does removing a training example tell the same as adding the test",
                     "metric": "Pearson and Spearman over training examples, mean over tests", "checks": ordered})  # fmt: skip
    write_docs(ordered)


def _done(data: str, part: str) -> Path:
    return WORK / data / f"done-{part}.json"


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


if __name__ == "__main__":
    main()
