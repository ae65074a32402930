"""What a training example's loss is, and what a query is asked: one small class a user may write, and the one for classes.

Vectors of answers or numbers are in ``task_vectors.py``, one class for each token or pixel in ``task_places.py``, language
in ``task_text.py``, diffusion in ``task_diffusion.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from forwardinf.core.errors import SettingError, TaskError, choose
from forwardinf.data.join import by_column
from forwardinf.data.padding import NOT_COUNTED
from forwardinf.tasks import losses
from forwardinf.tasks.batches import LABELS as LABELS
from forwardinf.tasks.batches import Batch as Batch
from forwardinf.tasks.batches import batch_size as batch_size
from forwardinf.tasks.batches import has_label, inputs_in, label_in, with_label, with_tensors
from forwardinf.tasks.labels import answers, class_numbers, weights
from forwardinf.tasks.outputs import Take, output_of, refuse_probabilities
from forwardinf.tasks.prediction import Prediction, classes, coins

QUERIES = ("label", "predicted", "margin")


class Task:
    """What a training example's loss is. Subclass it and write :meth:`loss`; the rest has sensible defaults.

    Attributes:
        unit: The unit of the loss, and so of the scores.
        keyed: True if the loss draws noise with :func:`forwardinf.data.noise.normal`.

    Example:
        >>> class Absolute(Task):
        ...     unit = "absolute error"
        ...     def loss(self, model, batch):
        ...         inputs, target = batch
        ...         return (model(inputs).squeeze(1) - target).abs()
        >>> Absolute().loss(nn.Linear(2, 1), (torch.ones(3, 2), torch.zeros(3))).shape
        torch.Size([3])
    """

    unit: str = "loss"
    keyed: bool = False

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the training loss of each example, shape ``(B,)``, without reduction."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(model, batch)")

    def measure(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what a query is asked about, shape ``(B,)``, larger = the model favours it. Ascent lowers it."""
        return -self.loss(model, batch)

    @property
    def asks(self) -> bool:
        """Whether :meth:`ask` has something to fill in."""
        return False

    @property
    def asks_loss(self) -> bool:
        """Whether a query is asked its loss, and not something else."""
        return type(self).measure is Task.measure

    @property
    def rooted(self) -> bool:
        """Whether the loss is −log of one probability, so that it may be read by its root (``Perturbation(reading=)``)."""
        return False

    def ask(self, model: nn.Module, batch: Batch) -> Batch:
        """Return the batch with what the unperturbed model decides filled in (its predicted label, say)."""
        return batch

    def lacks(self, batch: Batch) -> bool:
        """Return whether this batch of queries has no label and :meth:`ask` can fill one in."""
        return False

    @property
    def prepares(self) -> bool:
        """Whether :meth:`prepare` has something to do."""
        return type(self).prepare is not Task.prepare

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch as the model is fed it, after frozen encoders (VAE, text).

        Asked once for each example; tensors, or a mapping or tuple of them, whose first dimension is the batch are kept in
        memory between readings.
        """
        return batch

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the model's logits, shape ``(B, C)``. Uses that need them say so."""
        raise TaskError(type(self).__name__, expected="logits(model, batch)", got="a task without it", do="Define it.")

    def predicted(self, model: nn.Module, batch: Batch) -> Prediction | None:
        """Return the loss in two halves (what curvature needs), or None where it has none. The same forward as ``loss``."""
        return None

    def count(self, batch: Batch) -> Tensor:
        """Return how many terms each example's loss sums (tokens), shape ``(B,)`` int64."""
        return torch.ones(batch_size(batch), dtype=torch.int64)

    @by_column
    def collate(self, examples: list[Any]) -> Batch:
        """Join examples into a batch."""
        return default_collate([with_tensors(example) for example in examples])

    def parts(self, example: Any) -> int:
        """Return how many documents one training row holds (see ``CausalLM(documents=)``); each is an example."""
        return 1

    @property
    def packed(self) -> bool:
        """Whether :meth:`parts` has to be asked."""
        return False

    def whole(self) -> Task:
        """Return the task that queries are read by: every row one example."""
        return self


class FunctionTask(Task):
    """A bare callable ``(model, batch) -> (B,)`` as a task."""

    def __init__(self, function: Callable[[nn.Module, Batch], Tensor]) -> None:
        """Wrap ``function``; its unit is its attribute ``unit``, if it has one."""
        self.function = function
        self.unit = str(getattr(function, "unit", "loss"))
        self.version = getattr(function, "version", None)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call the function."""
        return self.function(model, batch)


def as_task(task: Any) -> Task:
    """Return ``task`` itself, or a callable wrapped as one."""
    if isinstance(task, Task):
        return task
    if isinstance(task, type) and issubclass(task, Task):
        raise SettingError("task", expected="a task", got=f"the class {task.__name__}", do=f"Write {task.__name__}().")
    kind = task if isinstance(task, type) else type(task)
    if issubclass(kind, nn.Module) or getattr(task, "__module__", None) in ("torch.nn.functional", "torch._C._nn"):
        what = getattr(task, "__name__", kind.__name__)
        raise SettingError(
            "task", expected="a task, or a function (model, batch) -> (B,)", got=f"the loss {what} of torch",
            do="Use fi.Classification() or fi.Regression(), or write the function.",
        )  # fmt: skip
    if callable(task) and not isinstance(task, type):
        return FunctionTask(task)
    raise SettingError("task", expected="a task, or a function (model, batch) -> (B,)", got=repr(task))


class Supervised(Task):
    """A batch that is inputs and a label; how to find them and run the model."""

    setting = "logits="  # what says where the output is

    def __init__(self, inputs: Take, label: Take, logits: Take) -> None:
        """Say where they are in a batch, and where what counts is in the model's output; None: as by default."""
        self.inputs, self.label, self.output = inputs, label, logits

    def fed(self, batch: Batch) -> Any:
        """Return what the model is fed: all but the label, which need not be there."""
        return inputs_in(batch, self.inputs, self.label, type(self).__name__)

    def split(self, batch: Batch) -> tuple[Any, Any]:
        """Return (inputs, label): a tuple is inputs then label; a mapping has ``labels`` or ``label``."""
        return self.fed(batch), label_in(batch, self.label)

    def run(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the model puts out for this batch, whose label must be there unless the task can fill it in."""
        if not self.lacks(batch):
            label_in(batch, self.label)
        return output_of(model, self.fed(batch), self.output, setting=self.setting)

    def with_label(self, batch: Batch, label: Tensor) -> Batch:
        """Return the batch with another label in its place, or with one where it had none."""
        return with_label(batch, self.label, label)


class Classification(Supervised):
    """One class out of C (or yes/no with ``binary``). Loss: cross-entropy in nats, float64 from the logits on.

    Args:
        inputs: What the model is fed, if not the default: a name or position in the batch, or a function of it.
        label: Where the label is, likewise.
        logits: Where the logits are in the model's output (attribute, key, position or function).
            Default: ``output.logits``, or the output itself where it is a tensor.
        weight: Class weights ``(C,)`` used in training (``binary``: the weight of the positive class).
        label_smoothing: As used in training.
        binary: The model gives one logit; labels are 0 and 1.
        query: What a query is asked. ``"label"``: the training loss under its label. ``"predicted"``: the loss under
            the class that the unperturbed model predicts. ``"margin"``: log p/(1−p) of its label, which does not
            vanish for saturated queries. ``("contrast", a, b)``: the logit of class a minus that of class b.

    Example:
        >>> task = Classification()
        >>> task.loss(nn.Linear(4, 3), (torch.ones(2, 4), torch.tensor([0, 2]))).dtype
        torch.float64
    """

    unit = "nats"

    def __init__(
        self,
        inputs: Take = None,
        label: Take = None,
        logits: Take = None,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        binary: bool = False,
        query: Literal["label", "predicted", "margin"] | tuple[str, int, int] = "label",
    ) -> None:
        """Check the settings; see the class."""
        super().__init__(inputs, label, logits)
        self.contrast: tuple[int, int] | None = None
        self.query = str(query[0] if isinstance(query, tuple | list) and len(query) == 3 else query)
        if self.query == "contrast" and isinstance(query, tuple | list):
            self.contrast = int(query[1]), int(query[2])
        elif query not in QUERIES:
            raise choose("Classification(query=)", str(query), (*QUERIES, "contrast"))
        if not 0 <= label_smoothing < 1:
            raise SettingError("Classification(label_smoothing=)", expected="in [0, 1)", got=repr(label_smoothing))
        if binary and label_smoothing:
            raise SettingError(
                "Classification(label_smoothing=)", expected="0 with binary=True", got=str(label_smoothing)
            )
        self.weight = weights(weight, "Classification")
        self.label_smoothing, self.binary = label_smoothing, binary

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return ``(B, C)``; with ``binary`` the one logit z becomes (0, z)."""
        return self.as_classes(self._put_out(model, batch))

    def as_classes(self, output: Tensor) -> Tensor:
        """Return logits ``(B, C)`` of what :meth:`predicted` puts out: of one logit z, (0, z)."""
        return torch.stack([torch.zeros_like(output), output], 1) if self.binary else output

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of each example's label, ``(B,)``."""
        return self._judged(batch, self._put_out(model, batch))

    def predicted(self, model: nn.Module, batch: Batch) -> Prediction:
        """Return logits and what the loss makes of them."""
        return Prediction(self._put_out(model, batch), partial(self._judged, batch), partial(self._drawn, batch))

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits ``(B, C)``, or ``(B,)`` with ``binary``."""
        output = self.run(model, batch)
        if self.output is None:
            refuse_probabilities(output, type(self).__name__, each=self.binary)
        if self.binary:
            if output.ndim == 0 or output.numel() != len(output):
                raise TaskError(
                    "Classification(binary=True)",
                    expected="one logit and one label for each example",
                    got=f"{output.numel()} logits: shape {tuple(output.shape)}",
                )
            return output.flatten()
        if output.ndim != 2:
            raise TaskError(
                "Classification",
                expected="logits of shape (B, C)",
                got=str(tuple(output.shape)),
                do="Say where they are with logits=, or use another task.",
            )
        if output.shape[1] == 1:
            raise TaskError(
                "Classification",
                expected="at least two classes",
                got=f"logits {tuple(output.shape)}",
                do="One logit for yes or no: Classification(binary=True).",
            )
        return output

    def _labels(self, batch: Batch, output: Tensor) -> Tensor:
        """Return class numbers int64, or with ``binary`` answers float64, one for each row of logits."""
        label = label_in(batch, self.label)
        if not self.binary:
            return class_numbers(label, output.shape[:1], output.shape[1])
        flat = label.flatten() if isinstance(label, Tensor) else label
        return answers(flat, output.shape, "Classification(binary=True)")

    def _judged(self, batch: Batch, output: Tensor) -> Tensor:
        label = self._labels(batch, output)
        if (
            self.weight is not None
            and self.weight.shape != output.shape[1:]
            and not (self.binary and self.weight.numel() == 1)
        ):
            expected = "one weight, that of yes" if self.binary else f"{output.shape[1]} weights, one for each class"
            raise TaskError("Classification(weight=)", expected=expected, got=f"shape {tuple(self.weight.shape)}")
        if self.binary:
            return losses.binary_cross_entropy(output, label, weight=self.weight)
        return losses.cross_entropy(output, label, weight=self.weight, smoothing=self.label_smoothing)

    def _drawn(self, batch: Batch, output: Tensor, draw: int) -> Tensor:
        """Return the loss under drawn labels, by the square root of what the true label's weight makes of curvature."""
        own = self._labels(batch, output)
        weight = None if self.weight is None else self.weight.to(output.device, torch.float64)
        if self.binary:
            return losses.yes_weight(own, weight).sqrt() * losses.binary_cross_entropy(output, coins(output, draw))
        scale = torch.ones(len(own), dtype=torch.float64, device=output.device)
        if weight is not None:
            scale = (1 - self.label_smoothing) * weight[own.clamp_min(0)] + self.label_smoothing * weight.mean()
        return scale.sqrt() * losses.cross_entropy(output, classes(output, own != NOT_COUNTED, draw))

    @property
    def asks(self) -> bool:
        """Whether queries are asked by the class the model predicts."""
        return self.query == "predicted"

    @property
    def asks_loss(self) -> bool:
        """Whether queries are asked their loss, under whichever label, and not a margin or a contrast."""
        return type(self).measure is Classification.measure and self.query in ("label", "predicted")

    @property
    def rooted(self) -> bool:
        """Whether the loss is the plain cross-entropy; a subclass with a loss of its own may say so itself."""
        return type(self).loss is Classification.loss and self.weight is None and not self.label_smoothing

    def ask(self, model: nn.Module, batch: Batch) -> Batch:
        """Put the predicted class in place of the label."""
        with torch.no_grad():
            return self.with_label(batch, self.logits(model, batch).argmax(1))

    def lacks(self, batch: Batch) -> bool:
        """Return whether this batch of queries has no label and needs none: the predicted class stands for it."""
        return self.query in ("predicted", "contrast") and not has_label(batch, self.label)

    def measure(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the query is asked, ``(B,)``: minus its loss, its margin, or a contrast of two logits."""
        if self.query == "margin":
            output = self._put_out(model, batch)
            label = self._labels(batch, output)
            if bool(((label != 0) & (label != 1)).any() if self.binary else (label < 0).any()):
                raise TaskError(
                    "query label",
                    expected="a class to ask the margin of",
                    got="a share between 0 and 1" if self.binary else "-100 (not counted)",
                )
            return (2 * label - 1) * output.double() if self.binary else losses.margin(output, label)
        if self.contrast is not None:
            logits = self.logits(model, batch).double()
            if not all(0 <= place < logits.shape[1] for place in self.contrast):
                raise TaskError("Classification(query=)", expected=f"classes from 0 to {logits.shape[1] - 1}",
                                got=f"('contrast', {self.contrast[0]}, {self.contrast[1]})")  # fmt: skip
            return logits[:, self.contrast[0]] - logits[:, self.contrast[1]]
        return -self.loss(model, batch)


def prediction_of(task: Task, model: nn.Module, batch: Any) -> Prediction | None:
    """Return the task's loss in two halves, or None where that is not known.

    A class that brings a loss of its own but not its halves has none: its base's would be those of another loss.
    """
    for kind in type(task).__mro__:
        if "predicted" in vars(kind):
            return task.predicted(model, batch)
        if "loss" in vars(kind):
            return None
    return None
