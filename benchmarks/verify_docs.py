"""docs/verify.md from results/verify.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS

from forwardinf.truth.agreement import pearson, spearman
from forwardinf.truth.verify_convex import AS_PUBLISHED, FIXED, LIBRARY

DOCS = Path(__file__).parents[1] / "docs" / "verify.md"
TITLES = {"mnist": "MNIST", "fashion": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "digits (scikit-learn)"}
GAP = 0.02  # a larger distance from the authors' number is explained

HEAD = """# Does the hypothesis hold?

forwardinf rests on the Mirrored Influence Hypothesis (Ko et al., CVPR 2024): over the training examples i, what a test example
loses when i is taken out of the training set goes with what i gains when the test example is put in. Here both sides are
measured by exact retraining, by the protocol of the authors' code. `fi.verify` and `forwardinf verify` do it again; `--quick`
takes half a minute on digits.

`removal = L(A(D − i), t) − L(A(D), t)` and `addition = L(A(D), i) − L(A(D + t), i)`: for both, positive = proponent.

Numbers with machine, versions, commits and seeds: [verify.json](../benchmarks/results/verify.json); every influence:
`benchmarks/results/verify/*.npz`. Make it again: `make evaluate-verify` (says its time first; resumable fit by fit).
"""

CONVEX = """
## Convex: logistic regression, one example at a time

4,900 training images (CIFAR-10: 4,800), drawn as the authors draw them (seed 42), C = 1/(0.01 n); the tests are the ten of
5,000 validation images with the highest loss. Every fit is converged: ‖∇‖₂ of the mean objective ≤ 1e-11, in float64, starting
from the full fit. Figures are means over tests, [95 % interval over tests]; "top k" is the share of the k strongest proponents
that both sides name; k is in the JSON.
"""

ROWS = f"""
- **{AS_PUBLISHED}**: the protocol. n is that of each fit, so leaving one out changes the penalty a little as well.
- **{FIXED}**: the same C in every fit.
- **{LIBRARY}**: cold starts, L-BFGS with tol = 1e-4, the authors' call; on some of the images. Below it
  the converged fits on the same images: the difference is what stopping early costs.
"""

GROUPS = """
## Networks: thirty groups

The authors' CNN and training (SGD .01, momentum .9, weight decay .001, 64 a batch, 10 epochs, CIFAR-10: 20) on 1,050 images
(CIFAR-10: 900), 30 % (Fashion-MNIST, CIFAR-10: 50 %) of the labels wrong; 500 tests, as one. A group is as large as the
number of wrong labels. Each influence is a mean over the five published seeds, which here do seed the initial weights and the
order; the model with the tests added is trained once for each seed and not once for each group.

**Equal share**: the published groups have 0 to 100 % wrong labels, so that one number, the share, moves both sides. Groups
that all have the training set's own share have no such number in common. "Ceiling" is the Pearson correlation that two
perfectly mirrored influences would reach with this much noise between seeds (Spearman–Brown); – means that seeds do not agree.
"""


def write_docs(checks: list[dict[str, Any]]) -> None:
    """Write the page."""
    DOCS.write_text(page(checks), encoding="utf-8")


def page(checks: list[dict[str, Any]]) -> str:
    """Return the page; what has not been run is not on it."""
    parts = [HEAD]
    convex = [each for each in checks if each["part"] == "convex"]
    groups = [each for each in checks if each["part"] == "groups"]
    if convex:
        parts += [CONVEX, _convex(convex), ROWS, _gaps(convex, _why_convex), _pictures(convex)]
    if groups:
        parts += [GROUPS, _groups(groups), _gaps(groups, _why_groups), _pictures(groups)]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


def _convex(checks: list[dict[str, Any]]) -> str:
    head = ("data", "experiment", "images left out", "Pearson", "authors'", "Spearman", "authors'", "top k")
    rows = [
        (TITLES[check["data"]], one["experiment"], f"{one['train']:,}", _number(one["pearson"]), _number(one["their_pearson"]),
         f"{_number(one['spearman'])} [{_number(one['low'])}, {_number(one['high'])}]", _number(one["their_spearman"]),
         _number(one["overlap"], 2))
        for check in checks for one in check["experiments"]
    ]  # fmt: skip
    return _table(head, rows)


def _groups(checks: list[dict[str, Any]]) -> str:
    head = ("data", "groups", "Pearson", "authors'", "Spearman", "authors'", "Pearson of single seeds", "ceiling")
    rows = []
    for check in checks:
        for one in check["experiments"]:
            single = one["facts"]["pearson_of_each_seed"]
            rows.append((TITLES[check["data"]], one["experiment"].removeprefix("groups, "), _number(one["pearson"]),
                         _number(one["their_pearson"]), _number(one["spearman"]), _number(one["their_spearman"]),
                         f"{min(single):.2f} to {max(single):.2f}", _number(one["noise_ceiling"], 3)))  # fmt: skip
    return _table(head, rows)


def _gaps(checks: list[dict[str, Any]], why: Any) -> str:
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


def _why_convex(check: dict[str, Any], name: str) -> str:
    by = {one["experiment"]: one for one in check["experiments"]}
    library = by[LIBRARY]
    same = next(one for title, one in by.items() if title.startswith(f"{AS_PUBLISHED}, those"))
    return (
        f"theirs are fits that scikit-learn stopped at tol = 1e-4. On the same {library['train']} images that gives "
        f"{_number(library[name])}, converged fits {_number(same[name])}."
    )


def _why_groups(check: dict[str, Any], name: str) -> str:
    one = check["experiments"][0]
    single = one["facts"]["pearson_of_each_seed"]
    kept = np.load(RESULTS / "verify" / f"{check['data']}-groups.npz")
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


def _pictures(checks: list[dict[str, Any]]) -> str:
    names = [
        f"[{TITLES[check['data']]}](../benchmarks/results/verify/{check['data']}-{check['part']}.png)"
        for check in checks
    ]
    return "Scatter plots, values and ranks: " + ", ".join(names) + "."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _number(value: float | None, places: int = 4) -> str:
    return "–" if value is None else f"{value:.{places}f}"


if __name__ == "__main__":
    import json

    write_docs(json.loads((Path(__file__).parent / "results" / "verify.json").read_text())["checks"])
