"""The result: a score for every (query, training example), with its sign, its unit, and the query's own rise."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from torch import Tensor, from_numpy

from forwardinf.core.errors import DataError, FileError, MissingExtra, SettingError
from forwardinf.core.files import read_json
from forwardinf.core.paths import as_path
from forwardinf.core.settings import OF_RATES
from forwardinf.data.ids import Id, places_of, several
from forwardinf.score.self_influence import SelfInfluence
from forwardinf.score.stability import stability
from forwardinf.score.store import DONE, QUERIES, TRAIN, Folder, id_column, id_index, id_values, plain_ids
from forwardinf.score.top import Floats, Ints, extremes, order

Array = np.ndarray[Any, np.dtype[Any]]

# The view stands above: it is named here, not imported, so that `scores.report()` reads naturally and floors stay floors.
DRAWN_BY = "forwardinf.view.gallery"
PER_QUERY = ("rise", "query_baseline", "length", "step", "noise_floor")


@dataclass(eq=False, kw_only=True, repr=False)
class Scores:
    """What :func:`forwardinf.attribute` returns.

    ``values[q, i] > 0`` means that training example i is a *proponent* of query q: it supports it, and removing it would
    hurt the query. ``share`` is the readable form, and the one that may be compared across queries: an exact copy of
    the query has share 1.

    Attributes:
        kind: ``"linear"`` (a rate), ``"finite"`` (what happens at a stated length) or ``"probe"``.
        unit: Of a finite score; a linear one is per unit step. ``"√nats"`` where roots of losses are read; None for
            correlations and standardised means.
        ids: Training ids, in order.
        query_ids: Query ids (or group labels), in order.
        baseline: ``(N,)`` float64: training losses before; NaN where not read.
        query_baseline: ``(Q,)``: the queries' own measured losses before (a group's mean).
        rise: ``(Q,)``: how far each query's own measurement moved (linear: its rate), positive.
        cross: ``(Q, Q)``: the queries read as if they were training examples (a group: its mean).
        length: ``(Q,)``: ‖Δθ‖/‖θ‖ of each push.
        step: ``(Q,)``: the factor on the direction.
        status: ``(Q,)``: ``ok``, ``capped``, ``unreachable``, ``resampled``, or why a query was skipped.
        noise_floor: ``(Q,)``: differences below this mean nothing, in the unit of ``values``.
        signed: False for ``as_published``: scores are magnitudes.
        uncertainty: ``(Q, N)`` float32: standard errors over checkpoints; of a two-sided finite score what curvature adds
            between its sides (:func:`forwardinf.score.influence.residual`), at least the noise floor; else None.
        kept: ``"all"``, or how many best and worst of each query are kept.
        perturbation: The settings, plain.
        plan: How it was read.
        cost: ``fit_s``, ``setup_s``, ``read_s``, ``forwards``, ``peak_bytes``.
        notes: What a person should know.
        made_from: Fingerprints of model, data, queries, task.
    """

    ids: list[Id]
    query_ids: list[Id]
    baseline: Array
    query_baseline: Array
    rise: Array
    cross: Array
    length: Array
    step: Array
    status: list[str]
    noise_floor: Array
    kind: str = "linear"
    unit: str | None = "nats"
    signed: bool = True
    uncertainty: Array | None = None
    kept: int | str = "all"
    perturbation: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    made_from: Mapping[str, Any] = field(default_factory=dict)
    dense: Floats | None = None
    best: list[tuple[Ints, Floats]] = field(default_factory=list)
    pictured: tuple[Any, Any] | None = None  # (training examples, queries) that a report may show

    @property
    def values(self) -> Floats:
        """``(Q, N)`` float32, positive = proponent. NaN: not read.

        Raises:
            SettingError: Only the best and worst were kept.
        """
        if self.dense is None:
            raise SettingError("scores.values", expected="all scores", got=f"keep={self.kept}: the best and worst only",
                               do="Attribute with keep='all', or use top() and bottom().")  # fmt: skip
        return self.dense

    @property
    def share(self) -> Floats:
        """``values / rise``: 1 for an exact copy of the query. NaN where the rise is below the noise floor."""
        return cast("Floats", (self.values * self._per_rise()[:, None]).astype(np.float32))

    def cosine(self, own: SelfInfluence) -> Floats:
        """Return linear scores divided by the lengths of both gradients, ``(Q, N)`` in [−1, 1]: gᵢᵀPg_q / √(gᵢᵀPgᵢ · g_qᵀPg_q).

        Loud training examples (large gradients) count no more than quiet ones; an exact copy of a query has 1.

        Args:
            own: ``fi.self_influence`` of the same training examples, with the same direction.

        Raises:
            SettingError: The scores are no rates, or ``own`` is of other examples or of another direction.
        """
        want = {name: self.perturbation.get(name) for name in own.perturbation if name in OF_RATES}
        have = {name: own.perturbation[name] for name in want}
        if self.kind != "linear" or want != have or list(own.ids) != list(self.ids):
            apart = "another direction or reading" if want != have else "that of other examples"
            got = f"{self.kind} scores" if self.kind != "linear" else apart
            raise SettingError("scores.cosine(own)", expected="linear scores, and the self-influence of the same training "
                               "examples under the same direction", got=got,
                               do="fi.self_influence(model, train, direction=perturbation).")  # fmt: skip
        with np.errstate(divide="ignore", invalid="ignore"):
            both = np.sqrt(np.maximum(own.values, 0.0)[None] * np.maximum(self.rise, 0.0)[:, None])
            return cast("Floats", np.where(both > 0, self.values / both, np.nan).astype(np.float32))

    def __repr__(self) -> str:
        unit = f"{self.unit}, " if self.unit else ""
        kept = "" if self.kept == "all" else f", {self.kept} best and worst of each kept"
        size = f"{len(self.query_ids)} queries × {len(self.ids)} training examples"
        sign = "positive = proponent" if self.signed else "magnitudes"
        return f"Scores({size}, {self.kind}, {unit}{sign}{kept})"

    def __len__(self) -> int:
        """Return how many queries there are."""
        return len(self.query_ids)

    def __iter__(self) -> Iterator[Id]:
        """Yield the query ids: ``for query in scores: scores[query]``."""
        return iter(self.query_ids)

    def __contains__(self, query: object) -> bool:
        """Tell whether there is a query of this id."""
        return query in self.query_ids

    def __getitem__(self, query: Id) -> Floats:
        """Return the scores of one query, by its id, ``(N,)`` in the order of ``ids``. By position: ``values[place]``.

        Raises:
            UnknownId: There is no such query; says which was probably meant. It is a KeyError too.
            SettingError: Only the best and worst were kept.

        Example:
            >>> Scores.from_array([[1.0, -2.0]], query_ids=["q"])["q"].tolist()
            [1.0, -2.0]
        """
        (place,) = places_of("scores[query]", [query], self.query_ids)
        return cast("Floats", self.values[place])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return ``values`` to NumPy."""
        made = np.array if copy else np.asarray
        return cast("Array", made(self.values, dtype=dtype))

    def top(self, k: int = 10, query: Id | Iterable[Id] | None = None) -> pd.DataFrame:
        """Return each query's k strongest proponents (``as_published``: the largest magnitudes), best first.

        ``query``: the id of one query, or of several, in that order; None: all.

        Columns: ``query, rank, train, score, share, baseline, uncertainty``. Ties go by position. Over
        checkpoints also ``stability``: the probability that the member stays in the top k when every score is drawn anew from a
        normal distribution around it (:func:`forwardinf.score.stability.stability`).

        Raises:
            SettingError: k is more than was kept.
            UnknownId: There is no such query; says which was probably meant.
        """
        return self._ranked(k, query, best=True)

    def bottom(self, k: int = 10, query: Id | Iterable[Id] | None = None) -> pd.DataFrame:
        """Return each query's k strongest opponents, most negative first. Arguments and columns as in :meth:`top`."""
        self._need_sign("bottom()")
        return self._ranked(k, query, best=False)

    def total(self, weight: str = "share") -> Array:
        """Return each training example's sum over queries, ``(N,)`` float64: of shares, or of ``"score"``.

        Shares may be added across queries; finite scores of per-query lengths may not.
        """
        if weight not in ("share", "score"):
            raise SettingError("total(weight=)", expected="'share' or 'score'", got=repr(weight))
        table = self.share if weight == "share" else self.values
        found = np.nansum(table.astype(np.float64), axis=0)
        found[np.isnan(table).all(axis=0)] = np.nan
        return cast("Array", found)

    def by_train(self, labels: Sequence[Any], how: str = "sum") -> pd.DataFrame:
        """Return scores summed (``"sum"``, ``"mean"``, ``"max"``) over groups of training examples: rows are queries.

        Args:
            labels: One label for each training example.
            how: How the members' scores are joined.
        """
        labels = cast("Any", labels).tolist() if hasattr(labels, "tolist") else labels
        if len(labels) != len(self.ids):
            raise SettingError("by_train(labels=)", expected=f"{len(self.ids)} labels", got=str(len(labels)))
        if how not in ("sum", "mean", "max"):
            raise SettingError("by_train(how=)", expected="'sum', 'mean' or 'max'", got=repr(how))
        frame = pd.DataFrame(self.values.T.astype(np.float64), columns=id_index(self.query_ids, "query"))
        grouped = frame.groupby(pd.Index(list(labels), name="label"), sort=False, dropna=False)
        options = {"min_count": 1} if how == "sum" else {}
        return cast("pd.DataFrame", getattr(grouped, how)(**options).T)

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame: rows are training ids, columns are query ids."""
        return pd.DataFrame(
            self.values.T,
            index=id_index(self.ids, "train"),
            columns=id_index(self.query_ids, "query"),
        )

    def to_xarray(self) -> Any:
        """Return an ``xarray.DataArray`` with axes ``query`` and ``train``."""
        try:
            xarray = importlib.import_module("xarray")
        except ImportError as error:
            raise MissingExtra("xarray", extra="dev", need="to_xarray()") from error
        attrs = {
            "unit": self.unit or "",
            "kind": self.kind,
            "sign": "positive = proponent" if self.signed else "magnitude",
        }
        return xarray.DataArray(self.values, dims=("query", "train"), attrs=attrs, name="score",
                                coords={"query": self.query_ids, "train": self.ids})  # fmt: skip

    def to_quanda(self) -> Tensor:
        """Return a tensor ``(queries, training examples)``, higher = more influential, as quanda's metrics take it."""
        return from_numpy(self.values.copy())

    def to_dattri(self) -> Tensor:
        """Return a tensor ``(training examples, queries)``, as dattri's metrics take it."""
        return from_numpy(np.ascontiguousarray(self.values.T))

    @classmethod
    def from_array(
        cls, values: Any, *, axes: tuple[str, str] = ("query", "train"), ids: Sequence[Id] | None = None,
        query_ids: Sequence[Id] | None = None, rise: Any = None, unit: str | None = None, kind: str = "linear",
    ) -> Scores:  # fmt: skip
        """Wrap scores from elsewhere, positive = proponent.

        Args:
            values: A matrix whose axes are named by ``axes``.
            axes: ``("query", "train")`` or ``("train", "query")``.
            ids: Training ids; default the position.
            query_ids: Query ids; default the position.
            rise: ``(Q,)``, if known; shares need it.
            unit: Of the values.
            kind: ``"linear"``, ``"finite"`` or ``"probe"``.

        Raises:
            DataError: The shape does not fit the ids; where it fits transposed, the error says so.
        """
        if sorted(axes) != ["query", "train"]:
            raise SettingError("from_array(axes=)", expected="('query', 'train') or ('train', 'query')", got=repr(axes))
        try:
            plain = values.detach().cpu().float() if isinstance(values, Tensor) else values
            table = np.asarray(plain, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError("from_array(values)", expected="a matrix of numbers", got=str(error)) from error
        if table.ndim != 2:
            raise DataError("from_array(values)", expected="a matrix", got=f"shape {table.shape}")
        if tuple(axes) == ("train", "query"):
            table = table.T
        want = (table.shape[0] if query_ids is None else len(query_ids), table.shape[1] if ids is None else len(ids))
        if table.shape != want:
            fits = table.T.shape == want
            fix = f"Its axes are {tuple(reversed(axes))}: say axes={tuple(reversed(axes))!r}." if fits else ""
            raise DataError("from_array(values)", expected=f"{want[0]} queries × {want[1]} training examples",
                            got=f"{table.shape[0]} × {table.shape[1]}", do=fix)  # fmt: skip
        queries, size = want
        for name, given in (("ids", ids), ("query_ids", query_ids)):
            if given is not None and len(set(map(repr, given))) < len(given):
                raise DataError(f"from_array({name}=)", expected="unique values", got="some value twice")
        unknown = np.full(queries, np.nan)
        if rise is not None and np.shape(rise) != (queries,):
            raise DataError("from_array(rise=)", expected=f"{queries} numbers, one for each query",
                            got=f"shape {np.shape(rise)}")  # fmt: skip
        return cls(
            ids=list(ids) if ids is not None else list(range(size)),
            query_ids=list(query_ids) if query_ids is not None else list(range(queries)),
            baseline=np.full(size, np.nan), query_baseline=unknown, cross=np.full((queries, queries), np.nan),
            rise=unknown if rise is None else np.asarray(rise, dtype=np.float64), length=unknown, step=unknown,
            status=["ok"] * queries, noise_floor=np.zeros(queries), kind=kind, unit=unit,
            dense=np.ascontiguousarray(table),
        )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write a folder that :func:`load_scores` reads back. It must not exist, or be empty."""
        folder = Folder(as_path("scores", path))
        if folder.path.exists() and not (folder.path.is_dir() and not any(folder.path.iterdir())):
            raise FileError(str(path), expected="a new folder", got="one with files in it", do="Choose another.")
        folder.claim(dict(self.made_from), self.about(), overwrite=False)
        write_scores(folder, self, {"cost": dict(self.cost)})
        return folder.path

    def report(
        self, path: str | Path, show: Callable[[Any], Any] | None = None, *, k: int = 8, tokenizer: Any = None
    ) -> Path:
        """Write one HTML file that opens offline: each query beside its top proponents and opponents.

        Args:
            path: The file.
            show: ``show(example)`` gives a PIL image or text; default: pictures of tensors, text of text.
            k: How many of each.
            tokenizer: Turns token ids into text; default: the one that the data or the task was made with.
        """
        return cast(
            "Path",
            importlib.import_module(DRAWN_BY).report(self, as_path("report", path), show, k, tokenizer=tokenizer),
        )

    def about(self) -> dict[str, Any]:
        """Return what the numbers mean, plain: for run.json and for reports."""
        return {"kind": self.kind, "unit": self.unit, "signed": self.signed, "kept": self.kept, "notes": list(self.notes),
                "perturbation": dict(self.perturbation)}  # fmt: skip

    def _per_rise(self) -> Array:
        """Return 1/rise, NaN where the rise means nothing."""
        self._need_sign("share")
        with np.errstate(divide="ignore", invalid="ignore"):
            return cast("Array", np.where(np.abs(self.rise) > self.noise_floor, 1.0 / self.rise, np.nan))

    def _need_sign(self, what: str) -> None:
        if not self.signed:
            raise SettingError(what, expected="signed scores", got="preset('as_published'), whose scores are magnitudes",
                               do="Use top(), or a clean perturbation.")  # fmt: skip

    def entry(self, query: int) -> tuple[Ints, Floats]:
        """Return (places, scores) of what is kept of a query; pairs not read are left out."""
        if self.dense is None:
            return self.best[query]
        there = np.flatnonzero(~np.isnan(self.dense[query]))
        return there, self.dense[query][there]

    def _ranked(self, k: int, query: Id | Iterable[Id] | None, *, best: bool) -> pd.DataFrame:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise SettingError("top(k=)", expected="a whole number ≥ 1", got=repr(k))
        if isinstance(self.kept, int) and k > self.kept:
            raise SettingError("top(k=)", expected=f"at most {self.kept}, the number kept", got=str(k),
                               do="Attribute with a larger keep=.")  # fmt: skip
        every = range(len(self.query_ids))
        wanted = every if query is None else places_of("top(query=)", several(query), self.query_ids)
        per_rise = self._per_rise() if self.signed else np.full(len(self.query_ids), np.nan)
        errors = (
            self.uncertainty if "combine" in self.made_from else None
        )  # a bound from curvature is no standard error
        parts = [(np.empty(0, np.int64),) * 3 + (np.empty(0, np.float32),)]
        sure: list[Array] = [np.empty(0)]
        for q in wanted:
            places, scores = self.entry(q)
            chosen = order(scores, places, best=best)[:k]
            parts.append((np.full(len(chosen), q), np.arange(1, len(chosen) + 1), places[chosen], scores[chosen]))
            if errors is not None:
                sure.append(stability(scores, errors[q, places], k, best=best))
        query_of, rank, place, score = map(np.concatenate, zip(*parts, strict=True))
        found = pd.DataFrame({
            "query": id_values([self.query_ids[q] for q in query_of]), "rank": rank,
            "train": id_values([self.ids[p] for p in place]), "score": score,
            "share": score * per_rise[query_of], "baseline": self.baseline[place],
            "uncertainty": np.nan if self.uncertainty is None else self.uncertainty[query_of, place],
        })  # fmt: skip
        return found if errors is None else found.assign(stability=np.concatenate(sure))


def gather(entries: Any, queries: int, size: int, kept: int | str) -> tuple[Floats | None, list[tuple[Ints, Floats]]]:
    """Join units, whatever order they come in: ``(Q, N)`` values, or each query's best and worst.

    Returns:
        (values or None, per query (places, scores)); exactly one of them is filled.
    """
    if kept == "all":
        dense = np.full((queries, size), np.nan, dtype=np.float32)
        for query, places, scores in entries:
            dense[query, places] = scores
        return dense, []
    pieces: list[list[tuple[Ints, Floats]]] = [[] for _ in range(queries)]
    for query, places, scores in entries:
        pieces[query].append((places, scores))
    best = []
    for found in pieces:
        places = np.concatenate([p for p, _ in found]) if found else np.empty(0, np.int64)
        scores = np.concatenate([s for _, s in found]) if found else np.empty(0, np.float32)
        scores, places = extremes(scores, places, int(kept))
        best.append((places, scores))
    return None, best


def write_facts(folder: Folder, scores: Scores) -> None:
    """Write the tables with a row for each query and each training example."""
    folder.write_columns("train.parquet", {"id": id_column(scores.ids), "loss": scores.baseline}, TRAIN)
    if not folder.has("queries.parquet"):
        columns = {name: np.asarray(getattr(scores, name), dtype=np.float64) for name in PER_QUERY}
        folder.write_columns("queries.parquet", {"id": id_column(scores.query_ids), "status": scores.status, **columns},
                             QUERIES)  # fmt: skip


def write_scores(folder: Folder, scores: Scores, done: Mapping[str, Any]) -> None:
    """Write everything into a folder that is claimed; ``done`` goes into done.json, last."""
    write_facts(folder, scores)
    queries = range(len(scores.query_ids))
    if queries:
        entries = [(q, *scores.entry(q)) for q in queries]
        folder.write_entries("scores/b-00000/s-00000.parquet", entries)
        places = np.arange(len(queries))
        folder.write_entries("cross/b-00000.parquet", [(q, places, scores.cross[q]) for q in queries])
        if scores.uncertainty is not None:
            spread = scores.uncertainty
            folder.write_entries(
                "uncertainty/b-00000/s-00000.parquet", [(q, at, spread[q, at]) for q, at, _ in entries]
            )
    folder.finish(done)


def load_scores(path: str | Path) -> Scores:
    """Read scores back from a run folder or from :meth:`Scores.save`.

    Args:
        path: The folder.

    Raises:
        FileError: The folder is not ours, is damaged, is of a newer format, or the run in it has not finished.

    Example:
        >>> import tempfile
        >>> folder = Scores.from_array([[1.0, -2.0]]).save(tempfile.mkdtemp() + "/s")
        >>> load_scores(folder).top(1)["train"].item()
        0
    """
    folder = Folder(as_path("scores", path))
    run = folder.run()
    if not folder.has("done.json"):
        raise FileError(str(path), expected="a finished run", got="one that was interrupted",
                        do="Resume it: the same call again, or `forwardinf resume`.")  # fmt: skip
    done = read_json(folder.path / "done.json", DONE, what="a finished run")
    about = run["about"]
    sums = folder.sums()
    facts = folder.columns("queries.parquet", QUERIES, "the queries of a run", sums.get("queries.parquet"))
    query_ids = plain_ids(folder.path / "queries.parquet", "id", QUERIES)
    ids = plain_ids(folder.path / "train.parquet", "id", TRAIN)
    losses = folder.columns("train.parquet", TRAIN, "training ids", sums.get("train.parquet"))["loss"]
    size = len(query_ids)

    def found(what: str) -> list[str]:
        there = folder.names(f"{what}/**/*.parquet") if not sums else sorted(sums)
        return [name for name in there if name.startswith(f"{what}/")]

    try:
        dense, best = gather(folder.entries(found("scores"), sums), size, len(ids), about["kept"])
        cross, _ = gather(folder.entries(found("cross"), sums), size, size, "all")
        spread = found("uncertainty")
        uncertainty = gather(folder.entries(spread, sums), size, len(ids), "all")[0] if spread else None
    except IndexError as error:
        want = f"scores of {size} queries and {len(ids)} training examples"
        raise FileError(str(path), expected=want, got="scores of other queries or examples",
                        do="The folder mixes runs: start over with overwrite=True.") from error  # fmt: skip
    plan = folder.plan() if folder.has("plan.json") else {}
    assert cross is not None
    return Scores(
        ids=ids, query_ids=query_ids, dense=dense, best=best, cross=cross.astype(np.float64),
        baseline=np.asarray(losses, dtype=np.float64),
        status=facts["status"], kind=about["kind"], unit=about["unit"], signed=about["signed"], kept=about["kept"],
        perturbation=about["perturbation"], notes=[*about["notes"], *done.get("notes", [])], plan=plan,
        cost=done.get("cost", {}), made_from={**run["made_from"], **done.get("made_from", {})}, uncertainty=uncertainty,
        **cast("Any", {name: np.asarray(facts[name], dtype=np.float64) for name in PER_QUERY}),
    )  # fmt: skip
