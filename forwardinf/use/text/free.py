"""The free rankings of documents: shared words, and hidden states alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from forwardinf.core.errors import ModelError
from forwardinf.core.progress import Advance, progress
from forwardinf.use.text.hidden_states import hidden_states
from forwardinf.use.text.lexical import Lexical, available
from forwardinf.use.text.questions import Array, Asking


def free_rankings(given: Asking, needs: Mapping[str, bool], wanted: bool) -> dict[str, Array]:
    """Return the free rankings, ``(Q, N)`` each: those that are needed, and those that can be had."""
    found: dict[str, Array] = {}
    if needs["bm25"] or (wanted and available()):
        began = time.perf_counter()
        with progress("BM25", given.units + len(given.asked), given.options.progress) as advance:
            index = Lexical(_searched(given, advance))
            given.clock["bm25_index_s"], began = time.perf_counter() - began, time.perf_counter()
            found["bm25"] = np.empty((len(given.asked), given.units))
            for row, question in zip(found["bm25"], given.asked, strict=True):
                row[:] = index.scores(question.filled)
                advance(1)
        given.clock["bm25_s"] = time.perf_counter() - began
    elif wanted:
        given.notes.append("BM25 is left out: it needs the package bm25s (pip install 'forwardinf[text]')")
    if needs["neighbours"] or wanted:
        began = time.perf_counter()
        try:
            found["hidden"] = _hidden(given)
        except ModelError as error:
            if needs["neighbours"]:
                raise
            given.notes.append(f"no hidden-state neighbours: {error}")
        given.clock["hidden_s"] = time.perf_counter() - began
    return found


def _searched(given: Asking, advance: Advance) -> Iterator[str]:
    """Yield what lexical search reads of each document."""
    for place in range(given.units):
        yield given.text(place) if given.task.packed else given.texts.searched(given.train.examples, place)
        advance(1)


def _hidden(given: Asking) -> Array:
    if given.task.packed:
        raise ModelError("hidden states", expected="one document in each row", got="packed rows")
    order = given.order(range(given.units))
    with progress("hidden states", given.units, given.options.progress) as advance:
        states = torch.empty(0)
        found = hidden_states(given.train, order, given.batch_size, advance)
        states = found.new_empty(found.shape)
        states[torch.tensor(order)] = found
    own = [members[0] for members in given.members]
    return (hidden_states(given.queries, own, 1).double() @ states.double().T).numpy()
