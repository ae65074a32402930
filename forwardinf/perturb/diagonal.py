"""The diagonal of the Fisher, E[g²] for every number that moves, by exact per-example gradients of any layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from forwardinf.core.errors import SettingError
from forwardinf.core.fingerprint import digest
from forwardinf.core.settings import Perturbation
from forwardinf.gradients.layer_uses import Use
from forwardinf.gradients.parts import Part
from forwardinf.gradients.squares import squares
from forwardinf.perturb.blocks import Block, Solved, mean_diagonal
from forwardinf.perturb.damping import damping
from forwardinf.perturb.direction import Direction, Fitting
from forwardinf.perturb.fits import Fit, fitted, kept_dtype


def add_squares(sums: dict[str, Tensor], part: Part, uses: Sequence[Use]) -> None:
    """Add the squares of one batch's gradients, in float64: a Fisher is a sum of very unequal numbers (AbU)."""
    found = squares(part, uses)
    if part.key in sums:
        sums[part.key] += found
    else:
        sums[part.key] = found.double()


def diagonal_blocks(fitting: Fitting) -> list[Block]:
    """Return the fitted diagonal. Cost: about 3 F. Memory: 8 bytes for each number that moves."""
    if fitting.perturbation.fisher == "draws":
        return _over_draws(fitting)

    def means(fit: Fit) -> Fit:
        for key, total in fit.tensors.items():
            fit.tensors[key] = (total / fit.units).to(kept_dtype(fitting))
        if fit.odd:
            told = ", ".join(f"{name} ({why})" for name, why in sorted(fit.odd.items()))
            fit.notes.append(f"read one example at a time while fitting: {told}")
        return fit

    found = fitted(fitting, "diagonal", add_squares, means)
    return [Block(part, found.tensors[key]) for key, part in found.parts.items()]


def _over_draws(fitting: Fitting) -> list[Block]:
    """Return the mean of the diagonals of single draws: E over images, timesteps and noises of (∇ℓ)²."""
    task: Any = fitting.train.task.whole()
    if not hasattr(task, "draws"):
        raise SettingError("Perturbation(fisher='draws')", expected="a denoiser: a task with draws()",
                           got=type(task).__name__, do="Use fisher='empirical'.")  # fmt: skip
    rule = Perturbation.from_dict({**fitting.perturbation.to_dict(), "fisher": "empirical"})
    total: dict[str, Block] = {}
    draws = task.draws()
    for number, draw in enumerate(draws):
        key = None if fitting.key is None else digest(fitting.key, "draw", number)
        one = replace(fitting, perturbation=rule, train=replace(fitting.train, task=draw), key=key)
        for block in diagonal_blocks(one):
            own = block.values.double() / len(draws)
            known = total.get(block.part.key)
            total[block.part.key] = replace(block, values=own if known is None else known.values + own)
    return [replace(block, values=block.values.to(kept_dtype(fitting))) for block in total.values()]


def diagonal(fitting: Fitting) -> Direction:
    """Return the direction g / (E[g²] + λ). The damping is also the floor under numbers without curvature."""
    blocks = diagonal_blocks(fitting)
    rule = fitting.perturbation
    return Solved(blocks, damping(rule.direction, rule.damping, mean_diagonal(blocks, fitting.parameters)))
