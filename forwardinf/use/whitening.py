"""(GᵀG + λN)⁻¹ of sketched gradients: its products and its factor are made once for an index, and kept with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forwardinf.core.errors import FileError, ModelError
from forwardinf.core.pieces import Pieces
from forwardinf.read.whitened import along

AT_ONCE = 4096  # rows whose products are added at a time
CLOSE = 1e-4  # how far kept products may be from those of the rows, of their length: rounding of float32 is below


@dataclass(frozen=True)
class Kept:
    """Where an index keeps what was made of its rows.

    Attributes:
        pieces: Its folder.
        name: Says which rows, by their content.
        note: Told where nothing could be kept.
    """

    pieces: Pieces
    name: str
    note: Callable[[str], None]

    def of(self, more: str) -> Kept:
        """Return the same place for another form of the rows."""
        return Kept(self.pieces, f"{self.name}-{more}", self.note)

    def take(self, kind: str, holds: Callable[[Tensor], bool], make: Callable[[], Tensor], which: str = "") -> Tensor:
        """Return a matrix that is kept, if it holds; else make it, and keep it where that can be done.

        ``which`` of a kind: of these only the first is kept, or every damping would leave a file.
        """
        full = f"{kind}-{self.name}{which}"
        found = self.pieces.get(full) if full in self.pieces else None
        if found is not None and holds(found.tensors["matrix"]):
            return found.tensors["matrix"]
        if found is not None:
            self.pieces.damaged.add(full)
            self.note(f"{full}: what was kept does not belong to the rows; made anew")
        made = make()
        if which and self.pieces.names(f"{kind}-{self.name}"):
            return made
        try:
            self.pieces.put(full, {"matrix": made})
        except FileError as error:
            self.note(f"not kept for the next call: {error}")
        return made


class Whitening:
    """(GᵀG + λN)⁻¹, factored through the smaller of GᵀG and GGᵀ.

    Cost: N·M·min(N, M) multiplications for the products, once for an index; min(N, M)³/3 for the factor, which is
    kept for the first damping. With both kept: reading them, and a check by two products, 4 N·M.

    Attributes:
        ridge: λN.
    """

    def __init__(
        self, fit: Tensor, damping: float, kept: Kept | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Factor it, or take the factor that is kept.

        Args:
            fit: G ``(N, M)``.
            damping: λN as a multiple of mean‖gᵢ‖².
            kept: Where an index keeps what was made of G.
            dtype: What products of rows are taken in; sums are in float64.
        """
        self._fit, self._kept, self._dtype = fit, kept, dtype
        rows, width = fit.shape
        self._tall = rows >= width
        square = sum(float(piece.double().square().sum()) for piece in torch.split(fit, AT_ONCE)) / rows
        if not 0 < square < float("inf"):
            raise ModelError("training gradients", expected="finite, and not all zero", got=f"mean square {square}",
                             do="A model that fits every example exactly has none: use an earlier checkpoint.")  # fmt: skip
        self.ridge = damping * square
        self._inner: Tensor | None = None
        self._root = self._take("factor", self._is_root, self._factored, f"-{self.ridge:.12g}")

    def _take(self, kind: str, holds: Callable[[Tensor], bool], make: Callable[[], Tensor], which: str = "") -> Tensor:
        return make() if self._kept is None else self._kept.take(kind, holds, make, which)

    @property
    def inner(self) -> Tensor:
        """GᵀG or GGᵀ, whichever is smaller, float64."""
        if self._inner is None:
            self._inner = self._take(
                "products", lambda found: self._stands_for(found, found.__matmul__), self._products
            )
        return self._inner

    def _products(self) -> Tensor:
        if not self._tall:
            return along(self._fit, self._fit.double())
        inner = torch.zeros(self._fit.shape[1], self._fit.shape[1], dtype=torch.float64)
        for piece in torch.split(self._fit, AT_ONCE):
            wide = piece.to(self._dtype)
            inner += (wide.T @ wide).double()
        return inner

    def _factored(self) -> Tensor:
        damped = self.inner.clone()
        damped.diagonal().add_(self.ridge)
        root: Tensor = torch.linalg.cholesky(damped)
        return root

    def _is_root(self, root: Tensor) -> bool:
        return self._stands_for(root, lambda z: root @ (root.T @ z) - self.ridge * z)

    def _stands_for(self, kept: Tensor, times: Callable[[Tensor], Tensor]) -> bool:
        """Return whether a kept matrix gives the products of two random vectors that the rows give."""
        size = min(self._fit.shape)
        if kept.shape != (size, size) or kept.dtype != torch.float64:
            return False
        z = torch.randn(size, 2, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
        if self._tall:
            want = sum(piece.double().T @ (piece.double() @ z) for piece in torch.split(self._fit, AT_ONCE))
        else:
            want = along(self._fit, along(self._fit.T, z.T)).T
        assert isinstance(want, Tensor)
        return bool((times(z) - want).norm() <= CLOSE * want.norm())

    def solve(self, asked: Tensor) -> Tensor:
        """Return ``asked (GᵀG + λN)⁻¹``, ``(Q, M)`` float64."""
        if self._tall:
            solved: Tensor = torch.cholesky_solve(asked.T, self._root).T
            return solved
        held: Tensor = torch.cholesky_solve(along(self._fit, asked).T, self._root)  # a = (K + λN)⁻¹ G g
        return (asked - along(self._fit.T, held.T)) / self.ridge  # push on the query, hold the rest

    def answers(self, rows: Tensor) -> Tensor:
        """Return how some of G's rows answer one another, G(GᵀG + λN)⁻¹Gᵀ = K(K + λN)⁻¹ of these, ``(rows, rows)``."""
        if not self._tall:
            found: Tensor = torch.cholesky_solve(self.inner[:, rows], self._root)[rows]
            return found
        own = self._fit[rows].double()
        return self.solve(own) @ own.T
