"""What is read of training examples and queries, and each query's best matches among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forwardinf.core.errors import DataError, SettingError
from forwardinf.core.fingerprint import row_digest
from forwardinf.core.progress import ARITHMETIC, EIGENVECTORS, Advance, Stages, progress
from forwardinf.data.examples import Examples
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.task import LABELS, Classification
from forwardinf.use.features import MOST_WIDTH, NAMES, Features, features, find_layers
from forwardinf.use.inputs import NONE, Inputs
from forwardinf.use.leaks.evidence import (
    SAMPLE,
    Matches,
    Views,
    as_views,
    matches,
    whitening,
)
from forwardinf.use.responses import Probes, probe_count, responses, unit

NEAR = 20  # neighbours of a query in each free view that are read when not all are


ALL_PAIRS_UP_TO = 2 * 10**9


BUDGET = 2**26  # numbers in the table of training responses


PROBES = 2048  # responses of each example, fewer where they would not fit


@dataclass(frozen=True)
class Side:
    """One set of examples with what is known of it."""

    feed: Feed
    features: Features
    content: list[bytes]


def expect(whole: Stages, feeds: Mapping[str, Feed], named: list[list[int]] | str) -> None:
    """Say what the call will do, for its progress: see the cost in :func:`leaks`."""
    sizes = {name: len(feed.examples) for name, feed in feeds.items()}
    asked = sum(sizes.values()) - sizes["train"]
    read = sizes["train"] if named == "all" else min(sizes["train"], NEAR * len(NAMES) * asked)
    whole.say(training_rows=sizes["train"], queries=sizes["queries"], gradients_of=read, backward_passes=read + asked,
              memory_bytes=8 * (read + asked) * PROBES + 32 * min(PROBES, read) ** 2)  # fmt: skip
    for name, size in sizes.items():
        whole.expect(f"{name}: features", size)
    if named != "all":
        whole.expect("neighbours", asked * sizes["train"] * len(NAMES) * MOST_WIDTH, ARITHMETIC)
    for name, size in sizes.items():
        whole.expect(f"{name}: responses", 4 * (read if name == "train" else size))
    width, smaller = PROBES, min(PROBES, read)
    whole.expect("whitening", (read + asked + read) * width * smaller + EIGENVECTORS * smaller**3, ARITHMETIC)
    for name, size in sizes.items():
        if name != "train":
            whole.expect(
                f"{name}: matching", (size + SAMPLE) * read * (2 * width + len(NAMES) * MOST_WIDTH), ARITHMETIC
            )
    whole.expect("free alternatives", sizes["queries"] * sizes["train"] * len(NAMES) * MOST_WIDTH, ARITHMETIC)


def open_side(given: Inputs, feed: Feed) -> Side:
    """Return a set of examples with its features and contents."""
    name = feed.examples.name
    with progress(f"{name}: features", len(feed.examples), given.options.progress) as advance:
        found = features(feed, given.batch_size, advance, find_layers(feed))
    with progress(f"{name}: contents", len(feed.examples), given.options.progress) as advance:
        return Side(feed, found, content(feed.examples, given.task, advance))


def content(examples: Examples, task: Any, advance: Advance = NONE) -> list[bytes]:
    """Return the digest of each example's inputs, label apart where the task tells which it is."""
    found, kinds = list[bytes](), dict[type, bytes]()
    for row in range(len(examples)):
        found.append(row_digest(_inputs(examples[row], task), kinds))
        advance(1)
    return found


def _inputs(example: Any, task: Any) -> Any:
    plain = isinstance(task, Classification) and task.inputs is None and task.label is None
    if isinstance(example, Mapping) and plain:
        return {name: value for name, value in example.items() if name not in LABELS}
    if isinstance(example, tuple | list) and plain and len(example) > 1:
        return tuple(example[:-1])
    return example


def refuse_leaked(clean: Side, train: Side) -> None:
    """Raise DataError where clean examples are in the training set, bit for bit."""
    known = set(train.content)
    bad = [row for row, key in enumerate(clean.content) if key in known]
    if bad:
        raise DataError(f"clean, row {bad[0]}", expected="examples that are not in the training set",
                        got=f"{len(bad)} that are, bit for bit", do="Leave them out: they would hide leaks.")  # fmt: skip


def candidate_rows(candidates: Any, feeds: Mapping[str, Feed]) -> list[list[int]] | str:
    """Return ``"all"``, ``"neighbours"``, or the training rows of each query."""
    rows, asked = feeds["train"].examples, feeds["queries"].examples
    if isinstance(candidates, str):
        if candidates == "auto":
            return "all" if len(rows) * len(asked) <= ALL_PAIRS_UP_TO else "neighbours"
        if candidates in ("all", "neighbours"):
            return candidates
        raise SettingError(
            "candidates", expected="'auto', 'all', 'neighbours' or a list for each query", got=repr(candidates)
        )
    place = {value: position for position, value in enumerate(rows.ids)}
    if isinstance(candidates, Mapping):
        missing = [name for name in asked.ids if name not in candidates]
        if missing:
            raise DataError("candidates", expected="an entry for each query id", got=f"none for {missing[0]!r}")
        lists = [[place.get(value, -1) for value in candidates[name]] for name in asked.ids]
    else:
        plain = candidates.tolist() if hasattr(candidates, "tolist") else candidates
        lists = [[int(value) for value in entry] for entry in plain]
    if len(lists) != len(asked) or not all(lists):
        got = f"lists for {len(lists)}" if len(lists) != len(asked) else f"none for {asked.ids[lists.index([])]!r}"
        raise DataError("candidates", expected=f"at least one for each of {len(asked)} queries", got=got)
    if any(not 0 <= row < len(rows) for entry in lists for row in entry):
        raise DataError("candidates", expected=f"training ids, or positions that there are, from 0 to {len(rows) - 1}",
                        got="an unknown id, or a position outside")  # fmt: skip
    return lists


def rows_to_read(
    given: Inputs, named: list[list[int]] | str, sides: Mapping[str, Side]
) -> tuple[list[int], list[list[int]] | None]:
    """Return the training rows whose gradients are read, and for each query the places of its own candidates."""
    if named == "all":
        return list(range(len(sides["train"].content))), None
    wanted: set[int] = set()
    with progress("neighbours", 1, given.options.progress) as advance:
        for name in ("queries", "clean"):
            if name in sides:
                wanted |= _nearest_rows(sides[name], sides["train"])
        advance(1)
    if isinstance(named, str):
        return sorted(wanted), None
    read = sorted(wanted | {row for entry in named for row in entry})
    place = {row: at for at, row in enumerate(read)}
    return read, [[place[row] for row in entry] for entry in named]


def _nearest_rows(asked: Side, train: Side) -> set[int]:
    views = {name: unit(values) for name, values in train.features.items()}
    found: set[int] = set()
    for name, values in asked.features.items():
        if name in views:
            best = matches({name: unit(values)}, {name: views[name]}, NEAR).rows
            found |= set(best.flatten().tolist())
    known: dict[bytes, list[int]] = {}
    for row, key in enumerate(train.content):
        known.setdefault(key, []).append(row)
    for key in asked.content:
        found |= set(known.get(key, ()))
    return found


def views_of(given: Inputs, sides: Mapping[str, Side], read: list[int]) -> tuple[dict[str, Views], dict[str, Tensor]]:
    """Return the views and the plain responses of every side; of the training set, those that are read."""
    probes = Probes(given.parameters, probe_count(len(read), BUDGET, most=PROBES), given.options.seed)
    raw: dict[str, Tensor] = {}
    for name, side in sides.items():
        rows = read if name == "train" else range(len(side.content))
        with progress(f"{name}: responses", len(rows), given.options.progress) as advance:
            raw[name] = responses(side.feed, given.parameters, probes, rows=rows, advance=advance).values
    at, views = torch.tensor(read), {}
    with progress("whitening", 1, given.options.progress) as advance:
        whiten = whitening(unit(raw["train"]))
        for name, side in sides.items():
            own = {view: values[at] if name == "train" else values for view, values in side.features.items()}
            views[name] = as_views(own, raw[name], whiten)
        advance(1)
    return views, raw


def best_matches(
    given: Inputs, sides: Mapping[str, Side], views: Mapping[str, Views], read: list[int], only: list[list[int]] | None,
    count: int,
) -> dict[str, Matches]:  # fmt: skip
    """Return the best training examples of every query, and of every clean example."""
    place = {row: at for at, row in enumerate(read)}
    found: dict[str, Matches] = {}
    for name in ("queries", "clean"):
        if name in sides:
            also = _same(sides[name], sides["train"], place)
            with progress(f"{name}: matching", len(sides[name].content), given.options.progress) as advance:
                found[name] = matches(views[name], views["train"], min(count, len(read)), also=also,
                                      only=only if name == "queries" else None, advance=advance)  # fmt: skip
    return found


def _same(asked: Side, train: Side, place: Mapping[int, int]) -> list[list[int]]:
    known: dict[bytes, list[int]] = {}
    for row, key in enumerate(train.content):
        if row in place:
            known.setdefault(key, []).append(place[row])
    return [known.get(key, []) for key in asked.content]
