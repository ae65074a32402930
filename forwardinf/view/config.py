"""What a command-line run is, as a file: checked, complete, and enough to replay it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from forwardinf.core.errors import FileError, SettingError, choose
from forwardinf.core.paths import as_path
from forwardinf.data.import_gate import is_code
from forwardinf.view import bounded_yaml

FORMAT = "forwardinf.config/1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Strict):
    """``module:factory`` with a weights file, or a Hugging Face folder or id; and the tokenizer, where it lies elsewhere."""

    spec: str
    weights: str | None = None
    weights_key: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    dtype: str | None = None
    tokenizer: str | None = None


class DataSpec(_Strict):
    """Data by one word, and how to read it."""

    spec: str
    options: dict[str, Any] = Field(default_factory=dict)
    where: str | None = None


class TaskSpec(_Strict):
    """A task's name and its arguments, or ``module:function``."""

    name: str = "classification"
    options: dict[str, Any] = Field(default_factory=dict)


class RunConfig(_Strict):
    """A whole run. ``options`` are further arguments of :func:`forwardinf.attribute`."""

    format: str = FORMAT
    model: ModelSpec
    data: DataSpec
    queries: DataSpec
    task: TaskSpec = TaskSpec()
    perturbation: dict[str, Any] = Field(default_factory=lambda: {"preset": "linear"})
    checkpoints: list[str] = Field(default_factory=list)
    combine: str = "mean"
    collate: str | None = None
    groups: str | None = None
    candidates: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("perturbation", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Take the name of a preset or direction for its settings."""
        return {"preset": given} if isinstance(given, str) else given

    @property
    def code(self) -> list[str]:
        """Return the specs that would import the user's code."""
        asked = [] if split_of(self.queries.spec) is not None else [self.queries.spec]
        named = (self.model.spec, self.data.spec, *asked, self.task.name, self.collate or "")
        return [word for word in named if is_code(word)]


def parse(content: Any, where: str) -> RunConfig:
    """Return the checked configuration; an unknown name is an error with a guess."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        if first["type"] == "extra_forbidden":
            known = _fields_at(first["loc"][:-1])
            raise choose(f"{where}: {place}", str(first["loc"][-1]), known) from error
        raise SettingError(f"{where}: {place}", expected=first["msg"], got=repr(first.get("input"))) from error


def read_config(path: Path, changes: list[str] | None = None) -> RunConfig:
    """Read a YAML file and apply ``a.b=c`` changes to it."""
    as_path("configuration", path)
    if not path.is_file():
        raise FileError(str(path), expected="a run configuration (YAML)", got="no such file")
    try:
        with path.open("rb") as file:  # one byte more than may be: a file without end is not read to its end
            content = bounded_yaml.load(file.read(bounded_yaml.MOST_BYTES + 1).decode())
    except (ValueError, OSError) as error:
        raise FileError(
            str(path), expected="a run configuration (YAML)", got=f"a file that is none: {error}"
        ) from error
    if not isinstance(content, dict):
        raise FileError(str(path), expected="a run configuration (a mapping)", got=type(content).__name__)
    kept = content.get("format", FORMAT)
    if kept != FORMAT:
        raise FileError(str(path), expected=FORMAT, got=repr(kept), do="Upgrade forwardinf if it is newer.")
    for change in changes or ():
        name, value = pair(change, "--set")
        place = content
        *above, last = name.split(".")
        for part in above:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise SettingError(f"--set {change}", expected="a path of names", got=f"{part!r}, which is a value")
        place[last] = value
    return parse(content, str(path))


def as_yaml(config: RunConfig) -> str:
    """Return the configuration that replays the run, as YAML."""
    return str(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))


def pair(text: str, flag: str) -> tuple[str, Any]:
    """Return (name, value) of ``name=value``; values are YAML, and ``1e-3`` is a number."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise SettingError(flag, expected="name=value", got=repr(text))
    try:
        return name, float(value) if _looks_scientific(value) else bounded_yaml.load(value)
    except ValueError as error:
        raise SettingError(flag, expected="name=value", got=repr(text)) from error


def _looks_scientific(value: str) -> bool:
    mantissa, letter, power = value.strip().lower().partition("e")
    try:
        return bool(letter) and bool(power) and float(mantissa) == float(mantissa) and int(power) == int(power)
    except ValueError:
        return False


def split_of(queries: str) -> str | None:
    """Return the split that a word for queries means, ``data:test``: of the training data, and never code."""
    return queries.removeprefix("data:") if queries.startswith("data:") else None


def _fields_at(path: tuple[int | str, ...]) -> list[str]:
    kind: Any = RunConfig
    for part in path:
        kind = kind.model_fields[str(part)].annotation
    return list(kind.model_fields)
