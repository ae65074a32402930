"""A run folder: what is in which file, and how it is read back.

::

    run.json         format, fingerprints, what was asked, how it is read, notes; created exclusively, written first
    plan.json        batch size, layout, units; created exclusively, revised where memory ran out
    queries.parquet  a row for each query: id, baseline, rise, length, step, status …
    base/            losses before: row, loss, a file for each shard
    scores/b-*/s-*   query int32, row int64, score float32, sorted by (query, row), a file for each unit
    uncertainty/     of scores over checkpoints, or of two sides, in the same form
    cross/b-*        the same for the queries read as if they were training examples
    train.parquet    a row for each training example: id, baseline
    done.json        cost, and the checksum of every table; written last
    texts.parquet    command line only: what the strongest examples say, where they are texts
    events.jsonl     when what happened (not part of the result)
    .parts-*         files that are being written, by the calls that belong to this generation of the folder

Several calls may write the same run: every file is put where none is, so that the first one counts, and all follow the plan
that is there. A folder that is started over (``overwrite``) is a new generation: the calls of the old one lose their ``.parts-*``
folder, without which nothing can be put any more.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from forwardinf.core.errors import FileError, RunMismatch
from forwardinf.core.files import as_json, checksum_of, once, read_json, read_table, save_table, sweep, written
from forwardinf.core.fingerprint import differences
from forwardinf.core.paths import refuse_links_out
from forwardinf.score.top import Floats, Ints

RUN = "forwardinf.run/1"
SCORES = "forwardinf.scores/1"
BASE = "forwardinf.base/1"
QUERIES = "forwardinf.queries/1"
TRAIN = "forwardinf.train/1"
DONE = "forwardinf.done/1"
PLAN = "forwardinf.plan/1"

TABLES = ("queries.parquet", "train.parquet")
UNITS = ("base/s-*.parquet", "scores/b-*/s-*.parquet", "cross/b-*.parquet", "uncertainty/b-*/s-*.parquet")
REPAIR = "See `forwardinf check` on its folder; `--repair` reads what is missing again."

Entry = tuple[int, Ints, Floats]  # query, places, scores


class Folder:
    """One run folder. Every file in it is whole or absent."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is created yet."""
        self.path = path
        self.generation = ""  # of the claim: who starts over makes a new one

    def claim(
        self, made_from: Mapping[str, Any], about: Mapping[str, Any], *, overwrite: bool, config: str | None = None
    ) -> bool:
        """Make the folder this run's. Return True if it was already (resume), False if it is new.

        ``config`` is what replays a command-line run; run.json holds it too, so that no kill comes between.

        Raises:
            RunMismatch: It belongs to another run.
            FileError: It holds something that is not a run.
        """
        if overwrite:
            self.clear()
        path = self.path / "run.json"
        if not overwrite and not path.exists() and self._holds_others():  # what clearing leaves is not ours, and stays
            raise FileError(str(self.path), expected="an empty folder, or one of ours", got="a folder with other files",
                            do="Choose another output_dir.")  # fmt: skip
        content = {"format": RUN, "generation": secrets.token_hex(8), "made_from": dict(made_from), "about": dict(about),
                   "config": config}  # fmt: skip
        new = once(path, lambda part: part.write_text(as_json(content), "utf-8"))
        kept = self.run()
        differs = differences(kept["made_from"], dict(made_from))
        if differs:
            raise RunMismatch(str(self.path), differs=differs,
                              do="Choose another output_dir, or overwrite=True to start over.")  # fmt: skip
        self.generation = str(kept.get("generation", ""))
        sweep(self.path)
        if kept.get("config") is not None:
            self._put("config.yaml", lambda part: part.write_text(kept["config"], encoding="utf-8"))
        return not new

    def _holds_others(self) -> bool:
        return self.path.is_dir() and any(
            p.name != "config.yaml" and not p.name.startswith(".") for p in self.path.iterdir()
        )

    def _enter(self) -> None:
        """Make the place for parts of this generation, if it still stands.

        Who starts over removes run.json first and then every place for parts: so either the second look at run.json fails
        here, or this place for parts is removed too.
        """
        with suppress(FileNotFoundError):  # the folder itself is gone
            try:
                self._parts.mkdir(exist_ok=True)
            except PermissionError as error:
                raise FileError(str(self.path), expected="a folder that can be written", got=str(error),
                                do="Choose another output_dir.") from error  # fmt: skip
        try:
            self.must_stand()
        except FileError:
            self.leave()
            raise

    def must_stand(self) -> None:
        """Raise FileError where another call has started the folder over: what was read of it may be the other run's."""
        if not self.generation:
            return
        try:
            stands = self.run().get("generation") == self.generation
        except FileError:  # no run.json: just being started over
            stands = False
        if not stands:
            raise FileError(str(self.path), expected="the run that this call belongs to",
                            got="one that another call has started over",
                            do="Let that call finish, or choose another output_dir.")  # fmt: skip

    @property
    def _parts(self) -> Path:
        return self.path / f".parts-{self.generation}"

    def _put(self, name: str, make: Callable[[Path], object], *, replace: bool = False) -> None:
        """Put a file where none is (or in the place of one), whole or not at all, if this generation still stands.

        Raises:
            FileError: Another call has started the folder over; or the disk is full, and so on.
        """
        for again in (False, True):
            if self.generation and not self._parts.is_dir():
                self._enter()
            beside = self._parts if self.generation else None
            try:
                if not replace:
                    once(self.path / name, make, beside)
                    return
                with written(self.path / name, beside) as part:
                    make(part)
                return
            except FileError as error:
                if self.generation:
                    self._enter()  # says so where it was started over meanwhile
                if again or not isinstance(error.__cause__, FileNotFoundError):
                    raise  # else: a call that has finished took the place for parts away

    def clear(self) -> None:
        """Remove what a run wrote; leave other files alone. run.json goes first: no half-removed run looks whole.

        Calls that still write to it cannot put anything any more when the first file is removed.
        """
        if not self.path.is_dir():
            return
        refuse_links_out(self.path)
        if not any((self.path / name).is_file() for name in ("run.json", ".cleared")) and self._holds_others():
            raise FileError(str(self.path), expected="a run folder", got="a folder with other files",
                            do="overwrite=True removes only our own files; choose another output_dir.")  # fmt: skip
        (self.path / ".cleared").touch()
        (self.path / "run.json").unlink(missing_ok=True)
        for parts in self.path.glob(".parts-*"):
            with suppress(OSError):  # another call that starts over may have been first
                parts.rename(self.path / f".old-{secrets.token_hex(8)}")
        for old in self.path.glob(".old-*"):
            shutil.rmtree(old, ignore_errors=True)
        for name in (
            "config.yaml",
            "done.json",
            "plan.json",
            "queries.parquet",
            "train.parquet",
            "events.jsonl",
            "texts.parquet",
        ):
            (self.path / name).unlink(missing_ok=True)
        for pattern in UNITS:
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)
        sweep(self.path)
        for folder in sorted((p for p in self.path.rglob("*") if p.is_dir()), reverse=True):
            with suppress(OSError):  # not empty: somebody's
                folder.rmdir()
        (self.path / ".cleared").unlink(missing_ok=True)

    def run(self) -> dict[str, Any]:
        """Return run.json."""
        refuse_links_out(self.path)
        return read_json(self.path / "run.json", RUN, what="a forwardinf run folder")

    def replayed(self) -> dict[str, Any]:
        """Return run.json, config.yaml put back where it is missing (a kill may have come before it, or somebody)."""
        kept = self.run()
        if kept.get("config") is not None:
            once(self.path / "config.yaml", lambda part: part.write_text(kept["config"], encoding="utf-8"))
        return kept

    def event(self, what: str, **facts: Any) -> None:
        """Note when something happened."""
        path = self.path / "events.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), "event": what, **facts}) + "\n")
        except OSError as error:
            raise FileError(
                str(path), expected="room to write", got=str(error), do="Free space, then resume."
            ) from error

    def has(self, name: str) -> bool:
        """Return whether a file is there (and so whole)."""
        return (self.path / name).is_file()

    def write_entries(self, name: str, entries: Sequence[Entry]) -> None:
        """Write scores in long form, sorted by (query, row)."""
        self.write_columns(name, {
            "query": np.concatenate([np.full(len(p), q, dtype=np.int32) for q, p, _ in entries]),
            "row": np.concatenate([p for _, p, _ in entries]).astype(np.int64),
            "score": np.concatenate([s for _, _, s in entries]).astype(np.float32),
        }, SCORES)  # fmt: skip

    def entries(self, names: Iterable[str], sums: Mapping[str, str] | None = None) -> Iterator[Entry]:
        """Yield (query, places, scores) from these files, in order; ``sums`` are the checksums that they must have."""
        for name in names:
            path = self.path / name
            if not path.is_file():
                raise FileError(str(path), expected="scores of this run", got="no such file", do=REPAIR)
            table = read_table(path, SCORES, what="scores", checksum=(sums or {}).get(name))
            try:
                query, row, score = (table[name].to_numpy() for name in ("query", "row", "score"))
            except KeyError as error:
                raise FileError(str(path), expected="columns query, row, score", got=str(table.column_names)) from error
            starts = np.flatnonzero(np.diff(query, prepend=-1))  # none where nothing was kept
            for start, stop in zip(starts, [*starts, len(query)][1:], strict=True):
                yield int(query[start]), row[start:stop], score[start:stop]

    def names(self, pattern: str) -> list[str]:
        """Return the files that are there and match, in order."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.glob(pattern))

    def write_columns(self, name: str, columns: Mapping[str, Any], format: str) -> None:
        """Write a table with a row for each query or training example."""
        self._put(name, lambda part: save_table(part, dict(columns), format))

    def columns(self, name: str, format: str, what: str, checksum: str | None = None) -> dict[str, Any]:
        """Read such a table back."""
        if not self.has(name):
            raise FileError(str(self.path / name), expected=what, got="no such file",
                            do="The run has not finished: resume it.")  # fmt: skip
        table = read_table(self.path / name, format, what=what, checksum=checksum)
        return {column: table[column].to_pylist() for column in table.column_names}

    def write_plan(self, plan: Mapping[str, Any], *, revised: bool = False) -> dict[str, Any]:
        """Write the plan, unless there is one (``revised``: in its place); return the one that is there: all follow it."""
        self._put("plan.json", lambda part: part.write_text(as_json(dict(plan)), "utf-8"), replace=revised)
        return self.plan()

    def plan(self) -> dict[str, Any]:
        """Return plan.json."""
        return read_json(self.path / "plan.json", PLAN, what="a plan")

    def write_base(self, shard: int, places: Ints, losses: Any) -> None:
        """Write one shard of the baseline."""
        self.write_columns(f"base/s-{shard:05d}.parquet", {"row": places, "loss": losses}, BASE)

    def base(self, shard: int, places: Ints) -> Any:
        """Return one shard of the baseline, float64, or None; of these places, or it is refused."""
        path = self.path / f"base/s-{shard:05d}.parquet"
        if not path.is_file():
            return None
        table = read_table(path, BASE, what="a baseline")
        if not np.array_equal(table["row"].to_numpy(), places):
            raise FileError(str(path), expected="losses of the rows that the plan says", got="of others", do=REPAIR)
        return table["loss"].to_numpy().copy()

    def reopen(self) -> None:
        """Say that the run is not complete: something of it is missing and will be read again."""
        self.must_stand()
        (self.path / "done.json").unlink(missing_ok=True)

    def sums(self) -> dict[str, str]:
        """Return the checksums that the tables had when the run was finished; nothing before that."""
        if not self.has("done.json"):
            return {}
        found = read_json(self.path / "done.json", DONE, what="a finished run").get("files", {})
        return {str(name): str(value) for name, value in found.items()}

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the run as complete: from now on every table has to be what it is now."""
        tables = [name for pattern in (*TABLES, *UNITS) for name in self.names(pattern)]
        sums = {name: checksum_of(self.path / name) for name in tables}
        content = {"format": DONE, **facts, "files": sums}
        self._put("done.json", lambda part: part.write_text(as_json(content), "utf-8"))
        self.leave()

    def leave(self) -> None:
        """Take the place for parts away, unless another call is writing there what is there already."""
        with suppress(OSError):
            self._parts.rmdir()


def id_column(ids: Sequence[int | str]) -> pa.Array:
    """Return ids as a column: whole numbers, text, or (a mix, numbers beyond 64 bits, broken Unicode) each as JSON."""
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in ids):
        return pa.array(ids, pa.int64())
    if all(isinstance(value, str) and not _half(value) for value in ids):
        return pa.array(ids, pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(range(len(ids)), pa.int32()), [json.dumps(value) for value in ids])


def id_values(ids: Sequence[int | str]) -> pd.Series[Any]:
    """Return ids as a column: whole numbers, or objects as they are (broken Unicode fits no string column)."""
    return pd.Series(list(ids), dtype=None if all(isinstance(value, int) for value in ids) else object)


def id_index(ids: Sequence[int | str], name: str = "id") -> pd.Index[Any]:
    """Return ids as an index."""
    found: pd.Index[Any] = pd.Index(id_values(ids), name=name)
    return found


def _half(text: str) -> bool:
    """Return whether text holds half a surrogate pair (file names may), which UTF-8 cannot."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def plain_ids(path: Path, name: str, format: str) -> list[Any]:
    """Undo :func:`id_column`."""
    column = read_table(path, format, what="ids")[name]
    mixed = pa.types.is_dictionary(column.type)
    return [json.loads(value) if mixed else value for value in column.to_pylist()]
