"""One class for each place: each token of a text, each pixel of an image. Losses are summed over the places that count."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forwardinf.core.errors import SettingError, TaskError, choose
from forwardinf.data.padding import NOT_COUNTED, pad, say_uncounted
from forwardinf.tasks import losses
from forwardinf.tasks.batches import LABELS, has_label, label_in
from forwardinf.tasks.labels import class_numbers, weights
from forwardinf.tasks.outputs import Take, refuse_probabilities
from forwardinf.tasks.prediction import Prediction, classes
from forwardinf.tasks.task import QUERIES, Batch, Supervised

Query = Literal["label", "predicted", "margin"]


class PlaceClassification(Supervised):
    """What tokens and pixels share: logits ``(B, …, C)``, labels ``(B, …)``, the sum over places that count."""

    unit = "nats"
    place = "place"

    def __init__(
        self, inputs: Take, label: Take, logits: Take, weight: Tensor | None, query: Query, ignore_index: int
    ) -> None:
        """Check the settings."""
        super().__init__(inputs, label, logits)
        name = type(self).__name__
        if query not in QUERIES:
            raise choose(f"{name}(query=)", str(query), QUERIES)
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise SettingError(f"{name}(ignore_index=)", expected="a whole number", got=repr(ignore_index))
        self.weight, self.query, self.ignore_index = weights(weight, name), query, ignore_index

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over each example's counted places, ``(B,)``."""
        return self._judged(batch, self._put_out(model, batch))

    def predicted(self, model: nn.Module, batch: Batch) -> Prediction:
        """Return logits and what the loss makes of them."""
        return Prediction(self._put_out(model, batch), partial(self._judged, batch), partial(self._drawn, batch))

    def measure(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return minus the loss, or the margin log p/(1−p), summed over each example's counted places, ``(B,)``."""
        output = self._put_out(model, batch)
        if self.query == "margin":
            return losses.token_margins(output, self._labels(batch, output)).flatten(1).sum(1)
        return -self._judged(batch, output)

    @property
    def asks(self) -> bool:
        """Whether queries are asked by the classes the model predicts."""
        return self.query == "predicted"

    @property
    def asks_loss(self) -> bool:
        """Whether queries are asked their loss, under whichever labels, and not a margin."""
        return type(self).measure is PlaceClassification.measure and self.query != "margin"

    def lacks(self, batch: Batch) -> bool:
        """Return whether this batch of queries has no labels and needs none: the predicted classes stand for them."""
        return self.query == "predicted" and not has_label(batch, self.label)

    @torch.no_grad()
    def ask(self, model: nn.Module, batch: Batch) -> Batch:
        """Put the predicted classes in place of the labels, where those count."""
        output = self._put_out(model, batch)
        counted = self._counted(batch, output)
        return self.with_label(batch, output.argmax(-1).masked_fill(~counted, self.ignore_index))

    def count(self, batch: Batch) -> Tensor:
        """Return each example's counted places, ``(B,)``."""
        label = self._given(batch)
        if not isinstance(label, Tensor) or label.ndim < 2:
            got = f"shape {tuple(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
            raise TaskError("label", expected=f"a tensor of one class for each {self.place}", got=got)
        return (label != self.ignore_index).flatten(1).sum(1)

    def _given(self, batch: Batch) -> Any:
        return label_in(batch, self.label)

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits ``(B, …, C)``."""
        raise NotImplementedError

    def _labels(self, batch: Batch, output: Tensor) -> Tensor:
        """Return class numbers ``(B, …)``, −100 where they are not counted."""
        given, classes = self._given(batch), output.shape[-1]
        return class_numbers(given, output.shape[:-1], classes, each=self.place, ignore=self.ignore_index)

    def _counted(self, batch: Batch, output: Tensor) -> Tensor:
        if has_label(batch, self.label):
            return self._labels(batch, output) != NOT_COUNTED
        return torch.ones(output.shape[:-1], dtype=torch.bool, device=output.device)

    def _judged(self, batch: Batch, output: Tensor) -> Tensor:
        labels = self._labels(batch, output)
        if self.weight is not None and self.weight.shape != output.shape[-1:]:
            raise TaskError(
                f"{type(self).__name__}(weight=)",
                expected=f"{output.shape[-1]} weights, one for each class",
                got=f"shape {tuple(self.weight.shape)}",
            )
        return losses.token_losses(output, labels, weight=self.weight).flatten(1).sum(1)

    def _drawn(self, batch: Batch, output: Tensor, draw: int) -> Tensor:
        """Return the loss under drawn labels, by the square root of the weight of each place's own label."""
        own = self._labels(batch, output)
        each = losses.token_losses(output, classes(output, own != NOT_COUNTED, draw))
        if self.weight is not None:
            each = each * self.weight.to(output.device, torch.float64)[own.clamp_min(0)].sqrt()
        return each.flatten(1).sum(1)

    def _checked(self, output: Tensor) -> Tensor:
        if self.output is None:
            refuse_probabilities(output, type(self).__name__)
        if output.shape[-1] < 2:
            raise TaskError(
                type(self).__name__,
                expected="at least two classes",
                got=f"one logit for each {self.place}",
                do="If it is that of yes, say logits=lambda z: torch.cat([0 * z, z], dim=…).",
            )
        return output


class TokenClassification(PlaceClassification):
    """One class for each token (names, parts of speech). Loss: the sum over counted tokens of cross-entropies, in nats.

    Rows are mappings of ``input_ids`` and ``labels``, one for each token; −100 is not counted, as at the pieces of a word
    after its first and at padding. The model's logits are ``(B, T, C)``. The mean over counted tokens is the loss divided by
    :meth:`count`.

    Args:
        inputs: As in :class:`Classification`.
        label: As in :class:`Classification`; the labels are ``(B, T)``.
        logits: As in :class:`Classification`.
        weight: Class weights ``(C,)`` used in training.
        query: What a query is asked. ``"label"``: the training loss. ``"predicted"``: the loss under the classes that the
            unperturbed model predicts, where the labels count; without labels, at all tokens that are not padding.
            ``"margin"``: the sum over counted tokens of log p/(1−p), which does not vanish where the model is sure.
        pad_token_id: What short rows are filled with (masked out and not counted).
        padding_side: ``"right"`` or ``"left"``.

    Example:
        >>> task = TokenClassification()
        >>> batch = task.collate([{"input_ids": [5, 6], "labels": [1, -100]}, {"input_ids": [7], "labels": [0]}])
        >>> batch["labels"].tolist(), task.count(batch).tolist()
        ([[1, -100], [0, -100]], [1, 1])
    """

    place = "token"

    def __init__(
        self,
        inputs: Take = None,
        label: Take = None,
        logits: Take = None,
        weight: Tensor | None = None,
        query: Query = "label",
        pad_token_id: int = 0,
        padding_side: str = "right",
    ) -> None:
        """Check the settings; see the class."""
        super().__init__(inputs, label, logits, weight, query, NOT_COUNTED)
        if padding_side not in ("right", "left"):
            raise choose("TokenClassification(padding_side=)", str(padding_side), ("right", "left"))
        self.pad_token_id, self.padding_side = pad_token_id, padding_side

    def collate(self, examples: list[Any]) -> Batch:
        """Pad to the longest row, labels with −100."""
        first, column = examples[0], self.label if isinstance(self.label, str) else LABELS[0]
        if self.label is None and isinstance(first, Mapping) and LABELS[0] not in first and LABELS[1] in first:
            column = LABELS[1]
        batch = pad(examples, token=self.pad_token_id, side=self.padding_side, counted=column, aligned=True)
        if column in batch and not bool(self.count(batch).all()):
            say_uncounted("TokenClassification")
        return batch

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        output = self.run(model, batch)
        if output.ndim != 3:
            raise TaskError(
                "TokenClassification",
                expected="logits of shape (B, T, C)",
                got=str(tuple(output.shape)),
                do="Say where they are with logits=, or use another task.",
            )
        return self._checked(output)

    def _given(self, batch: Batch) -> Any:
        """Return the labels; where a row is nothing but padding, none count."""
        label, mask = label_in(batch, self.label), _mask(batch)
        if mask is None or not isinstance(label, Tensor) or label.shape != mask.shape:
            return label
        return label.masked_fill(~(mask != 0).any(1, keepdim=True), self.ignore_index)

    def _counted(self, batch: Batch, output: Tensor) -> Tensor:
        mask = _mask(batch)
        if has_label(batch, self.label) or mask is None or mask.shape != output.shape[:-1]:
            return super()._counted(batch, output)
        return mask != 0


def _mask(batch: Batch) -> Tensor | None:
    found = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return found if isinstance(found, Tensor) and found.ndim == 2 else None


class Segmentation(PlaceClassification):
    """One class for each pixel. Loss: the sum over counted pixels of cross-entropies, in nats.

    A batch is images and label maps ``(B, H, W)``; the model's logits are ``(B, C, H, W)`` (or of volumes, one dimension
    more). The mean over counted pixels is the loss divided by :meth:`count`. Labels that are not counted have the number
    ``ignore_index``; any other that is no class is refused.

    Args:
        inputs: As in :class:`Classification`.
        label: As in :class:`Classification`; the labels are ``(B, H, W)``, or ``(B, 1, H, W)``.
        logits: As in :class:`Classification`, like ``"out"`` for the models of torchvision.
        weight: Class weights ``(C,)`` used in training.
        query: What a query is asked, as in :class:`TokenClassification`, pixels for tokens.
        ignore_index: The label of pixels that do not count, as used in training; often 255.
        upsample: Logits that are smaller than the label maps are interpolated to their size (bilinear, ``align_corners``
            off), as the losses of transformers do. Off, such logits are refused.

    Example:
        >>> task = Segmentation(ignore_index=255)
        >>> batch = torch.randn(2, 3, 4, 4), torch.tensor([0, 255]).repeat(2, 4, 2)
        >>> task.loss(nn.Conv2d(3, 5, 1), batch).shape, task.count(batch).tolist()
        (torch.Size([2]), [8, 8])
    """

    place = "pixel"

    def __init__(
        self,
        inputs: Take = None,
        label: Take = None,
        logits: Take = None,
        weight: Tensor | None = None,
        query: Query = "label",
        ignore_index: int = NOT_COUNTED,
        upsample: bool = False,
    ) -> None:
        """Check the settings; see the class."""
        super().__init__(inputs, label, logits, weight, query, ignore_index)
        self.upsample = upsample

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        output = self.run(model, batch)
        if output.ndim < 3:
            raise TaskError(
                "Segmentation",
                expected="logits of shape (B, C, H, W)",
                got=str(tuple(output.shape)),
                do="Say where they are with logits=, or use another task.",
            )
        if self.lacks(batch):
            if self.upsample:
                raise TaskError(
                    "Segmentation(upsample=True)",
                    expected="queries with label maps, which say the size",
                    got="queries without",
                    do="Give them maps, of any class.",
                )
        else:
            output = self._sized(output, self._given(batch))
        return self._checked(output.movedim(1, -1))

    def _sized(self, output: Tensor, label: Any) -> Tensor:
        """Return logits at the labels' size."""
        own = tuple(output.shape[2:])
        if not isinstance(label, Tensor) or label.ndim <= len(own):
            return output  # what else does not fit is said where labels are checked
        size = tuple(label.shape[-len(own) :])
        if size == own or any(more < less for more, less in zip(size, own, strict=True)):
            return output
        if not self.upsample or output.ndim != 4:
            raise TaskError(
                "Segmentation",
                expected=f"logits at the labels' size {size}",
                got=f"logits of size {own}",
                do="Segmentation(upsample=True) interpolates them (bilinear), as the losses of transformers do."
                if output.ndim == 4
                else "Interpolate them in logits=.",
            )
        return F.interpolate(output, size=size, mode="bilinear", align_corners=False)
