"""What a language model can read: so many positions, and the token ids of its own vocabulary."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
from torch import nn

from forwardinf.core.errors import DataError
from forwardinf.data.token_rows import TokenRows
from forwardinf.data.tokenizer import GIVE

log = logging.getLogger(__name__)

POSITIONS = re.compile(r"(^|_)(wpe|position|positions|pos)(_|$)")  # in the name of a table of learned positions
OTHER_TOWERS = ("vision", "image", "audio")


def most_positions(model: nn.Module) -> int | None:
    """Return how many tokens a model has learned positions for; None where positions are computed.

    Example:
        >>> model = nn.ModuleDict({"wte": nn.Embedding(50, 4), "wpe": nn.Embedding(16, 4)})
        >>> most_positions(model)
        16
    """
    found = []
    for name, module in model.named_modules():
        *above, leaf = name.split(".")
        if not isinstance(module, nn.Embedding) or not POSITIONS.search(leaf):
            continue
        if any(word in part for part in above for word in OTHER_TOWERS):
            continue
        first: Any = getattr(module, "offset", None)  # OPT and BART begin at 2, RoBERTa behind its padding
        if not isinstance(first, int):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
        found.append(module.num_embeddings - first)
    return min(found, default=None)


def vocabulary_size(model: nn.Module) -> int | None:
    """Return how many token ids a model knows; None where it does not say."""
    ask = getattr(model, "get_input_embeddings", None)
    try:
        table = ask() if callable(ask) else None
    except NotImplementedError:
        return None
    size = getattr(table, "num_embeddings", None)
    return size if isinstance(size, int) else None


def check_tokens(model: nn.Module, rows: TokenRows, name: str) -> None:
    """Refuse rows that a model cannot read; add a note where some are longer than it was made for.

    Args:
        model: What reads them.
        rows: Tokenised rows.
        name: ``"train"`` or ``"queries"``.

    Raises:
        DataError: A row is longer than the learned positions, or holds a token that the model does not know.
    """
    most, size = most_positions(model), vocabulary_size(model)
    lengths = np.maximum(rows.lengths("input_ids"), rows.lengths("labels"))
    if most is not None and len(lengths) and int(lengths.max()) > most:
        row, count = int(np.argmax(lengths > most)), int((lengths > most).sum())
        more = f"; {count} of {len(rows)} rows are too long" if count > 1 else ""
        raise DataError(
            f"{name}, row {row}",
            expected=f"at most {most} tokens, the model's positions",
            got=f"{lengths[row]}{more}",
            do=f"Cut with max_length={most} (--data-option), or split it.",
        )
    largest = np.maximum(rows.largest("input_ids"), rows.largest("labels"))
    if size is not None and len(largest) and int(largest.max()) >= size:
        row = int(np.argmax(largest >= size))
        raise DataError(
            f"{name}, row {row}",
            expected=f"token ids below {size}, the model's vocabulary",
            got=str(largest[row]),
            do=GIVE,
        )
    _note_long(model, rows, lengths, most)


def _note_long(model: nn.Module, rows: TokenRows, lengths: Any, most: int | None) -> None:
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    made_for = getattr(getattr(inner, "config", None), "max_position_embeddings", None)
    if most is None and isinstance(made_for, int) and (count := int((lengths > made_for).sum())):
        note = f"{count} of {len(rows)} rows are longer than the {made_for} tokens the model was made for"
        rows.notes.append(note)
        log.warning(note)
