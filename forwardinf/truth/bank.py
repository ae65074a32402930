"""A bank: what the queries' losses became when the model was trained on random subsets. The yardstick of attribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forwardinf.core.errors import DataError, FileError, choose
from forwardinf.core.files import read_json, write_json, written
from forwardinf.core.paths import as_path
from forwardinf.truth.agreement import Array, spearman

FORMAT = "forwardinf.bank/1"
OUTPUTS_ARE = ("loss", "measure")


@dataclass(frozen=True, eq=False, repr=False)
class Bank:
    """Subset trainings: who was in each, and what the queries' losses (or measurements) were afterwards.

    Attributes:
        masks: ``(M, N)`` bool: ``masks[m, i]`` says that training m saw example i.
        outputs: ``(M, Q)`` or ``(M, seeds, Q)``: what each query gave under each trained model.
        outputs_are: ``"loss"`` (larger is worse for the query) or ``"measure"`` (larger is better).
        more: Other outputs of the same trainings by name, like ``{"margin": …}``: measures, larger is better.
        meta: Whatever describes the bank, plain: seeds, recipe, versions.
    """

    masks: Array
    outputs: Array
    outputs_are: str
    more: Mapping[str, Array] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outputs_are not in OUTPUTS_ARE:
            raise choose("Bank(outputs_are=)", str(self.outputs_are), OUTPUTS_ARE)
        object.__setattr__(self, "masks", checked_masks(self.masks))
        for name, table in {"outputs": self.outputs, **self.more}.items():
            checked_outputs(table, len(self.masks), f"Bank({name}=)")

    def __repr__(self) -> str:
        seeds = f" × {self.outputs.shape[1]} seeds" if np.ndim(self.outputs) == 3 else ""
        more = f" and {', '.join(self.more)}" if self.more else ""
        return (f"Bank({len(self.masks):,} subsets{seeds} of {self.masks.shape[1]:,} training examples, "
                f"{np.shape(self.outputs)[-1]:,} queries, {self.outputs_are}{more})")  # fmt: skip

    @property
    def goodness(self) -> Array:
        """``(M, seeds, Q)`` float64: the outputs with the sign turned so that larger is better for the query."""
        return goodness(self.outputs, self.outputs_are)

    def named(self, name: str) -> Bank:
        """Return the bank of another of its outputs, like ``bank.named("margin")``.

        Raises:
            SettingError: There is none of that name.
        """
        if name in ("outputs", self.outputs_are):
            return self
        if name not in self.more:
            raise choose("Bank.named()", name, [self.outputs_are, *self.more])
        return Bank(self.masks, self.more[name], "measure", meta=self.meta)

    def queries(self, rows: Any) -> Bank:
        """Return the bank with these queries only (positions, a mask or a slice)."""
        more = {name: table[..., rows] for name, table in self.more.items()}
        return Bank(self.masks, self.outputs[..., rows], self.outputs_are, more, self.meta)

    def ceiling(self) -> Array:
        """Return what a perfect score could reach per query, ``(Q,)``; NaN with a single seed. See :func:`ceiling`."""
        return ceiling(self.goodness)

    def save(self, path: str | Path) -> Path:
        """Write ``masks.npy`` (packed bits), ``outputs.npy``, one file for each of ``more``, and ``meta.json``.

        ``meta.json`` is written last: a folder without it is not a bank.
        """
        folder = as_path("bank", path)
        arrays = {"masks": np.packbits(self.masks, axis=1), "outputs": self.outputs, **self.more}
        for name, table in arrays.items():
            with written(folder / f"{name}.npy") as part, part.open("wb") as file:
                np.save(file, table, allow_pickle=False)
        write_json(folder / "meta.json", {
            **self.meta, "format": FORMAT, "outputs_are": self.outputs_are, "more": list(self.more),
            "train_examples": self.masks.shape[1], "packed": True,
        })  # fmt: skip
        return folder


def load_bank(path: str | Path) -> Bank:
    """Read a bank: a folder with ``masks.npy``, ``outputs.npy`` and ``meta.json``.

    A bank of your own is three files: masks (M, N) of bool or 0/1, outputs (M, Q) or (M, seeds, Q), and a JSON object
    that holds at least ``{"format": "forwardinf.bank/1", "outputs_are": "loss"}`` (or ``"measure"``).

    Args:
        path: The folder.

    Raises:
        FileError: A file is missing, damaged, or would need unpickling.

    Example:
        >>> import tempfile
        >>> folder = Bank(np.eye(2, dtype=bool), np.zeros((2, 3)), "loss").save(tempfile.mkdtemp())
        >>> load_bank(folder).outputs.shape
        (2, 3)
    """
    folder = as_path("bank", path)
    meta = read_json(folder / "meta.json", FORMAT, what="a bank")
    masks = _load(folder / "masks.npy")
    if meta.get("packed"):
        masks = np.unpackbits(masks, axis=1, count=int(meta["train_examples"])).astype(bool)
    more = {str(name): _load(folder / f"{name}.npy") for name in meta.get("more", [])}
    kept = {name: value for name, value in meta.items() if name not in ("format", "outputs_are", "more", "packed")}
    return Bank(masks, _load(folder / "outputs.npy"), str(meta.get("outputs_are")), more, kept)


def goodness(outputs: Any, outputs_are: str) -> Array:
    """Return outputs as ``(M, seeds, Q)`` float64, larger = better for the query."""
    table = np.asarray(outputs, dtype=np.float64)
    table = table[:, None] if table.ndim == 2 else table
    return -table if outputs_are == "loss" else table


def ceiling(good: Array) -> Array:
    """Return the highest Spearman correlation that a score can be expected to reach with these outputs, ``(Q,)``.

    Training noise is not the training set's doing. With several seeds for each subset, the seeds are split in halves;
    the halves' correlation r over subsets gives the reliability of the mean over all seeds, R = 2r / (1 + r)
    (Spearman–Brown), and √R is what the noise-free answer would score. Where r ≤ 0, it is 0.

    Args:
        good: ``(M, seeds, Q)``; NaN comes back where there is one seed only.
    """
    seeds = good.shape[1]
    if seeds < 2:
        return np.full(good.shape[2], np.nan)
    half = seeds // 2
    agree = np.clip(spearman(good[:, :half].mean(1).T, good[:, half : 2 * half].mean(1).T), 0.0, None)
    return np.asarray(np.sqrt(2 * agree / (1 + agree)))


def checked_masks(masks: Any) -> Array:
    """Return masks as bool ``(M, N)``; refuse anything but truth values."""
    table = np.asarray(masks)
    if table.ndim != 2:
        raise DataError("masks", expected="shape (trainings, training examples)", got=str(table.shape))
    if table.dtype != bool:
        if not np.isin(table, (0, 1)).all():
            raise DataError("masks", expected="truth values, True where the example was trained on", got="other numbers",
                            do="For lists of positions: masks[m, positions] = True.")  # fmt: skip
        table = table.astype(bool)
    return table


def checked_outputs(outputs: Any, trainings: int, where: str) -> Array:
    """Return outputs as an array; refuse a shape that is not (M, Q) or (M, seeds, Q), and numbers that are not finite."""
    table = np.asarray(outputs)
    if table.ndim not in (2, 3) or len(table) != trainings:
        fix = "Transpose it." if table.ndim == 2 and table.shape[1] == trainings else ""
        raise DataError(where, expected=f"shape ({trainings}, queries) or ({trainings}, seeds, queries)",
                        got=str(table.shape), do=fix)  # fmt: skip
    if not np.isfinite(table.astype(np.float64)).all():
        raise DataError(
            where, expected="finite numbers", got="NaN or inf", do="Train those subsets again, or drop them."
        )
    return table


def _load(path: Path) -> Array:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise FileError(
            str(path), expected="an array file of a bank", got=str(error), do="Check the folder."
        ) from error
