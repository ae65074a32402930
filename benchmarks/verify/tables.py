"""The tables of docs/verify.md: those of convex fits, and those of networks; with why they are not the authors' numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import page
from benchmarks.results import RESULTS
from forwardinf.truth.agreement import pearson, spearman
from forwardinf.truth.verify_convex import AS_PUBLISHED, LIBRARY

TITLES = {"mnist": "MNIST", "fashion": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "digits (scikit-learn)"}
GAP = 0.02  # a larger distance from the authors' number is explained
Check = dict[str, Any]


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return Markdown for each mark of the page; what has not been run is not on it."""
    found = {}
    for part, rows, why in (("convex", _convex, _why_convex), ("groups", _groups, _why_groups)):
        checks = [each for each in result["checks"] if each["part"] == part]
        if checks:
            blocks = [rows(checks), _gaps(checks, why), _pictures(checks)]
            found[f"verify, {part}"] = "\n\n".join(block for block in blocks if block)
    return found


def _number(value: float | None, places: int = 4) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def _convex(checks: list[Check]) -> str:
    head = ["data", "experiment", "images left out", "Pearson", "authors'", "Spearman", "authors'", "top k"]
    rows = [
        [TITLES[check["data"]], one["experiment"], f"{one['train']:,}", _number(one["pearson"]), _number(one["their_pearson"]),
         f"{_number(one['spearman'])} [{_number(one['low'])}, {_number(one['high'])}]", _number(one["their_spearman"]),
         _number(one["overlap"], 2)]
        for check in checks for one in check["experiments"]
    ]  # fmt: skip
    return page.table(head, rows)


def _groups(checks: list[Check]) -> str:
    head = ["data", "groups", "Pearson", "authors'", "Spearman", "authors'", "Pearson of single seeds", "ceiling"]
    rows = []
    for check in checks:
        for one in check["experiments"]:
            single = one["facts"]["pearson_of_each_seed"]
            measures = [_number(one[name]) for name in ("pearson", "their_pearson", "spearman", "their_spearman")]
            rows.append([TITLES[check["data"]], one["experiment"].removeprefix("groups, "), *measures,
                         f"{min(single):.2f} to {max(single):.2f}", _number(one["noise_ceiling"], 3)])  # fmt: skip
    return page.table(head, rows)


def _gaps(checks: list[Check], why: Callable[[Check, str], str]) -> str:
    """Return a sentence for each number of the protocol's row that is further than GAP from the authors'."""
    told = []
    for check in checks:
        one = check["experiments"][0]
        for name in ("pearson", "spearman"):
            theirs = one[f"their_{name}"]
            if theirs is not None and abs(one[name] - theirs) > GAP:
                told.append(f"- {TITLES[check['data']]}, {name.title()} {_number(one[name])} against {_number(theirs)}: "
                            + why(check, name))  # fmt: skip
    return f"Further than {GAP} from the authors':\n\n" + "\n".join(told) if told else ""


def _why_convex(check: Check, name: str) -> str:
    by = {one["experiment"]: one for one in check["experiments"]}
    library = by[LIBRARY]
    same = next(one for title, one in by.items() if title.startswith(f"{AS_PUBLISHED}, those"))
    return (
        f"theirs are fits that scikit-learn stopped at tol = 1e-4. On the same {library['train']} images that gives "
        f"{_number(library[name])}, converged fits {_number(same[name])}."
    )


def _why_groups(check: Check, name: str) -> str:
    single = check["experiments"][0]["facts"]["pearson_of_each_seed"]
    with np.load(RESULTS / "verify" / f"{check['data']}-groups.npz") as kept:
        seeds = kept["0-removal_by_seed"], kept["0-addition_by_seed"]
    removal, addition = (np.median(table, 0)[None] for table in seeds)
    measure = pearson if name == "pearson" else spearman
    furthest = np.abs(seeds[0] - np.median(seeds[0], 0)).max()
    return (
        f"single seeds reach Pearson {min(single):.3f} to {max(single):.3f}, and in one training the tests' loss is "
        f"{furthest:.2f} nats from where the other seeds have it. By the median over seeds and not the mean it is "
        f"{_number(float(measure(removal, addition)[0]))}. The groups and the wrong labels are other draws than theirs, whose "
        "seed was never set."
    )


def _pictures(checks: list[Check]) -> str:
    folder = "../benchmarks/results/verify"
    names = [f"[{TITLES[check['data']]}]({folder}/{check['data']}-{check['part']}.png)" for check in checks]
    return "Scatter plots, values and ranks: " + ", ".join(names) + "."
