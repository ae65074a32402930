"""Is this test example, or a near copy of it, in the training set? The training examples that react as its copies."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError, SettingError
from forwardinf.core.fingerprint import row_digest
from forwardinf.core.progress import ARITHMETIC, EIGENVECTORS, Advance, Setting, Stages, progress, stages
from forwardinf.data.examples import Collate, Examples, Id
from forwardinf.job.options import Options
from forwardinf.models.borrowed import borrowed
from forwardinf.score.scores import Scores
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.task import LABELS, Classification
from forwardinf.use.features import MOST_WIDTH, NAMES, Features, features, find_layers
from forwardinf.use.inputs import NONE, Opened, checked_count, checked_share, opened
from forwardinf.use.leaks.evidence import (
    SAMPLE,
    STANDS_OUT,
    Matches,
    Views,
    as_views,
    counted_views,
    matches,
    whitening,
)
from forwardinf.use.leaks.fdr import LEAST_CLEAN, LEAST_QUERIES, Null, benjamini_hochberg, from_clean, from_test_set
from forwardinf.use.responses import Probes, probe_count, responses, unit
from forwardinf.use.tables import ByQuery, Found, id_index, id_values

COLUMNS = ("query", "rank", "train", "cosine", "share", "input_similarity", "feature_similarity", "same_content", "score",
           "is_leak", "evidence")  # fmt: skip
UNITS = {
    "cosine": "of the responses to the same perturbations; 1 = the training example responds as the query does",
    "share": "1 (100 %) = the pair's reaction is as large as the query's own",
    "input_similarity": "cosine of the inputs", "feature_similarity": "cosine of a layer's features",
    "score": "how far the pair stands out among the query's nearest neighbours, in multiples of what is usual for neighbours, "
             "added over the views",
}  # fmt: skip
NEAR = 20  # neighbours of a query in each free view that are read when not all are
ALL_PAIRS_UP_TO = 2 * 10**9
BUDGET = 2**26  # numbers in the table of training responses
PROBES = 2048  # responses of each example, fewer where they would not fit


@dataclass(frozen=True, eq=False, repr=False)
class Leaks(ByQuery, Found):
    """What :func:`leaks` returns. ``found[query]`` is one query's pairs, ``found.top(k, query=[…])`` those of several.

    Attributes:
        p_values: For each query, the chance that a clean query's best match scores as high; NaN where uncalibrated.
        fdr: The false-discovery rate that the decision is made at.
    """

    p_values: pd.Series[float] | None = None
    fdr: float = 0.05

    @property
    def query_ids(self) -> list[Id]:
        """The queries' ids, in order."""
        ids: list[Id] = self.table["query"].unique().tolist() if self.p_values is None else self.p_values.index.tolist()
        return ids

    @property
    def decided(self) -> str:
        """How many queries have a copy, in words."""
        found = int(self.table.groupby("query", sort=False)["is_leak"].any().sum())
        among = f" among {len(self.pictured['train']):,} training examples" if "train" in self.pictured else ""
        return f"{found:,} of {len(self):,} queries have a copy{among}"

    @property
    def rule(self) -> str:
        """What was decided by, in words."""
        return f"score of at least {self.threshold:.3g}, or the same content"

    @property
    def rate(self) -> str:
        """How often a clean query is accused, in words."""
        if self.false_positive_rate is None:
            return "uncalibrated, no false-positive rate"
        return f"false-discovery rate {100 * self.fdr:.2g} %, {super().rate}"


@dataclass(frozen=True)
class _Side:
    """One set of examples with what is known of it."""

    feed: Feed
    features: Features
    content: list[bytes]


def leaks(
    model: nn.Module,
    train: Any,
    queries: Any,
    *,
    task: Any,
    clean: Any = None,
    candidates: Literal["auto", "all", "neighbours"] | Any = "auto",
    fdr: float = 0.05,
    k: int = 3,
    ids: str | Sequence[Id] | None = None,
    query_ids: str | Sequence[Id] | None = None,
    parameters: str | Sequence[str] | None = None,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    progress: Setting = "auto",
    seed: int = 0,
) -> Leaks:
    """Find, for every query, the training examples that are (near) copies of it, and decide which queries leaked.

    An exact copy reacts to every perturbation of the model as the query does: its share is 1 and the cosine of their
    responses is 1. Near copies come close. A pair's score adds up how far it stands out among the query's neighbours in
    four views (whitened responses, inputs, an early and the last layer's features; see ``use/leaks/evidence.py``), and the
    decision compares the best pair of each query with those of clean queries.

    Cost: one forward pass over the training set for the features, about 4 F for the responses (one gradient pass), and
    Q·N products of vectors. Memory: about 4,000 numbers for each training example.

    Args:
        model: As in :func:`attribute`.
        train: As in :func:`attribute`.
        queries: The test examples, in the same forms.
        task: What an example's loss is. Any task will do; inputs are compared where it can tell them from the label.
        clean: Examples known not to be in the training set (at least 20), of the queries' kind: their best matches are
            the null distribution. Without them the middle of at least 50 queries is (leaks must be fewer than 15 %);
            with fewer queries the decision is uncalibrated, and says so.
        candidates: ``"all"`` reads every training example's gradient; ``"neighbours"`` only those of the 20 nearest of
            each query in each free view (two stages, for large sets); ``"auto"``: all up to 2e9 pairs. Or a list of
            training positions for each query, or ``{query id: training ids}``: only those are read.
        fdr: The false-discovery rate q of the decision over the queries (Benjamini–Hochberg).
        k: Pairs for each query.
        ids: As in :func:`attribute`.
        query_ids: As in :func:`attribute`.
        parameters: Globs over the names of the parameters whose responses count.
        collate_fn: As in :func:`attribute`.
        num_workers: As in :func:`attribute`.
        batch_size: Examples at a time in forward passes.
        device: As in :func:`attribute`.
        progress: As in :func:`attribute`.
        seed: Of the probes and of what the data draws.

    Returns:
        :class:`Leaks`. ``table``: k rows for each query, best first. ``cosine``: of the responses to shared probes (1: reacts
        as the query does). ``share``: what the pair's reaction is of the query's own (both are exact where the model has
        fewer weights than there are probes, else estimates). ``same_content``: equal inputs, bit for bit. ``score``: mean
        excesses over the query's own neighbourhood, added over views. ``evidence``: what stands out, in words.

    Raises:
        Error: With where / expected / got / do.

    Example:
        >>> import torch, forwardinf as fi
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(40, 8), torch.randint(2, (40,))
        >>> found = fi.leaks(torch.nn.Linear(8, 2), (x, y), (x[:2], y[:2]), task=fi.Classification(), k=1)
        >>> found.table["train"].tolist(), found.table["same_content"].tolist()
        ([0, 1], [True, True])
    """
    options = Options(batch_size=batch_size, device=device, num_workers=num_workers, progress=progress, seed=seed)
    began, q, count = time.perf_counter(), checked_share("fdr", fdr), checked_count("k", k)
    with stages("leaks", progress) as whole, borrowed(model) as model:
        given = opened(model, task, options, collate_fn, parameters)
        feeds = {"train": given.feed(train, "train", ids), "queries": given.feed(queries, "queries", query_ids)}
        if clean is not None:
            feeds["clean"] = given.feed(clean, "clean")
            if len(feeds["clean"].examples) < LEAST_CLEAN:
                raise DataError("clean", expected=f"at least {LEAST_CLEAN} examples", got=str(len(feeds["clean"].examples)),
                                do="Pass more, or none: the queries are then their own null.")  # fmt: skip
        named = _candidates(candidates, feeds)
        _expect(whole, feeds, named)
        sides = {name: _side(given, feed) for name, feed in feeds.items()}
        if "clean" in sides:
            _refuse_leaked(sides["clean"], sides["train"])
        read, only = _rows(given, named, sides)
        views, raw = _views(given, sides, read)
        notes = [*feeds["train"].examples.notes, *feeds["queries"].examples.notes]
        found = _matched(given, sides, views, read, only, count)
        null = _null(found, notes)
        table, p_values, threshold = _table(found["queries"], raw, sides, read, null, q)
        baselines = _baselines(given, table, sides, count)
    cost = {"seconds": round(time.perf_counter() - began, 3), "probes": raw["train"].shape[1], "gradients_read": len(read),
            "pairs": len(read) * len(sides["queries"].content)}  # fmt: skip
    rate = None if null is None else float(null.p_value(threshold))
    return Leaks(
        "leaks", table, "is_leak", threshold, rate, _told(null, q), baselines,
        UNITS,
        notes, cost, {"train": sides["train"].feed.examples, "queries": sides["queries"].feed.examples}, p_values, q,
    )  # fmt: skip


def response_cosine(scores: Scores) -> Tensor:
    """Return the cosine of each training example's responses to all queries with each query's own, ``(Q, N)``.

    Any kind of scores will do, finite ones too; at least two queries, and ``cross`` (single queries measured by their loss).
    """
    after = torch.from_numpy(np.nan_to_num(scores.values.astype(np.float64)))
    own = torch.from_numpy(np.nan_to_num(scores.cross.astype(np.float64)))
    return unit(own.T) @ unit(after.T).T


# -- what is read --------------------------------------------------------------------------------------------------------


def _expect(whole: Stages, feeds: Mapping[str, Feed], named: list[list[int]] | str) -> None:
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


def _side(given: Opened, feed: Feed) -> _Side:
    name = feed.examples.name
    with progress(f"{name}: features", len(feed.examples), given.options.progress) as advance:
        found = features(feed, given.batch_size, advance, find_layers(feed))
    with progress(f"{name}: contents", len(feed.examples), given.options.progress) as advance:
        return _Side(feed, found, content(feed.examples, given.task, advance))


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


def _refuse_leaked(clean: _Side, train: _Side) -> None:
    known = set(train.content)
    bad = [row for row, key in enumerate(clean.content) if key in known]
    if bad:
        raise DataError(f"clean, row {bad[0]}", expected="examples that are not in the training set",
                        got=f"{len(bad)} that are, bit for bit", do="Leave them out: they would hide leaks.")  # fmt: skip


def _candidates(candidates: Any, feeds: Mapping[str, Feed]) -> list[list[int]] | str:
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


def _rows(
    given: Opened, named: list[list[int]] | str, sides: Mapping[str, _Side]
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


def _nearest_rows(asked: _Side, train: _Side) -> set[int]:
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


def _views(given: Opened, sides: Mapping[str, _Side], read: list[int]) -> tuple[dict[str, Views], dict[str, Tensor]]:
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


def _matched(
    given: Opened, sides: Mapping[str, _Side], views: Mapping[str, Views], read: list[int], only: list[list[int]] | None,
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


def _same(asked: _Side, train: _Side, place: Mapping[int, int]) -> list[list[int]]:
    known: dict[bytes, list[int]] = {}
    for row, key in enumerate(train.content):
        if row in place:
            known.setdefault(key, []).append(place[row])
    return [known.get(key, []) for key in asked.content]


# -- what it means -------------------------------------------------------------------------------------------------------


def _null(found: Mapping[str, Matches], notes: list[str]) -> Null | None:
    if "clean" in found:
        return from_clean(found["clean"].score[:, 0].numpy())
    best = found["queries"].score[:, 0].numpy()
    if len(best) >= LEAST_QUERIES:
        notes.append(
            "no clean examples were given: the middle of the queries' own scores stands for what is clean, "
            "which holds while fewer than 15 % of the queries leaked"
        )
        return from_test_set(best)
    notes.append(
        f"uncalibrated: for a false-positive rate pass clean=, at least {LEAST_CLEAN} examples that are not in the training set, "
        f"or at least {LEAST_QUERIES} queries"
    )
    return None


def _told(null: Null | None, q: float) -> str:
    if null is None:
        return "uncalibrated"
    return f"null: {null.source}; Benjamini–Hochberg over the queries, q = {q:g}"


def _table(
    found: Matches, raw: Mapping[str, Tensor], sides: Mapping[str, _Side], read: list[int], null: Null | None, q: float
) -> tuple[pd.DataFrame, pd.Series[float], float]:
    """Return (the pairs, p-values by query, threshold of the score)."""
    asked, rows = sides["queries"], sides["train"]
    best = found.score[:, 0].double().numpy()
    if null is None:
        p = np.full(len(best), np.nan)
        threshold = STANDS_OUT * counted_views(found.z)
    else:
        p = null.p_value(best)
        rejected = benjamini_hochberg(p, q)
        cut = q * max(1, int(rejected.sum())) / len(p)  # where Benjamini–Hochberg stopped
        threshold = null.value_at(cut) if cut < null.share else float(best[rejected].min())
    kept: list[dict[str, Any]] = []
    names = list[Id](), list[Id]()
    feature = next((name for name in ("early", "last") if name in found.cosine), None)
    for query, name in enumerate(asked.feed.examples.ids):
        own = raw["queries"][query]
        power = float(own @ own)
        for rank in range(found.rows.shape[1]):
            at, score = int(found.rows[query, rank]), float(found.score[query, rank])
            if score == -np.inf:  # fewer candidates than rows
                continue
            same = rows.content[read[at]] == asked.content[query]
            names[0].append(name)
            names[1].append(rows.feed.examples.ids[read[at]])
            kept.append({
                "rank": rank + 1,
                "cosine": float(found.cosine["response"][query, rank]),
                "share": float(raw["train"][at] @ own) / power if power > 0 else float("nan"),
                "input_similarity": _at(found, "input", query, rank),
                "feature_similarity": _at(found, feature, query, rank),
                "same_content": same, "score": score, "is_leak": bool(same or score >= threshold),
                "evidence": _evidence(found, query, rank, same, null),
            })  # fmt: skip
    table = pd.DataFrame(kept).assign(query=id_values(names[0]), train=id_values(names[1]))[list(COLUMNS)]
    return table, pd.Series(p, index=id_index(asked.feed.examples.ids, "query"), name="p_value"), threshold


def _at(found: Matches, view: str | None, query: int, rank: int) -> float:
    return float(found.cosine[view][query, rank]) if view in found.cosine else float("nan")


def _evidence(found: Matches, query: int, rank: int, same: bool, null: Null | None) -> str:
    """Say which views the pair stands out in."""
    names = {
        "response": "responses",
        "whitened": "whitened responses",
        "input": "input",
        "early": "early layer",
        "last": "last layer",
    }
    told = ["same content"] if same else []
    told += [names[view] for view, z in found.z.items() if float(z[query, rank]) >= STANDS_OUT]
    return ", ".join(told) + (" (uncalibrated)" if told and null is None else "")


def _baselines(given: Opened, table: pd.DataFrame, sides: Mapping[str, _Side], count: int) -> pd.DataFrame:
    """Return, for each query and rank, what each free view alone would have named."""
    asked, rows = sides["queries"], sides["train"]
    frame: dict[str, Any] = {"query": table["query"], "rank": table["rank"]}
    place = {value: at for at, value in enumerate(asked.feed.examples.ids)}
    at = [(place[query], rank - 1) for query, rank in zip(frame["query"], frame["rank"], strict=True)]
    views = [view for view in NAMES if view in asked.features and view in rows.features]
    with progress("free alternatives", len(views), given.options.progress) as advance:
        for view in views:
            size = len(rows.content)
            best = matches({view: unit(asked.features[view])}, {view: unit(rows.features[view])}, min(count, size))
            near = [rows.feed.examples.ids[int(best.rows[query, rank])] for query, rank in at]
            frame[f"{view}_neighbour"] = id_values(near)
            frame[f"{view}_similarity"] = [float(best.cosine[view][query, rank]) for query, rank in at]
            advance(1)
    known = set(rows.content)
    frame["same_content"] = [asked.content[query] in known for query, _ in at]
    return pd.DataFrame(frame)


def best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows query by query, those with a leak first, the strongest first."""
    order = rows.groupby("query", sort=False)["score"].transform("max")
    keys = pd.DataFrame({"leak": ~rows.groupby("query", sort=False)["is_leak"].transform("any"), "score": -order})
    return rows.loc[keys.assign(rank=rows["rank"]).sort_values(["leak", "score", "rank"], kind="stable").index]
