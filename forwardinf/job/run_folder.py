"""The run folder of a call: found, claimed, followed where it is this run's, refused where it is not or is true no more."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forwardinf.core.errors import SettingError
from forwardinf.core.files import read_table
from forwardinf.job.open import Opened
from forwardinf.perturb.push import Query
from forwardinf.read.plan import Plan
from forwardinf.score.store import QUERIES, Folder, id_column, plain_ids

FILE = "queries.parquet"


@dataclass(frozen=True)
class RunFolder:
    """Where a run is kept.

    Attributes:
        folder: On disk; None: nowhere.
        begun: Whether an earlier call has settled its plan there, which is followed.
    """

    folder: Folder | None
    begun: bool

    def plan(self) -> Plan | None:
        """Return the plan that is there, or None."""
        return Plan.from_dict(self.folder.plan()) if self.folder is not None and self.begun else None

    def queries(self) -> list[Query] | None:
        """Return what is known of the queries there, or None."""
        there = self.folder is not None and self.begun and self.folder.has(FILE)
        return load_queries(self.folder) if self.folder is not None and there else None


def find_folder(opened: Opened) -> RunFolder:
    """Return where a call's run is kept; one that has begun is claimed, so that another run is refused before anything is long.

    Raises:
        SettingError: The task's code cannot be told apart from another's.
        RunMismatch: The folder holds another run.
    """
    options = opened.options
    if options.output_dir is None:
        return RunFolder(None, False)
    if opened.training.code is None:
        raise SettingError(
            "output_dir", expected="a task whose code can be told apart from another's", got="one that holds something opaque",
            do="Give the function a `version` attribute and keep state out of it, or drop output_dir.",
        )  # fmt: skip
    folder = Folder(Path(options.output_dir).expanduser())
    begun = not options.overwrite and folder.has("plan.json")
    if begun:
        claim(opened, folder)
    return RunFolder(folder, begun)


def claim(opened: Opened, folder: Folder) -> None:
    """Take the folder for this call's run, or refuse.

    Raises:
        RunMismatch: It holds another run.
    """
    options = opened.options
    resumed = folder.claim(opened.made_from, opened.about(), overwrite=options.overwrite, config=options.config)
    folder.event("resumed" if resumed else "started")


def follow(folder: Folder, plan: Plan) -> bool:
    """Put the plan into the folder; return whether it is the one that stands there now: an equal call may have been first."""
    there = folder.write_plan(plan.to_dict())
    return Plan.from_dict(dict(there)) == Plan.from_dict(json.loads(json.dumps(plan.to_dict())))


def save_queries(
    folder: Folder, ids: Sequence[Any], asked: Sequence[Query], floor: np.ndarray[Any, np.dtype[np.float64]]
) -> None:
    """Write what is known of the queries: a resumed run pushes them the same way."""
    columns: dict[str, Any] = {"id": id_column(ids)}
    records = [asdict(query) for query in asked]
    for name in records[0]:
        if name != "rows":
            columns[name if name != "baseline" else "query_baseline"] = [record[name] for record in records]
    columns["rows"] = [list(record["rows"]) for record in records]
    columns["noise_floor"] = floor
    folder.write_columns(FILE, columns, QUERIES)


def load_queries(folder: Folder) -> list[Query]:
    """Return what is known of the queries.

    Raises:
        FileError: The file is damaged.
    """
    path = folder.path / FILE
    records = read_table(path, QUERIES, what="the queries of a run").to_pylist()
    plain_ids(path, "id", QUERIES)
    return [
        Query(tuple(record["rows"]), record["grad_norm"], record["query_baseline"], record["size"], record["length"],
              record["step"], record["rise"], record["status"], record["usable"], record["share_moved"],
              record.get("direction_norm", math.nan))
        for record in records
    ]  # fmt: skip
