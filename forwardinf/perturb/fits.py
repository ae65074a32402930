"""Passes over the training data that add something up: resumable after a kill, kept between calls, whole or absent.

A fit is sums over examples, so it may be cut into shards anywhere. What is kept is named by the digest of everything that
it depends on: model, data, task, which examples, how labels are drawn, which parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.cache_files import STALE, discard, read_kept, write_kept
from forwardinf.core.errors import FileError
from forwardinf.core.files import read_json, write_json
from forwardinf.core.fingerprint import digest
from forwardinf.core.progress import progress
from forwardinf.gradients.layer_uses import Formed, Use, formed
from forwardinf.gradients.parts import Part, sorted_uses
from forwardinf.gradients.per_example import factored
from forwardinf.perturb.budget import Budget, Work, count
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.fisher import fisher_feed
from forwardinf.perturb.reproduce import believed, witness
from forwardinf.tasks.feed import Feed

FORMAT, BUDGET = "forwardinf.fit/2", "forwardinf.fit-budget/1"
ALL_UP_TO = 100_000  # examples that fit_examples="auto" reads: what a fit needs grows with its numbers, not with N
SECONDS_BETWEEN = 10.0  # what a killed fit loses at most (longer where writing itself takes long)
NOT_WRITING = 9.0  # seconds of fitting for each second of writing partial sums

Add = Callable[[dict[str, Tensor], Part, Sequence[Use]], None]


@dataclass
class Fit:
    """What a pass found.

    Attributes:
        tensors: The sums (or what was made of them), by name.
        parts: Every part of a parameter that a training example used, by key.
        odd: Parameters whose gradients had to be formed, and why.
        units: Training examples summed over.
        notes: What a person should know.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    units: int = 0
    notes: list[str] = field(default_factory=list)

    def to_header(self) -> dict[str, Any]:
        """Return everything but the tensors, as plain types."""
        return {"parts": {key: part.to_dict() for key, part in self.parts.items()}, "odd": self.odd, "units": self.units,
                "notes": self.notes}  # fmt: skip

    @classmethod
    def from_header(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Fit:
        """Undo :meth:`to_header`."""
        parts = {key: Part.from_dict(part) for key, part in header["parts"].items()}
        return cls(tensors, parts, dict(header["odd"]), int(header["units"]), list(header["notes"]))


class NewlyOdd(Exception):
    """A parameter is used in ways that have no curvature in common: what was summed so far of it must be formed instead."""


@dataclass(frozen=True)
class Costs:
    """What a fit does with a batch's uses of a part, in multiplications.

    Attributes:
        work: Of each batch.
        once: Once, whatever the number of examples.
    """

    work: Work
    once: Work = lambda part, uses: 0.0


def budgeted(fitting: Fitting, costs: Costs) -> tuple[int, Budget]:
    """Return (how many examples ``fit_examples="auto"`` takes, what a fit costs); counted once, and kept with the fits."""
    if fitting.budget is None:
        path = _budget_path(fitting)
        fitting.budget = _kept_budget(path)
        if fitting.budget is None:
            fitting.budget = count(fitting.train, fitting.parameters, costs.work, costs.once)
            if path is not None:
                write_json(path, {"format": BUDGET, "budget": asdict(fitting.budget)})
    return min(ALL_UP_TO, fitting.budget.examples(len(fitting.train.examples))), fitting.budget


def _budget_path(fitting: Fitting) -> Path | None:
    if fitting.key is None or fitting.cache is None:
        return None
    name = digest(BUDGET, fitting.key, fitting.perturbation.direction, sorted(fitting.parameters), fitting.train.seed)
    return fitting.cache / "fits" / f"{name}.json"


def _kept_budget(path: Path | None) -> Budget | None:
    if path is None or not path.is_file():
        return None
    try:
        return Budget(**read_json(path, BUDGET, what="what a fit costs")["budget"])
    except (FileError, KeyError, TypeError):
        path.unlink(missing_ok=True)  # a damaged cache entry is worth nothing
        return None


def sampled_rows(fitting: Fitting, most: int = ALL_UP_TO) -> Sequence[int]:
    """Return the training rows that are fitted on: all (up to ``most``), or a sample drawn by the seed, in order."""
    size, asked = len(fitting.train.examples), fitting.perturbation.fit_examples
    wanted = most if asked == "auto" else int(asked)
    if wanted >= size:
        return range(size)
    return sorted(np.random.default_rng(fitting.perturbation.seed).choice(size, wanted, replace=False).tolist())


def fit_path(fitting: Fitting, what: str, fisher: str, rows: Sequence[int]) -> Path | None:
    """Return where this fit on these rows is kept, or None where it cannot be named or there is no cache."""
    if fitting.key is None or fitting.cache is None:
        return None
    rule = fitting.perturbation
    name = digest(
        FORMAT, fitting.key, what, fisher, len(rows), rule.seed, sorted(fitting.parameters), fitting.train.seed
    )
    return fitting.cache / "fits" / f"{name}.safetensors"


def fitted(
    fitting: Fitting, what: str, add: Add, finish: Callable[[Fit], Fit] = lambda fit: fit, title: str = "",
    costs: Costs | None = None,
) -> Fit:  # fmt: skip
    """Return a fit: recalled, or summed over the training data (going on where a killed one stopped) and kept.

    Args:
        fitting: Settings, training data, parameters, cache; takes the fit's notes.
        what: The fit's name, part of its digest.
        add: Adds one part's uses in one batch to the sums, in place.
        finish: Makes of the sums what is kept.
        title: What the progress bar says.
        costs: What it takes: ``fit_examples="auto"`` is then as many examples as :mod:`forwardinf.perturb.budget` affords.
    """
    feed, fisher, notes = fisher_feed(fitting)
    rows = sampled_rows(fitting)
    if costs is not None and fitting.perturbation.fit_examples == "auto":
        rows = sampled_rows(fitting, budgeted(fitting, costs)[0])
        if len(rows) < len(fitting.train.examples):
            read = f"{len(rows):,} of {len(fitting.train.examples):,}"
            notes.append(
                f"{fitting.perturbation.direction}: fitted on {read} examples, by its cost (fit_examples= asks for more)"
            )
    path = fit_path(fitting, what, fisher, rows)
    found = _recalled(fitting, feed, fisher, path)
    if found is None:
        swept = sweep(fitting, feed, rows, add, title or f"fitting {what}", path, fisher)
        found = finish(swept)
        found.tensors = {
            name: tensor.contiguous() for name, tensor in found.tensors.items()
        }  # as they will be recalled
        if path is not None:
            write_kept(path, found.tensors, _header(fitting, feed, fisher, found), FORMAT)
            _partial(path).unlink(missing_ok=True)
    for note in [*notes, *found.notes]:
        if note not in fitting.notes:
            fitting.notes.append(note)
    return found


def sweep(
    fitting: Fitting,
    feed: Feed,
    rows: Sequence[int],
    add: Add,
    title: str = "fitting",
    path: Path | None = None,
    labels: str = "",
) -> Fit:
    """Return the sums over these rows. Interrupted, it goes on from the last partial sums beside ``path``.

    Sums of two disjoint sets of rows add up to the sums of both.
    """
    odd: dict[str, str] = {}
    while True:
        try:
            return _sweep(fitting, feed, rows, add, title, path, labels, odd)
        except NewlyOdd:
            continue


def _sweep(
    fitting: Fitting,
    feed: Feed,
    rows: Sequence[int],
    add: Add,
    title: str,
    path: Path | None,
    labels: str,
    odd: dict[str, str],
) -> Fit:
    kept = _trusted(fitting, feed, labels, None if path is None else _partial(path))
    fit, done, size = Fit(odd=dict(odd)), 0, fitting.batch_size
    if kept is not None and set(odd) <= set(kept[1]["odd"]):
        fit, done, size = Fit.from_header(*kept), int(kept[1]["done"]), int(kept[1]["batch_size"])
        odd.update(fit.odd)
    saved, patience = time.monotonic(), SECONDS_BETWEEN
    with progress(title, len(rows), fitting.progress) as advance:
        advance(done)
        for units, _, uses in factored(feed, rows[done:], fitting.parameters, size):
            known, several = sorted_uses(_whole_where(uses, odd))
            several |= {part.name: "used in several ways" for key, (part, _) in known.items()
                        if fit.parts.get(key, part) != part}  # fmt: skip
            if several:
                odd.update(several)
                raise NewlyOdd
            with torch.no_grad():
                for key, (part, members) in known.items():
                    fit.parts[key] = part
                    fit.odd |= {use.name: use.why for use in members if isinstance(use, Formed) and use.why}
                    add(fit.tensors, part, members)
            fit.units += len(units)
            done += len(units)
            advance(len(units))
            if path is not None and time.monotonic() - saved > patience and done < len(rows):
                began = time.monotonic()
                about = {**_header(fitting, feed, labels, fit), "done": done, "batch_size": size}
                write_kept(_partial(path), fit.tensors, about, FORMAT)
                saved = time.monotonic()
                patience = max(SECONDS_BETWEEN, NOT_WRITING * (saved - began))
    return fit


def _whole_where(uses: Sequence[Use], odd: dict[str, str]) -> list[Use]:
    """Return the uses, those of odd parameters added up to one gradient that has been formed."""
    totals: dict[str, Tensor] = {}
    for use in uses:
        if use.name in odd:
            own = use.gradient()
            totals[use.name] = totals[use.name] + own if use.name in totals else own
    return [use for use in uses if use.name not in odd] + [
        formed(name, total, why=odd[name]) for name, total in totals.items()
    ]


def kept_dtype(fitting: Fitting) -> torch.dtype:
    """Return what fits are kept in: float32, or float64 where the model is."""
    wide = any(parameter.dtype == torch.float64 for parameter in fitting.parameters.values())
    return torch.float64 if wide else torch.float32


def _recalled(fitting: Fitting, feed: Feed, labels: str, path: Path | None) -> Fit | None:
    kept = _trusted(fitting, feed, labels, path)
    return None if kept is None else Fit.from_header(*kept)


def _trusted(
    fitting: Fitting, feed: Feed, labels: str, path: Path | None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return what is kept, or None. What is damaged, or does not reproduce its witness, counts as none (and is fitted again)."""
    kept = read_kept(path, FORMAT, feed.device, fitting.notes)
    if kept is None or believed(fitting, feed, labels, kept[1]):
        return kept
    assert path is not None
    discard(path, STALE, fitting.notes)
    return None


def _header(fitting: Fitting, feed: Feed, labels: str, fit: Fit) -> dict[str, Any]:
    return {**fit.to_header(), "witness": witness(fitting, feed, labels).to_dict()}


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.stem}.partial.safetensors")
