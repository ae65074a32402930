"""Per-example gradients that have been checked: of whole batches where that is right, else of one example at a time.

Taking the gradients of a batch apart supposes that the examples are where they are looked for. That is never guessed: the
first time a model is read, a batch of a prime number of examples is recorded, and its gradients are compared with autograd's
of each example alone. From then on a batch is taken apart only if it looks as the checked one did (:class:`Structure`): the
same functions of the same parameters, with examples along the same axes. Anything else is read one example at a time, where
all there is belongs to that example; and there, too, every new structure is compared with autograd before it is trusted, and a
parameter that does not agree gets autograd's own gradient. So what comes out is right for every model; only its cost differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor, nn

from forwardinf.core.errors import NoiseError
from forwardinf.core.memory import out_of_memory, release
from forwardinf.data.examples import Batch
from forwardinf.gradients.compare import (
    PRIMES,
    counts,
    distances,
    lengths,
    same_company,
    spread,
    tolerance_of,
    total,
    wrong_alone,
)  # fmt: skip
from forwardinf.gradients.functions import HANDLERS
from forwardinf.gradients.joining import Joined
from forwardinf.gradients.layer_uses import Use, formed
from forwardinf.gradients.layouts import Ambiguous
from forwardinf.gradients.products import product_dtype
from forwardinf.gradients.recording import (
    Guide,
    Known,
    Parameters,
    Recording,
    Sizes,
    Structure,
    Unfamiliar,
    one_example,
    tensors_in,
)
from forwardinf.tasks.feed import Ask, Asks, Feed, one_each

Tensors = dict[str, Tensor]
Asked = Ask | Asks | None
Heads = list[list[Use]]
KINDS = 4  # structures of batches that are checked: one with more is read one example at a time
FEW = 8  # batches of an unfamiliar kind before their share decides that all are read so
SEEN_ALONE = 3  # examples on which a structure is compared with autograd before it is trusted
ROUNDINGS = 4
KINK = 1e-2  # how far one unit at its kink moves an example's gradient, at most: a batch may round it to the other side


@dataclass
class Recorder:
    """What is known of one model's per-example gradients of some parameters.

    Attributes:
        together: Structures of batches whose gradients were right.
        alone: Structures of single examples, with the parameters that need autograd's own gradient, and on how many examples
            they have been compared.
        reason: Why batches are not taken apart; empty: they are.
        error: How far an example's gradient was off by rounding at most (an absolute length).
        packed: Rows of several documents were read.
    """

    together: list[Structure] = field(default_factory=list)
    alone: dict[Structure, tuple[frozenset[str], int]] = field(default_factory=dict)
    reason: str = ""
    error: float = 0.0
    packed: bool = False
    _pieces: int = 0
    _unfamiliar: int = 0

    @property
    def met(self) -> bool:
        """Whether the model has been looked at."""
        return bool(self.together or self.reason)

    @property
    def odd(self) -> dict[str, str]:
        """Parameters whose gradients autograd forms, and what used them."""
        found: dict[str, str] = {}
        for structure, (names, _) in self.alone.items():
            known = dict(structure.unknown)
            for name in names:
                found[name] = f"used by {known[name]}()" if name in known else "used in a way that is not seen"
        return found

    def told(self) -> str:
        """Return what a person should know of how gradients were taken, or nothing."""
        if self.reason:
            odd = self.odd
            whole = (
                f"; autograd forms the gradients of {', '.join(sorted(odd)[:4])}{', …' * (len(odd) > 4)}" if odd else ""
            )
            return f"gradients are taken one example at a time: {self.reason}{whole}"
        return "gradients are taken one document at a time: rows hold several documents" if self.packed else ""

    def batches(
        self, feed: Feed, rows: Sequence[int], parameters: Parameters, batch_size: int, ask: Asked = None
    ) -> Generator[tuple[Sequence[int], list[Tensor], Heads], None, None]:
        """Yield (units, losses ``(B,)`` float64, uses) of all rows in order, losses and uses once for each thing asked.

        See :func:`forwardinf.gradients.per_example.factored` and :func:`~forwardinf.gradients.per_example.factored_each`.
        """
        packed = feed.examples.units != len(feed.examples)
        with only_these(feed.model, parameters):
            if not packed and not self.met:
                self._meet(feed, spread(rows, max(PRIMES)), parameters, ask)
            self.packed |= packed
            for start in range(0, len(rows), batch_size):
                piece = rows[start : start + batch_size]
                found = None if packed else self._taken_apart(feed, piece, parameters, ask)
                if found is not None:
                    yield piece, *found
                else:
                    yield from self._one_by_one(feed, piece, parameters, ask)

    def meet(self, feed: Feed, parameters: Parameters, ask: Asked = None) -> None:
        """Look at the model with a few of these rows, unless that has been done.

        Cost: a forward and backward of about seven examples together, and of as many alone.
        """
        if not self.met and feed.examples.units == len(feed.examples):
            with only_these(feed.model, parameters):
                self._meet(feed, spread(range(len(feed.examples)), max(PRIMES)), parameters, ask)

    # -- batches ---------------------------------------------------------------------------------------------------------

    def _taken_apart(
        self, feed: Feed, piece: Sequence[int], parameters: Parameters, ask: Asked
    ) -> tuple[list[Tensor], Heads] | None:
        """Return (losses, uses) of a batch that looks as a checked one did, or None."""
        if self.reason or not self.together:
            return None
        self._pieces += 1
        while True:
            try:
                recording, columns, heads = _record(feed, piece, parameters, ask, Known(self.together))
            except Unfamiliar as error:
                known = len(self.together)
                if (
                    known < KINDS
                    and self._meet(feed, spread(piece, max(PRIMES)), parameters, ask)
                    and len(self.together) > known
                ):
                    continue  # another kind of batch, and now a known one
                self._unfamiliar += 1
                if self._unfamiliar > FEW and 2 * self._unfamiliar > self._pieces:
                    self.reason = str(error)
                return None
            self.reason = _uncountable(recording, feed, piece)
            return None if self.reason else (columns, heads)

    def _meet(self, feed: Feed, rows: Sequence[int], parameters: Parameters, ask: Asked) -> bool:
        """Record a batch and each of its examples alone, compare; return whether batches like it may be taken apart."""
        why: str | None = ""
        for spreading in (True, False):
            guide = Sizes(spread=spreading)
            try:
                why = self._looked_at(feed, rows, parameters, ask, guide)
            except NoiseError:
                raise
            except Unfamiliar as error:
                why = str(error)
            except Exception as error:  # whatever a user's model does when it is recorded: alone it may well do without
                why = guide.shared or f"the forward raises {type(error).__name__} when it is recorded: {error}"
                if out_of_memory(error):
                    release()
                    why = "not enough memory for the gradients of a few examples"
            if not why or not guide.shared:
                break
        if why and not self.together:
            self.reason = why
        return why == ""

    def _looked_at(
        self, feed: Feed, rows: Sequence[int], parameters: Parameters, ask: Asked, guide: Sizes
    ) -> str | None:
        """Record and compare a batch of some of these rows.

        Returns:
            What speaks against it; nothing: it was right; None: they are too few to tell which axis is theirs.
        """
        for count in counts(parameters, len(rows)):
            with suppress(Ambiguous):
                found = _record(feed, rows[:count], parameters, ask, guide)
                return self._compared(feed, rows[:count], parameters, ask, *found)
        return None

    def _compared(
        self, feed: Feed, rows: Sequence[int], parameters: Parameters, ask: Asked, recording: Recording,
        columns: list[Tensor], heads: Heads,
    ) -> str:  # fmt: skip
        """Compare a batch's gradients with those of its examples alone; return what speaks against it, or nothing."""
        for name, function in recording.unknown_uses.items():
            return f"parameter {name} is used by {function}(): its per-example gradient is not known"
        tolerance = tolerance_of(parameters, recording.element_size)
        kinked, largest, odd = 0, 0.0, frozenset[str]()
        for (place, row), head in product(enumerate(rows), range(len(heads))):
            if not head:
                alone = self._checked_alone(feed, row, parameters, ask)
            whole, loss, names = alone[head]
            odd |= names
            own = lengths(whole)
            size = total(own)
            if not math.isfinite(size + loss):
                continue  # said where it is asked for
            same_company(feed, row, float(columns[head][place]), loss, parameters)
            apart = distances([use.part(place, place + 1) for use in heads[head]], whole)
            off = total(apart)
            if off <= tolerance.whole * size and not wrong_alone(apart, own, tolerance):
                self.error, largest = max(self.error, off), max(largest, size)
            elif off <= KINK * size:
                kinked += 1
            elif not odd:
                name = max(apart, key=lambda key: apart[key])
                share = off / size if size else math.inf
                return (
                    f"parameter {name}: a batch's gradients are off by {share:.1g} of those of its examples (row {row})"
                )
        self.error = max(self.error, ROUNDINGS * torch.finfo(product_dtype(parameters)).eps * largest)
        if odd:
            return f"parameter {min(odd)} is {self.odd[min(odd)]}: its per-example gradient is not known"
        if kinked > len(rows) * len(heads) // 4:  # a kink is rare: this is the examples of a batch seeing one another
            return "gradients in a batch differ from those of single examples"
        if recording.found in self.together:
            return ""
        why = _uncountable(recording, feed, rows)
        if not why:
            self.together.append(recording.found)
        return why

    # -- one example at a time -------------------------------------------------------------------------------------------

    def _one_by_one(
        self, feed: Feed, piece: Sequence[int], parameters: Parameters, ask: Asked
    ) -> Iterator[tuple[Sequence[int], list[Tensor], Heads]]:
        """Yield the units of these rows, read alone and joined again."""
        waiting: list[Joined] = []
        for row in piece:
            units = feed.examples.units_of([row]).tolist()
            for unit, heads in zip(units, self._alone(feed, row, len(units), parameters, ask), strict=True):
                waiting = waiting or [Joined() for _ in heads]
                for joined, (loss, uses) in zip(waiting, heads, strict=True):
                    joined.add(unit, loss, uses)
                if any(joined.full for joined in waiting):
                    yield _taken(waiting)
        if waiting and len(waiting[0]):
            yield _taken(waiting)

    def _alone(
        self, feed: Feed, row: int, units: int, parameters: Parameters, ask: Asked
    ) -> list[list[tuple[float, list[Use]]]]:
        """Return (loss, uses) of each unit of one row, of each thing asked: factors where they were right, else autograd's."""
        found: list[list[tuple[float, list[Use]]]] = []

        def read(recording: Recording, columns: list[Tensor]) -> None:
            structure = recording.structure(columns)
            names, seen = self.alone.get(structure, (frozenset[str](), 0))
            checked = seen >= SEEN_ALONE * len(columns)
            also = {name: parameters[name] for name in names} if checked else parameters
            last = units - 1, len(columns) - 1
            for place, head in product(range(units), range(len(columns))):
                value = columns[head][place]
                uses, whole = recording.back(value, also, keep=(place, head) != last)
                if not checked:
                    names |= self._believed(recording, structure, uses, whole, parameters)
                uses = [use for use in uses if use.name not in names]
                odd = self.odd if names else {}
                uses += [formed(name, whole[name][None], why=odd.get(name, "")) for name in names if name in whole]
                if not head:
                    found.append([])
                found[-1].append((float(value.detach()), uses))

        _forward(feed, [row], units, parameters, ask, one_example, read)
        return found

    def _checked_alone(
        self, feed: Feed, row: int, parameters: Parameters, ask: Asked
    ) -> list[tuple[Tensors, float, frozenset[str]]]:
        """Return (autograd's gradient of one example, its loss, the parameters on which its own uses disagree), of each ask."""
        found: list[tuple[Tensors, float, frozenset[str]]] = []

        def read(recording: Recording, columns: list[Tensor]) -> None:
            structure = recording.structure(columns)
            for left, column in zip(reversed(range(len(columns))), columns, strict=True):
                uses, whole = recording.back(column[0], parameters, keep=left > 0)
                names = self._believed(recording, structure, uses, whole, parameters)
                found.append((whole, float(column[0].detach()), names))

        _forward(feed, [row], 1, parameters, ask, one_example, read)
        return found

    def _believed(
        self, recording: Recording, structure: Structure, uses: Sequence[Use], whole: Tensors, parameters: Parameters
    ) -> frozenset[str]:
        """Compare an example's uses with autograd's gradient of it, remember the outcome, return the names that disagree."""
        own, tolerance = lengths(whole), tolerance_of(parameters, recording.element_size)
        apart, size = distances(uses, whole), total(own)
        names, seen = self.alone.get(structure, (frozenset(recording.unknown_uses), 0))
        if size > 0:
            wrong = wrong_alone(apart, own, tolerance)
            if total({name: off for name, off in apart.items() if name not in names | wrong}) > tolerance.whole * size:
                wrong |= {name for name, off in apart.items() if off > tolerance.whole * size / len(apart)}
            self.alone[structure] = names | wrong, seen + 1
        elif structure not in self.alone:
            self.alone[structure] = names, 0
        return self.alone[structure][0]


# -- forwards ----------------------------------------------------------------------------------------------------------


def _record(
    feed: Feed, rows: Sequence[int], parameters: Parameters, ask: Asked, guide: Guide
) -> tuple[Recording, list[Tensor], Heads]:
    """Return (the recording, losses, uses with what came back) of one batch, once for each thing asked."""
    found: list[tuple[Recording, list[Tensor], Heads]] = []

    def read(recording: Recording, columns: list[Tensor]) -> None:
        recording.found = recording.structure(columns)
        if isinstance(guide, Known) and recording.found not in guide.structures:
            raise Unfamiliar("parameters are used otherwise than when the model was checked")
        sums = [column.sum() for column in columns]
        heads = [recording.back(one, keep=at + 1 < len(sums))[0] for at, one in enumerate(sums)]
        found.append((recording, [feed.checked(column, rows, len(rows)) for column in columns], heads))

    _forward(feed, rows, len(rows), parameters, ask, guide, read)
    return found[0]


def _forward(
    feed: Feed, rows: Sequence[int], units: int, parameters: Parameters, ask: Asked, guide: Guide,
    read: Callable[[Recording, list[Tensor]], None],
) -> None:  # fmt: skip
    """Run one forward under a recording, and ``read`` what it gave while the graph is there."""

    def run(model: nn.Module, batch: Batch) -> Tensor:
        recording = Recording(parameters, len(rows), guide, HANDLERS, batch)
        with torch.enable_grad(), recording:
            columns = list(ask.all(model, batch)) if isinstance(ask, Asks) else [(ask or feed.task.loss)(model, batch)]
        for column in columns:
            one_each(column, units, f"{feed.examples.name}, rows from {rows[0]}", finite=feed.skipped.isdisjoint(rows))
        read(recording, columns)
        return columns[0].detach()

    for _ in feed.each(run, rows, len(rows)):
        pass


def _taken(waiting: Sequence[Joined]) -> tuple[list[int], list[Tensor], Heads]:
    """Return what was collected of each thing asked; the units are the same."""
    taken = [joined.taken() for joined in waiting]
    return taken[0][0], [losses for _, losses, _ in taken], [uses for _, _, uses in taken]


@contextmanager
def only_these(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within the block exactly ``parameters`` want gradients; afterwards the flags are as they were."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    chosen = set(parameters.values())
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in chosen)
        yield
    finally:
        for parameter, was in before.items():
            parameter.requires_grad_(was)


# -- comparisons -------------------------------------------------------------------------------------------------------


def _uncountable(recording: Recording, feed: Feed, rows: Sequence[int]) -> str:
    """Return why rows of ``(B·T, …)`` cannot be told apart by counting, or nothing.

    Each example must have as many of them: where the collate joins examples of several sizes end to end, or the forward picks
    rows by their content, equal shares would be right by chance alone.
    """
    if all(call.layout.kind != "rows" for call in recording.calls):
        return ""
    if recording.by_content:
        return f"the forward picks rows by their content ({recording.by_content}): whose they are cannot be counted"
    if not all(len(tensor) == len(rows) for tensor in tensors_in(recording.batch) if tensor.ndim):
        return "examples are joined end to end: whose rows are whose cannot be counted"
    return ""
