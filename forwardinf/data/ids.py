"""Finding what an id stands for; where there is no such id, a guess at the one that was meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from forwardinf.core.errors import UnknownId
from forwardinf.data.given_ids import Id as Id

SHOWN = 5  # ids that an error names
COMPARED = 20_000  # ids that a guess looks at


def several(asked: Any) -> list[Any]:
    """Return the ids that are asked for: one, or several in a list, array, range or column."""
    if hasattr(asked, "tolist"):
        asked = asked.tolist()
    if isinstance(asked, str | bytes) or not isinstance(asked, Iterable):
        return [asked]
    return list(asked)


def places_of(where: str, asked: Iterable[Any], ids: Sequence[Id]) -> list[int]:
    """Return the place of each id, each once, in the order asked.

    Args:
        where: The argument, for the error.
        asked: Ids.
        ids: All that there are.

    Raises:
        UnknownId: There is no such id.

    Example:
        >>> places_of("query", ["b"], ["a", "b"])
        [1]
    """
    place = {value: at for at, value in enumerate(ids)}
    found: dict[int, None] = {}
    for value in asked:
        plain = value.item() if getattr(value, "ndim", None) == 0 else value
        at = place.get(plain) if isinstance(plain, int | str) and not isinstance(plain, bool) else None
        if at is None:
            raise unknown(where, plain, ids)
        found[at] = None
    return list(found)


def unknown(where: str, asked: Any, ids: Sequence[Id]) -> UnknownId:
    """Return (not raise) the error for an id that there is none of."""
    some = ", ".join(map(repr, ids[:SHOWN]))
    more = f" … ({len(ids):,} in all)" if len(ids) > SHOWN else ""
    return UnknownId(
        where, expected=f"an id: {some}{more}" if ids else "an id, where there is none", got=repr(asked)[:100],
        do=_guess(asked, ids),
    )  # fmt: skip


def _guess(asked: Any, ids: Sequence[Id]) -> str:
    if isinstance(asked, slice | tuple):
        return "Ids are asked for one by one; by position it is .values[...]."
    told = str(asked)
    same = [value for value in ids if str(value) == told]
    if same:
        return f"Did you mean {same[0]!r}, {'text' if isinstance(same[0], str) else 'a number'}?"
    if isinstance(asked, int) and not isinstance(asked, bool) and -len(ids) <= asked < len(ids):
        return f"Ids are not positions: the one at {asked} is {ids[asked]!r}."
    near = get_close_matches(told, [str(value) for value in ids[:COMPARED]], n=1)
    return f"Did you mean {near[0]!r}?" if near and isinstance(asked, str) else ""
