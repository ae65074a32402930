"""Every use by name: the question it answers, what answers it, how its table is shown. A new one: :func:`add_use`.

Built-in ones are loaded when they are first asked for; the front door takes ``fi.leaks`` and the others from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forwardinf.core.registry import Registry

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Use:
    """What is known of a use; see :func:`add_use`.

    Attributes:
        function: Does it, or ``"module:name"`` of what does.
        title: What its table shows.
        free: Columns of the free alternatives that people see beside it.
        best_first: Puts the rows into the order in which people want them; None: as they are.
        titles: Of further tables, by name.
    """

    function: Callable[..., Any] | str
    title: str = ""
    free: tuple[str, ...] = ()
    best_first: Callable[[pd.DataFrame], pd.DataFrame] | str | None = None
    titles: Mapping[str, str] = field(default_factory=dict)


USES: Registry[Use] = Registry("use")


def add_use(name: str, function: Callable[..., Any] | str, title: str = "", **shown: Any) -> None:
    """Enter a use under a name, by which ``forwardinf use NAME`` runs it from then on.

    Args:
        name: Small letters, digits, ``-`` and ``_``.
        function: ``function(model, train, *, task, …)`` returns a :class:`forwardinf.use.tables.Found`, whose ``use`` is this
            name. The command fills in what it takes of ``queries``, ``query_ids``, ``ids``, ``batch_size`` and ``seed``;
            ``--option`` gives the rest. ``"module:name"``: it lies there.
        title: What its table shows, for people.
        **shown: How else it is shown; see :class:`Use`.

    Raises:
        SettingError: The name is taken, or is none.
    """
    USES.add(name, Use(function, title, **shown))


add_use("leaks", "forwardinf.use.leaks.leaks:leaks", "Test examples and the training examples that react as their copies",
        free=("input_neighbour",), best_first="forwardinf.use.leaks.decision:best_first")  # fmt: skip
add_use("mislabeled", "forwardinf.use.labels.mislabeled:mislabeled", "Training labels, the most doubtful first",
        free=("model_margin", "last_neighbours"), best_first="forwardinf.use.labels.mislabeled:best_first")  # fmt: skip
add_use("memorized", "forwardinf.use.labels.memorized:memorized", "Training examples, the most memorised first",
        free=("gradient_norm", "leverage"), best_first="forwardinf.use.labels.memorized:best_first",
        titles={"pairs": "Test predictions and the training examples they rest on"})  # fmt: skip
add_use("trace", "forwardinf.use.text.trace:trace")
add_use("trace-images", "forwardinf.use.images.trace_images:trace_images")
