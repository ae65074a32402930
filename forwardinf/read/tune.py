"""Find the batch size and memory layout at which this model reads fastest, on a few batches of its own data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forwardinf.core.errors import FileError, ModelError
from forwardinf.core.feed import Feed
from forwardinf.core.files import read_json, write_json
from forwardinf.core.memory import out_of_memory

FORMAT = "forwardinf.tuning/1"
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TURNS = 3
Work = Callable[[Feed, Sequence[int], int], Any]
WORTH = 0.97  # a larger batch must be 3 % faster: differences below that are noise, and memory is not free


@dataclass(frozen=True)
class Tuning:
    """How a model reads fastest.

    Attributes:
        batch_size: Examples at a time.
        channels_last: Images laid out pixel by pixel.
        seconds_per_row: Measured at that setting (F* / N).
        eager_seconds_per_row: At the best batch size in the ordinary layout (F / N).
    """

    batch_size: int
    channels_last: bool
    seconds_per_row: float
    eager_seconds_per_row: float


def tune(
    feed: Feed, rows: Sequence[int], batch_size: int | None, budget: float, kept: Path | None,
    work: Work | None = None,
) -> Tuning:  # fmt: skip
    """Return the fastest setting found within about ``budget`` seconds.

    Args:
        feed: Model and data. Its own layout is ignored.
        rows: The rows to be read; the first few are tried.
        batch_size: Asked for by the user: only the layout is tried then (and halves of it where memory runs out).
        budget: Seconds. At least one size of each layout is tried whatever it says.
        kept: A file that holds an earlier result for the same model, machine and threads, or takes this one.
        work: What is timed: reads some rows, so many at a time. Default: their losses, by forward passes.
    """
    if kept is not None and kept.is_file():
        try:
            found = read_json(kept, FORMAT, what="a tuning result")
            return Tuning(**found["tuning"])
        except (FileError, KeyError, TypeError):
            kept.unlink(missing_ok=True)  # a damaged cache entry is worth nothing
    search = _Search(work or (lambda trial, piece, size: trial.losses(piece, size)))
    tuning = search.best(feed, rows, batch_size, time.monotonic() + budget)
    if kept is not None:
        write_json(kept, {"format": FORMAT, "tuning": asdict(tuning)})
    return tuning


class _Search:
    """Times one kind of work at one setting after another."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def best(self, feed: Feed, rows: Sequence[int], batch_size: int | None, until: float) -> Tuning:
        """Try layouts and sizes; see :func:`tune`."""
        layouts = (False, True) if any(isinstance(m, nn.Conv2d) for m in feed.model.modules()) else (False,)
        best: dict[bool, tuple[float, int]] = {}
        for channels_last in layouts:
            trial = replace(feed, channels_last=channels_last)
            for sizes in _sizes(len(rows), batch_size):
                if channels_last in best and (best[channels_last][1] > 2 * sizes[0] or time.monotonic() > until):
                    break  # it likes them large, or long enough
                for size in sizes:
                    took = self.seconds_per_row(trial, rows[:size], size)
                    if took is None:  # out of memory: larger ones would be too, smaller ones may fit
                        if size > sizes[-1]:
                            continue
                        break
                    if channels_last not in best or took < WORTH * best[channels_last][0]:
                        best[channels_last] = took, size
                    if took > 1.25 * best[channels_last][0] or time.monotonic() > until or batch_size:
                        break  # past the best size, or long enough, or what was asked for
        if False not in best:
            raise ModelError("reading", expected="room for one example", got="out of memory",
                             do="Use a device with more memory.")  # fmt: skip
        layout = True in best and best[True][0] < WORTH * best[False][0]
        return Tuning(best[layout][1], layout, best[layout][0], best[False][0])

    def seconds_per_row(self, feed: Feed, rows: Sequence[int], size: int) -> float | None:
        """Return the median over a few readings of one batch, or None where it does not fit into memory."""
        times = []
        for _ in range(TURNS + 1):  # the first turn warms up
            start = time.perf_counter()
            try:
                self.work(feed, rows, size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                return None
            if feed.device.type == "cuda":
                torch.cuda.synchronize(feed.device)
            times.append((time.perf_counter() - start) / len(rows))
        return statistics.median(times[1:])


def _sizes(rows: int, asked: int | None) -> list[list[int]]:
    """Return batch sizes to try: from 16 up, then (for models that like it small) from 8 down; or from ``asked`` down."""
    if asked:
        return [[max(1, asked >> halvings) for halvings in range(asked.bit_length())]]
    return [[size for size in SIZES if 16 <= size <= max(rows, 16)], [size for size in reversed(SIZES) if size < 16]]
