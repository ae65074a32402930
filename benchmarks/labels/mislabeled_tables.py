"""The tables of docs/mislabeled.md."""

from typing import Any

import numpy as np

from benchmarks.page import short, signed, table

OURS = "`fi.mislabeled`"
FOLDED = "cleanlab, 5-fold retraining: "


def tables(result: dict[str, Any]) -> str:
    """Return every table as Markdown."""
    cases = result["cases"]
    names = list(dict.fromkeys(case["set"] for case in cases))
    parts = [text for name in names for text in _set(name, [case for case in cases if case["set"] == name])]
    return "\n\n".join([*_summary(cases), *parts])


def _summary(cases: list[dict[str, Any]]) -> list[str]:
    lines = []
    for stage in cases[0]["stages"]:
        for of in ("AUROC", "AP"):
            found = [case["stages"][stage]["beside the best"][of] for case in cases]
            worse = [f"{case['set']} {_title(case)}" for case, one in zip(cases, found, strict=True) if one["high"] < 0]
            better = sum(one["low"] > 0 for one in found)
            loss = [case["stages"][stage]["beside the loss"][of] for case in cases]
            lines.append([stage, of, str(len(found)), str(better), str(len(found) - better - len(worse)),
                          str(len(worse)), ", ".join(worse) or "–", f"{np.mean([one['mean'] for one in found]):+.3f}",
                          f"{np.mean([one['mean'] for one in loss]):+.3f}"])  # fmt: skip
    head = ["model", "measure", "cases", "better", "same", "worse", "where", "mean difference", "from the loss"]
    return [
        "## Ours beside the best of equal cost",
        "In each case the best of all others of equal cost, picked afterwards; better or worse: the 95 % interval (paired, over "
        "examples) leaves out 0.",
        table(head, lines),
    ]  # fmt: skip


def _title(case: dict[str, Any]) -> str:
    return f"{case['kind']} {case['rate']:.0%}"


def _set(name: str, cases: list[dict[str, Any]]) -> list[str]:
    parts = [f"## {name}, N = {cases[0]['N']:,}"]
    for stage in cases[0]["stages"]:
        fit = ", ".join(f"{case['stages'][stage]['fits its labels']:.0%}" for case in cases)
        parts.append(f"**{stage}** (fits {fit} of its labels); AUROC, AP")
        rows = [row for row in cases[0]["stages"][stage]["rows"] if not row.startswith(FOLDED)]
        lines = [[row, *(_both(case["stages"][stage]["rows"].get(row)) for case in cases)] for row in rows]
        beside = [signed(case["stages"][stage]["beside the best"]["AUROC"]) for case in cases]
        flagged = [f"{short(case['stages'][stage]['precision'], 2)}, {short(case['stages'][stage]['recall'], 2)}"
                   for case in cases]  # fmt: skip
        lines += [["ours less the best other, AUROC", *beside], ["flagged: precision, recall", *flagged]]
        parts.append(table(["", *(_title(case) for case in cases)], lines))
    apart = [row for row in cases[0]["stages"]["memorised"]["rows"] if row.startswith(FOLDED)]
    lines = [[row.removeprefix(FOLDED), *(_both(case["stages"]["memorised"]["rows"].get(row)) for case in cases)]
             for row in apart]  # fmt: skip
    lines.append(["seconds of five trainings", *(f"{case['fold seconds']:.0f}" for case in cases)])
    lines.append(["seconds of ours", *(f"{case['stages']['stopped early']['seconds']:.0f}" for case in cases)])
    parts += ["**Apart, at the cost of five more trainings**: cleanlab on out-of-sample probabilities; AUROC, AP",
              table(["", *(_title(case) for case in cases)], lines)]  # fmt: skip
    acted = [case for case in cases if case["acting"]]
    if acted:
        lines = [[row, *(short(float(np.mean(case["acting"][row]))) for case in acted)] for row in acted[0]["acting"]]
        parts += [f"**Acting on it**: test accuracy after retraining, mean of {len(acted[0]['acting']['as given'])} seeds",
                  table(["trained on", *(_title(case) for case in acted)], lines)]  # fmt: skip
    return parts


def _both(found: dict[str, float] | None) -> str:
    return "–" if found is None else f"{short(found['AUROC'])}, {short(found['AP'], 2)}"
