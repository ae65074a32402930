"""Whitening in example space: (K + λN)⁻¹ by a Cholesky factor, of K itself or of a sketch of it.

K (N×N) holds the inner products of the training gradients. The linear scores under the empirical Fisher P⁻¹ = GᵀG/N + λI
are N(K + λN)⁻¹ of the plain ones, by the push-through identity; a sketch K ≈ RRᵀ needs an M×M factor only (Woodbury).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from forwardinf.core.errors import ModelError, SettingError

DAMPING = 3.0  # λN as a multiple of mean ‖gᵢ‖²: the one place (docs/faithfulness.md)
PIECE = 4096  # rows of a sketch that are widened to float64 at a time


class Ridge:
    """Solves (K + λN) a = s, where λN is ``damping`` times mean ‖gᵢ‖²: a rule without units.

    Args:
        gram: K, ``(N, N)``.
        responses: Instead of K: R, ``(N, M)``, with K ≈ RRᵀ.
        damping: The multiple, or ``"auto"``.
        temper: β: every training gradient at length ‖gᵢ‖^(1−β) (one that is zero stays zero): K and s are those of
            gᵢ/‖gᵢ‖^β. 0: as they are. 1: unit gradients.

    Attributes:
        size: N.
        weight: λN.
        lengths: ``(N,)``: ‖gᵢ‖ (of a sketch: as the sketch sees it).
        inverse: ``(N,)``: ‖gᵢ‖^−β, the factor that tempers gᵢ.

    Cost: N³/3 multiplications once (sketch: NM² + M³/3), then N² (NM) for each solution; float64.

    Raises:
        ModelError: Every gradient is zero, or one is not finite.

    Example:
        >>> ridge = Ridge(torch.eye(2), damping=1.0)
        >>> ridge.solve(torch.tensor([2.0, 4.0])).round(decimals=6).tolist()
        [1.0, 2.0]
    """

    def __init__(
        self,
        gram: Tensor | None = None,
        *,
        responses: Tensor | None = None,
        damping: float | str = "auto",
        temper: float = 0.0,
    ) -> None:
        """Factor."""
        given = gram if gram is not None else responses
        if given is None or (gram is not None and responses is not None):
            got = "none" if given is None else "both"
            raise SettingError("Ridge()", expected="one of gram and responses", got=got)
        squares = gram.diagonal() if gram is not None else given.square().sum(1)
        self.size = len(given)
        self.lengths = squares.double().clamp_min(0).sqrt()
        if not bool(torch.isfinite(self.lengths).all()) or not bool((self.lengths > 0).any()):
            raise ModelError(
                "training gradients", expected="finite, and not all zero", got="none that could be held on to",
                do="A model that fits every example exactly has no gradients: use an earlier checkpoint.",
            )  # fmt: skip
        self.inverse = tempers(self.lengths, temper)
        self.weight = (DAMPING if isinstance(damping, str) else damping) * self._scale()
        self.gram, self.root = gram, None
        if responses is not None and responses.shape[0] <= responses.shape[1]:
            self.gram = responses.double() @ responses.double().T
        if self.gram is not None:
            held = self.gram.double() * self.inverse[:, None] * self.inverse
        else:
            self.root = given
            held = self._rows(lambda rows, at: rows.T @ rows)
        held.diagonal().add_(self.weight)
        self.factor: Tensor = torch.linalg.cholesky(held)

    @property
    def damping(self) -> float:
        """λ, as it is added to the empirical Fisher GᵀG/N."""
        return self.weight / self.size

    def solve(self, scores: Tensor) -> Tensor:
        """Return (K + λN)⁻¹ s of each row of ``scores (…, N)``, float64."""
        flat = scores.double().reshape(-1, self.size).T
        if self.root is None:
            found = torch.cholesky_solve(flat, self.factor)
        else:  # Woodbury: an M×M factor stands for the N×N one
            inner = torch.cholesky_solve(self._rows(lambda rows, at: rows.T @ flat[at]), self.factor)
            found = (flat - torch.cat([rows @ inner for rows, _ in self._pieces()])) / self.weight
        return found.T.reshape(scores.shape)

    def scores(self, solved: Tensor) -> Tensor:
        """Return gᵢᵀ P g of gradients as they are from ``solved (…, N)``, the solution for tempered plain scores; float64."""
        return torch.where(self.inverse > 0, self.size * solved / self.inverse, 0.0)

    def own(self) -> Tensor:
        """Return gᵢᵀ P gᵢ, ``(N,)`` float64: self-influence under P⁻¹ = GᵀG/N + λI, of tempered gradients where asked.

        Cost: N³/3 more (sketch: NM²).
        """
        if self.gram is not None:
            held = self.gram.double() * self.inverse[:, None] * self.inverse
            found = torch.cholesky_solve(held, self.factor).diagonal()
        else:
            found = torch.cat([torch.linalg.solve_triangular(self.factor, rows.T, upper=False).square().sum(0)
                               for rows, _ in self._pieces()])  # fmt: skip
        return torch.where(self.inverse > 0, self.size * found / self.inverse.square(), 0.0)

    def _scale(self) -> float:
        """Return the mean square of the gradients' lengths."""
        return float((self.lengths * self.inverse).square().mean())

    def _pieces(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield (rows of the sketch in float64, where), a few at a time."""
        assert self.root is not None
        for start in range(0, self.size, PIECE):
            at = slice(start, start + PIECE)
            yield self.root[at].double() * self.inverse[at, None], at

    def _rows(self, take: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Return the sum of ``take(rows, where)``."""
        pieces = self._pieces()
        total = take(*next(pieces))
        for rows, at in pieces:
            total += take(rows, at)
        return total


def tempers(lengths: Tensor, temper: float) -> Tensor:
    """Return ‖g‖^−β of each length: the factor that tempers a gradient. Zero stays zero; β = 0: all ones."""
    return torch.where(lengths > 0, lengths**-temper, 0.0) if temper else torch.ones_like(lengths)
