"""Training texts and questions as rows of token ids: what is counted in each, and where its characters are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from forwardinf.core.errors import DataError, SettingError
from forwardinf.data.examples import Examples
from forwardinf.data.padding import NOT_COUNTED
from forwardinf.tasks.outputs import innermost

Row = dict[str, Any]
Span = str | tuple[int, int] | None
Offsets = list[tuple[int, int]]
FAR = 8  # characters that decoding may put between two tokens


def encodes(model: nn.Module) -> bool:
    """Return whether the model is an encoder-decoder."""
    return bool(getattr(getattr(innermost(model), "config", None), "is_encoder_decoder", False))


def learned_places(model: nn.Module) -> int | None:
    """Return how many tokens a decoder has learned places for; None: as many as are asked for."""
    inner = innermost(model)
    most = getattr(getattr(inner, "config", None), "max_position_embeddings", None)
    learned = {module.num_embeddings for module in inner.modules() if isinstance(module, nn.Embedding)}
    return int(most) if most in learned and not encodes(model) else None


class Texts:
    """Training documents: rows for the model, and their text for people and for BM25.

    Args:
        data: Texts; or rows, a table or a dataset with a column of them; or rows of token ids.
        tokenizer: A Hugging Face tokenizer. Rows of text are tokenised as it does by itself, special tokens included.
        text: The column of text; a pair (prompt, answer): only the answer's tokens are counted.
        both: The model is an encoder-decoder: a pair is what goes in and what comes out.
        max_length: Cut to so many tokens.
    """

    def __init__(
        self, data: Any, tokenizer: Any, text: str | tuple[str, str], both: bool, max_length: int | None
    ) -> None:
        """Tokenise what is text."""
        self.tokenizer, self.both, self.max_length = tokenizer, both, max_length
        self.tokenised = _has_tokens(data)
        self._pairs: dict[int, tuple[str, str]] = {}
        self.cut = 0  # texts longer than max_length
        self._given = [] if self.tokenised else list(_rows(data))
        self.data = data if self.tokenised else [self._row(one, text, row) for row, one in enumerate(self._given)]
        self._text: dict[int, str] = {}

    @property
    def lengths(self) -> list[int] | None:
        """Token counts, where they are at hand: like lengths are read together."""
        if not isinstance(self.data, list):
            return None
        return [len(row["input_ids"]) + (len(row["labels"]) if self.both else 0) for row in self.data]

    def named(self, ids: Any) -> Any:
        """Return ids as they are, or a column of the given rows: rows of token ids have no other columns left."""
        if not isinstance(ids, str) or self.tokenised:
            return ids
        for row, one in enumerate(self._given):
            if not isinstance(one, Mapping) or ids not in one:
                got = f"keys {sorted(map(str, one))}" if isinstance(one, Mapping) else type(one).__name__
                raise DataError(f"train, row {row}", expected=f"its id in {ids!r}", got=got)
        return [one[ids] for one in self._given]

    def _row(self, one: Any, text: str | tuple[str, str], row: int) -> Row:
        if self.tokenizer is None:
            raise SettingError("tokenizer=", expected="a tokenizer for rows of text", got="none",
                               do="Pass the model's tokenizer, or rows of token ids.")  # fmt: skip
        if isinstance(one, str):
            if self.both:
                raise DataError(f"train, row {row}", expected="what goes in and what comes out, for an encoder-decoder",
                                got="one text", do="Pass rows with two columns and text=(input, output).")  # fmt: skip
            return {"input_ids": self._shortened(self.tokenizer(one, **self._cut)["input_ids"], one), "text": one}
        names = (text,) if isinstance(text, str) else text
        strange = [name for name in names if not isinstance(one, Mapping) or not isinstance(one.get(name), str)]
        if strange:
            got = f"keys {sorted(map(str, one))}" if isinstance(one, Mapping) else type(one).__name__
            raise DataError(
                f"train, row {row}", expected=f"text in {strange[0]!r}", got=got, do="Say where with text=."
            )
        if isinstance(text, str):
            return self._row(one[text], text, row)
        prompt, answer = self._pairs[row] = one[text[0]], one[text[1]]
        made = answer_row(self.tokenizer, prompt, answer, None, self.both, closed=True)
        self.cut += self.max_length is not None and max(map(len, made.values())) > self.max_length
        whole = answer if self.both else prompt + joint_of(prompt, answer) + answer
        return {name: ids[: self.max_length] for name, ids in made.items()} | {"text": whole}

    def _shortened(self, ids: list[int], whole: str) -> list[int]:
        """Return the ids as they are; a text that they do not reach the end of is counted."""
        if self.max_length is not None and len(ids) == self.max_length:
            one_more = self.tokenizer(whole, truncation=True, max_length=self.max_length + 1)["input_ids"]
            self.cut += len(one_more) > len(ids)
        return ids

    @property
    def _cut(self) -> dict[str, Any]:
        return {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}

    def text(self, examples: Examples, row: int) -> str:
        """Return a row's text: as it came, or decoded from its counted tokens."""
        if row not in self._text:
            one = examples[row]
            if isinstance(one, Mapping) and isinstance(one.get("text"), str):
                self._text[row] = one["text"]
            elif self.tokenizer is not None:
                self._text[row] = self._decoded(_ids(one, self.both))
            else:
                self._text[row] = ""
        return self._text[row]

    def searched(self, examples: Examples, row: int) -> str:
        """Return what lexical search reads of a row: its text, of a pair both sides."""
        return " ".join(self._pairs[row]) if row in self._pairs else self.text(examples, row)

    def before(self, examples: Examples, row: int) -> str:
        """Return what an encoder reads before a row's text; nothing for a decoder, whose text is whole."""
        if not self.both:
            return ""
        if row in self._pairs:
            return self._pairs[row][0]
        return "" if self.tokenizer is None else self._decoded(examples[row]["input_ids"])

    def counted(self, examples: Examples, row: int) -> list[tuple[int, int]] | None:
        """Return which characters of a row's text the loss counts; None: all of them."""
        one = examples[row]
        labels = None if self.both or not isinstance(one, Mapping) else one.get("labels")
        if labels is None or all(int(label) != NOT_COUNTED for label in labels):
            return None
        found: list[tuple[int, int]] = []
        for (start, end, _), label in zip(self.pieces(examples, row), labels, strict=False):
            if int(label) == NOT_COUNTED or start == end:
                continue
            if found and found[-1][1] <= start and not self.text(examples, row)[found[-1][1] : start].strip():
                found[-1] = (found[-1][0], end)  # nothing but a space between them
            else:
                found.append((start, end))
        return found

    def _decoded(self, ids: Any) -> str:
        return str(self.tokenizer.decode([int(token) for token in ids if int(token) >= 0], skip_special_tokens=True))

    def pieces(self, examples: Examples, row: int) -> list[tuple[int, int, str]]:
        """Return (start, end, text) of every token of the row (of its answer, for an encoder-decoder)."""
        one, whole = examples[row], self.text(examples, row)
        ids = [int(token) for token in _ids(one, self.both)]
        found = _offsets(self.tokenizer, whole, self.both)
        if found is not None and found[0][: len(ids)] == ids:
            return [(start, end, whole[start:end]) for start, end in found[1][: len(ids)]]
        at, parts = 0, []  # ids that came as they are: each is looked for where the one before it ended
        for token in ids:
            told = str(self.tokenizer.decode([token])).strip() if self.tokenizer is not None and token >= 0 else ""
            start = whole.find(told, at) if told else -1
            here = 0 <= start <= at + FAR
            parts.append((start, start + len(told), told) if here else (at, at, told))  # a special token stands nowhere
            at = start + len(told) if here else at
        return parts


def answer_row(
    tokenizer: Any, prompt: str, answer: str, span: Span, both: bool, *, closed: bool = False
) -> dict[str, list[int]]:
    """Return ``input_ids`` and ``labels`` of a prompt with an answer, counted on the answer (or a span of it) only.

    Args:
        tokenizer: A tokenizer that tells where in the text each token is (any fast one).
        prompt: What comes before. Where neither ends or begins with a space, one is put between them.
        answer: What is counted.
        span: Part of the answer: a text that stands in it once, or its (first, last + 1) characters.
        both: For an encoder-decoder: the prompt goes in, the answer is the labels.
        closed: The special tokens that the tokenizer puts at the end stay, and the last one is counted (training rows).
    """
    first, last = _place(answer, span)
    if both:
        ids = list(tokenizer(prompt)["input_ids"])
        told = _offsets(tokenizer, answer, True)
        if told is None:
            raise _slow()
        labels = _counted(told[0], told[1], first, last)
        if closed and span is None:
            labels = told[0]
        return {"input_ids": ids, "labels": labels}
    joint = joint_of(prompt, answer)
    start = len(prompt) + len(joint)
    told = _offsets(tokenizer, prompt + joint + answer, False)
    if told is None:
        raise _slow()
    ids, places = told
    labels = _counted(ids, places, start + first, start + last)
    if closed and ids[-1] == tokenizer.eos_token_id:
        labels[-1] = ids[-1]
    if not closed:  # what the tokenizer adds at the end is no part of the question
        size = max((at + 1 for at, label in enumerate(labels) if label != NOT_COUNTED), default=len(ids))
        ids, labels = ids[:size], labels[:size]
    return {"input_ids": ids, "labels": labels}


def joint_of(prompt: str, answer: str) -> str:
    """Return what is put between a decoder's prompt and answer."""
    return "" if not prompt or prompt[-1].isspace() or answer[:1].isspace() else " "


@dataclass(frozen=True)
class Question:
    """A prompt with the answer to explain, ready to be asked.

    Attributes:
        prompt: What the model read.
        answer: What it said, or was to say.
        row: Its token ids; ``labels`` count the tokens asked about.
        wrong: Rows of wrong answers that it is contrasted with.
    """

    prompt: str
    answer: str
    row: Row
    wrong: list[Row] = field(default_factory=list)

    @property
    def filled(self) -> str:
        """The prompt with its answer."""
        return f"{self.prompt} {self.answer}"


def asked(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Any],
    answers: Sequence[str] | None,
    span: Any,
    contrast: Sequence[Any] | None,
    new_tokens: int,
) -> list[Question]:
    """Return the questions as rows; where no answer is given the model's own continuation (greedy) is asked about."""
    if isinstance(questions, str) or not len(questions):
        raise DataError(
            "questions", expected="a list of prompts", got=repr(questions)[:60], do="Put one into a list: [text]."
        )
    both, found = encodes(model), []
    for name, given in (("answers", answers), ("contrast", contrast)):
        if given is not None and (isinstance(given, str) or len(given) != len(questions)):
            got = "one text" if isinstance(given, str) else f"{len(given)}"
            raise DataError(name, expected=f"{len(questions)}, one for each question", got=got)
    spans = span if isinstance(span, list) else [span] * len(questions)
    if len(spans) != len(questions):
        raise DataError("span", expected=f"{len(questions)}, one for each question", got=str(len(spans)))
    for at, question in enumerate(questions):
        where = f"question {at}"
        if isinstance(question, Mapping):
            if "labels" not in question or "input_ids" not in question:
                raise DataError(
                    where, expected="a prompt, or a row with 'input_ids' and 'labels'", got=f"keys {sorted(question)}"
                )
            told = ["" if tokenizer is None else str(tokenizer.decode([int(i) for i in ids if int(i) >= 0]))
                    for ids in (question["input_ids"], question["labels"])]  # fmt: skip
            found.append(Question(told[0], told[1], {name: list(question[name]) for name in ("input_ids", "labels")}))
            continue
        if tokenizer is None:
            raise SettingError("tokenizer=", expected="the model's tokenizer", got="none")
        if not isinstance(question, str):
            raise DataError(where, expected="a prompt (text)", got=type(question).__name__)
        answer = continuation(model, tokenizer, question, both, new_tokens) if answers is None else answers[at]
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"answer to {where}", expected="text", got=repr(answer),
                            do="" if answers is not None else "The model says nothing here: pass answers=.")  # fmt: skip
        row = _led(model, tokenizer, answer_row(tokenizer, question, answer, spans[at], both), answer)
        if all(label == NOT_COUNTED for label in row["labels"]):
            raise DataError(f"answer to {where}", expected="at least one token", got=repr(answer))
        others = (
            [] if contrast is None else [contrast[at]] if isinstance(contrast[at], str) else list(contrast[at] or ())
        )
        wrong = [_led(model, tokenizer, answer_row(tokenizer, question, other, None, both), other) for other in others]
        found.append(Question(question, answer, row, wrong))
    return found


def _led(model: nn.Module, tokenizer: Any, row: Row, answer: str) -> Row:
    """Return an encoder-decoder's question with all of its answer before the decoder, also the tokens that do not count.

    Made from the labels alone, what does not count would reach the decoder as padding.
    """
    if not encodes(model):
        return row
    inner: Any = cast("Any", model).get_base_model() if hasattr(model, "get_base_model") else model
    shift = getattr(inner, "prepare_decoder_input_ids_from_labels", None)
    if shift is None:
        return row
    whole = list(tokenizer(text_target=answer)["input_ids"])
    return {**row, "decoder_input_ids": shift(labels=torch.tensor([whole]))[0].tolist()}


def continuation(model: nn.Module, tokenizer: Any, prompt: str, both: bool, new_tokens: int) -> str:
    """Return what the model says next, greedily."""
    ids, most = list(tokenizer(prompt)["input_ids"]), learned_places(model)
    if not both and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    if not ids:
        raise DataError("questions", expected="a prompt of at least one token", got=repr(prompt), do="Pass answers=.")
    if most is not None and len(ids) >= most:
        raise DataError("questions", expected=f"prompts below {most} tokens, the model's places", got=f"one of {len(ids)}",
                        do="Shorten it.")  # fmt: skip
    new_tokens = new_tokens if most is None else min(new_tokens, most - len(ids))
    if not hasattr(model, "generate"):
        raise DataError("answers", expected="answers, for a model without generate()", got="none", do="Pass answers=.")
    place = next(model.parameters()).device
    given = torch.tensor([ids], device=place)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        out = cast("Any", model).generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad
        )  # fmt: skip
    said = out[0] if both else out[0, len(ids) :]
    return str(tokenizer.decode(said, skip_special_tokens=True))


def _has_tokens(data: Any) -> bool:
    names = getattr(data, "column_names", None)
    if names is not None:
        return "input_ids" in names
    if not hasattr(data, "__getitem__") or not len(data):
        return False
    first = data[0] if not isinstance(data, Mapping) else data
    if first is None:
        return False
    return "input_ids" in first if isinstance(first, Mapping) else not isinstance(first, str)


def _rows(data: Any) -> Any:
    if hasattr(data, "to_pylist"):
        return data.to_pylist()
    if isinstance(data, str) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise DataError("train", expected="texts, rows, a table or a dataset", got=type(data).__name__)
    return (data[row] for row in range(len(data)))


def _ids(one: Any, both: bool) -> Any:
    if isinstance(one, Mapping):
        return one["labels"] if both else one["input_ids"]
    return one


def _offsets(tokenizer: Any, text: str, target: bool) -> tuple[list[int], Offsets] | None:
    """Return (ids, character places) of a text, or None for a tokenizer that cannot tell places."""
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        return None
    told = tokenizer(**{"text_target" if target else "text": text}, return_offsets_mapping=True)
    return list(told["input_ids"]), [tuple(place) for place in told["offset_mapping"]]


def _counted(ids: list[int], places: Offsets, first: int, last: int) -> list[int]:
    """Return labels: the tokens that overlap the characters from ``first`` to ``last``."""
    return [
        token if start < end and start < last and end > first else NOT_COUNTED
        for token, (start, end) in zip(ids, places, strict=True)
    ]


def _place(answer: str, span: Span) -> tuple[int, int]:
    if span is None:
        return 0, len(answer)
    if isinstance(span, str):
        if answer.count(span) != 1 or not span:
            raise SettingError("span=", expected="a part that stands in the answer once", got=f"{span!r} in {answer!r}",
                               do="Give (first, last + 1) characters instead.")  # fmt: skip
        return answer.index(span), answer.index(span) + len(span)
    first, last = (int(edge) for edge in span)
    if not 0 <= first < last <= len(answer):
        raise SettingError("span=", expected=f"characters between 0 and {len(answer)}", got=repr(span))
    return first, last


def _slow() -> SettingError:
    return SettingError("tokenizer=", expected="a fast tokenizer, which tells where its tokens stand", got="a slow one",
                        do="Load it with use_fast=True, or pass rows of token ids with labels.")  # fmt: skip
