"""Tasks whose label is a vector: many answers of yes or no, or numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from forwardinf.core.errors import SettingError, TaskError, choose
from forwardinf.tasks import losses
from forwardinf.tasks.batches import label_in
from forwardinf.tasks.labels import answers, numbers, weights
from forwardinf.tasks.outputs import Take, refuse_probabilities
from forwardinf.tasks.prediction import Prediction, coins, normals
from forwardinf.tasks.task import Batch, Supervised


class MultiLabel(Supervised):
    """Any number of classes at once. Loss: the mean over classes of yes/no cross-entropies, in nats.

    Args:
        inputs: As in :class:`Classification`.
        label: As in :class:`Classification`; the labels are ``(B, C)`` of 0 and 1, or shares between.
        logits: As in :class:`Classification`.
        weight: ``pos_weight`` used in training, ``(C,)``.
        ignore: The value of labels that are missing, like −1, −100 or NaN: they add nothing to the loss, which is still
            divided by C, so that each label counts the same in every example. None: such values are refused.

    Example:
        >>> import torch
        >>> task = MultiLabel(ignore=-1)
        >>> task.loss(nn.Identity(), (torch.zeros(1, 2), torch.tensor([[1, -1]]))).round(decimals=3).tolist()
        [0.347]
    """

    unit = "nats"

    def __init__(
        self,
        inputs: Take = None,
        label: Take = None,
        logits: Take = None,
        weight: Tensor | None = None,
        ignore: float | None = None,
    ) -> None:
        """Check the settings; see the class."""
        super().__init__(inputs, label, logits)
        self.weight = weights(weight, "MultiLabel")
        if ignore is not None and (isinstance(ignore, bool) or not isinstance(ignore, int | float) or 0 <= ignore <= 1):
            raise SettingError("MultiLabel(ignore=)", expected="a number that is no label", got=repr(ignore))
        self.ignore = ignore

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return ``(B, C)``."""
        output = self.run(model, batch)
        if self.output is None:
            refuse_probabilities(output, "MultiLabel", each=True)
            refuse_probabilities(output, "MultiLabel")
        if output.ndim < 2:
            raise TaskError(
                "MultiLabel",
                expected="logits of shape (B, C)",
                got=str(tuple(output.shape)),
                do="One logit for yes or no: Classification(binary=True).",
            )
        return output

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean over classes, ``(B,)``."""
        return self._judged(batch, self.logits(model, batch))

    def predicted(self, model: nn.Module, batch: Batch) -> Prediction:
        """Return logits and what the loss makes of them."""
        return Prediction(self.logits(model, batch), partial(self._judged, batch), partial(self._drawn, batch))

    def _answers(self, batch: Batch, output: Tensor) -> Tensor:
        return answers(label_in(batch, self.label), output.shape, "MultiLabel", ignore=self.ignore)

    def _judged(self, batch: Batch, output: Tensor) -> Tensor:
        label = self._answers(batch, output)
        if self.weight is not None and self.weight.numel() != 1 and self.weight.shape != output.shape[-1:]:
            raise TaskError(
                "MultiLabel(weight=)",
                expected=f"{output.shape[-1]} weights, one for each class",
                got=f"shape {tuple(self.weight.shape)}",
            )
        return self._mean(losses.binary_cross_entropy(output, label.nan_to_num(), weight=self.weight), label)

    def _drawn(self, batch: Batch, output: Tensor, draw: int) -> Tensor:
        label = self._answers(batch, output)
        scale = (losses.yes_weight(label.nan_to_num(), self.weight) * max(output[0].numel(), 1)).sqrt()
        return self._mean(scale * losses.binary_cross_entropy(output, coins(output, draw)), label)

    def _mean(self, each: Tensor, label: Tensor) -> Tensor:
        found: Tensor = each.masked_fill(label.isnan(), 0.0).flatten(1).mean(1)
        return found


class Regression(Supervised):
    """Numbers. Loss: the mean over outputs of the squared, absolute or Huber error.

    Args:
        inputs: As in :class:`Classification`.
        label: As in :class:`Classification`; the targets have the shape of the output.
        output: Where the prediction is in the model's output.
        error: ``"squared"``, ``"absolute"`` or ``"huber"`` (delta 1).
    """

    setting = "output="

    def __init__(self, inputs: Take = None, label: Take = None, output: Take = None, error: str = "squared") -> None:
        """Check the settings; see the class."""
        super().__init__(inputs, label, output)
        known: dict[str, Callable[..., Tensor]] = {
            "squared": F.mse_loss,
            "absolute": F.l1_loss,
            "huber": F.huber_loss,
        }
        if error not in known:
            raise choose("Regression(error=)", str(error), known)
        self.error, self.unit, self._loss = error, f"{error} error", known[error]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean error over outputs, ``(B,)`` float64."""
        return self._judged(batch, self.run(model, batch))

    def predicted(self, model: nn.Module, batch: Batch) -> Prediction | None:
        """Return the output and what the loss makes of it, where the error is squared (normal noise)."""
        if self.error != "squared":
            return None
        return Prediction(self.run(model, batch), partial(self._judged, batch), _squared_error_of_noise)

    def _judged(self, batch: Batch, output: Tensor) -> Tensor:
        target, output = numbers(label_in(batch, self.label), "Regression"), output.double()
        if output.shape != target.shape:
            if [n for n in output.shape if n != 1] != [n for n in target.shape if n != 1]:
                raise TaskError(
                    "Regression",
                    expected=f"output of the targets' shape {tuple(target.shape)}",
                    got=str(tuple(output.shape)),
                )
            output = output.reshape(target.shape)  # (B, 1) against (B,): broadcasting would compare all with all
        each: Tensor = self._loss(output, target, reduction="none")
        return each.reshape(len(target), -1).mean(1)


def _squared_error_of_noise(output: Tensor, draw: int) -> Tensor:
    """Return the mean squared error against the output with noise: variance D/2, at which D outputs' mean is a likelihood."""
    each = max(output[0].numel(), 1) if len(output) else 1
    wide = output.double()
    target = wide.detach() + (each / 2) ** 0.5 * normals(output, draw)
    found: Tensor = (wide - target).square().reshape(len(output), -1).mean(1)
    return found
