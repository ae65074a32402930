"""Long work says how far it is and how long it will take: a bar on a terminal, a plain line every few seconds elsewhere.

A call of many parts opens :func:`stages` once and says what is to come. Every :func:`progress` inside it, however deep, is
then a stage of the whole: one bar, and the time left is that of the whole call. A time is stated once it has been measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from forwardinf.core.errors import SettingError

Advance = Callable[[int], None]
Setting = Literal["auto"] | bool

QUIET_SECONDS = 2.0  # work shorter than this says nothing when progress="auto"
LINE_SECONDS = 5.0
FORWARDS = "forward passes of one example"
ARITHMETIC = "multiplications"
PLAN_SECONDS = 1.0  # a plan measures the speed of forward passes for so long
EIGENVECTORS = 5  # n³ times this stands for the eigenvectors of an n × n matrix, a third for its Cholesky factor


@dataclass
class Stage:
    """A part of a call.

    Attributes:
        name: How the titles of its :func:`progress` begin.
        work: How much it is, in units of its kind.
        kind: What the unit is; stages of one kind are expected to go at one speed.
        done: Share done, 0 to 1.
        seconds: What that took.
    """

    name: str
    work: float
    kind: str = FORWARDS
    done: float = 0.0
    seconds: float = 0.0


class Planned(BaseException):
    """A call was only to be planned, and has measured how fast it is. ``stages``: what it would have done."""

    def __init__(self, stages: Stages) -> None:
        super().__init__("planned")
        self.stages = stages


class Stages:
    """The stages of one call, in order, and how long they will take. Built by :func:`stages`.

    Args:
        title: What the call is.
        screen: Where it is shown; None: nowhere.
    """

    def __init__(self, title: str, screen: Screen | None = None) -> None:
        """Start the clock."""
        self.title, self.screen = title, screen
        self.began = time.monotonic()
        self.expected: list[Stage] = []
        self.facts: dict[str, Any] = {}
        self._running: Stage | None = None
        self._entered = self._told = self.began  # when the running stage began, and when it last said how far it is
        self._detail = ""
        self._finished = False

    def expect(self, name: str, work: float, kind: str = FORWARDS) -> None:
        """Say what comes next: a stage whose titles begin with ``name``. What is then not done (a cache) costs nothing."""
        if work > 0:
            self.expected.append(Stage(name, work, kind))

    def say(self, **facts: Any) -> None:
        """Say what else is known before anything is done: rows, passes, memory; for a plan."""
        self.facts.update(facts)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """Yield ``advance`` for a part: the next stage that the title begins, or a detail of what runs."""
        stage = None if self._running is not None else self._next(title)
        before, so_far = self._detail, 0
        self._detail = f"{title}: 0/{total}" if total > 1 else title

        def advance(done: int) -> None:
            nonlocal so_far
            so_far += done
            if total > 1:
                self._detail = f"{title}: {so_far}/{total}"
            if stage is not None:
                stage.done = min(max(so_far / total, 0.0), 1.0)
                self._told = time.monotonic()
                stage.seconds = self._told - self._entered
                if _PLANNING.get() and stage.kind == FORWARDS and (stage.seconds >= PLAN_SECONDS or stage.done >= 1.0):
                    raise Planned(self)
            self.show(last=not self.title and so_far >= total)

        if stage is not None:
            self._running, self._entered = stage, time.monotonic()
            self._told = self._entered
        try:
            self.show(soon=self._expected(stage) / total)
            yield advance
        finally:
            self._detail = before
            if stage is not None:
                self._running = None
                stage.done, stage.seconds = 1.0, time.monotonic() - self._entered

    def plan(self) -> dict[str, Any]:
        """Return what is to be done, and how many seconds each part takes at the speed measured so far (None: unknown)."""
        rates = {kind: self._rate(kind) for kind in {stage.kind for stage in self.expected}}
        parts: dict[str, dict[str, Any]] = {}
        for stage in self.expected:
            rate = rates[stage.kind]
            before = parts.get(stage.name, {"work": 0.0, "of": stage.kind, "seconds": None if rate is None else 0.0})
            seconds = None if rate is None else before["seconds"] + stage.work * rate
            parts[stage.name] = {**before, "work": before["work"] + stage.work, "seconds": seconds}
        known = [part["seconds"] for part in parts.values() if part["seconds"] is not None]
        for part in parts.values():
            part["work"] = round(part["work"])
            part["seconds"] = None if part["seconds"] is None else round(part["seconds"], 3)
        return {"use": self.title, **self.facts, "parts": parts, "seconds": round(sum(known), 3)}

    def left(self) -> float | None:
        """Return the seconds left of the whole, or None where nothing like what is left has been measured."""
        if not self.expected or self._finished:
            return None
        total = 0.0
        for stage in self.expected:
            if stage.done < 1.0:
                seconds = self._seconds_left(stage)
                if seconds is None:
                    return None
                total += seconds
        return total

    def _seconds_left(self, stage: Stage) -> float | None:
        since = 0.0 if stage is not self._running else time.monotonic() - self._told
        if stage.done > 0:
            return max(stage.seconds / stage.done * (1 - stage.done) - since, 0.0)
        rate = self._rate(stage.kind)
        return None if rate is None else max(stage.work * rate - since, 0.0)

    def _rate(self, kind: str) -> float | None:
        """Return the seconds of a unit of this kind of work, as measured so far."""
        known = [stage for stage in self.expected if stage.kind == kind and stage.done > 0 and stage.work > 0]
        work = sum(stage.work * stage.done for stage in known)
        if work > 0:
            return sum(stage.seconds for stage in known) / work
        return _seconds_of_a_multiplication() if kind == ARITHMETIC else None

    def _expected(self, stage: Stage | None) -> float:
        return (self._seconds_left(stage) or 0.0) if stage is not None else 0.0

    def _next(self, title: str) -> Stage | None:
        for place, stage in enumerate(self.expected):
            if stage.done < 1.0 and title.startswith(stage.name):
                for skipped in self.expected[:place]:
                    if skipped.done < 1.0:
                        skipped.work, skipped.done = 0.0, 1.0
                return stage
        return None

    def show(self, soon: float = 0.0, *, last: bool = False) -> None:
        """Show where it is. ``soon``: for so many seconds nothing more will be heard."""
        if self.screen is not None:
            self.screen.show(self, soon, last=last)

    def finish(self) -> None:
        """Say that all is done, to whom anything was said."""
        self._detail, self._finished = "done", True
        self.show(last=True)

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self.began

    @property
    def told(self) -> str:
        """What is being done, in words."""
        title = "" if self.title and self._detail.startswith(self.title) else self.title
        return ": ".join(filter(None, (title, self._detail)))


class Screen(Protocol):
    """Shows stages to a person."""

    def show(self, stages: Stages, soon: float, *, last: bool) -> None:
        """Show where they are now, if it is time to."""
        ...


_WHOLE: ContextVar[Stages | None] = ContextVar("forwardinf_stages", default=None)
_PLANNING: ContextVar[bool] = ContextVar("forwardinf_planning", default=False)


def planned(call: Callable[[], object]) -> dict[str, Any]:
    """Return what a call with :func:`stages` would do (:meth:`Stages.plan`): it runs until its speed has been measured.

    Data and settings are checked as in the call itself, and errors are its own. The call must not hide its progress.

    Raises:
        SettingError: It says nothing of what it does, or has nothing to do.
    """
    token = _PLANNING.set(True)
    try:
        call()
    except Planned as stopped:
        return stopped.stages.plan()
    finally:
        _PLANNING.reset(token)
    raise SettingError("plan", expected="a call with forward passes to plan", got="one that had none left to do")


@contextmanager
def stages(title: str, setting: Setting = "auto") -> Iterator[Stages]:
    """Yield the stages of one call; every :func:`progress` within is shown as one of them.

    Inside another call's stages it opens none of its own: what it does is a part of that call.

    Args:
        title: What the call is.
        setting: As for :func:`progress`.

    Example:
        >>> with stages("leaks", False) as whole:
        ...     whole.expect("features", work=100)
        ...     whole.expect("responses", work=400)
        ...     with progress("features", 100) as advance:
        ...         advance(50)
    """
    if _WHOLE.get() is not None:
        yield Stages(title)
        return
    with _screen(setting) as screen:
        whole = Stages(title, screen)
        _WHOLE.set(whole)
        try:
            yield whole
        finally:
            _WHOLE.set(None)
        whole.finish()


@contextmanager
def progress(title: str, total: int, setting: Setting = "auto") -> Iterator[Advance]:
    """Yield ``advance(done)``, to be called as units are done; shows on stderr only.

    Args:
        title: What is being done.
        total: How many units in all.
        setting: ``True`` always shows, ``False`` never, ``"auto"`` shows work that takes longer than two seconds.
    """
    whole = _WHOLE.get()
    if setting is False or total <= 0:
        yield lambda done: None
    elif whole is not None:
        with whole.stage(title, total) as advance:
            yield advance
    else:
        with _screen(setting) as screen:
            alone = Stages("", screen)
            alone.expect(title, total)
            with alone.stage(title, total) as advance:
                yield advance


@contextmanager
def _screen(setting: Setting) -> Iterator[Screen | None]:
    if setting is False:
        yield None
    elif sys.stderr.isatty():
        bar = _Bar(setting)
        try:
            yield bar
        finally:
            bar.stop()
    else:
        yield _Lines(setting)


class _Left(ProgressColumn):
    """The time left of the whole, counted down between two reports."""

    def render(self, task: Task) -> Text:
        left = task.fields["whole"].left()
        return Text("" if left is None else f"eta {spoken(left)}", style="progress.remaining")


class _Bar:
    """A bar that goes away when it is done."""

    def __init__(self, setting: Setting) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), _Left())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._quiet = 0.0 if setting is True else QUIET_SECONDS
        self._task: Any = None

    def show(self, stages: Stages, soon: float, *, last: bool) -> None:
        elapsed, left = stages.elapsed, stages.left()
        if self._task is None:
            self._task = self._bar.add_task(stages.told, total=1.0, whole=stages)
        done = 0.0 if left is None or elapsed + left <= 0 else elapsed / (elapsed + left)
        self._bar.update(self._task, description=stages.told, completed=done)
        if not self._bar.live.is_started and elapsed + soon > self._quiet:
            self._bar.start()

    def stop(self) -> None:
        self._bar.stop()


class _Lines:
    """A plain line every few seconds."""

    def __init__(self, setting: Setting) -> None:
        self._always = setting is True
        self._last: float | None = None  # when a line was last written, in seconds since the call began

    def show(self, stages: Stages, soon: float, *, last: bool) -> None:
        elapsed, left = stages.elapsed, stages.left()
        if elapsed + soon < (0.0 if self._always else QUIET_SECONDS):
            return
        if elapsed + soon - (self._last or 0.0) < LINE_SECONDS and not (
            last and (self._always or self._last is not None)
        ):
            return
        self._last = elapsed
        share = (
            f", {100 * elapsed / max(elapsed + left, 1e-9):.0f} % in all" if left is not None and stages.title else ""
        )
        rest = "" if left is None else f", eta {spoken(left)}"
        sys.stderr.write(f"forwardinf: {stages.told}{share}, {spoken(elapsed)}{rest}\n")
        sys.stderr.flush()


def spoken(seconds: float) -> str:
    """Return a time as people say it: ``"40 s"``, ``"12 min"``, ``"3.5 h"``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@cache
def _seconds_of_a_multiplication() -> float:
    """Return what one multiplication takes inside a product of two matrices, as measured here."""
    import torch

    size, best = 256, float("inf")
    square = torch.ones(size, size, dtype=torch.float64)
    for _ in range(3):
        began = time.perf_counter()
        square @ square
        best = min(best, time.perf_counter() - began)
    return best / size**3
