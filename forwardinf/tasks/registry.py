"""The tasks that the command line and run configurations know by name. A new one is a class and one entry: :func:`add_task`.

From Python a task is an object and needs no name. Built-in ones are loaded when they are first asked for, so that ``--help``
need not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from forwardinf.core.errors import SettingError
from forwardinf.core.registry import Registry, brought

if TYPE_CHECKING:
    from forwardinf.tasks.task import Task

TASKS: Registry[Callable[..., Any] | str] = Registry("task")


def add_task(name: str, kind: Callable[..., Task] | str) -> None:
    """Enter a task under a name, which ``--task`` takes from then on.

    Args:
        name: Small letters, digits, ``-`` and ``_``.
        kind: The class, or a function that returns a task; ``--task-option`` gives its arguments. ``"module:name"``: it lies
            there.

    Raises:
        SettingError: The name is taken, or is none.
    """
    TASKS.add(name, kind)


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """Return the task of this name, with these arguments.

    Raises:
        SettingError: There is no such task, or it has no such arguments.
    """
    kind = brought(TASKS.named(name, "--task"))
    try:
        made: Task = kind(**options)
    except TypeError as error:
        raise SettingError(f"--task-option for {name}", expected="arguments of the task", got=str(error)) from error
    return made


add_task("classification", "forwardinf.tasks.task:Classification")
add_task("regression", "forwardinf.tasks.vectors:Regression")
add_task("multi-label", "forwardinf.tasks.vectors:MultiLabel")
add_task("sequence-classification", "forwardinf.tasks.sequences:SequenceClassification")
add_task("token-classification", "forwardinf.tasks.places:TokenClassification")
add_task("segmentation", "forwardinf.tasks.places:Segmentation")
add_task("causal-lm", "forwardinf.tasks.text:CausalLM")
add_task("seq2seq", "forwardinf.tasks.text:Seq2Seq")
