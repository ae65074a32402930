"""Whitening in example space: (K + λN)⁻¹ by a Cholesky factor, of K itself or of a sketch of it.

K (N×N) holds the inner products of the training gradients. The linear scores under the empirical Fisher P⁻¹ = GᵀG/N + λI
are N(K + λN)⁻¹ of the plain ones, by the push-through identity; a sketch K ≈ RRᵀ needs an M×M factor only (Woodbury).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from forwardinf.core.errors import ModelError, SettingError

DAMPING = 3.0  # λN as a multiple of mean ‖gᵢ‖²: the one place (PERF 4d; docs/faithfulness.md)
PIECE = 4096  # rows of a sketch that are widened to float64 at a time


class Ridge:
    """Solves (K + λN) a = s, where λN is ``damping`` times mean ‖gᵢ‖²: a rule without units.

    Args:
        gram: K, ``(N, N)``.
        responses: Instead of K: R, ``(N, M)``, with K ≈ RRᵀ.
        damping: The multiple, or ``"auto"``.
        unit: Every training gradient at length 1 (one that is zero stays zero): K and s are those of uᵢ = gᵢ/‖gᵢ‖.

    Attributes:
        size: N.
        weight: λN.
        lengths: ``(N,)``: ‖gᵢ‖ (of a sketch: as the sketch sees it).
        inverse: ``(N,)``: the factor that makes uᵢ of gᵢ; ones without ``unit``.

    Cost: N³/3 multiplications once (sketch: NM² + M³/3), then N² (NM) for each solution; float64.

    Raises:
        ModelError: Every gradient is zero, or one is not finite.

    Example:
        >>> ridge = Ridge(torch.eye(2), damping=1.0)
        >>> ridge.solve(torch.tensor([2.0, 4.0])).tolist()
        [1.0, 2.0]
    """

    def __init__(
        self,
        gram: Tensor | None = None,
        *,
        responses: Tensor | None = None,
        damping: float | str = "auto",
        unit: bool = False,
    ) -> None:
        """Factor."""
        given = gram if gram is not None else responses
        if given is None or (gram is not None and responses is not None):
            got = "none" if given is None else "both"
            raise SettingError("Ridge()", expected="one of gram and responses", got=got)
        squares = gram.diagonal() if gram is not None else given.square().sum(1)
        self.size, self.unit = len(given), unit
        self.lengths = squares.double().clamp_min(0).sqrt()
        if not bool(torch.isfinite(self.lengths).all()) or not bool((self.lengths > 0).any()):
            raise ModelError(
                "training gradients", expected="finite, and not all zero", got="none that could be held on to",
                do="A model that fits every example exactly has no gradients: use an earlier checkpoint.",
            )  # fmt: skip
        self.inverse = torch.where(self.lengths > 0, 1 / self.lengths, 0) if unit else torch.ones_like(self.lengths)
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

    def own(self) -> Tensor:
        """Return gᵢᵀ P gᵢ, ``(N,)`` float64: self-influence under P = (GᵀG/N + λI)⁻¹. Cost: N³/3 more (sketch: NM²)."""
        if self.gram is not None:
            held = self.gram.double() * self.inverse[:, None] * self.inverse
            return self.size * torch.cholesky_solve(held, self.factor).diagonal().clone()
        found = [
            (torch.linalg.solve_triangular(self.factor, rows.T, upper=False).square().sum(0))
            for rows, _ in self._pieces()
        ]
        return self.size * torch.cat(found)

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
