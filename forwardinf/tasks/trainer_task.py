"""The task that stands for a trainer's loss: chosen by the model's class, then held against what the model itself gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError, SettingError
from forwardinf.data.import_gate import import_extra
from forwardinf.models.borrowed import borrowed
from forwardinf.tasks.places import TokenClassification
from forwardinf.tasks.task import Classification, Task
from forwardinf.tasks.vectors import MultiLabel, Regression

AGREES = 0.02  # by which part the task's loss may differ from the model's own: narrow dtypes


def task_of(model: nn.Module, batch: Any, trainer: Any) -> Task:
    """Return the task of this class of model, or of one it inherits from.

    Args:
        model: Out of its wrappers.
        batch: A few training rows, joined.
        trainer: Gives label smoothing and the labels' name.

    Raises:
        SettingError: There is no ready task for this model, or for this smoothing.
    """
    base: Any = model
    base = base.get_base_model() if hasattr(base, "get_base_model") else base  # PEFT
    auto = import_extra("transformers.models.auto.modeling_auto", extra="hf", need="from_trainer")
    from forwardinf.tasks.sequences import SequenceClassification
    from forwardinf.tasks.text import CausalLM, Seq2Seq

    classes = {kind.__name__ for kind in type(base).__mro__}

    def is_for(*kinds: str) -> bool:
        return any(classes & _names(getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES", {})) for kind in kinds)

    smoothing = float(trainer.args.label_smoothing_factor or 0)
    if is_for("SEQUENCE_CLASSIFICATION"):
        return _classifier(SequenceClassification, base, batch, smoothing, trainer)
    if is_for("IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION"):
        return _classifier(Classification, base, batch, smoothing, trainer)
    if smoothing:
        raise SettingError("from_trainer: label_smoothing_factor", expected="0 but for classifiers with one label",
                           got=str(smoothing), do="Write a task with the smoothed loss.")  # fmt: skip
    if is_for("TOKEN_CLASSIFICATION"):
        return TokenClassification()
    if is_for("SEQ_TO_SEQ_CAUSAL_LM"):
        return Seq2Seq()
    if is_for("CAUSAL_LM"):
        return CausalLM()
    raise SettingError("from_trainer", expected="a classifier, or a causal or sequence-to-sequence language model",
                       got=type(base).__name__, do="Pass model, train and a task of your own to attribute.")  # fmt: skip


def _names(mapping: Any) -> set[str]:
    found: set[str] = set()
    for value in mapping.values():
        found |= {value} if isinstance(value, str) else set(value)
    return found


def _classifier(kind: type[Classification], model: Any, batch: Any, smoothing: float, trainer: Any) -> Task:
    """Return the task of a classifier: one class, several at once, or numbers, as its config and its labels say."""
    label = next((name for name in trainer.label_names or () if isinstance(batch, Mapping) and name in batch), None)
    where = {} if label in (None, "labels", "label") else {"label": label}
    labels = batch.get(label or "labels") if isinstance(batch, Mapping) else None
    problem = getattr(model.config, "problem_type", None)
    if problem is None and int(getattr(model.config, "num_labels", 2)) == 1:
        problem = "regression"
    if problem is None and isinstance(labels, Tensor) and labels.is_floating_point():
        problem = "multi_label_classification"
    if problem in ("regression", "multi_label_classification"):
        if smoothing:
            raise SettingError("from_trainer: label_smoothing_factor", expected=f"0 for {problem}", got=str(smoothing))
        return Regression(**where) if problem == "regression" else MultiLabel(**where)
    return kind(label_smoothing=smoothing, **where) if smoothing else kind(**where)


def refuse_own_loss(trainer: Any, plain: Any) -> None:
    """Refuse a trainer that computes a loss of its own; ``trl.SFTTrainer`` computes the model's, another way."""
    own = getattr(trainer, "compute_loss_func", None) is not None
    owner = next(kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind))
    fine_tunes = owner.__name__ == "SFTTrainer" and getattr(trainer.args, "loss_type", None) in (None, "nll")
    if own or not (owner is plain or owner.__module__.startswith("transformers.") or fine_tunes):
        raise SettingError("from_trainer", expected="the loss that transformers gives this model",
                           got="compute_loss_func" if own else f"{owner.__name__}.compute_loss",
                           do="Write that loss as a task, one number for each example, and pass it to attribute.")  # fmt: skip


def check_loss(model: nn.Module, task: Task, batch: Any) -> None:
    """Hold the task's loss of a few rows, in eval mode, against the loss that the model itself gives.

    Raises:
        DataError: The model gives no loss for them: there are no labels, or they are not of its kind.
        SettingError: It gives another loss.
    """
    plain = getattr(task, "label_smoothing", 0.0)
    if not isinstance(batch, Mapping) or plain:  # the trainer smooths, not the model
        return
    device = next(model.parameters()).device
    there = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    with borrowed(model), torch.no_grad():
        each, count = task.loss(model, there), task.count(there).to(device)
        own = _own_loss(model, there)
    if own is None:
        raise DataError(
            "from_trainer: train_dataset", expected="labels", got=f"columns {sorted(map(str, batch))}, and no loss"
        )
    mean = float(each.sum() / count.sum().clamp_min(1))
    if abs(mean - float(own)) > AGREES * max(abs(mean), 0.1):
        raise SettingError("from_trainer", expected=f"the loss of {type(task).__name__}: {mean:.4g} on the first rows",
                           got=f"{float(own):.4g} from {type(model).__name__} itself",
                           do="Write the model's own loss as a task, one number for each example.")  # fmt: skip


def _own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    try:
        return getattr(model(**batch), "loss", None)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError("from_trainer: train_dataset", expected="rows that the model reads and has a loss for",
                        got=f"{type(error).__name__}: {error}") from error  # fmt: skip
