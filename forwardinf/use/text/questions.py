"""A model, its documents and the questions put to it, opened and checked: what `trace` reads."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from forwardinf.core.errors import DataError, SettingError
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Id, examples
from forwardinf.job.open import open_training
from forwardinf.job.options import Options
from forwardinf.method import attribute
from forwardinf.tasks.feed import Feed
from forwardinf.use.checkpoints import each_checkpoint
from forwardinf.use.sketch import side_of
from forwardinf.use.text.asked_tasks import AskedCausalLM, AskedSeq2Seq
from forwardinf.use.text.documents import Question, Row, Texts, asked, encodes, learned_places

Array = np.ndarray[Any, np.dtype[np.float64]]

FIT = 2000  # rows beside the candidates that whitening learns from, and those that curvature does


@dataclass
class Unit:
    """Where one document stands."""

    row: int
    number: int


class Asking:
    """A model, its documents and questions, opened and checked."""

    def __init__(
        self, model: nn.Module, options: Options, train: Any, tokenizer: Any, text: str | tuple[str, str],
        documents: str | int | None, max_length: int | None, ids: Any, globs: tuple[str, ...] | None, reading: str,
        curvature: str, side: int | None = None, memory: int | None = None,
    ) -> None:  # fmt: skip
        self.asked_side, self.memory = side, memory
        self.model, self.options, self.tokenizer, self.curvature = model, options, tokenizer, curvature
        self.notes: list[str] = []
        self.clock: dict[str, float] = {}
        self.both = encodes(model)
        pad = getattr(tokenizer, "pad_token_id", None)
        pad = pad if pad is not None else getattr(tokenizer, "eos_token_id", None) or 0
        if self.both and documents is not None:
            raise SettingError("documents=", expected="packed rows of a decoder", got="an encoder-decoder")
        self.task: Any = AskedSeq2Seq(pad) if self.both else AskedCausalLM(documents=documents, pad_token_id=pad)
        self.task.reading = reading
        self.texts = Texts(train, tokenizer, text, self.both, max_length)
        if self.texts.cut:
            self.notes.append(f"{self.texts.cut:,} of {len(self.texts.data):,} training texts are longer than max_length="
                              f"{max_length} tokens: what comes after was not read")  # fmt: skip
        short = 0 if self.both else sum(length < 2 for length in self.texts.lengths or ())
        if short:
            self.notes.append(f"{short:,} of {len(self.texts.data):,} training texts are empty (no token that another stands "
                              "before): their scores are 0")  # fmt: skip
        self._check_lengths()
        training = open_training(model, self.texts.data, task=self.task, parameters=globs, ids=self.texts.named(ids),
                                 collate_fn=None, options=options)  # fmt: skip
        self.train, self.data_digest, self.parameters = training.feed, training.data, training.parameters
        self.notes += self.train.examples.notes
        self.device, self.globs = self.train.device, globs
        self.batch_size = 16 if options.batch_size == "auto" else int(options.batch_size)

    def _check_lengths(self) -> None:
        """Refuse rows that are longer than the model has learned places for."""
        most, lengths = learned_places(self.model), self.texts.lengths
        if lengths and most is not None and max(lengths) > most:
            row = lengths.index(max(lengths))
            raise DataError(f"train, row {row}", expected=f"at most {most} tokens, the model's places", got=str(max(lengths)),
                            do=f"Cut with max_length={most}, or split it.")  # fmt: skip

    def ask(
        self, questions: Any, answers: Any, span: Any, contrast: Any, new_tokens: int, question_ids: Sequence[Id] | None
    ) -> None:
        """Take the questions: one row each, and one for each wrong answer, weighted so that a group's mean is the contrast."""
        self.asked: list[Question] = asked(self.model, self.tokenizer, questions, answers, span, contrast, new_tokens)
        self.rows: list[Row] = []
        self.members: list[list[int]] = []
        for question in self.asked:
            count = 1 + len(question.wrong)
            self.members.append(list(range(len(self.rows), len(self.rows) + count)))
            self.rows.append({**question.row, "weight": float(count)})
            self.rows += [{**row, "weight": -count / len(question.wrong)} for row in question.wrong]
        self._check_questions()
        self.names: list[Id] = list(question_ids) if question_ids is not None else list(range(len(self.asked)))
        if len(self.names) != len(self.asked) or len(set(self.names)) != len(self.names):
            raise DataError("question_ids", expected=f"{len(self.asked)} unique ids", got=f"{len(self.names)}")
        opened = examples(self.rows, name="questions", task_collate=self.task.collate, seed=self.options.seed)
        self.queries = Feed(self.model, self.task.whole(), opened, self.device, seed=self.options.seed)

    def _check_questions(self) -> None:
        """Refuse questions that are longer than the model has places for, and those of which no token is asked about."""
        most = learned_places(self.model)
        for at, members in enumerate(self.members):
            for row in (self.rows[member] for member in members):
                if most is not None and len(row["input_ids"]) > most:
                    raise DataError(f"question {at}", expected=f"at most {most} tokens with its answer, the model's places",
                                    got=str(len(row["input_ids"])), do="Shorten the prompt.")  # fmt: skip
            labels = self.rows[members[0]]["labels"]
            if all(int(label) < 0 for label in (labels if self.both else labels[1:])):
                raise DataError(f"question {at}", expected="a token that is asked about and that something stands before",
                                got="none", do="Give a prompt, or labels.")  # fmt: skip

    # -- documents ---------------------------------------------------------------------------------------------------

    @property
    def units(self) -> int:
        """How many documents there are."""
        return self.train.examples.units

    def unit(self, place: int) -> Unit:
        """Return where a document stands."""
        (row,) = self.train.examples.rows_of([place])
        return Unit(row, place - int(self.train.examples.offsets[row]))

    def text(self, place: int) -> str:
        """Return a document's text."""
        if not self.task.packed:
            return self.texts.text(self.train.examples, place)
        return "".join(told for _, _, told in self.pieces(place))

    def pieces(self, place: int) -> list[tuple[int, int, str]]:
        """Return (start, end, text) of each of its tokens."""
        unit = self.unit(place)
        found = self.texts.pieces(self.train.examples, unit.row)
        if not self.task.packed:
            return found
        numbers = self.task.numbers(self.train.examples[unit.row]).tolist()
        own = [piece for piece, number in zip(found, numbers, strict=True) if number == unit.number]
        start = own[0][0] if own else 0
        return [(first - start, last - start, told) for first, last, told in own]

    def counts(self) -> Array:
        """Return each document's counted tokens."""
        if self.task.packed:
            raise SettingError("per_token=", expected="one document in each row", got="packed rows")
        return self.train.counts(range(self.units), self.batch_size).clamp_min(1).numpy().astype(np.float64)

    # -- what is free ------------------------------------------------------------------------------------------------

    # -- scores ------------------------------------------------------------------------------------------------------

    def side(self, chosen: list[Array] | None) -> int:
        """Return how wide sketches are."""
        rows = self.units
        if chosen is not None:  # the same side for other candidates: what is sketched serves them too
            named = sum(map(len, chosen))
            rows = min(rows, 2 * max(FIT, named)) if self.memory is None else min(rows, FIT + named)
        return side_of("trace", self.parameters, rows, self.asked_side, self.memory)

    def by_loss(self) -> Any:
        """Return the task that reads losses, whatever scores are read by."""
        task = copy.copy(self.task)
        task.reading = "loss"
        return task

    def read(
        self, rule: Perturbation, chosen: list[Array] | None, checkpoints: Sequence[Any] | None
    ) -> tuple[Array, Array]:
        """Return (scores, rises) read by forward passes, averaged over checkpoints."""
        values, own, count = np.zeros((len(self.asked), self.units)), np.zeros(len(self.asked)), 0
        began = time.perf_counter()
        if self.globs is not None and rule.parameters is None:
            rule = Perturbation.from_dict({**rule.to_dict(), "parameters": list(self.globs)})
        labels = [self.names[q] for q, members in enumerate(self.members) for _ in members]
        for _ in each_checkpoint(self.model, checkpoints):
            found = attribute(
                self.model, self.texts.data, self.rows, task=self.task, perturbation=rule, groups=labels,
                candidates=None if chosen is None else [list(map(int, places)) for places in chosen],
                batch_size=self.options.batch_size, device=self.options.device, keep="all", cache_dir=self.options.cache_dir,
                progress=self.options.progress, seed=self.options.seed,
            )  # fmt: skip
            values, own, count = values + found.values, own + found.rise, count + 1
            self.notes += [note for note in found.notes if note not in self.notes]
        self.clock["questions_s"] = time.perf_counter() - began
        return values / count, own / count

    # -- what is shown -----------------------------------------------------------------------------------------------

    def cost(self, total: float) -> dict[str, float]:
        """Return the seconds of each part and in all."""
        return {**{name: round(value, 3) for name, value in self.clock.items()}, "total_s": round(total, 3)}

    def shown(self, table: pd.DataFrame) -> dict[str, Any]:
        """Return what a report shows: the questions, and the texts of their top documents.

        ``before`` is what an encoder read before a text, ``counted`` which of a text's characters the loss counts.
        """
        place_of_id = {name: place for place, name in enumerate(self.train.examples.ids)}
        places = {value: place_of_id[value] for value in dict.fromkeys(table["train"])}
        rows, whole = self.train.examples, not self.task.packed
        return {
            "questions": {name: (question.prompt, question.answer)
                          for name, question in zip(self.names, self.asked, strict=True)},
            "texts": {value: self.text(place) for value, place in places.items()},
            "before": {value: self.texts.before(rows, place) for value, place in places.items()} if whole else {},
            "counted": {value: self.texts.counted(rows, place) for value, place in places.items()} if whole else {},
        }  # fmt: skip

    def order(self, places: Sequence[int]) -> list[int]:
        """Return places sorted by length, where it is known: less padding."""
        lengths, rows = self.texts.lengths, self.train.examples
        return (
            list(places)
            if lengths is None or rows.units != len(rows)
            else sorted(places, key=lambda place: lengths[place])
        )

    def note(self, text: str) -> None:
        """Say something once."""
        if text and text not in self.notes:
            self.notes.append(text)
