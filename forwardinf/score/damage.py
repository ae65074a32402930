"""What of a run folder is damaged or missing, file by file, and which parts have to be read again for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forwardinf.core.errors import FileError
from forwardinf.core.files import read_json, read_table
from forwardinf.score.store import BASE, DONE, PLAN, QUERIES, RUN, SCORES, TABLES, TRAIN, UNITS, Folder

JSON = {"run.json": RUN, "plan.json": PLAN, "done.json": DONE}
FORMATS = {"queries": QUERIES, "train": TRAIN, "base": BASE, "scores": SCORES, "cross": SCORES, "uncertainty": SCORES}
EVERYTHING = "everything"


@dataclass(frozen=True)
class Damage:
    """One file that cannot be used.

    Attributes:
        file: Its path inside the folder.
        trouble: What is wrong with it.
        again: The files that are made again for it; ``everything`` where nothing can be told without it.
    """

    file: str
    trouble: str
    again: tuple[str, ...]


def damages(path: Path) -> list[Damage]:
    """Return what is damaged or missing in a run folder, that of its checkpoints' runs included.

    What an interrupted run has not read yet is not missing. Cost: every file is read once.

    Raises:
        FileError: There is no run folder.
    """
    if not path.is_dir() or not any((path / name).exists() for name in JSON):
        raise FileError(str(path), expected="a forwardinf run folder", got="none there", do="Check the path.")
    found = list(_of_one(path))
    for own in sorted(path.glob("checkpoint-[0-9]*")):
        inner = damages(own) if any((own / name).exists() for name in JSON) else []
        found += [
            Damage(f"{own.name}/{damage.file}", damage.trouble, tuple(f"{own.name}/{name}" for name in damage.again))
            for damage in inner
        ]
    return found


def remove(path: Path, found: Sequence[Damage]) -> None:
    """Remove what is damaged and all that has to be made again for it: the next call with this folder reads just that.

    Raises:
        FileError: It cannot be told what the run was.
    """
    for damage in found:
        if damage.file.endswith("run.json"):
            raise FileError(str(path / damage.file), expected="what the run was", got=damage.trouble,
                            do="Start over with overwrite=True: nothing else says what the numbers mean.")  # fmt: skip
    for damage in found:
        own = (path / damage.file).parent if damage.file.startswith("checkpoint-") and "/" in damage.file else path
        own = path / damage.file.split("/")[0] if own != path else path
        names = damage.again
        if any(name.endswith(EVERYTHING) for name in names):
            folder = Folder(own)
            every = [name for pattern in (*TABLES, *UNITS) for name in folder.names(pattern)]
            names = tuple((own / name).relative_to(path).as_posix() for name in ("plan.json", *every))
        for place in {path, own}:
            (place / "done.json").unlink(missing_ok=True)
        for name in (*names, damage.file):
            (path / name).unlink(missing_ok=True)


def _of_one(path: Path) -> Iterator[Damage]:
    folder = Folder(path)
    for name, format in JSON.items():
        again = ("done.json",) if name == "done.json" else (EVERYTHING,)
        if name == "run.json" or (path / name).exists():
            trouble = _trouble_of_json(path / name, format)
            if trouble:
                yield Damage(name, trouble, again)
    try:
        sums = folder.sums()
    except FileError:  # said above
        sums = {}
    there = {name for pattern in (*TABLES, *UNITS) for name in folder.names(pattern)}
    for name in sorted(there | sums.keys()):
        trouble = "missing" if name not in there else _trouble_of_table(path / name, name, sums.get(name))
        if trouble:
            yield Damage(name, trouble, _again(name, there | sums.keys()))


def _again(name: str, known: set[str]) -> tuple[str, ...]:
    """Return what is read again for a file: a unit's scores and their uncertainty go together."""
    kind, _, rest = name.partition("/")
    pair = [f"{other}/{rest}" for other in ("scores", "uncertainty")] if kind in ("scores", "uncertainty") else [name]
    return tuple(one for one in pair if one in known)


def _trouble_of_json(path: Path, format: str) -> str:
    try:
        read_json(path, format, what="a file of a run")
    except FileError as error:
        return error.got
    return ""


def _trouble_of_table(path: Path, name: str, checksum: str | None) -> str:
    try:
        read_table(path, FORMATS[name.partition("/")[0].partition(".")[0]], what="a table", checksum=checksum)
    except FileError as error:
        return error.got
    return ""
