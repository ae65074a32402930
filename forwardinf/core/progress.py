"""Long work says how far it is and how long it will take: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int], None]
Setting = Literal["auto"] | bool

QUIET_SECONDS = 2.0  # work shorter than this says nothing when progress="auto"
LINE_SECONDS = 5.0


@contextmanager
def progress(title: str, total: int, setting: Setting = "auto") -> Iterator[Advance]:
    """Yield ``advance(done)``, to be called as units are done; shows on stderr only.

    Args:
        title: What is being done.
        total: How many units in all.
        setting: ``True`` always shows, ``False`` never, ``"auto"`` shows work that takes longer than two seconds.
    """
    if setting is False or total <= 0:
        yield lambda done: None
    elif sys.stderr.isatty():
        with _bar(title, total, setting) as advance:
            yield advance
    else:
        yield _lines(title, total, setting)


@contextmanager
def _bar(title: str, total: int, setting: Setting) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("eta"), TimeRemainingColumn())  # fmt: skip
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=total)
    began = time.monotonic()

    def advance(done: int) -> None:
        bar.advance(task, done)
        if not bar.live.is_started and (setting is True or time.monotonic() - began > QUIET_SECONDS):
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def _lines(title: str, total: int, setting: Setting) -> Advance:
    began = last = time.monotonic()
    quiet = 0.0 if setting is True else QUIET_SECONDS
    done_so_far = 0

    def advance(done: int) -> None:
        nonlocal last, done_so_far
        done_so_far += done
        now = time.monotonic()
        finished = done_so_far >= total
        if now - began < quiet or (now - last < LINE_SECONDS and not finished):
            return
        if finished and last == began and setting is not True:  # nothing was said on the way
            return
        last = now
        left = (now - began) / max(done_so_far, 1) * (total - done_so_far)
        sys.stderr.write(f"forwardinf: {title}: {done_so_far}/{total}, {now - began:.0f} s, eta {left:.0f} s\n")
        sys.stderr.flush()

    return advance
