"""What a training text says, beside its id: in tables on the command line, and in a run folder for later ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from forwardinf.core.files import read_table, write_table
from forwardinf.data.token_rows import TokenRows
from forwardinf.score.scores import Scores
from forwardinf.view.clean import shorten
from forwardinf.view.marked_text import TEXTS

FORMAT = "forwardinf.texts/1"
NAME = "texts.parquet"
KEPT = 50  # best, and worst, of each query
LONGEST = 2_000  # characters of one text


@dataclass(frozen=True)
class Told:
    """Texts by place.

    Attributes:
        train: Of training examples.
        queries: Of queries.
    """

    train: Mapping[int, str]
    queries: Mapping[int, str]

    def beside(self, table: pd.DataFrame, scores: Scores) -> pd.DataFrame:
        """Return a table of scores with each training example's text in its last column."""
        place = {value: at for at, value in enumerate(scores.ids)}
        return table.assign(
            text=pd.Series([self.train.get(place[one]) for one in table["train"]], table.index, dtype=object)
        )

    def asked(self, scores: Scores, table: pd.DataFrame) -> list[dict[str, Any]]:
        """Return the queries of a table with their texts."""
        place = {value: at for at, value in enumerate(scores.query_ids)}
        return [{"query": one, "text": self.queries.get(place[one])} for one in dict.fromkeys(table["query"])]


def text_of(example: Any, tokenizer: Any = None) -> str | None:
    """Return what a row of text says; None where it is none.

    Args:
        example: A text; a mapping with one, or with ``input_ids``.
        tokenizer: Turns ids into text, where one is known.
    """
    if isinstance(example, str):
        return shorten(example, LONGEST)
    if not isinstance(example, Mapping):
        return None
    text = next((example[name] for name in TEXTS if isinstance(example.get(name), str)), None)
    if text is None and tokenizer is not None and "input_ids" in example:
        text = _decoded(example, tokenizer)
    return None if text is None else shorten(text, LONGEST)


def _decoded(example: Mapping[str, Any], tokenizer: Any) -> str:
    """Return token ids as text; an answer that is a text of its own stands behind an arrow."""
    sides = [example["input_ids"]]
    answer = example.get("labels")
    if answer is not None and getattr(answer, "__len__", lambda: len(sides[0]))() != len(sides[0]):
        sides.append(answer)
    ids = ([int(token) for token in side if int(token) >= 0] for side in sides)
    return " → ".join(str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in ids)


def told_of(scores: Scores, k: int = KEPT) -> Told | None:
    """Return the texts of the queries and of each one's k best and worst training examples; None: they are not texts."""
    if scores.pictured is None:
        return None
    train, queries = scores.pictured
    if len(queries) != len(scores.query_ids) or text_of(queries[0], queries.tokenizer) is None:
        return None
    k = min(k, scores.kept) if isinstance(scores.kept, int) else k
    place = {value: at for at, value in enumerate(scores.ids)}
    tables = [scores.top(k), *([scores.bottom(k)] if scores.signed else [])]
    wanted = sorted({place[value] for table in tables for value in table["train"]})
    rows = {at: train[train.rows_of([at])[0]] for at in wanted}
    return Told(
        _texts(rows, train.tokenizer), _texts({at: queries[at] for at in range(len(queries))}, queries.tokenizer)
    )


def _texts(rows: Mapping[int, Any], tokenizer: Any) -> dict[int, str]:
    told = {at: text_of(example, tokenizer) for at, example in rows.items()}
    return {at: text for at, text in told.items() if text is not None}


def of_rows(table: pd.DataFrame, ids: Sequence[Any], data: Any) -> pd.DataFrame:
    """Return a table of training examples with their texts in its last column, where data is texts."""
    if not isinstance(data, TokenRows):
        return table
    place = {value: at for at, value in enumerate(ids)}
    told = [text_of(data[place[one]], data.tokenizer) for one in table["train"]]
    return table.assign(text=pd.Series(told, table.index, dtype=object))


def keep(told: Told, folder: Path) -> None:
    """Write the texts into a run folder."""
    pairs = [("train", at, text) for at, text in told.train.items()]
    pairs += [("query", at, text) for at, text in told.queries.items()]
    columns = dict(zip(("of", "place", "text"), map(list, zip(*pairs, strict=True)), strict=True))
    columns["text"] = [text.encode("utf-8", "backslashreplace").decode() for text in columns["text"]]
    write_table(folder / NAME, columns, FORMAT)


def kept(folder: Path) -> Told | None:
    """Return the texts that a run folder holds; None where it holds none."""
    if not (folder / NAME).is_file():
        return None
    rows = read_table(folder / NAME, FORMAT, what="texts").to_pylist()
    return Told(*({row["place"]: row["text"] for row in rows if row["of"] == of} for of in ("train", "query")))
