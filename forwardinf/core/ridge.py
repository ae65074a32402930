"""Whitening in example space: (K + λN)⁻¹ by a Cholesky factor, of K itself or of a sketch of it.

K (N×N) holds the inner products of the training gradients. The linear scores under the empirical Fisher P⁻¹ = GᵀG/N + λI
are N(K + λN)⁻¹ of the plain ones, by the push-through identity; a sketch K ≈ RRᵀ needs an M×M factor only (Woodbury).
"""

from __future__ import annotations

import torch
from torch import Tensor

from forwardinf.core.errors import ModelError, SettingError

DAMPING = 3.0  # λN as a multiple of mean ‖gᵢ‖²: the one place (PERF 4d; docs/faithfulness.md)
PIECE = 4096  # rows of a sketch that are widened to float64 at a time


class Ridge:
    """Solves (K + λN) a = s, where λN is ``damping`` times the mean of K's diagonal.

    Args:
        gram: K, ``(N, N)``.
        responses: Instead of K: R, ``(N, M)`` with K ≈ RRᵀ.
        squares: ‖gᵢ‖², ``(N,)``, where ``responses`` is given (a sketch's own diagonal is noisy); default its diagonal.
        damping: The multiple, or ``"auto"``.
        unit: Every gradient at length 1 (‖gᵢ‖ = 0 stays 0): λN is then ``damping`` itself where none is zero.

    Attributes:
        size: N.
        weight: λN.
        lengths: ‖gᵢ‖, ``(N,)``.

    Cost: N³/3 multiplications once (sketch: NM² + M³/3), then N² (NM) for each solution; float64.

    Raises:
        ModelError: Every gradient is zero, or one is not finite.
    """

    def __init__(
        self,
        gram: Tensor | None = None,
        *,
        responses: Tensor | None = None,
        squares: Tensor | None = None,
        damping: float | str = "auto",
        unit: bool = False,
    ) -> None:
        """Factor."""
        if (gram is None) == (responses is None):
            raise SettingError(
                "Ridge()", expected="one of gram and responses", got="both" if gram is not None else "none"
            )
        rows = gram if gram is not None else responses
        assert rows is not None
        diagonal = gram.diagonal() if gram is not None else squares if squares is not None else rows.square().sum(1)
        self.size, self.unit = len(rows), unit
        self.lengths = diagonal.double().clamp_min(0).sqrt()
        if not bool(torch.isfinite(self.lengths).all()) or not bool((self.lengths > 0).any()):
            raise ModelError("training gradients", expected="finite, and not all zero", got="none to hold on to",
                             do="Look at the training losses: a model that fits everything exactly has no gradients.")  # fmt: skip
        self.inverse = torch.where(self.lengths > 0, 1 / self.lengths, 0) if unit else torch.ones_like(self.lengths)
        scale = float((self.lengths * self.inverse).square().mean()) if unit else float(self.lengths.square().mean())
        self.weight = (DAMPING if isinstance(damping, str) else damping) * scale
        self.root: Tensor | None = None
        if gram is not None:
            held = gram.double() * self.inverse[:, None] * self.inverse
            held.diagonal().add_(self.weight)
        else:
            self.root = rows * self.inverse[:, None].to(rows.dtype)
            held = self._inner(self.root)
            held.diagonal().add_(self.weight)
        self.factor: Tensor = torch.linalg.cholesky(held)

    @property
    def damping(self) -> float:
        """λ: what is added to the empirical Fisher's diagonal."""
        return self.weight / self.size

    def solve(self, scores: Tensor) -> Tensor:
        """Return (K + λN)⁻¹ s of each row of ``scores (…, N)``, float64. With ``unit``, s and K are of unit gradients."""
        given = scores.double()
        flat = given.reshape(-1, self.size).T
        if self.root is None:
            found = torch.cholesky_solve(flat, self.factor)
        else:
            pieces = self.root.split(PIECE)
            down = sum(
                (part.double().T @ own for part, own in zip(pieces, flat.split(PIECE), strict=True)),
                start=torch.zeros(()),
            )
            inner = torch.cholesky_solve(down, self.factor)
            found = (flat - torch.cat([part.double() @ inner for part in pieces])) / self.weight
        return found.T.reshape(given.shape)

    @staticmethod
    def _inner(root: Tensor) -> Tensor:
        """Return RᵀR in float64, a few rows at a time."""
        found = torch.zeros(root.shape[1], root.shape[1], dtype=torch.float64)
        for piece in root.split(PIECE):
            wide = piece.double()
            found += wide.T @ wide
        return found
