"""What a ``transformers.Trainer`` knows, as the arguments of ``attribute``: its model, its data, its collator, its loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset

from forwardinf.core.errors import DataError, SettingError
from forwardinf.core.load_code import import_extra
from forwardinf.core.load_weights import unwrap

MIXING = (
    "mixup",
    "cutmix",
    "permutationlanguage",
    "wholeword",
    "forsop",
)  # in a collator's name: it draws for each batch


def from_trainer(trainer: Any) -> dict[str, Any]:
    """Return ``dict(model=, train=, task=, collate_fn=)`` for ``attribute``, taken from a ``transformers.Trainer``.

    The model is the trainer's own, out of ``torch.compile`` and DataParallel, not a copy. ``train`` is its training
    set in its own order, without the columns that the trainer would drop. The task goes by the model's class: sequence
    classification, causal language model, sequence to sequence. Nothing is run and nothing is changed.

    Args:
        trainer: A ``transformers.Trainer``, or a subclass that keeps its loss.

    Raises:
        SettingError: Not a trainer, a model or loss that no ready task fits, or a collator that draws for each batch.
        DataError: The training set only iterates, or has no column that the model takes.
        MissingExtra: transformers is not installed.

    Example:
        >>> scores = attribute(**from_trainer(trainer), queries=test)  # doctest: +SKIP
    """
    if not isinstance(getattr(trainer, "model", None), nn.Module) or getattr(trainer, "train_dataset", None) is None:
        raise SettingError("from_trainer", expected="a transformers.Trainer with a model and a train_dataset",
                           got=type(trainer).__name__, do="Pass model, train and task to attribute yourself.")  # fmt: skip
    transformers = import_extra("transformers", extra="hf", need="from_trainer")
    if not isinstance(trainer, transformers.Trainer):
        raise SettingError("from_trainer", expected="a transformers.Trainer", got=type(trainer).__name__)
    model = unwrap(trainer.model)
    base: Any = model
    if hasattr(base, "get_base_model"):  # PEFT
        base = base.get_base_model()
    _refuse_own_loss(trainer, transformers.Trainer)
    task = _task(base, float(trainer.args.label_smoothing_factor or 0))
    _refuse_mixing(trainer.data_collator)
    train, collate = _data(trainer, base)
    return {"model": model, "train": train, "task": task, "collate_fn": collate}


def _task(model: nn.Module, smoothing: float) -> Any:
    """Return the task of this class of model, or of one it inherits from."""
    auto = import_extra("transformers.models.auto.modeling_auto", extra="hf", need="from_trainer")
    from forwardinf.core.task_sequence import SequenceClassification
    from forwardinf.core.task_text import CausalLM, Seq2Seq

    classes = {base.__name__ for base in type(model).__mro__}
    config: Any = getattr(model, "config", None)
    if classes & _names(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES):
        problem, labels = getattr(config, "problem_type", None), int(getattr(config, "num_labels", 2))
        if problem in ("regression", "multi_label_classification") or (problem is None and labels == 1):
            raise SettingError("from_trainer", expected="a classifier with one label for each example",
                               got=problem or "one output, which transformers takes for regression",
                               do="Pass task=Regression() or task=MultiLabel() to attribute yourself.")  # fmt: skip
        return SequenceClassification(label_smoothing=smoothing) if smoothing else SequenceClassification()
    kinds = (
        (Seq2Seq, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        (CausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    )
    for kind, names in kinds:
        if classes & _names(names):
            if smoothing:
                raise SettingError("from_trainer: label_smoothing_factor", expected="0 for language models",
                                   got=str(smoothing), do="Write a task with the smoothed loss.")  # fmt: skip
            return kind()
    raise SettingError("from_trainer", expected="a sequence classifier, causal or sequence-to-sequence language model",
                       got=type(model).__name__, do="Pass model, train and a task of your own to attribute.")  # fmt: skip


def _names(mapping: Any) -> set[str]:
    found: set[str] = set()
    for value in mapping.values():
        found |= {value} if isinstance(value, str) else set(value)
    return found


def _refuse_own_loss(trainer: Any, plain: Any) -> None:
    own = getattr(trainer, "compute_loss_func", None) is not None
    if own or type(trainer).compute_loss is not plain.compute_loss:
        raise SettingError("from_trainer", expected="the loss that transformers gives this model",
                           got="compute_loss_func" if own else f"{type(trainer).__name__}.compute_loss",
                           do="Write that loss as a task, one number for each example, and pass it to attribute.")  # fmt: skip


def _refuse_mixing(collator: Any) -> None:
    """Refuse a collator that masks or mixes anew for every batch: two readings would not see the same examples."""
    inside = list(vars(collator).values()) if hasattr(collator, "__dict__") else []
    names = [getattr(each, "__name__", type(each).__name__) for each in (collator, *inside)]
    mixing = [name for name in names if any(word in name.lower() for word in MIXING)]
    if getattr(collator, "mlm", False) or mixing:
        raise SettingError("from_trainer: data_collator", expected="a collator that gives the same batch every time",
                           got=(mixing or names)[0] + (" with mlm=True" if getattr(collator, "mlm", False) else ""),
                           do="Mask in the dataset, or pass attribute a collate_fn that does not mix.")  # fmt: skip


def _data(trainer: Any, model: Any) -> tuple[Any, Callable[[list[Any]], Any]]:
    """Return the training set and collator, without the columns that the trainer drops."""
    train, collate = trainer.train_dataset, trainer.data_collator
    if isinstance(train, IterableDataset) or not hasattr(train, "__getitem__"):
        raise DataError("from_trainer: train_dataset", expected="rows that can be read by position, twice",
                        got=f"{type(train).__name__}, which only iterates", do="Train on a map-style dataset.")  # fmt: skip
    if not trainer.args.remove_unused_columns:
        return train, collate
    kept = [*inspect.signature(model.forward).parameters, "label", "label_ids", *(trainer.label_names or ())]
    if not hasattr(train, "column_names"):
        return train, KeepColumns(collate, kept)
    if not set(train.column_names) & set(kept):
        raise DataError("from_trainer: train_dataset", expected=f"a column that {type(model).__name__} takes",
                        got=f"columns {train.column_names}", do="Tokenise it first.")  # fmt: skip
    return train.remove_columns([name for name in train.column_names if name not in kept]), collate


class KeepColumns:
    """A collator that first drops from each example, where it is a dict, what the model does not take."""

    def __init__(self, collate: Callable[[list[Any]], Any], kept: Iterable[str]) -> None:
        self.collate, self.kept = collate, frozenset(kept)

    def __call__(self, examples: Sequence[Any]) -> Any:
        """Return the batch."""
        return self.collate([
            {name: value for name, value in example.items() if name in self.kept} if isinstance(example, dict) else example
            for example in examples
        ])  # fmt: skip
