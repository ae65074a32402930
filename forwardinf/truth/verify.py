"""The Mirrored Influence Hypothesis itself, measured: does taking a training example away tell the same as adding the test?"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from forwardinf.core.errors import SettingError, choose
from forwardinf.core.files import write_json
from forwardinf.core.paths import as_path
from forwardinf.core.progress import Setting
from forwardinf.core.progress import progress as shown
from forwardinf.truth import verify_convex, verify_groups
from forwardinf.truth.agreement import mean_interval
from forwardinf.truth.convex import TOLERANCE
from forwardinf.truth.mirror import FORMAT, Keep, Mirror
from forwardinf.truth.verify_data import pictures

Part = Literal["convex", "groups"]
PARTS: tuple[Part, ...] = ("convex", "groups")
SEEDS = (57, 12, 140, 125, 114)  # the published ones
DRAWN_BY = "forwardinf.view.scatter"  # by name: imports go down only


@dataclass(frozen=True, repr=False)
class Verification:
    """What :func:`forwardinf.verify` returns.

    Attributes:
        mirrors: One for each experiment, with both influences of every training example (or group).
    """

    mirrors: list[Mirror]

    def __repr__(self) -> str:
        told = [repr(one).removeprefix("Mirror(").removesuffix(")") for one in self.mirrors]
        return f"Verification({'; '.join(told)}; see .table, .per_query, .plot(path))"

    @property
    def table(self) -> pd.DataFrame:
        """One row for each experiment: ``data, experiment, tests, train, pearson, spearman, low, high, overlap, …``.

        ``pearson`` and ``spearman`` are means over tests, ``low`` and ``high`` a 95 % bootstrap interval over tests of
        the Spearman one; ``overlap`` is the share of the ``k`` strongest proponents that both name; ``their_pearson`` and
        ``their_spearman`` are what the authors report; ``noise_ceiling`` is what seeds alone would allow.
        """
        rows = []
        for one in self.mirrors:
            ranks = mean_interval(one.spearman)
            several = ranks.count > 1
            rows.append({
                "data": one.data, "experiment": one.experiment, "tests": len(one.tests), "train": len(one.rows),
                "pearson": float(one.pearson.mean()), "spearman": ranks.mean, "low": ranks.low if several else np.nan,
                "high": ranks.high if several else np.nan, "k": one.k, "overlap": float(one.overlap.mean()),
                "their_pearson": one.published.get("pearson", np.nan),
                "their_spearman": one.published.get("spearman", np.nan),
                "noise_ceiling": one.facts.get("noise_ceiling", np.nan),
                "largest_gradient": one.facts.get("largest_gradient", np.nan),
            })  # fmt: skip
        return pd.DataFrame(rows)

    @property
    def per_query(self) -> pd.DataFrame:
        """One row for each experiment and test: ``data, experiment, test, pearson, spearman, overlap``."""
        return pd.DataFrame([
            {"data": one.data, "experiment": one.experiment, "test": test, "pearson": one.pearson[q],
             "spearman": one.spearman[q], "overlap": one.overlap[q]}
            for one in self.mirrors for q, test in enumerate(one.tests)
        ])  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the tables and what is behind them as plain values, ready for JSON (NaN as None)."""
        return {
            "format": FORMAT, "table": plain(self.table), "per_query": plain(self.per_query),
            "facts": [{"data": one.data, "experiment": one.experiment, **_finite(dict(one.facts))} for one in self.mirrors],
        }  # fmt: skip

    def plot(self, path: str | Path) -> Path:
        """Draw removal against addition, a row of two panels for each experiment: values, and ranks. A PNG file.

        Args:
            path: The file.
        """
        return cast("Path", importlib.import_module(DRAWN_BY).plot(self.mirrors, as_path("plot", path)))

    def save(self, dir: str | Path) -> Path:
        """Write ``verify.json``: the tables and every influence. Return the folder.

        Args:
            dir: The folder, made where it is not there.
        """
        folder = as_path("folder", dir)
        experiments = [
            {"data": one.data, "experiment": one.experiment, "tests": one.tests, "rows": one.rows,
             "removal": one.removal.tolist(), "addition": one.addition.tolist()} for one in self.mirrors
        ]  # fmt: skip
        write_json(folder / "verify.json", {**self.to_dict(), "influences": experiments})
        return folder


def verify(
    data: str = "digits",
    *,
    parts: Sequence[Part] = PARTS,
    quick: bool = False,
    data_dir: str | Path | None = None,
    seed: int = 42,
    seeds: Sequence[int] | None = None,
    tolerance: float = TOLERANCE,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    progress: Setting = "auto",
) -> Verification:
    """Measure the Mirrored Influence Hypothesis by exact retraining (Ko et al., CVPR 2024, §3; protocol of their code).

    Convex: logistic regression with C = 1/(0.01 n); leave every training image out, and add each of the hardest validation
    images. Groups: a CNN trained without each of 30 groups, and once with the tests added.

    Cost: on one core, digits in minutes (quick: half of one); MNIST about half an hour (convex: 4,900 fits, and scikit-learn's
    beside them) and about ten minutes for each seed of the groups; see docs/verify.md. Memory: a gigabyte or two.

    Args:
        data: ``digits`` (comes with scikit-learn), ``mnist``, ``fashion`` or ``cifar10``.
        parts: Which checks.
        quick: Small sizes and two seeds; on digits only.
        data_dir: The folder with the data; default ``$FORWARDINF_DATA``.
        seed: Of the split (42 is the published one), the wrong labels and the groups.
        seeds: Of the CNN trainings; default the five published ones.
        tolerance: ‖∇‖₂ of the mean objective that every convex fit reaches.
        output_dir: Where fits are kept: the same call goes on where it was interrupted.
        overwrite: Start the folder over.
        progress: As in :func:`forwardinf.attribute`.

    Returns:
        :class:`Verification`: ``.table``, ``.per_query``, ``.plot(path)``, ``.save(dir)``.

    Raises:
        SettingError: No such data or part; ``quick`` on other data.
        DataError: The data folder lacks the file.
        RunMismatch: ``output_dir`` holds another verification.

    Example:
        >>> found = verify("digits", parts=["convex"], quick=True, progress=False)
        >>> found.table.loc[0, ["data", "experiment"]].tolist()
        ['digits', 'C = 1/(0.01 n)']
    """
    if isinstance(parts, str) or not parts:
        raise SettingError("verify(parts=)", expected="a list of 'convex', 'groups'", got=repr(parts))
    for part in parts:
        if part not in PARTS:
            raise choose("verify(parts=)", str(part), PARTS)
    if quick and data != "digits":
        raise SettingError("verify(quick=True)", expected="data='digits'", got=repr(data), do="Leave quick out.")
    source = pictures(data, data_dir)
    convex = verify_convex.QUICK if quick else verify_convex.PLANS[data]
    groups = verify_groups.QUICK if quick else verify_groups.PLANS[data]
    chosen = tuple(seeds) if seeds is not None else SEEDS[:2] if quick else SEEDS
    settings = {"data": data, "quick": quick, "seed": seed, "tolerance": tolerance, "sizes": asdict(convex)}
    folder = None if output_dir is None else as_path("output_dir", output_dir)
    keep = Keep(folder, settings, overwrite)
    found: list[Mirror] = []
    if "convex" in parts:
        with shown(f"{data}: logistic regressions", verify_convex.convex_fits(convex), progress) as advance:
            found += verify_convex.convex_check(source, convex, keep, seed, tolerance, advance)
    if "groups" in parts:
        where = None if folder is None else folder / "groups"
        found += verify_groups.group_check(source, groups, where, seed, chosen, progress)
    return Verification([replace(one, facts={"tests_from": "validation", **one.facts}) for one in found])


def plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON has them: NaN is null."""
    return [cast("dict[str, Any]", _finite(row)) for row in table.to_dict("records")]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
