"""A run folder: what is in which file, and how it is read back.

::

    run.json         format, fingerprints, what was asked, how it is read, notes; created exclusively, written first
    plan.json        batch size, layout, units; revised where memory ran out
    queries.parquet  a row for each query: id, baseline, rise, length, step, status …
    base/            losses before: row, loss, a file for each shard
    scores/b-*/s-*   query int32, row int64, score float32, sorted by (query, row), a file for each unit
    uncertainty/     of scores over checkpoints, or of two sides, in the same form
    cross/b-*        the same for the queries read as if they were training examples
    train.parquet    a row for each training example: id, baseline
    done.json        cost; written last
    texts.parquet    command line only: what the strongest examples say, where they are texts
    events.jsonl     when what happened (not part of the result)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from forwardinf.core.errors import FileError, RunMismatch
from forwardinf.core.files import once, read_json, read_table, sweep, write_json, write_table, written
from forwardinf.core.fingerprint import differences
from forwardinf.core.paths import refuse_links_out
from forwardinf.score.top import Floats, Ints

RUN = "forwardinf.run/1"
SCORES = "forwardinf.scores/1"
BASE = "forwardinf.base/1"
QUERIES = "forwardinf.queries/1"
TRAIN = "forwardinf.train/1"
DONE = "forwardinf.done/1"

Entry = tuple[int, Ints, Floats]  # query, places, scores


class Folder:
    """One run folder. Every file in it is whole or absent."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is created yet."""
        self.path = path

    def claim(
        self, made_from: Mapping[str, Any], about: Mapping[str, Any], *, overwrite: bool, config: str | None = None
    ) -> bool:
        """Make the folder this run's. Return True if it was already (resume), False if it is new.

        ``config`` is what replays a command-line run; it is there before run.json is, so that no kill comes between.

        Raises:
            RunMismatch: It belongs to another run.
            FileError: It holds something that is not a run.
        """
        if overwrite:
            self.clear()
        path = self.path / "run.json"
        if (
            not overwrite  # what is left then is not ours, and stays
            and not path.exists()
            and self.path.is_dir()
            and any(p.name != "config.yaml" and not p.name.startswith(".") for p in self.path.iterdir())
        ):
            raise FileError(str(self.path), expected="an empty folder, or one of ours", got="a folder with other files",
                            do="Choose another output_dir.")  # fmt: skip
        if config is not None and not path.exists():
            with written(self.path / "config.yaml") as part:
                part.write_text(config, encoding="utf-8")
        content = {"format": RUN, "made_from": dict(made_from), "about": dict(about)}
        if once(path, lambda part: part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")):
            return False
        sweep(self.path)
        differs = differences(self.run()["made_from"], dict(made_from))
        if differs:
            raise RunMismatch(str(self.path), differs=differs,
                              do="Choose another output_dir, or overwrite=True to start over.")  # fmt: skip
        return True

    def clear(self) -> None:
        """Remove what a run wrote; leave other files alone. run.json goes first: no half-removed run looks whole."""
        if not self.path.is_dir():
            return
        refuse_links_out(self.path)
        if (
            any(self.path.iterdir())
            and not (self.path / "run.json").is_file()
            and not (self.path / ".cleared").is_file()
        ):
            raise FileError(str(self.path), expected="a run folder", got="a folder with other files",
                            do="overwrite=True removes only our own files; choose another output_dir.")  # fmt: skip
        (self.path / ".cleared").touch()
        for name in (
            "run.json",
            "config.yaml",
            "done.json",
            "plan.json",
            "queries.parquet",
            "train.parquet",
            "events.jsonl",
            "texts.parquet",
        ):
            (self.path / name).unlink(missing_ok=True)
        for pattern in ("base/*.parquet", "scores/b-*/s-*.parquet", "cross/b-*.parquet", "uncertainty/b-*/s-*.parquet"):
            for file in self.path.glob(pattern):
                file.unlink()
        for folder in sorted((p for p in self.path.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        sweep(self.path)
        (self.path / ".cleared").unlink()

    def run(self) -> dict[str, Any]:
        """Return run.json."""
        refuse_links_out(self.path)
        return read_json(self.path / "run.json", RUN, what="a forwardinf run folder")

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
        write_table(self.path / name, {
            "query": np.concatenate([np.full(len(p), q, dtype=np.int32) for q, p, _ in entries]),
            "row": np.concatenate([p for _, p, _ in entries]).astype(np.int64),
            "score": np.concatenate([s for _, _, s in entries]).astype(np.float32),
        }, SCORES)  # fmt: skip

    def entries(self, pattern: str) -> Iterator[Entry]:
        """Yield (query, places, scores) from the files that match, in order of the files."""
        for path in sorted(self.path.glob(pattern)):
            table = read_table(path, SCORES, what="scores")
            try:
                query, row, score = (table[name].to_numpy() for name in ("query", "row", "score"))
            except KeyError as error:
                raise FileError(str(path), expected="columns query, row, score", got=str(table.column_names)) from error
            starts = np.flatnonzero(np.diff(query, prepend=-1))  # none where nothing was kept
            for start, stop in zip(starts, [*starts, len(query)][1:], strict=True):
                yield int(query[start]), row[start:stop], score[start:stop]

    def write_columns(self, name: str, columns: Mapping[str, Any], format: str) -> None:
        """Write a table with a row for each query or training example."""
        write_table(self.path / name, dict(columns), format)

    def columns(self, name: str, format: str, what: str) -> dict[str, Any]:
        """Read such a table back."""
        if not self.has(name):
            raise FileError(str(self.path / name), expected=what, got="no such file",
                            do="The run has not finished: resume it.")  # fmt: skip
        table = read_table(self.path / name, format, what=what)
        return {column: table[column].to_pylist() for column in table.column_names}

    def write_base(self, shard: int, places: Ints, losses: Any) -> None:
        """Write one shard of the baseline."""
        write_table(self.path / f"base/s-{shard:05d}.parquet", {"row": places, "loss": losses}, BASE)

    def base(self, shard: int) -> Any:
        """Return one shard of the baseline, float64, or None."""
        path = self.path / f"base/s-{shard:05d}.parquet"
        return read_table(path, BASE, what="a baseline")["loss"].to_numpy().copy() if path.is_file() else None

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the run as complete."""
        write_json(self.path / "done.json", {"format": DONE, **facts})


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
