"""What a ``transformers.Trainer`` knows, as the arguments of ``attribute``: its model, its data, its collator, its loss."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from forwardinf.core.errors import SettingError
from forwardinf.data.import_gate import import_extra
from forwardinf.models.weights import unwrap
from forwardinf.tasks.trainer_data import Columns, check_collator
from forwardinf.tasks.trainer_task import check_loss, refuse_own_loss, task_of

SHARDED = ("FullyShardedDataParallel", "DeepSpeedEngine")


def from_trainer(trainer: Any, queries: Any = None) -> dict[str, Any]:
    """Return ``dict(model=, train=, task=, collate_fn=)`` for ``attribute``, taken from a ``transformers.Trainer``.

    The model is the trainer's own, out of ``torch.compile`` and DataParallel, not a copy; where accelerate has put mixed
    precision around its forward, a second handle on the same weights without it. ``train`` is the training set in its own
    order, without the columns that the trainer would drop, but for texts: reports show them, or what the trainer's tokenizer
    makes of the token ids. The task goes by the model's class: classification of texts, images or sounds (one class, several,
    or numbers), token classification, causal language model (``trl.SFTTrainer`` too), sequence to sequence.

    Three rows are joined by the trainer's collator, twice, and read once: a collator that draws, and a loss that is not the
    task's, are refused. Nothing is changed.

    Args:
        trainer: A ``transformers.Trainer``, or a subclass that keeps its loss.
        queries: Examples to explain, with the columns of the trainer's evaluation set: a dataset, or a list of rows. They are
            returned as ``queries``, stripped as ``train`` is.

    Raises:
        SettingError: Not a trainer, a model or loss that no ready task fits, or a collator that draws for each batch.
        DataError: Data that only iterates, or has no column that the model takes.
        MissingExtra: transformers is not installed.

    Example:
        >>> scores = attribute(**from_trainer(trainer, queries=trainer.eval_dataset))  # doctest: +SKIP
    """
    if not isinstance(getattr(trainer, "model", None), nn.Module) or getattr(trainer, "train_dataset", None) is None:
        raise SettingError("from_trainer", expected="a transformers.Trainer with a model and a train_dataset",
                           got=type(trainer).__name__, do="Pass model, train and task to attribute yourself.")  # fmt: skip
    transformers = import_extra("transformers", extra="hf", need="from_trainer")
    if not isinstance(trainer, transformers.Trainer):
        raise SettingError("from_trainer", expected="a transformers.Trainer", got=type(trainer).__name__)
    model = _whole(trainer)
    refuse_own_loss(trainer, transformers.Trainer)
    columns = Columns(trainer, model)
    train = columns.kept(trainer.train_dataset, "train_dataset")
    found = {"model": model, "train": train}
    if queries is not None:
        found["queries"] = columns.kept(queries, "queries")
    batch = check_collator(trainer.data_collator, columns.collate, train)
    task = task_of(model, batch, trainer)
    check_loss(model, task, batch)
    return found | {"task": task, "collate_fn": columns.collate}


def _whole(trainer: Any) -> nn.Module:
    """Return the model as it is without a trainer around it."""
    model = unwrap(trainer.model)
    if type(model).__name__ in SHARDED or any(type(p).__name__ == "DTensor" for p in model.parameters()):
        raise SettingError("from_trainer", expected="a model in one piece", got=f"one in shards ({type(model).__name__})",
                           do="Save it, and load what was saved: fi.load_model(folder).")  # fmt: skip
    return in_full_precision(model)


def in_full_precision(model: nn.Module) -> nn.Module:
    """Return the model, or where ``Accelerator.prepare`` has put mixed precision around its forward, a handle without it.

    The handle shares every module, weight and buffer with the model, which stays as it is.
    """
    original = vars(model).get("_original_forward")
    if original is None:
        return model
    handle = copy.copy(model)
    for name in ("forward", "_original_forward"):
        vars(handle).pop(name, None)
    if getattr(original, "__func__", None) is not type(model).forward:  # patched before, by something else
        vars(handle)["forward"] = original
    return handle
