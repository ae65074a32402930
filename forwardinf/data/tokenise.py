"""Texts, pairs (prompt, completion) and conversations of a table as rows of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from forwardinf.core.errors import DataError, Error, SettingError, choose
from forwardinf.core.progress import progress
from forwardinf.data.chat import as_text, chat_tokens
from forwardinf.data.padding import NOT_COUNTED
from forwardinf.data.token_rows import TokenRows
from forwardinf.data.tokenizer import load_tokenizer

Reader = Literal["decoder", "encoder-decoder", "classifier"]
KINDS = (("text",), ("messages",), ("prompt", "completion"))
WHAT = "a column text, a column messages ([{role, content}, …]), or prompt and completion"
BLOCK = 1000  # texts tokenised at a time
UNREADABLE = (
    TypeError,
    ValueError,
    OverflowError,
    AttributeError,
)  # what tokenizers raise at half a surrogate pair, say
LABELS = ("labels", "label")

Row = dict[str, list[int]]


def tokenised(
    data: Any,
    tokenizer: Any,
    text: str | Sequence[str] | None = None,
    max_length: int | None = None,
    keep: Sequence[str] = (),
    *,
    reader: Reader | None = None,
    source: str = "",
) -> TokenRows:
    """Return rows of token ids.

    ==========================  ========================================================================================
    a column of text            its tokens, special tokens as the tokenizer puts them; ``labels`` from a column ``labels``
                                or ``label`` (the number of a class; not for a decoder)
    a column of conversations   ``[{role, content}, …]`` through the tokenizer's chat template; only what the assistant
                                says is counted (``labels`` −100 elsewhere)
    two columns                 prompt and completion, one right behind the other, as they stand; only the completion is
                                counted. Both may be lists of messages. For an encoder-decoder: what goes in, what comes
                                out. For a classifier: two texts in one row
    ==========================  ========================================================================================

    Args:
        data: An Arrow table, a Hugging Face dataset, or rows that are mappings.
        tokenizer: A Hugging Face tokenizer, or the folder or hub id of one.
        text: The column, or two (a sequence, or with a comma between); None: the usual names, where only one kind is there.
        max_length: Cut to so many tokens; how many were cut is said.
        keep: Columns to carry along in each row.
        reader: What kind of model reads the rows; None: not known, texts with class numbers have them as ``labels``.
        source: Where the data is from, for errors.

    Raises:
        SettingError: No such column, or two kinds of text and none named; a tokenizer without a chat template.
        DataError: A row is not of its kind; the row is named.
    """
    assert reader is None or reader in get_args(Reader)
    if max_length is not None and max_length < 1:
        raise SettingError("max_length", expected="1 or more", got=repr(max_length))
    names = columns_of(data)
    chosen = _chosen(text, names)
    for name in keep:
        if name not in names:
            raise choose("column", name, names)
    found = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    rows = _Rows(found, max_length, chosen, f"{source}, " if source else "")
    others = {name: _values(data, name) for name in keep}
    columns = [_values(data, name) for name in chosen]
    talk = _is_talk(next((value for value in columns[0] if value is not None), None))
    if talk and reader in ("encoder-decoder", "classifier"):
        raise SettingError(
            "text=", expected=f"text, for a model that is a {reader}", got=f"conversations in {chosen[0]!r}"
        )
    if talk or (len(chosen) == 2 and reader != "classifier"):
        return rows.counted(columns, others, talk=talk, both=reader == "encoder-decoder")
    if reader == "encoder-decoder":
        raise SettingError(
            "text=",
            expected="two columns for an encoder-decoder: what goes in, what comes out",
            got=repr(chosen[0]),
            do="Give both: text=input,output (--data-option text=input,output).",
        )
    return rows.plain(columns, others | ({} if reader == "decoder" else _labels(data, names, rows.source)))


def with_tokenizer(data: Any, tokenizer: Any) -> TokenRows:
    """Return rows that came tokenised with what turns their ids into text again, for people."""
    columns = {name: _values(data, name) for name in columns_of(data)}
    tokens = {name: columns.pop(name) for name in ("input_ids", *LABELS[:1]) if _sequences(columns.get(name))}
    return TokenRows(tokens, None, columns, tokenizer=tokenizer)


def _sequences(column: list[Any] | None) -> bool:
    return column is not None and all(hasattr(value, "__len__") and not isinstance(value, str) for value in column)


def columns_of(data: Any) -> list[str]:
    """Return the names of the columns of a table, a dataset, or rows that are mappings; none where there are none."""
    if hasattr(data, "column_names"):
        return list(data.column_names)
    first = (
        data[0] if hasattr(data, "__getitem__") and not isinstance(data, str | tuple | Mapping) and len(data) else None
    )
    return [str(name) for name in first] if isinstance(first, Mapping) else []


def is_text(data: Any) -> bool:
    """Return whether data is rows that are not tokenised yet: columns with names, and none of token ids or pixels."""
    names = columns_of(data)
    return bool(names) and not {"input_ids", "pixel_values"} & set(names)


def _chosen(text: str | Sequence[str] | None, names: Sequence[str]) -> list[str]:
    if text is None:
        found = [kind for kind in KINDS if set(kind) <= set(names)]
        if len(found) != 1:
            got = f"columns {', '.join(map(repr, names))}" if names else "no columns"
            raise SettingError(
                "text=",
                expected=f"one of them: {WHAT}" if found else WHAT,
                got=got,
                do="Name the column with text= (--data-option text=…), or two with a comma between.",
            )
        return list(found[0])
    asked = [text] if isinstance(text, str) and text in names else text
    parts = [part.strip() for part in asked.split(",")] if isinstance(asked, str) else list(asked)
    for part in parts:
        if part not in names:
            raise choose("text: column", part, names)
    if len(parts) not in (1, 2):
        raise SettingError("text=", expected="a column, or two: a prompt and its completion", got=repr(text))
    return parts


def _is_talk(value: Any) -> bool:
    """Return whether a value is a list of messages; a list of strings, say, is not."""
    return isinstance(value, list) and (not value or any(isinstance(turn, Mapping) for turn in value))


def _values(data: Any, name: str) -> list[Any]:
    if not hasattr(data, "column_names"):
        return [row[name] for row in data]
    column = data[name]
    return list(column.to_pylist() if isinstance(column, pa.ChunkedArray) else column)


def _labels(data: Any, names: Sequence[str], source: str) -> dict[str, list[Any]]:
    label = next((name for name in LABELS if name in names), None)
    if label is None:
        return {}
    values = _values(data, label)
    for row, value in enumerate(values):
        if value is None or isinstance(value, str):
            raise DataError(
                f"{source}column {label!r}, row {row}",
                expected="the number of its class",
                got=repr(value),
                do="Write the numbers the model was trained with.",
            )
    return {"labels": values}


class _Rows:
    """The making of rows: a tokenizer, a limit, and how many texts were cut to it."""

    def __init__(self, tokenizer: Any, limit: int | None, names: list[str], source: str) -> None:
        self.tokenizer, self.limit, self.names, self.source, self.cut = tokenizer, limit, names, source, 0

    def plain(self, columns: list[list[Any]], others: Mapping[str, list[Any]]) -> TokenRows:
        """Make rows that count as a whole."""
        texts = list(zip(*columns, strict=True))
        for row, values in enumerate(texts):
            self._check_text(row, values)
        names = ["input_ids", "token_type_ids"][: len(columns)]
        tokens: dict[str, list[list[int]]] = {name: [] for name in names}
        with progress("tokenising", len(texts)) as advance:
            for start in range(0, len(texts), BLOCK):
                made = self._block(start, texts[start : start + BLOCK])
                for name in [name for name in tokens if name in made]:
                    tokens[name] += made[name]
                advance(len(made["input_ids"]))
        tokens = {name: rows for name, rows in tokens.items() if rows}
        for row, values in enumerate(texts):
            if self.limit is not None and len(tokens["input_ids"][row]) > self.limit:
                shorter = self._shorter(*values)
                for name, rows in tokens.items():
                    rows[row] = list(shorter[name])
        empty = sum(not ids for ids in tokens["input_ids"])
        notes = [f"{empty} of {len(texts)} texts have no token"] if empty else []
        return self._done(tokens, [" | ".join(each) for each in texts], others, notes)

    def counted(
        self, columns: list[list[Any]], others: Mapping[str, list[Any]], *, talk: bool, both: bool
    ) -> TokenRows:
        """Make rows of which a part counts: a completion, or what the assistant says."""
        rows, texts = list[Row](), list[str]()
        with progress("tokenising", len(columns[0])) as advance:
            for row, values in enumerate(zip(*columns, strict=True)):
                made, told = self._chat(row, values) if talk else self._pair(row, values, both)
                rows.append(made)
                texts.append(told)
                advance(1)
        silent = sum(all(token == NOT_COUNTED for token in row["labels"]) for row in rows)
        notes = [f"in {silent} of {len(rows)} rows nothing counts: their scores are 0"] if silent else []
        return self._done({name: [row[name] for row in rows] for name in ("input_ids", "labels")}, texts, others, notes)

    def _done(self, tokens: Any, texts: list[str], others: Any, notes: Sequence[str] = ()) -> TokenRows:
        cut = f"{self.cut} of {len(texts)} rows were cut to max_length={self.limit} tokens"
        return TokenRows(tokens, texts, others, [cut, *notes] if self.cut else notes, self.tokenizer)

    # One row

    def _pair(self, row: int, values: tuple[Any, ...], both: bool) -> tuple[Row, str]:
        self._check_text(row, values)
        prompt, completion = values
        with self._readable(row, values):
            if both:
                made = {"input_ids": self._whole("text", prompt), "labels": self._whole("text_target", completion)}
            else:
                made = self._cut(pair_tokens(self.tokenizer, prompt, completion, self._where(row)))
        return made, f"{prompt} → {completion}"

    def _chat(self, row: int, values: tuple[Any, ...]) -> tuple[Row, str]:
        if not all(isinstance(value, list) for value in values):
            raise DataError(self._where(row), expected="a list of messages [{role, content}, …]", got=repr(values)[:60])
        messages = [message for value in values for message in value]
        first = len(values[0]) if len(values) == 2 else 0
        ids, labels = chat_tokens(self.tokenizer, messages, self._where(row), first=first)
        return self._cut({"input_ids": ids, "labels": labels}), as_text(messages)

    def _cut(self, made: Row) -> Row:
        if self.limit is None or len(made["input_ids"]) <= self.limit:
            return made
        self.cut += 1
        return {name: ids[: self.limit] for name, ids in made.items()}

    def _whole(self, side: str, text: str) -> list[int]:
        ids = list(self.tokenizer(**{side: text}, verbose=False)["input_ids"])
        return ids if self.limit is None or len(ids) <= self.limit else list(self._shorter(**{side: text})["input_ids"])

    def _shorter(self, *texts: str, **sides: str) -> Any:
        """Tokenise anew, cut by the tokenizer: what it puts at the end stays."""
        self.cut += 1
        return self.tokenizer(*texts, **sides, truncation=True, max_length=self.limit)

    def _block(self, start: int, texts: list[tuple[Any, ...]]) -> Any:
        try:
            return self.tokenizer(*map(list, zip(*texts, strict=True)), verbose=False)
        except UNREADABLE:  # one of them, or a tokenizer that takes texts one by one
            made: dict[str, list[Any]] = {"input_ids": [], "token_type_ids": []}
            for place, values in enumerate(texts):
                with self._readable(start + place, values):
                    told = self.tokenizer(*values)
                for name in [name for name in made if name in told]:
                    made[name].append(list(told[name]))
            return made

    # Errors

    def _where(self, row: int) -> str:
        return f"{self.source}column {', '.join(map(repr, self.names))}, row {row}"

    def _check_text(self, row: int, values: tuple[Any, ...]) -> None:
        for name, value in zip(self.names, values, strict=True):
            if not isinstance(value, str):
                expected = "text, or messages [{role, content}, …] in every row" if isinstance(value, list) else "text"
                raise DataError(f"{self.source}column {name!r}, row {row}", expected=expected, got=repr(value)[:60])

    @contextmanager
    def _readable(self, row: int, values: tuple[Any, ...]) -> Iterator[None]:
        try:
            yield
        except Error:
            raise
        except UNREADABLE as error:
            raise DataError(
                self._where(row),
                expected="text that the tokenizer takes",
                got=ascii(values)[:80],
                do="Half of a surrogate pair, say, is no text: clean the row.",
            ) from error


def pair_tokens(tokenizer: Any, prompt: str, completion: str, where: str = "pair") -> Row:
    """Return the tokens of a prompt with its completion right behind it: ``labels`` count the completion.

    An end-of-text that the tokenizer puts behind it counts too; a token that holds characters of both does as well.
    """
    places = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
    told = tokenizer(prompt + completion, verbose=False, **places)
    ids = list(told["input_ids"])
    if places:
        inside = (at for at, (start, end) in enumerate(told["offset_mapping"]) if start < end and end > len(prompt))
        first = next(inside, len(ids))
    else:
        first = _behind(tokenizer, prompt, ids, where)
    last = len(ids)
    while last > first and ids[last - 1] in _closing(tokenizer) - {tokenizer.eos_token_id}:
        last -= 1
    return {"input_ids": ids, "labels": [NOT_COUNTED] * first + ids[first:last] + [NOT_COUNTED] * (len(ids) - last)}


def _behind(tokenizer: Any, prompt: str, ids: list[int], where: str) -> int:
    """Return the place behind a prompt's tokens, for a tokenizer that cannot tell where in the text a token stands."""
    alone = list(tokenizer(prompt)["input_ids"])
    while alone and alone[-1] in _closing(tokenizer):
        alone.pop()
    if ids[: len(alone)] != alone:
        raise DataError(
            where,
            expected="a prompt whose tokens stay as they are when the completion follows",
            got=f"other ones behind {prompt[-20:]!r}",
            do="Use a fast tokenizer.",
        )
    return len(alone)


def _closing(tokenizer: Any) -> set[Any]:
    """Return the tokens that a tokenizer may put behind a text."""
    return {tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id}
