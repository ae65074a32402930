"""A model, its documents and the questions put to it, opened and checked: what `trace` reads."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError, ModelError, QueryError, SettingError
from forwardinf.core.fingerprint import code_digest, digest, model_digest
from forwardinf.core.progress import Advance, progress
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Batch, Id, examples
from forwardinf.gradients.per_example import recorder_of
from forwardinf.job.options import Options, as_perturbation, device_of, open_examples
from forwardinf.method import attribute
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.metric import Sides, metric
from forwardinf.perturb.parameters import Parameters, select
from forwardinf.perturb.push import Pusher
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.losses import token_losses, token_margins
from forwardinf.tasks.root import root
from forwardinf.tasks.text import CausalLM, Each, Seq2Seq
from forwardinf.use.checkpoints import each_checkpoint
from forwardinf.use.jointly import Turn, jointly
from forwardinf.use.sketch import Ask, Sketcher, compared, place_of, side_of
from forwardinf.use.sketch_cache import KeptRows
from forwardinf.use.text.documents import Question, Row, Texts, asked, encodes, learned_places
from forwardinf.use.text.hidden_states import hidden_states
from forwardinf.use.text.lexical import Lexical, available
from forwardinf.use.text.spans import token_changes
from forwardinf.use.whitening import Kept

Array = np.ndarray[Any, np.dtype[np.float64]]

FIT = 2000  # rows beside the candidates that whitening learns from, and those that curvature does
SPANS_BY = Perturbation(rise=0.5, two_sided=True)  # half a nat for each token of the answer


CURVATURES = ("kfac", "none")


def roots(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the root of each token's loss; 0 where it is not counted, or where nothing is left of it."""
    each = token_losses(logits, labels)
    left = each > 0
    return torch.where(left, root(torch.where(left, each, 1.0)), 0.0)


READINGS: dict[str, Each] = {  # what stands for each token's loss
    "loss": token_losses, "root": roots, "margin": lambda logits, labels: -token_margins(logits, labels),
}  # fmt: skip


class _Weighted:
    """A language task read token by token in one of several ways, whose query rows carry a weight.

    A contrast is an answer less the mean of its wrong ones.

    Attributes:
        reading: What stands for each token's loss; one of :data:`READINGS`.
    """

    reading = "loss"

    def _put_out(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model; the weight is none of its business."""
        return super()._put_out(model, _without_weight(batch))  # type: ignore[misc,no-any-return]

    def measure(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return minus the loss as it is read, weighted."""
        return self._weighted(batch, -self._judged(batch, self._put_out(model, batch)))

    def _judged(self, batch: Batch, logits: Tensor) -> Tensor:
        """Return the sum of each row's tokens as they are read."""
        each = self._token_losses(batch, logits, READINGS[self.reading])  # type: ignore[attr-defined]
        return self._summed(batch, each)  # type: ignore[attr-defined,no-any-return]

    def _weighted(self, batch: Batch, found: Tensor) -> Tensor:
        return found * batch["weight"].to(found) if isinstance(batch, Mapping) and "weight" in batch else found


class AskedCausalLM(_Weighted, CausalLM):
    """A decoder, with weighted questions."""


class AskedSeq2Seq(_Weighted, Seq2Seq):
    """An encoder-decoder, with weighted questions."""


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
        rows = open_examples(self.texts.data, "train", self.task, None, options)
        parts, named = self.task.parts if self.task.packed else None, self.texts.named(ids)
        with progress("hashing", len(rows), options.progress) as advance:
            self.data_digest = rows.seal(range(len(rows)), advance, parts, named)
        self.notes += rows.notes
        self.device = device_of(model, options.device)
        self.train = Feed(model, self.task, rows, self.device, seed=options.seed)
        self.parameters: Parameters = select(model, globs)
        self.globs = globs
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

    def free(self, needs: Mapping[str, bool], wanted: bool) -> dict[str, Array]:
        """Return the free rankings, ``(Q, N)`` each: those that are needed, and those that can be had."""
        found: dict[str, Array] = {}
        if needs["bm25"] or (wanted and available()):
            began = time.perf_counter()
            with progress("BM25", self.units + len(self.asked), self.options.progress) as advance:
                index = Lexical(self._searched(advance))
                self.clock["bm25_index_s"], began = time.perf_counter() - began, time.perf_counter()
                found["bm25"] = np.empty((len(self.asked), self.units))
                for row, question in zip(found["bm25"], self.asked, strict=True):
                    row[:] = index.scores(question.filled)
                    advance(1)
            self.clock["bm25_s"] = time.perf_counter() - began
        elif wanted:
            self.notes.append("BM25 is left out: it needs the package bm25s (pip install 'forwardinf[text]')")
        if needs["neighbours"] or wanted:
            began = time.perf_counter()
            try:
                found["hidden"] = self._hidden()
            except ModelError as error:
                if needs["neighbours"]:
                    raise
                self.notes.append(f"no hidden-state neighbours: {error}")
            self.clock["hidden_s"] = time.perf_counter() - began
        return found

    def _searched(self, advance: Advance) -> Iterator[str]:
        """Yield what lexical search reads of each document."""
        for place in range(self.units):
            yield self.text(place) if self.task.packed else self.texts.searched(self.train.examples, place)
            advance(1)

    def _hidden(self) -> Array:
        if self.task.packed:
            raise ModelError("hidden states", expected="one document in each row", got="packed rows")
        order = self._order(range(self.units))
        with progress("hidden states", self.units, self.options.progress) as advance:
            states = torch.empty(0)
            found = hidden_states(self.train, order, self.batch_size, advance)
            states = found.new_empty(found.shape)
            states[torch.tensor(order)] = found
        own = [members[0] for members in self.members]
        return (hidden_states(self.queries, own, 1).double() @ states.double().T).numpy()

    # -- scores ------------------------------------------------------------------------------------------------------

    def indexed(
        self,
        how: str,
        damping: float | None,
        chosen: list[Array] | None,
        checkpoints: Sequence[Any] | None,
        together: int = 0,
    ) -> tuple[Array, Array, list[Turn]]:
        """Return (scores, each question's score with itself, who leaves when) from gradient sketches, averaged over checkpoints.

        ``together``: how many documents of each question are to be named jointly, by the last state.
        """
        total, own, count = np.zeros((len(self.asked), self.units)), np.zeros(len(self.asked)), 0
        turns: list[Turn] = []
        for _ in each_checkpoint(self.model, checkpoints):
            sketcher, places = self._sketcher(chosen)
            index, kept, asked = self._sketches(sketcher, places)
            began = time.perf_counter()
            with progress("comparing", 1, self.options.progress) as advance:
                found = compared(index, asked, how, damping, kept=kept)
                values = np.full(total.shape, np.nan)
                values[:, places] = found.scores.numpy()
                total, own, count = total + values, own + found.own.numpy(), count + 1
                if together:
                    turns = jointly(found, together, chosen, places)
                advance(1)
            self.clock["questions_s"] = self.clock.get("questions_s", 0.0) + time.perf_counter() - began
        return _only(total / count, chosen), own / count, turns

    def side(self, chosen: list[Array] | None) -> int:
        """Return how wide sketches are."""
        rows = self.units
        if chosen is not None:  # the same side for other candidates: what is sketched serves them too
            named = sum(map(len, chosen))
            rows = min(rows, 2 * max(FIT, named)) if self.memory is None else min(rows, FIT + named)
        return side_of("trace", self.parameters, rows, self.asked_side, self.memory)

    def _sketcher(self, chosen: list[Array] | None) -> tuple[Sketcher, Array]:
        """Return what sketches, and the places of the documents that are: all of them where an index of all is kept."""
        whole = np.arange(self.units)
        side = self.side(None) if chosen is None else self.side(chosen)
        if chosen is not None:
            draw = np.random.default_rng(self.options.seed)
            others = draw.choice(self.units, min(FIT, self.units), replace=False)
            places = np.unique(np.concatenate([*chosen, others]))
            full = self._full_side()
            if full is not None:
                side, places = full, whole
                self._note("candidates are compared within the kept index of all documents")
        else:
            places = whole
        return Sketcher(self.parameters, side=side, seed=self.options.seed, metric=self._metric()), places

    def _full_side(self) -> int | None:
        """Return the side of a kept index of all documents; None where there is none, or no room for it."""
        try:
            side = self.side(None)
        except SettingError:
            return None
        folder = self._folder(side)
        kept = KeptRows(folder, _none, 0, torch.float32, self._note)
        return side if folder is not None and kept.holds(self.units) else None

    def _folder(self, side: int) -> Path | None:
        """Return where sketches of this side are kept."""
        if self.options.cache is None:
            return None
        made_from = (model_digest(self.model), self.data_digest, code_digest(self.task), sorted(self.parameters))
        return place_of(self.options.cache, *made_from, side, self.options.seed, self.curvature)

    def _sketches(self, sketcher: Sketcher, places: Array) -> tuple[Tensor, Kept | None, Tensor]:
        """Return the sketched gradients of these documents, where what is made of them is kept, and those of the questions."""
        began = time.perf_counter()
        dtype = next(iter(self.parameters.values())).dtype
        rows = KeptRows(self._folder(sketcher.side), lambda asked, advance: self._sketched(sketcher, asked, advance),
                        sketcher.width, dtype, self._note)  # fmt: skip
        wanted = places.tolist()
        with progress("gradients", len(wanted), self.options.progress) as advance:
            index = rows.take(wanted, self._order(wanted), advance)
        kept = rows.kept(wanted) if len(places) == self.units else None  # other questions have other candidates
        self.clock["index_s"] = self.clock.get("index_s", 0.0) + time.perf_counter() - began
        began = time.perf_counter()
        ask: Ask = lambda model, batch: -self.queries.task.measure(model, batch)  # noqa: E731
        with progress("questions", len(self.rows), self.options.progress) as advance:
            each = sketcher.rows(self.queries, range(len(self.rows)), 1, ask, advance)
        joined = torch.stack([each[members].mean(0) for members in self.members])
        for name, length in zip(self.names, joined.norm(dim=1).tolist(), strict=True):
            if not 0 < length < float("inf"):
                raise QueryError(f"question {name!r}", expected="a finite gradient that is not zero", got=f"length {length}",
                                 do="Ask an earlier checkpoint, or contrast it with a wrong answer.")  # fmt: skip
        self._note(recorder_of(self.train, self.parameters).told())
        self.clock["questions_s"] = self.clock.get("questions_s", 0.0) + time.perf_counter() - began
        return index, kept, joined

    def _metric(self) -> dict[str, Sides] | None:
        """Return what gradients are taken through, fitted to a sample of the documents."""
        if self.curvature == "none":
            return None
        by_loss = self._by_loss()  # the Fisher does not ask what gradients are of
        made_from = (model_digest(self.model), self.data_digest, code_digest(by_loss))
        key = None if None in made_from else digest(*made_from)
        rule = Perturbation("kfac", fit_examples=FIT, seed=self.options.seed)
        fitting = Fitting(rule, replace(self.train, task=by_loss), self.parameters, self.batch_size, key,
                          self.options.cache, self.options.progress)  # fmt: skip
        try:
            found = metric(fitting)
        except ModelError as error:
            raise ModelError("trace(curvature='kfac')", expected="documents with finite gradients", got=str(error),
                             do="Pass curvature='none'.") from error  # fmt: skip
        for note in fitting.notes:
            self._note(note)
        return found

    def _by_loss(self) -> Any:
        task = copy.copy(self.task)
        task.reading = "loss"
        return task

    def _sketched(self, sketcher: Sketcher, places: Sequence[int], advance: Advance) -> Tensor:
        """Return the documents' sketched gradients, ``(places, width)``; of packed rows one document at a time."""
        if not self.task.packed:
            return sketcher.rows(self.train, list(places), self.batch_size, None, advance)
        found = torch.zeros(len(places), sketcher.width)
        units = [self.unit(int(place)) for place in places]
        for number in sorted({unit.number for unit in units}):
            at = [place for place, unit in enumerate(units) if unit.number == number]
            feed = replace(self.train, task=self.task.nth(number), examples=self.train.examples.one_each())
            found[at] = sketcher.rows(feed, [units[place].row for place in at], self.batch_size, None, advance)
        return found

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

    def spans(self, table: pd.DataFrame, count: int, perturbation: Any) -> pd.DataFrame:
        """Return the change of every token of each question's top documents under the push."""
        rule = SPANS_BY if perturbation is None else as_perturbation(perturbation)
        if rule.kind == "linear" or not rule.signed:
            rule = SPANS_BY
        if self.globs is not None:
            rule = Perturbation.from_dict({**rule.to_dict(), "parameters": list(self.globs)})
        began = time.perf_counter()
        by_loss = self._by_loss()  # tokens' losses are shown, whatever scores were read by
        fitting = Fitting(
            rule,
            replace(self.train, task=by_loss),
            select(self.model, rule.parameters),
            self.batch_size,
            progress=self.options.progress,
        )
        pusher = Pusher(replace(self.queries, task=by_loss.whole()), fitting)
        place_of_id = {name: place for place, name in enumerate(self.train.examples.ids)}
        records: list[dict[str, Any]] = []
        with progress("changes of tokens", len(self.names), self.options.progress) as advance:
            for name, members in zip(self.names, self.members, strict=True):
                top = table[(table["question"] == name) & (table["rank"] <= count)]
                places = [place_of_id[value] for value in top["train"]]
                rows = [self.unit(place).row for place in places]
                for place, rank, change in zip(
                    places, top["rank"], token_changes(pusher, members, name, self.train, rows), strict=True
                ):
                    records += self._span(name, place, int(rank), change)
                advance(1)
        self.clock["spans_s"] = time.perf_counter() - began
        return pd.DataFrame(records, columns=["question", "rank", "train", "start", "end", "text", "change"])

    def _span(self, name: Id, place: int, rank: int, change: Tensor) -> list[dict[str, Any]]:
        unit = self.unit(place)
        moved = (
            change.tolist() if self.both else [0.0, *change.tolist()]
        )  # a decoder's first token is predicted by nothing
        if self.task.packed:
            numbers = self.task.numbers(self.train.examples[unit.row]).tolist()
            moved = [value for value, number in zip(moved, numbers, strict=True) if number == unit.number]
        return [
            {"question": name, "rank": rank, "train": self.train.examples.ids[place], "start": start, "end": end,
             "text": told, "change": value}
            for (start, end, told), value in zip(self.pieces(place), moved, strict=False)
        ]  # fmt: skip

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

    def _order(self, places: Sequence[int]) -> list[int]:
        """Return places sorted by length, where it is known: less padding."""
        lengths, rows = self.texts.lengths, self.train.examples
        return (
            list(places)
            if lengths is None or rows.units != len(rows)
            else sorted(places, key=lambda place: lengths[place])
        )

    def _note(self, text: str) -> None:
        if text and text not in self.notes:
            self.notes.append(text)


def _none(places: Sequence[int], advance: Advance) -> Tensor:
    """Make nothing: who only looks at what is kept."""
    return torch.empty(0)


def _without_weight(batch: Batch) -> Batch:
    if isinstance(batch, Mapping) and "weight" in batch:
        return {name: value for name, value in batch.items() if name != "weight"}
    return batch


def _only(values: Array, chosen: list[Array] | None) -> Array:
    if chosen is not None:
        for row, places in zip(values, chosen, strict=True):
            row[np.setdiff1d(np.arange(len(row)), places)] = np.nan
    return values
