"""A denoiser, its training images and generated images, opened and checked; and how they are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError, QueryError, SettingError
from forwardinf.core.fingerprint import code_digest, digest, model_digest
from forwardinf.core.progress import Advance, progress
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Batch, Examples, Id
from forwardinf.gradients.per_example import recorder_of
from forwardinf.job.open import open_rows, open_training
from forwardinf.job.options import Options
from forwardinf.method import attribute
from forwardinf.tasks.diffusion import Diffusion
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.task import Task
from forwardinf.use.checkpoints import each_checkpoint
from forwardinf.use.images.tables import Array
from forwardinf.use.inputs import candidate_positions
from forwardinf.use.jointly import Turn
from forwardinf.use.jointly import jointly as named_jointly
from forwardinf.use.responses import unit
from forwardinf.use.sketch import (
    Sketcher,
    compared,
    place_of,
    side_by_side,
    side_of,
)
from forwardinf.use.sketch_cache import KeptRows
from forwardinf.use.whitening import Kept

FIT = 2000  # images beside the candidates that whitening learns from


@dataclass(frozen=True)
class Compare:
    """How gradients are compared.

    Attributes:
        how: See :func:`trace_images`.
        readings: What :class:`Diffusion` reads, side by side.
        damping: Of the whitening.
        together: How many training images are named jointly for each generated one; 0: none are.
    """

    how: str
    readings: tuple[str, ...]
    damping: float
    together: int


class Images:
    """Model, training images and generated images, opened and checked."""

    def __init__(
        self, model: nn.Module, train: Any, images: Any, task: Task, options: Options, globs: tuple[str, ...] | None, ids: Any,
        image_ids: Sequence[Id] | None, side: int | None = None, memory: int | None = None,
    ) -> None:  # fmt: skip
        self.asked_side, self.memory = side, memory
        self.model, self.task, self.options = model, task, options
        self.data, self.asked = train, images
        training = open_training(model, train, task=task, parameters=globs, ids=ids, collate_fn=None, options=options)
        asked, _ = open_rows(images, "images", task, None, options, image_ids)
        self.train, self.digest, self.parameters = training.feed, training.data, training.parameters
        rows, self.device = self.train.examples, self.train.device
        self.names, self.ids = asked.ids, rows.ids
        self.images = Feed(model, task.whole(), asked, self.device, seed=options.seed)
        self.batch_size = 32 if options.batch_size == "auto" else int(options.batch_size)
        self.notes, self.clock = list(rows.notes), dict[str, float]()

    def both_views(self) -> list[Task]:
        """Return the task that reads training images as they are, and as their mirror images."""
        if not isinstance(self.task, Diffusion) or self.task.flips != "none":
            raise SettingError(
                "trace_images(flips='max')", expected="fi.Diffusion(flips='none')", got=type(self.task).__name__
            )
        return [self.task, self.task.varied(flips="mirror")]

    def chosen(self, candidates: Any) -> list[Array] | None:
        """Return each image's candidate positions, sorted, or None for all."""
        if candidates is None:
            return None
        lists = candidate_positions(candidates, self.names, self.ids, "image")
        flat = [value for entry in lists for value in entry]
        if len(lists) != len(self.names) or not all(lists) or not all(0 <= value < len(self.ids) for value in flat):
            raise DataError("candidates", expected=f"for each of {len(self.names)} images positions below {len(self.ids)}",
                            got=f"{len(lists)} lists")  # fmt: skip
        return [np.unique(np.asarray(entry)) for entry in lists]

    def indexed(
        self, view: Task, compare: Compare, chosen: list[Array] | None, checkpoints: Sequence[Any] | None
    ) -> tuple[Array, Array, list[Turn]]:
        """Return (scores, each image's score with itself, who leaves when) from gradient sketches."""
        places = np.arange(len(self.ids))
        if chosen is not None:
            draw = np.random.default_rng(self.options.seed)
            places = np.unique(np.concatenate([*chosen, draw.choice(places, min(FIT, len(places)), replace=False)]))
        values, own, count = np.full((len(self.names), len(self.ids)), np.nan), np.zeros(len(self.names)), 0
        total, turns = np.zeros((len(self.names), len(places))), list[Turn]()
        for _ in each_checkpoint(self.model, checkpoints):
            read = [
                self._sketches(*self._as_read(view, reads), places, len(compare.readings)) for reads in compare.readings
            ]
            pairs = [(train, asked) for train, asked, _ in read]
            whole = None if chosen is not None else _joined([place for *_, place in read])
            began = time.perf_counter()
            with progress("comparing", 1, self.options.progress) as advance:
                index, queries = side_by_side(pairs, compare.how)
                found = compared(index, queries, compare.how, compare.damping, kept=whole)
                total, own, count = total + found.scores.numpy(), own + found.own.numpy(), count + 1
                if compare.together:
                    turns = named_jointly(found, compare.together, chosen, places)
                advance(1)
            self.clock["images_s"] = self.clock.get("images_s", 0.0) + time.perf_counter() - began
        values[:, places] = total / count
        if chosen is not None:
            for row, kept in zip(values, chosen, strict=True):
                row[np.setdiff1d(np.arange(len(row)), kept)] = np.nan
        return values, own / count, turns

    def _as_read(self, view: Task, reads: str) -> tuple[Task, Task]:
        """Return the tasks that training images and generated ones are read by."""
        asked = self.images.task
        if not isinstance(view, Diffusion) or not isinstance(asked, Diffusion):
            return view, asked
        noise = "shared" if view.noise == "auto" else view.noise
        return view.varied(noise=noise, reads=reads), asked.varied(noise=noise, reads=reads)

    def side(self, rows: int, readings: int) -> int:
        """Return how wide sketches of so many images are."""
        return side_of("trace_images", self.parameters, readings * rows, self.asked_side, self.memory)

    def _sketches(self, view: Task, asked: Task, places: Any, readings: int) -> tuple[Tensor, Tensor, Kept | None]:
        """Return the sketched gradients of training images and of the generated ones, and where what is made of them is kept."""
        sketcher = Sketcher(self.parameters, side=self.side(len(places), readings), seed=self.options.seed)
        cache, folder = self.options.cache, None
        if cache is not None:
            folder = place_of(cache, model_digest(self.model), self.digest, code_digest(view), sorted(self.parameters),
                              sketcher.side, self.options.seed)  # fmt: skip
        feed = Feed(
            self.model, view, self.train.examples, self.device, seed=self.options.seed, prepared=self.train.prepared
        )
        began, wanted = time.perf_counter(), places.tolist()
        rows = KeptRows(folder, lambda some, advance: sketcher.rows(feed, some, self.batch_size, None, advance), sketcher.width,
                        next(iter(self.parameters.values())).dtype, self._note)  # fmt: skip
        with progress("gradients", len(wanted), self.options.progress) as advance:
            index = rows.take(wanted, wanted, advance)
        self.clock["index_s"] = self.clock.get("index_s", 0.0) + time.perf_counter() - began
        began = time.perf_counter()
        ask: Callable[[nn.Module, Batch], Tensor] = lambda model, batch: -asked.measure(model, batch)  # noqa: E731
        with progress("images", len(self.names), self.options.progress) as advance:
            queries = sketcher.rows(self.images, range(len(self.names)), self.batch_size, ask, advance)
        for name, length in zip(self.names, queries.norm(dim=1).tolist(), strict=True):
            if not 0 < length < float("inf"):
                raise QueryError(
                    f"image {name!r}", expected="a finite gradient that is not zero", got=f"length {length}"
                )
        self._note(recorder_of(feed, self.parameters).told())
        self.clock["images_s"] = self.clock.get("images_s", 0.0) + time.perf_counter() - began
        return index, queries, rows.kept(wanted)

    def _note(self, text: str) -> None:
        if text and text not in self.notes:
            self.notes.append(text)

    def read(
        self, view: Task, rule: Perturbation, chosen: list[Array] | None, checkpoints: Sequence[Any] | None
    ) -> tuple[Array, Array]:
        """Return (scores, rises) read by forward passes, averaged over checkpoints."""
        values, own, count = np.zeros((len(self.names), len(self.ids))), np.zeros(len(self.names)), 0
        began = time.perf_counter()
        for _ in each_checkpoint(self.model, checkpoints):
            found = attribute(
                self.model, self.data, self.asked, task=view, perturbation=rule, ids=self.ids, query_ids=self.names,
                candidates=None if chosen is None else [list(map(int, places)) for places in chosen],
                num_workers=self.options.num_workers, batch_size=self.options.batch_size, device=self.options.device, keep="all",
                cache_dir=self.options.cache_dir, progress=self.options.progress, seed=self.options.seed,
            )  # fmt: skip
            values, own, count = values + found.values, own + found.rise, count + 1
            self.notes += [note for note in found.notes if note not in self.notes]
        self.clock["images_s"] = self.clock.get("images_s", 0.0) + time.perf_counter() - began
        return values / count, own / count

    def pixels(self) -> Array:
        """Return the cosine of images (latents) as they are fed, centred on the training set's mean, ``(Q, N)``."""
        with progress("pixels", len(self.ids) + len(self.names), self.options.progress) as advance:
            train, images = (self._fed(feed, advance) for feed in (self.train, self.images))
        middle = train.mean(0)
        return (unit(images - middle).double() @ unit(train - middle).double().T).numpy()

    def _fed(self, feed: Feed, advance: Advance) -> Tensor:
        task = self.task

        def flat(model: nn.Module, batch: Batch) -> Tensor:
            taken = task.images_of(batch) if isinstance(task, Diffusion) else _first(batch)
            advance(len(taken))
            return taken.flatten(1).float().cpu()

        with torch.no_grad():
            return torch.cat(list(feed.each(flat, range(len(feed.examples)), 256)))

    def shown(self, table: pd.DataFrame) -> dict[str, Any]:
        """Return what a report draws: the generated images, and the training images of the table."""
        place = {value: position for position, value in enumerate(self.ids)}
        return {
            "images": {name: _seen(self.images.examples, row) for row, name in enumerate(self.names)},
            "train": {value: _seen(self.train.examples, place[value]) for value in dict.fromkeys(table["train"])},
        }


def _joined(each: Sequence[Kept | None]) -> Kept | None:
    """Return where products of several readings side by side are kept: with the first of them."""
    found = [one for one in each if one is not None]
    if len(found) < len(each):
        return None
    return Kept(found[0].pieces, digest([one.name for one in found]), found[0].note)


def _seen(rows: Examples, row: int) -> Any:
    return rows[row]


def _first(batch: Batch) -> Tensor:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())
