"""What a training example's loss is, and what a query is asked: one small class a user may write, and ready ones.

Language tasks are in ``task_text.py``, diffusion in ``task_diffusion.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from forwardinf.core import losses
from forwardinf.core.errors import SettingError, TaskError, choose
from forwardinf.core.prediction import NOT_COUNTED, Prediction, classes, coins, normals

Batch = Any
LABELS = ("labels", "label")
Take = str | int | Callable[[Any], Any] | None
QUERIES = ("label", "predicted", "margin")


class Task:
    """What a training example's loss is. Subclass it and write :meth:`loss`; the rest has sensible defaults.

    Attributes:
        unit: The unit of the loss, and so of the scores.
        keyed: True if the loss draws noise with :func:`forwardinf.core.noise.normal`.

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

    def collate(self, examples: list[Any]) -> Batch:
        """Join examples into a batch."""
        return default_collate([_with_tensors(example) for example in examples])

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


class _Supervised(Task):
    """A batch that is inputs and a label; how to find them and run the model."""

    def __init__(self, inputs: Take, label: Take, logits: Take) -> None:
        self.inputs, self.label, self.output = inputs, label, logits

    def split(self, batch: Batch) -> tuple[Any, Any]:
        """Return (inputs, label): a tuple is inputs then label; a mapping has ``labels`` or ``label``."""
        label = _take(batch, self.label, "label") if self.label is not None else _default_label(batch)
        if self.inputs is not None:
            return _take(batch, self.inputs, "inputs"), label
        if isinstance(batch, Mapping):
            return {name: value for name, value in batch.items() if name not in LABELS}, label
        if isinstance(batch, tuple | list):
            return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), label
        raise TaskError(
            type(self).__name__, expected="a batch that is (inputs, label) or a mapping with 'labels'",
            got=type(batch).__name__, do="Say how with inputs= and label=.",
        )  # fmt: skip

    def run(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the model puts out for this batch."""
        return output_of(model, self.split(batch)[0], self.output)

    def with_label(self, batch: Batch, label: Tensor) -> Batch:
        """Return the batch with another label in its place."""
        if callable(self.label):
            raise SettingError("query='predicted'", expected="label= as a name or position", got="a function")
        if isinstance(batch, Mapping):
            place = self.label if self.label is not None else next(name for name in LABELS if name in batch)
            return {**batch, place: label}
        at = self.label if isinstance(self.label, int) else len(batch) - 1
        return tuple(label if place == at else value for place, value in enumerate(batch))


class Classification(_Supervised):
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
        self.weight = None if weight is None else torch.as_tensor(weight)
        self.label_smoothing, self.binary = label_smoothing, binary

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return ``(B, C)``; with ``binary`` the one logit z becomes (0, z)."""
        output = self.run(model, batch)
        if self.binary:
            output = output.flatten()
            return torch.stack([torch.zeros_like(output), output], 1)
        if output.ndim != 2:
            raise TaskError("Classification", expected="logits of shape (B, C)", got=str(tuple(output.shape)),
                            do="Say where they are with logits=, or use another task.")  # fmt: skip
        return output

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of each example's label, ``(B,)``."""
        return self._judged(batch, self._put_out(model, batch))

    def predicted(self, model: nn.Module, batch: Batch) -> Prediction:
        """Return logits and what the loss makes of them."""
        return Prediction(self._put_out(model, batch), partial(self._judged, batch), partial(self._drawn, batch))

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.run(model, batch).flatten() if self.binary else self.logits(model, batch)

    def _judged(self, batch: Batch, output: Tensor) -> Tensor:
        label = self.split(batch)[1]
        if self.binary:
            if not isinstance(label, Tensor) or output.shape != label.flatten().shape:
                got = tuple(label.shape) if isinstance(label, Tensor) else type(label).__name__
                raise TaskError("Classification(binary=True)", expected="one logit and one label for each example",
                                got=f"{len(output)} logits and labels {got}")  # fmt: skip
            return losses.binary_cross_entropy(output, label.flatten(), weight=self.weight)
        if self.weight is not None and self.weight.shape != output.shape[1:]:
            raise TaskError("Classification(weight=)", expected=f"{output.shape[1]} weights, one for each class",
                            got=f"shape {tuple(self.weight.shape)}")  # fmt: skip
        return losses.cross_entropy(output, _classes(label, output), weight=self.weight, smoothing=self.label_smoothing)

    def _drawn(self, batch: Batch, output: Tensor, draw: int) -> Tensor:
        """Return the loss under drawn labels, by the square root of what the true label's weight makes of curvature."""
        label = self.split(batch)[1]
        weight = None if self.weight is None else self.weight.to(output.device, torch.float64)
        if self.binary:
            scale = _yes_weight(label.flatten().double(), weight).sqrt()
            return scale * losses.binary_cross_entropy(output, coins(output, draw))
        own = _classes(label, output)
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
            return self.with_label(batch, self.logits(model, batch).argmax(1).to(self.split(batch)[1].device))

    def measure(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the query is asked, ``(B,)``: minus its loss, its margin, or a contrast of two logits."""
        if self.query == "margin":
            logits, label = self.logits(model, batch), self.split(batch)[1]
            label = _classes(label.flatten().long() if self.binary else label, logits)
            if bool((label < 0).any()):
                raise TaskError("query label", expected="a class to ask the margin of", got="-100 (not counted)")
            return losses.margin(logits, label)
        if self.contrast is not None:
            logits = self.logits(model, batch).double()
            if not all(0 <= place < logits.shape[1] for place in self.contrast):
                raise TaskError("Classification(query=)", expected=f"classes from 0 to {logits.shape[1] - 1}",
                                got=f"('contrast', {self.contrast[0]}, {self.contrast[1]})")  # fmt: skip
            return logits[:, self.contrast[0]] - logits[:, self.contrast[1]]
        return -self.loss(model, batch)


class MultiLabel(_Supervised):
    """Any number of classes at once. Loss: the mean over classes of yes/no cross-entropies, in nats.

    Args:
        inputs: As in :class:`Classification`.
        label: As in :class:`Classification`; the labels are ``(B, C)`` of 0 and 1.
        logits: As in :class:`Classification`.
        weight: ``pos_weight`` used in training, ``(C,)``.
    """

    unit = "nats"

    def __init__(
        self, inputs: Take = None, label: Take = None, logits: Take = None, weight: Tensor | None = None
    ) -> None:
        """Check the settings; see the class."""
        super().__init__(inputs, label, logits)
        self.weight = weight

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return ``(B, C)``."""
        return self.run(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean over classes, ``(B,)``."""
        return self._judged(batch, self.run(model, batch))

    def predicted(self, model: nn.Module, batch: Batch) -> Prediction:
        """Return logits and what the loss makes of them."""
        return Prediction(self.run(model, batch), partial(self._judged, batch), partial(self._drawn, batch))

    def _judged(self, batch: Batch, output: Tensor) -> Tensor:
        label = self.split(batch)[1]
        if output.shape != label.shape:
            raise TaskError("MultiLabel", expected=f"labels of the output's shape {tuple(output.shape)}",
                            got=str(tuple(label.shape)))  # fmt: skip
        return losses.binary_cross_entropy(output, label, weight=self.weight).flatten(1).mean(1)

    def _drawn(self, batch: Batch, output: Tensor, draw: int) -> Tensor:
        scale = _yes_weight(self.split(batch)[1].double(), self.weight) / max(output[0].numel(), 1)
        return (scale.sqrt() * losses.binary_cross_entropy(output, coins(output, draw))).flatten(1).sum(1)


class Regression(_Supervised):
    """Numbers. Loss: the mean over outputs of the squared, absolute or Huber error.

    Args:
        inputs: As in :class:`Classification`.
        label: As in :class:`Classification`; the targets have the shape of the output.
        output: Where the prediction is in the model's output.
        error: ``"squared"``, ``"absolute"`` or ``"huber"`` (delta 1).
    """

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
        target, output = self.split(batch)[1].double(), output.double()
        if output.shape != target.shape:
            if [n for n in output.shape if n != 1] != [n for n in target.shape if n != 1]:
                raise TaskError("Regression", expected=f"output of the targets' shape {tuple(target.shape)}",
                                got=str(tuple(output.shape)))  # fmt: skip
            output = output.view(target.shape)  # (B, 1) against (B,): broadcasting would compare all with all
        each: Tensor = self._loss(output, target, reduction="none")
        return each.reshape(len(target), -1).mean(1)


def _squared_error_of_noise(output: Tensor, draw: int) -> Tensor:
    """Return the mean squared error against the output with noise: variance D/2, at which D outputs' mean is a likelihood."""
    each = max(output[0].numel(), 1) if len(output) else 1
    wide = output.double()
    target = wide.detach() + (each / 2) ** 0.5 * normals(output, draw)
    found: Tensor = (wide - target).square().reshape(len(output), -1).mean(1)
    return found


def _yes_weight(label: Tensor, weight: Tensor | None) -> Tensor:
    return torch.ones_like(label) if weight is None else 1 + label * (weight.to(label.device, torch.float64) - 1)


def batch_size(batch: Batch) -> int:
    """Return how many examples a batch holds: the first dimension of the first tensor in it."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor | Mapping | tuple | list):
            return (
                batch_size(value)
                if not isinstance(value, list) or not value or isinstance(value[0], Tensor)
                else len(value)
            )
    raise TaskError("batch", expected="a tensor somewhere in it", got=type(batch).__name__, do="Define count(batch).")


def output_of(model: nn.Module, inputs: Any, where: Take = None) -> Tensor:
    """Run the model on inputs and return the tensor that counts (``.logits``, the output itself, or ``where`` says)."""
    if isinstance(inputs, Mapping):
        taken = accepted(type(model).forward if not hasattr(model, "get_base_model") else _inner_forward(model))
        output = model(**{name: value for name, value in inputs.items() if taken is None or name in taken})
    else:
        output = model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
    if where is not None:
        return _take(output, where, "model output")  # type: ignore[no-any-return]
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        found = output[0]
    if not isinstance(found, Tensor):
        raise TaskError(
            "model output", expected="a tensor or .logits", got=type(output).__name__, do="Say where with logits=."
        )
    return found


def _inner_forward(model: Any) -> Callable[..., Any]:
    return type(model.get_base_model()).forward  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def accepted(forward: Callable[..., Any]) -> frozenset[str] | None:
    """Return the keywords a forward takes, or None where it takes any."""
    parameters = inspect.signature(forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters) and len(parameters) <= 3:
        return None
    return frozenset(parameter.name for parameter in parameters)


def _with_tensors(example: Any) -> Any:
    """Return an example with its lists of numbers (tables have them) as tensors: `default_collate` turns lists inside out."""
    if isinstance(example, Mapping):
        return {name: _tensor_of(value) for name, value in example.items()}
    if type(example) in (tuple, list):
        return type(example)(map(_tensor_of, example))
    return example


def _tensor_of(value: Any) -> Any:
    if not isinstance(value, list) or not value or not isinstance(value[0], int | float | list):
        return value
    try:
        return torch.tensor(value)
    except (TypeError, ValueError):  # ragged, or not all numbers
        return value


def _default_label(batch: Batch) -> Any:
    if isinstance(batch, Mapping):
        for name in LABELS:
            if name in batch:
                return batch[name]
        raise TaskError("batch", expected="a key 'labels' or 'label'", got=f"keys {sorted(map(str, batch))}",
                        do="Say which with label=.")  # fmt: skip
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[-1]
    raise TaskError("batch", expected="(inputs, label) or a mapping with 'labels'", got=type(batch).__name__,
                    do="Say where the label is with label=.")  # fmt: skip


def _take(value: Any, where: Take, what: str) -> Any:
    if callable(where):
        return where(value)
    try:
        if isinstance(where, str) and not isinstance(value, Mapping):
            return getattr(value, where)
        return value[where]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise TaskError(what, expected=f"{where!r} in it", got=f"{type(value).__name__} without it") from error


def _classes(label: Tensor, logits: Tensor) -> Tensor:
    """Return class numbers ``(B,)`` int64; a column ``(B, 1)`` is flattened."""
    if not isinstance(label, Tensor):
        raise TaskError("label", expected="a tensor of class numbers", got=f"a {type(label).__name__}",
                        do="Encode labels as whole numbers, or say where they are with label=.")  # fmt: skip
    if label.is_floating_point():
        raise TaskError("label", expected="class numbers", got=f"{label.dtype}",
                        do="Use fi.MultiLabel() or fi.Regression(), or convert the labels to integers.")  # fmt: skip
    found = label.long().view(-1) if label.ndim == 2 and label.shape[1] == 1 else label.long()
    if found.shape != logits.shape[:1]:
        raise TaskError("label", expected=f"one class number for each of {len(logits)} examples",
                        got=f"shape {tuple(label.shape)}", do="One-hot labels: pass their argmax(1).")  # fmt: skip
    classes = logits.shape[1]
    if len(found) == 0:
        return found
    low, high = found.aminmax()
    if int(low) >= 0 and int(high) < classes:  # what nearly every batch is
        return found
    strange = (found >= classes) | ((found < 0) & (found != NOT_COUNTED))
    if bool(strange.any()):
        raise TaskError("label", expected=f"class numbers from 0 to {classes - 1} (or {NOT_COUNTED}: not counted)",
                        got=str(int(found[strange][0])), do="Number the classes from 0, as the model was trained.")  # fmt: skip
    return found
