"""Texts on the command line: the tokenizer found, rows tokenised for the task, and held against what the model can read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from forwardinf.core.errors import Error, SettingError
from forwardinf.data.import_gate import is_code
from forwardinf.data.load import load_data
from forwardinf.data.token_rows import TokenRows
from forwardinf.data.tokenise import Reader, columns_of, is_text, tokenised, with_tokenizer
from forwardinf.data.tokenizer import load_tokenizer
from forwardinf.tasks.sequences import SequenceClassification
from forwardinf.tasks.task import Classification, Task
from forwardinf.tasks.text import CausalLM, Seq2Seq
from forwardinf.tasks.token_limits import check_tokens
from forwardinf.view.config import DataSpec, RunConfig

READERS: tuple[tuple[type[Task], Reader], ...] = (
    (CausalLM, "decoder"),
    (Seq2Seq, "encoder-decoder"),
    (SequenceClassification, "classifier"),
)
OF_TEXT = ("text", "max_length", "tokenizer")


class Texts:
    """How a run's data is read, texts with the tokenizer that belongs to its model.

    Args:
        config: The run.
        task: Its task; a text classifier's is given the tokenizer, whose padding its model knows.
        model: What reads the rows.
    """

    def __init__(self, config: RunConfig, task: Task, model: Any) -> None:
        self.config, self.task, self.model = config, task, model
        self.reader = next((reader for kind, reader in READERS if isinstance(task, kind)), None)

    @cached_property
    def tokenizer(self) -> Any:
        """The one that is named, else the model's; an error that says what to give where there is none."""
        return load_tokenizer(self.config.model.tokenizer or self.config.model.spec)

    def read(self, spec: DataSpec, name: str) -> Any:
        """Return data that the task can read.

        Args:
            spec: What to read, and how.
            name: ``"train"`` or ``"queries"``, for errors.
        """
        held = (
            {}
            if is_code(spec.spec) or self.reader is None
            else {n: spec.options[n] for n in OF_TEXT if n in spec.options}
        )
        data = load_data(spec.spec, **{option: value for option, value in spec.options.items() if option not in held})
        if self.reader is None:
            self._refuse_text(data)
            return data
        if is_text(data):
            data = self._tokenised(data, spec, held, name)
        elif held:  # settings of text for something else: the reader says so
            data = load_data(spec.spec, **spec.options)
        elif "input_ids" in columns_of(data) and (known := self._known) is not None:
            data = with_tokenizer(data, known)
        if isinstance(data, TokenRows):
            check_tokens(self.model, data, name)
            self._give(data.tokenizer)
        return data

    def _tokenised(self, data: Any, spec: DataSpec, held: Mapping[str, Any], name: str) -> TokenRows:
        names = columns_of(data)
        keep = dict.fromkeys(spec.options.get("columns") or ())
        ids = self.config.options.get("ids") if name == "train" else None
        if isinstance(ids, str) and ids in names:
            keep[ids] = None
        tokenizer = held.get("tokenizer") or self.tokenizer
        return tokenised(data, tokenizer, held.get("text"), held.get("max_length"), list(keep), reader=self.reader,
                         source=spec.spec)  # fmt: skip

    @cached_property
    def _known(self) -> Any:
        """The tokenizer where there is one at hand: rows that came tokenised need it for people only."""
        if self.config.model.tokenizer is None and not Path(self.config.model.spec).is_dir():
            return None
        try:
            return self.tokenizer
        except Error:
            if self.config.model.tokenizer is not None:
                raise
            return None

    def _give(self, tokenizer: Any) -> None:
        if isinstance(self.task, SequenceClassification) and self.task.tokenizer is None:
            self.task.tokenizer = tokenizer

    def _refuse_text(self, data: Any) -> None:
        """Refuse text given to a task that takes numbers, where the model is one that reads text."""
        reads = hasattr(getattr(self.model, "config", None), "model_type") and hasattr(
            self.model, "get_input_embeddings"
        )
        if type(self.task) is not Classification or not reads or not is_text(data):
            return
        first = data[0] if not hasattr(data, "to_pylist") else data.slice(0, 1).to_pylist()[0]
        if isinstance(first, Mapping) and any(isinstance(value, str | list) for value in first.values()):
            raise SettingError("--task", expected="a task that reads text", got="classification, for rows of text",
                               do="Say --task sequence-classification, causal-lm or seq2seq.")  # fmt: skip
