"""What are responses to M shared perturbations worth? LDS and copies found against M, forward passes alone and projected.

On the committed banks: the linear datamodelling score of whitened scores (β = ½, damping as `hold` has it), and how often the
training original of an altered copy comes first, by the cosine of responses and by whitened unit responses. Beside them the
exact kernel, the plain gradient, our EK-FAC, kronfluence's (where its environment is there), and the free baselines.
"""

from argparse import ArgumentParser, Namespace
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.banks import recipes, use
from benchmarks.probes.case import COPIES, Case
from benchmarks.probes.rows import rows
from benchmarks.probes.tables import tables as tables
from benchmarks.runner import Found, Part

PAGE = "probes"
BANKS = ("digits", "digits-short", "fashion", "sst2", "sst2-short")
case_of = cache(Case)


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="at most 256 probes forward only, 1,024 projected")


def parts(given: Namespace) -> list[Part]:
    work = rows(given.small)
    forwards = 2 * (256 * 3 if given.small else 1024 + 256 * 5) / len(work)

    def unit(bank: str) -> float:
        return case_of(bank, given.seed).bench.forward_s

    def run(bank: str, row: str) -> list[dict[str, Any]]:
        return work[row](case_of(bank, given.seed))

    return [Part(_part(given, bank, row), partial(run, bank, row), lambda bank=bank: forwards * unit(bank))
            for bank in BANKS for row in work]  # fmt: skip


def _part(given: Namespace, bank: str, row: str) -> str:
    return f"{bank}-{given.seed}{', small' if given.small else ''}, {row}"


def result(given: Namespace, found: Found) -> Found:
    banks = {}
    for bank in BANKS:
        told = {row: found[_part(given, bank, row)] for row in rows(given.small) if _part(given, bank, row) in found}
        if not told:
            continue
        data, ceiling = recipes.data_of(bank), float(np.nanmean(use.bank_of(bank).ceiling()))
        banks[bank] = {"N": len(data.train_ids), "Q": len(data.query_ids), "ceiling": round(ceiling, 4), "rows": told}
    return {"model seed": given.seed, "small": given.small, "copies of each kind": COPIES, "banks": banks}
