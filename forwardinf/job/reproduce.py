"""What an earlier call has read must still be what the model gives: a few losses are read again."""

from __future__ import annotations

import torch

from forwardinf.core.errors import RunMismatch
from forwardinf.job.job import Job
from forwardinf.read.reproduce import ROWS, apart, differing
from forwardinf.score.store import Folder

QUERIES = 8  # asked again


def must_reproduce(job: Job, folder: Folder) -> None:
    """Refuse a folder whose numbers the model does not give any more: a few losses before, and of the queries, are read again.

    Cost: at most 32 training rows and 8 queries.

    Raises:
        RunMismatch: They differ by more than the noise floor.
        FileError: A file of the baseline is damaged.
    """
    job.baseline.recall()
    size = job.plan.batch_size
    off = differing(job.train, job.baseline.losses, job.baseline.floor, size) or _queries_differ(job, size)
    if off is not None:
        raise RunMismatch(str(folder.path), differs={"losses": off},
                          do="Something that the task or the model uses has changed (a module, a setting, a hook): choose "
                          "another output_dir, or overwrite=True to start over.")  # fmt: skip


def _queries_differ(job: Job, size: int) -> tuple[float, float] | None:
    asking = job.pusher.queries
    for query in [query for query in job.asked if query.usable][:QUERIES]:
        if len(query.rows) > ROWS:
            continue
        now = -asking.measures(query.rows, size).mean()
        off = apart(asking, torch.tensor([query.baseline], dtype=torch.float64), now[None], job.baseline.floor.loss)
        if off is not None:
            return off
    return None
