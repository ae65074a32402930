"""Text as it is shown: in pieces, each with how strongly it is marked. Prompts and answers keep apart, and stay whole.

A prompt is read but not counted: it is set in grey, before an arrow. What follows counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from forwardinf.data.examples import Examples
from forwardinf.data.padding import NOT_COUNTED

READ = -1  # the level of what the model reads and no loss counts
LONGEST = 2_000  # characters shown of one text
ARROW = "→"
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("question", "answer"),
    ("instruction", "output"), ("instruction", "response"), ("input", "output"), ("source", "target"),
    ("document", "summary"),
)  # fmt: skip  # columns of text that belong together
TEXTS = ("text", "sentence", "prompt", "caption", "content", "question", "document")
TOKENS = ("input_ids", "tokens", "ids")
FEW = 24  # token ids that are spelt out

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Words:
    """A text in pieces.

    Attributes:
        pieces: ``(text, level)``: −1 is read but not counted, 0 plain, 1 to 4 marked, faintly to strongly.
    """

    pieces: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return "".join(told for told, _ in self.pieces)

    @property
    def partly_counted(self) -> bool:
        """Whether there is something that is read but not counted."""
        return any(level == READ for _, level in self.pieces)


@dataclass(frozen=True)
class Language:
    """How rows of token ids are to be read.

    Attributes:
        tokenizer: Turns token ids into text, where one is known.
        both: Labels are token ids too, of another text: an encoder-decoder's.
    """

    tokenizer: Any = None
    both: bool = False

    def told(self, ids: list[int]) -> str:
        """Return token ids as text, or spelt out."""
        if self.tokenizer is not None:
            try:
                return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip() or "(empty text)"
            except (TypeError, ValueError, IndexError, KeyError, OverflowError, AttributeError):
                pass  # another model's ids
        return spelt("ids", ids)


def language_of(examples: Examples, tokenizer: Any = None) -> Language:
    """Return how the rows of data that was opened are to be read."""
    return Language(tokenizer or examples.tokenizer, examples.two_texts)


def cut(text: str | Words, limit: int = LONGEST) -> Words:
    """Return at most ``limit`` characters, around the strongest mark if there is one, and say which they are.

    Example:
        >>> str(cut("a long text", 6))
        'a long… (characters 1 to 6 of 11)'
    """
    words = text if isinstance(text, Words) else Words(((text, 0),))
    total = len(str(words))
    if total <= limit:
        return words
    at, strongest, first = 0, 0, 0
    for told, level in words.pieces:
        if level > strongest:
            strongest, first = level, at
        at += len(told)
    start = max(0, min(first - limit // 3, total - limit)) if first > 0.8 * limit else 0
    kept, at = [("…", READ)] if start else [], 0
    for told, level in words.pieces:
        inside = told[max(0, start - at) : max(0, start + limit - at)]
        kept += [(inside, level)] if inside else []
        at += len(told)
    end = "…" if start + limit < total else ""
    kept.append((f"{end} (characters {start + 1:,} to {start + limit:,} of {total:,})", READ))
    return Words(tuple(kept))


def pair(prompt: str, answer: str) -> Words:
    """Return a prompt, an arrow and the answer, of which only the answer counts."""
    return Words(((f"{prompt.rstrip()} {ARROW} ", READ), (answer.lstrip(), 0)))


def in_pieces(text: str, marks: Iterable[tuple[int, int, int]] = (), counted: Spans | None = None) -> Words:
    """Return a text with marks on it, an arrow where something that counts follows something that does not.

    Args:
        text: The whole of it.
        marks: ``(start, end, level)``, apart from one another.
        counted: Which characters count; None: all.

    Example:
        >>> str(in_pieces("who? me", counted=[(5, 7)]))
        'who? → me'
    """
    strong = sorted(mark for mark in marks if mark[2] > 0 and mark[0] < mark[1])
    spans = [(0, len(text))] if counted is None else sorted(counted)
    edges = {0, len(text), *(at for start, end, *_ in [*strong, *spans] for at in (start, end) if at < len(text))}
    found: list[tuple[str, int]] = []
    for start, end in pairwise(sorted(edges)):
        while strong and strong[0][1] <= start:
            strong.pop(0)
        while spans and spans[0][1] <= start:
            spans.pop(0)
        inside = bool(spans) and spans[0][0] <= start
        marked = strong[0][2] if strong and strong[0][0] <= start else 0
        _append(found, text[start:end], marked if inside else READ)
    return Words(tuple(found))


def _append(found: list[tuple[str, int]], told: str, level: int) -> None:
    """Add a piece: one of the same level goes on; before what counts, after what does not, there is an arrow."""
    if not found or found[-1][1] == level:
        found[-1:] = [((found[-1][0] if found else "") + told, level)]
        return
    if found[-1][1] == READ:
        found[-1] = (f"{found[-1][0].rstrip()} {ARROW} ", READ)
        told = told.lstrip() or told
    found.append((told, level))


def of_row(example: Mapping[Any, Any], language: Language) -> Words | str | None:
    """Return what a row of text says, both sides of a pair, or None where it is no text.

    Args:
        example: ``prompt`` and ``completion`` and their like; ``messages``; ``input_ids``, ``labels``.
        language: How token ids are to be read.
    """
    for first, second in PAIRS:
        sides = example.get(first), example.get(second)
        if all(isinstance(side, str) for side in sides):
            return pair(*sides)  # type: ignore[arg-type]
        if all(map(_is_chat, sides)):
            return Words((*_chat(sides[0], answers=False), ("\n", READ), *_chat(sides[1])))
    if _is_chat(example.get("messages")):
        return Words(tuple(_chat(example["messages"])))
    name = next((name for name in TOKENS if _whole_numbers(example.get(name)) is not None), None)
    return None if name is None else _of_tokens(example, name, language)


def _of_tokens(example: Mapping[Any, Any], name: str, language: Language) -> Words | str | None:
    ids, labels = _whole_numbers(example[name]) or [], _whole_numbers(example.get("labels"))
    mask = _whole_numbers(example.get("attention_mask"))
    there = mask if mask is not None and len(mask) == len(ids) else [1] * len(ids)
    real = [token for token, inside in zip(ids, there, strict=True) if inside]
    if labels is not None and len(labels) > 1 and not _of_the_same(ids, labels):
        answer = [label for label in labels if label != NOT_COUNTED]
        return pair(language.told(real), language.told(answer) if language.both else spelt("labels", answer))
    if labels is None or len(labels) != len(ids) or NOT_COUNTED not in labels:
        return None if any(isinstance(example.get(column), str) for column in TEXTS) else language.told(real)
    runs: list[tuple[list[int], int]] = []
    for token, label, inside in zip(ids, labels, there, strict=True):
        level = READ if label == NOT_COUNTED else 0
        if inside and runs and runs[-1][1] == level:
            runs[-1][0].append(token)
        elif inside:
            runs.append(([token], level))
    found: list[tuple[str, int]] = []
    for tokens, level in runs:
        told = language.told(tokens)
        _append(found, f" {told}" if found and found[-1][1] != READ else told, level)
    return Words(tuple(found))


def _of_the_same(ids: list[int], labels: list[int]) -> bool:
    """Tell whether labels are the ids themselves, those that are not counted left out: a decoder's."""
    return len(ids) == len(labels) and all(
        label in (token, NOT_COUNTED) for token, label in zip(ids, labels, strict=True)
    )


def spelt(what: str, numbers: list[int]) -> str:
    """Return whole numbers as they are, the first few."""
    return f"{what} " + " ".join(map(str, numbers[:FEW])) + (" …" if len(numbers) > FEW else "")


def _whole_numbers(values: Any) -> list[int] | None:
    """Return a row of whole numbers in any form, a batch of one too; None for anything else."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, list) and len(plain) == 1 and isinstance(plain[0], list):
        plain = plain[0]
    if isinstance(plain, list | tuple) and plain and all(type(value) is int for value in plain):
        return list(plain)
    return None


def _is_chat(messages: Any) -> bool:
    return isinstance(messages, list | tuple) and bool(messages) and all(
        isinstance(one, Mapping) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in messages
    )  # fmt: skip


def _chat(messages: Any, *, answers: bool = True) -> list[tuple[str, int]]:
    """Return the turns of a conversation, of which the assistant's count (``answers=False``: none does)."""
    found: list[tuple[str, int]] = []
    for number, one in enumerate(messages):
        own = answers and one["role"] == "assistant"
        found.append((("\n" if number else "") + f"{one['role']} {ARROW if own else ':'} ", READ))
        found.append((one["content"], 0 if own else READ))
    return found
