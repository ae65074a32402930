"""Conversations as token ids, through the tokenizer's own chat template; what the assistant says is what counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from forwardinf.core.errors import DataError, SettingError
from forwardinf.data.padding import NOT_COUNTED

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")  # templates that say themselves what the assistant's part is
SPEAKER = "assistant"


def chat_tokens(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], where: str = "conversation", *, first: int = 0
) -> tuple[list[int], list[int]]:
    """Return ``(input_ids, labels)`` of a conversation, −100 wherever it is not the assistant's turn.

    Where the template marks the assistant's part (``{% generation %}``), that counts. Elsewhere a turn is what it adds: the
    tokens of the conversation up to and with it, less those of what comes before, with the prompt for the assistant to
    speak. That one begins with the other, and the whole conversation with both, is checked.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        messages: ``[{"role": …, "content": …}, …]``.
        where: For errors.
        first: Turns before this one are not counted, whoever speaks.

    Raises:
        SettingError: The tokenizer has no chat template.
        DataError: No such list, the template refuses it, or writes what was said differently once more is said.

    Example:
        >>> talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        >>> chat_tokens(tokenizer, talk)  # doctest: +SKIP
        ([1, 7, 2, 9], [-100, -100, -100, 9])
    """
    turns = _turns(messages, where)
    marked = MARKED.search(_template(tokenizer)) is not None and getattr(tokenizer, "is_fast", False)
    spoken = [at for at, turn in enumerate(turns) if turn["role"] == SPEAKER and at >= first]
    if marked and not first:
        told = _applied(tokenizer, turns, where, return_assistant_tokens_mask=True)
        ids, counted = list(told["input_ids"]), list(told["assistant_masks"])
        if any(turns[at].get("content") for at in spoken) and not any(counted):
            raise DataError(
                where,
                expected="a chat template that marks what the assistant says",
                got=f"the template of {_name(tokenizer)}, which marks nothing of it",
            )
    else:
        ids = list(_applied(tokenizer, turns, where)["input_ids"])
        counted = [0] * len(ids)
        for at in spoken:
            start, end = _added(tokenizer, turns, at, ids, where)
            counted[start:end] = [1] * (end - start)
    return ids, [token if one else NOT_COUNTED for token, one in zip(ids, counted, strict=True)]


def as_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation for people: a line for each turn."""
    return "\n".join(f"{turn.get('role')}: {_said(turn.get('content'))}" for turn in messages)


def _said(content: Any) -> str:
    if not isinstance(content, list):
        return "" if content is None else str(content)
    parts = (
        part.get("text") or f"[{part.get('type')}]" if isinstance(part, Mapping) else str(part) for part in content
    )
    return " ".join(map(str, parts))


def _turns(messages: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """Return the messages as a template reads them, without the gaps that a table fills with None."""
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            got = f"keys {sorted(map(str, message))}" if isinstance(message, Mapping) else type(message).__name__
            do = "Rename 'from' and 'value' to 'role' and 'content'." if "'from'" in got else ""
            raise DataError(f"{where}, turn {at}", expected="{role, content}", got=got, do=do)
    if not messages:
        raise DataError(where, expected="at least one message", got="none")
    return [_without_none(dict(message)) for message in messages]


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(part) for name, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value


def _template(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except (AttributeError, ValueError) as error:
        raise SettingError(
            f"tokenizer {_name(tokenizer)}",
            expected="a chat template, for rows of messages",
            got="none",
            do="Use the tokenizer of the chat model, set tokenizer.chat_template, or give rows with prompt and completion.",
        ) from error


def _applied(tokenizer: Any, turns: list[dict[str, Any]], where: str, **how: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **how)
    except Exception as error:  # whatever a template raises: it is a small program of its own
        raise DataError(
            where,
            expected=f"a conversation that the chat template of {_name(tokenizer)} takes",
            got=f"{type(error).__name__}: {error}",
        ) from error


def _added(tokenizer: Any, turns: list[dict[str, Any]], at: int, whole: list[int], where: str) -> tuple[int, int]:
    """Return where in ``whole`` the tokens that turn ``at`` adds begin and end."""
    if at == 0:
        raise DataError(
            where,
            expected="something said before the assistant's first turn",
            got="the assistant, first",
            do="Mark the assistant's part in the template with {% generation %}.",
        )
    before = list(_applied(tokenizer, turns[:at], where, add_generation_prompt=True)["input_ids"])
    through = list(_applied(tokenizer, turns[: at + 1], where)["input_ids"])
    for shorter, longer in ((before, through), (through, whole)):
        if longer[: len(shorter)] != shorter:
            place = next(
                (n for n, pair in enumerate(zip(shorter, longer, strict=False)) if pair[0] != pair[1]), len(longer)
            )
            raise DataError(
                f"{where}, turn {at}",
                expected="a chat template that writes what was said the same when more is said",
                got=f"the template of {_name(tokenizer)}: {tokenizer.decode(shorter[place : place + 8])!r} becomes "
                f"{tokenizer.decode(longer[place : place + 8])!r}",
                do="Mark the assistant's part in the template with {% generation %}, or give rows of input_ids and labels.",
            )
    return len(before), len(through)


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
