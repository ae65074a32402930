"""BM25: which documents share words with a question. Free, hard to beat where texts *state* facts, and blind to the model.

The only file that knows bm25s (the extra ``text``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from forwardinf.data.import_gate import import_extra

Array = np.ndarray[Any, np.dtype[np.float64]]

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return a text's words in lower case, numbers included, nothing left out."""
    return WORD.findall(text.casefold())


def available() -> bool:
    """Return whether bm25s is installed."""
    from importlib.util import find_spec

    return find_spec("bm25s") is not None


class Lexical:
    """An index of documents by their words (BM25, Robertson's k1 = 1.5 and b = .75).

    Args:
        documents: Their texts, in order.

    Raises:
        MissingExtra: bm25s is not installed.

    Example:
        >>> index = Lexical(["the cat sat", "a dog ran", "cat and dog"])  # doctest: +SKIP
        >>> index.scores("Cat").argmax()  # doctest: +SKIP
        0
    """

    def __init__(self, documents: Iterable[str]) -> None:
        """Index the documents."""
        bm25s = import_extra("bm25s", extra="text", need="BM25")
        split = [words(text) for text in documents]
        self.size = len(split)
        self.known = {word for document in split for word in document}
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        if self.known:
            self._index.index(split, show_progress=False)

    def scores(self, query: str) -> Array:
        """Return every document's score, ``(N,)`` float64; 0 where no word is shared."""
        asked = [word for word in words(query) if word in self.known]
        if not asked:
            return np.zeros(self.size)
        return np.asarray(self._index.get_scores(asked), dtype=np.float64)
