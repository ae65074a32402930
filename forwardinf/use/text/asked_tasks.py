"""The language tasks that questions are put to: read token by token in one of several ways, with weighted rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forwardinf.data.examples import Batch
from forwardinf.tasks.losses import token_losses, token_margins
from forwardinf.tasks.root import root
from forwardinf.tasks.text import CausalLM, Each, Seq2Seq


def roots(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the root of each token's loss; 0 where it is not counted, or where nothing is left of it."""
    each = token_losses(logits, labels)
    left = each > 0
    return torch.where(left, root(torch.where(left, each, 1.0)), 0.0)


READINGS: dict[str, Each] = {  # what stands for each token's loss
    "loss": token_losses, "root": roots, "margin": lambda logits, labels: -token_margins(logits, labels),
}  # fmt: skip


class _Weighted:
    """A language task read token by token in one of several ways, whose query rows carry a weight.

    A contrast is an answer less the mean of its wrong ones.

    Attributes:
        reading: What stands for each token's loss; one of :data:`READINGS`.
    """

    reading = "loss"

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model; the weight is none of its business."""
        return super()._put_out(model, _without_weight(batch))  # type: ignore[misc,no-any-return]

    def measure(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return minus the loss as it is read, weighted."""
        return self._weighted(batch, -self._judged(batch, self._put_out(model, batch)))

    def _judged(self, batch: Batch, logits: Tensor) -> Tensor:
        """Return the sum of each row's tokens as they are read."""
        each = self._token_losses(batch, logits, READINGS[self.reading])  # type: ignore[attr-defined]
        return self._summed(batch, each)  # type: ignore[attr-defined,no-any-return]

    def _weighted(self, batch: Batch, found: Tensor) -> Tensor:
        return found * batch["weight"].to(found) if isinstance(batch, Mapping) and "weight" in batch else found


class AskedCausalLM(_Weighted, CausalLM):
    """A decoder, with weighted questions."""


class AskedSeq2Seq(_Weighted, Seq2Seq):
    """An encoder-decoder, with weighted questions."""


def _without_weight(batch: Batch) -> Batch:
    if isinstance(batch, Mapping) and "weight" in batch:
        return {name: value for name, value in batch.items() if name != "weight"}
    return batch
