"""How every evaluation is run: its time is said first, its parts are kept as they are done, its result and page written.

An evaluation is a module that has

- ``parts(given)``: all its :class:`Part` s, under the settings of the command line;
- ``result(given, found)``: the content of the JSON; ``found`` is what the parts gave, by name, of those that are kept;
- if it likes ``options(parser)``, ``name(given)`` (of the JSON, else its own name), ``PAGE`` with ``tables(result)`` and
  ``draw(result)``, ``check(result)`` (raises where the result is wrong), and ``LASTING = False``: parts are forgotten once
  all is written.
"""

import argparse
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks import page
from benchmarks.kept import place
from benchmarks.results import commit, earlier, write
from forwardinf.core.files import read_json, write_json
from forwardinf.core.fingerprint import digest
from forwardinf.truth.retrain import spoken

FORMAT = "forwardinf.benchmark-part/1"
Found = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A piece of an evaluation that is run, and kept, by itself.

    Attributes:
        name: Of its file.
        run: Gives what is kept, plain enough for JSON; raises :class:`CannotRun` where something is missing here.
        seconds: About how long it takes.
        key: Settings it depends on: what was kept under others is run again.
        by_name: It takes so long that it is run only where ``--only`` has this word in it.
    """

    name: str
    run: Callable[[], Any]
    seconds: float | Callable[[], float] = 0
    key: Any = None
    by_name: str = ""

    def asked(self, words: list[str]) -> bool:
        """Return whether it is run where parts with one of these words in their names are asked, or all."""
        named = not self.by_name or any(self.by_name in word for word in words)
        return named and (not words or any(word in self.name for word in words))

    def takes(self) -> float:
        return self.seconds() if callable(self.seconds) else self.seconds


class CannotRun(Exception):
    """A part that cannot be run here, and why: the others are still worth knowing."""


@dataclass(frozen=True)
class Evaluation:
    """A module by its name, with the question that it answers."""

    name: str
    question: str
    module: ModuleType

    def has(self, name: str, default: Any) -> Any:
        """Return something that a module may have."""
        return getattr(self.module, name, default)

    def path(self, part: str) -> Path:
        """Return where a part is kept."""
        return place(self.name, "parts", f"{plain_name(part)}.json")

    def kept(self, part: str, key: Any = None) -> Any:
        """Return what a part found; None where it has not been run, or not with this key."""
        path = self.path(part)
        if not path.is_file():
            return None
        found = read_json(path, FORMAT, what="a part of an evaluation")
        return found["found"] if key is None or found["key"] == digest(key) else None


def plain_name(text: str) -> str:
    """Return a text as the name of a file."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in text)


def run(evaluation: Evaluation, argv: list[str]) -> Found:
    """Run an evaluation as its command line says, and return its result."""
    given = parser(evaluation).parse_args(argv)
    torch.set_num_threads(1)
    name = evaluation.has("name", lambda given: evaluation.name)(given)
    if given.docs:
        result = earlier(name)
        if not result:
            raise SystemExit(f"there is no benchmarks/results/{name}.json yet")
    else:
        parts = evaluation.module.parts(given)
        asked = [part for part in parts if part.asked(given.only)]
        work(evaluation, [] if given.collect else asked, given.again)
        kept = {part.name: evaluation.kept(part.name) for part in parts}
        found = {part: one for part, one in kept.items() if one is not None}
        if not found:
            raise SystemExit("no part has been run: nothing is written")
        content = {"question": evaluation.question, **evaluation.module.result(given, found)}
        result = write(name, content, given.out)
        for part in [] if evaluation.has("LASTING", True) else parts:
            evaluation.path(part.name).unlink(missing_ok=True)
    if evaluation.has("PAGE", "") and not given.out:
        publish(evaluation, name, result)
    evaluation.has("check", lambda result: None)(result)
    return result


def parser(evaluation: Evaluation) -> argparse.ArgumentParser:
    """Return the command line of an evaluation: what all of them share, and its own options."""
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks {evaluation.name}",
        description=inspect.getdoc(evaluation.module),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluation.has("options", lambda parser: None)(found)
    found.add_argument("--only", nargs="+", default=[], help="run only parts whose name has one of these words in it")
    found.add_argument("--again", action="store_true", help="run these parts though they are kept")
    found.add_argument(
        "--collect", action="store_true", help="run nothing: write the JSON and the page from what is kept"
    )
    if evaluation.has("PAGE", ""):
        found.add_argument(
            "--docs", action="store_true", help="run nothing: write the page from the JSON that is there"
        )
    found.set_defaults(docs=False)
    found.add_argument("--out", type=Path, help="write the JSON here instead of benchmarks/results/, and no page")
    return found


def work(evaluation: Evaluation, parts: Iterable[Part], again: bool) -> None:
    """Run the parts that are not kept, after saying how long that takes."""
    todo = [part for part in parts if again or evaluation.kept(part.name, part.key) is None]
    if todo:
        say(f"about {spoken(sum(part.takes() for part in todo))} on this machine; resumable")
    now = commit()  # when the run begins: that is the code it runs
    for count, part in enumerate(todo, start=1):
        began = time.perf_counter()
        try:
            found = part.run()
        except CannotRun as reason:
            say(f"{part.name}: {reason}")
            continue
        write_json(
            evaluation.path(part.name), {"format": FORMAT, "found": found, "key": digest(part.key), "commit": now}
        )
        say(f"{part.name}: {count} of {len(todo)}, {time.perf_counter() - began:.0f} s")


def publish(evaluation: Evaluation, name: str, result: Found) -> None:
    """Put the tables of a result into its page, one text or one for each mark, and draw its pictures."""
    evaluation.has("draw", lambda result: None)(result)
    told = evaluation.module.tables(result)
    for mark, text in {name: told}.items() if isinstance(told, str) else told.items():
        page.put(evaluation.module.PAGE, mark, text)


def say(text: Any) -> None:
    """Tell a person; what is printed is no result."""
    print(text if isinstance(text, str) else json.dumps(text, default=str), file=sys.stderr, flush=True)
