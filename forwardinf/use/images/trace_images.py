"""Which training images made this image? Generated images, and the training images that support them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError, QueryError, SettingError, choose
from forwardinf.core.fingerprint import code_digest, digest, model_digest
from forwardinf.core.progress import ARITHMETIC, Advance, Setting, Stages, progress, stages
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Batch, Examples, Id
from forwardinf.gradients.per_example import recorder_of
from forwardinf.job.options import Options, as_perturbation, device_of, open_examples
from forwardinf.method import attribute
from forwardinf.models.borrowed import borrowed
from forwardinf.perturb.parameters import select
from forwardinf.score.scores import Scores
from forwardinf.tasks.diffusion import Diffusion
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.task import Task, as_task
from forwardinf.use.checkpoints import each_checkpoint
from forwardinf.use.jointly import Turn, alone
from forwardinf.use.jointly import jointly as named_jointly
from forwardinf.use.responses import unit
from forwardinf.use.sketch import (
    DAMPING,
    HOW,
    Sketcher,
    bytes_of,
    check_damping,
    compared,
    place_of,
    side_by_side,
    side_of,
    width_of,
)
from forwardinf.use.sketch_cache import KeptRows
from forwardinf.use.traces import Traced, expect_attribution, ranked
from forwardinf.use.whitening import Kept

Array = np.ndarray[Any, np.dtype[np.float64]]
KEYS_AND_VALUES = ("*attn2.to_k.weight", "*attn2.to_v.weight")  # diffusers' cross-attention
FIT = 2000  # images beside the candidates that whitening learns from
FLIPS = ("none", "max")
READINGS = {"both": ("error", "picture"), "loss": ("error",), "picture": ("picture",)}
TABLE = ["image", "rank", "train", "score", "share", "pixel_similarity"]


def unlearning(
    model: nn.Module,
    *,
    examples: int | None = None,
    alpha: float = 0.01,
    steps: int = 1,
    floor: float = 0.01,
    length: float | None = None,
    parameters: str | Sequence[str] | None = None,
) -> Perturbation:
    """Return the setting of Attribution by Unlearning (Wang et al., NeurIPS 2024): θ ← θ + (α/N) F⁻¹∇L(query).

    F is the diagonal Fisher, the mean over single (image, timestep, noise) draws of squared gradients, averaged in float64.

    Args:
        model: The denoiser: its cross-attention keys and values move, where it has any.
        examples: N of α/N. None: the length is relative, ``length``.
        alpha: α: .01 with one step, .1 with a hundred, in the paper.
        steps: How many steps the length is walked in.
        floor: ε: ε · mean(F) is added to F, which a parameter without gradients would make infinite (the original has 0).
        length: ‖Δθ‖/‖θ‖ in place of α/N; default .01 where ``examples`` is not given.
        parameters: Globs over what moves instead. Default without cross-attention: everything with ``requires_grad``.

    Example:
        >>> unlearning(nn.Linear(2, 2), examples=1000).lr
        1e-05
    """
    if examples is not None and length is not None:
        raise SettingError("unlearning()", expected="one of examples and length", got="both", do="Keep one.")
    if parameters is None:
        names = [name for name, _ in model.named_parameters()]
        has = all(any(name.endswith(glob[1:]) for name in names) for glob in KEYS_AND_VALUES)
        parameters = KEYS_AND_VALUES if has else None
    how = {"lr": alpha / examples} if examples is not None else {"length": 0.01 if length is None else length}
    globs = (parameters,) if isinstance(parameters, str) else None if parameters is None else tuple(parameters)
    return Perturbation("diagonal", fisher="draws", damping=floor, steps=steps, parameters=globs, **how)  # type: ignore[arg-type]


def trace_images(
    model: nn.Module,
    train: Any,
    images: Any,
    *,
    task: Any,
    candidates: Any = None,
    how: str | None = None,
    reading: str | None = None,
    jointly: bool = False,
    perturbation: Perturbation | str | Mapping[str, Any] | None = None,
    damping: float | None = None,
    side: int | None = None,
    memory: int | None = None,
    flips: str = "none",
    checkpoints: Sequence[Any] | None = None,
    parameters: str | Sequence[str] | None = None,
    ids: str | Sequence[Id] | None = None,
    image_ids: Sequence[Id] | None = None,
    k: int = 20,
    baselines: bool = True,
    batch_size: int | Literal["auto"] = "auto",
    num_workers: int = 0,
    device: str = "auto",
    cache_dir: str | Path | None = None,
    progress: Setting = "auto",
    seed: int = 0,
) -> Traced:
    """Rank training images by how much they support each generated image; positive = proponent.

    By default every training image's gradients, of its error and of the picture that the denoiser makes of it, are sketched
    once (kept in ``cache_dir``), at length one, under the same noise for all images, and the generated image's are compared
    with all of them, whitened by how the training images answer one another. A ``perturbation`` is read by forward passes
    instead; ``"unlearning"`` is Attribution by Unlearning, on cross-attention keys and values where the model has them.

    Cost, T timesteps: about 6 T forwards of each training image once (3 T by one reading), then as much for each generated
    one, and with ``jointly`` a solve for the 512 best of each; with a perturbation T forwards of each training image for each
    generated one (and as many once).

    Args:
        model: The denoiser; put in eval mode and given back.
        train: Images, in any form that :func:`attribute` takes (latents, or rows for :meth:`Diffusion.from_pipeline`).
        images: The generated images, likewise.
        task: ``fi.Diffusion(...)``, or from ``fi.Diffusion.from_pipeline``.
        candidates: ``(Q, K)`` positions, or ``{image id: ids}``: only those are scored.
        how: ``"unit-whitened"`` (default), ``"whitened"``, ``"cosine"`` or ``"dot"``: how gradients are compared.
        reading: What they are gradients of: ``"loss"``, the denoiser's error; ``"picture"``, the mean square of what is left
            when the noise is taken away, which has no residual to vanish; ``"both"`` (default) side by side. Tasks that are
            no :class:`Diffusion` have a loss only.
        jointly: Name the images that count *together*: each one next to those that are named before it, as if these were left
            out (:mod:`forwardinf.use.jointly`). Look-alikes stand in for one another, so alone each counts for little. The
            table's ``score`` is then what an image takes with it when its turn comes; ``scores`` stay each one's own.
        perturbation: Instead of ``how``: ``"unlearning"``, or any :class:`Perturbation`.
        damping: Of the whitening: λN as a multiple of the mean ‖gᵢ‖²; default 5.
        side: As in :func:`forwardinf.trace`.
        memory: As in :func:`forwardinf.trace`, of all readings together.
        flips: ``"max"``: the larger of the scores of a training image and of its mirror image. (The mean over both is the
            task's own ``flips="mean"``.)
        checkpoints: Earlier states of the model: scores are the mean over it and them.
        parameters: Globs over the parameters that count; default those with ``requires_grad``.
        ids: Training ids: a column or a list.
        image_ids: Likewise; default the position.
        k: Training images in the table for each generated one.
        baselines: Also rank by the pixels' (latents') cosine.
        batch_size: Images at a time; ``"auto"``: 32 for sketches, the fastest found for perturbations.
        num_workers: Worker processes that fetch training rows.
        device: ``"auto"``: where the model is.
        cache_dir: Where sketches, baselines and fits are kept.
        progress: Show progress on stderr.
        seed: Of noise and projections.

    Returns:
        :class:`Traced`: ``table`` (image, rank, train, score, share, pixel_similarity), ``baselines``, ``scores``.

    Raises:
        Error: With where / expected / got / do.

    Example:
        >>> found = trace_images(unet, train, generated, task=fi.Diffusion(scheduler))  # doctest: +SKIP
        >>> found.report("images.html")  # doctest: +SKIP
    """
    began = time.perf_counter()
    if how is not None and perturbation is not None:
        raise SettingError("trace_images()", expected="one of how and perturbation", got="both", do="Keep one.")
    if how is not None and how not in HOW:
        raise choose("trace_images(how=)", how, HOW)
    if reading is not None and perturbation is not None:
        raise SettingError("trace_images()", expected="one of reading and perturbation", got="both",
                           do="A perturbation is read by losses.")  # fmt: skip
    if reading is not None and reading not in READINGS:
        raise choose("trace_images(reading=)", reading, tuple(READINGS))
    check_damping("trace_images(damping=)", damping)
    if flips not in FLIPS:
        raise choose("trace_images(flips=)", flips, FLIPS)
    if jointly:
        alone("trace_images(jointly=)", how, {"perturbation": perturbation, "checkpoints": checkpoints,
                                              "flips='max'": None if flips == "none" else flips})  # fmt: skip
    if k < 1:
        raise SettingError("trace_images(k=)", expected="k ≥ 1", got=str(k))
    options = Options(batch_size=batch_size, num_workers=num_workers, device=device, cache_dir=cache_dir, progress=progress,
                      seed=seed)  # fmt: skip
    globs = tuple([parameters] if isinstance(parameters, str) else parameters) if parameters is not None else None
    rule = _rule(model, perturbation, globs)
    with stages("trace-images", progress) as whole, borrowed(model) as model:
        job = _Job(model, train, images, as_task(task), options, globs, ids, image_ids, side, memory)
        views = [job.task] if flips == "none" else job.both_views()
        chosen = job.chosen(candidates)
        denoises = isinstance(job.task, Diffusion) and type(job.task).loss is Diffusion.loss  # else no picture is read
        if reading not in (None, "loss") and not denoises:
            raise SettingError(
                "trace_images(reading=)", expected="'loss', as the task has a loss of its own", got=repr(reading)
            )
        reading = reading or ("both" if denoises else "loss")
        compare = Compare(
            how or HOW[0], READINGS[reading], DAMPING if damping is None else damping, k if jointly else 0
        )
        _expect(whole, job, rule, compare, len(views) * (1 + len(checkpoints or ())), baselines)
        turns: list[Turn] = []
        if rule is None:
            read = [job.indexed(view, compare, chosen, checkpoints) for view in views]
            found, turns = [(values, own) for values, own, _ in read], read[0][2]
        else:
            found = [job.read(view, rule, chosen, checkpoints) for view in views]
        values = np.maximum.reduce([values for values, _ in found])
        kind = "linear" if rule is None else rule.kind
        free = job.task.unit if rule is not None or (how in ("whitened", "dot") and reading == "loss") else None
        scores = Scores.from_array(
            values, ids=job.train.examples.ids, query_ids=job.names, rise=found[0][1], unit=free, kind=kind
        )
        pixels = job.pixels() if baselines else None
        table = _table(scores, pixels, k, turns)
        return Traced(
            use="trace-images", table=table, baselines=_baselines(scores, pixels, k), scores=scores,
            how=f"{compare.how}, {reading}{', jointly' if jointly else ''}" if rule is None else rule.told(), notes=job.notes,
            cost={name: round(value, 3) for name, value in (job.clock | {"total_s": time.perf_counter() - began}).items()},
            shown=job.shown(table),
        )  # fmt: skip


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


def _expect(
    whole: Stages, job: _Job, rule: Perturbation | None, compare: Compare, states: int, baselines: bool
) -> None:
    """Say what the call will do, for its progress; a forward pass is one of all timesteps of an image."""
    size, asked = len(job.ids), len(job.names)
    whole.say(training_images=size, images=asked)
    for _ in range(states):
        if rule is not None:
            expect_attribution(whole, rule, size, asked)
            continue
        for _ in compare.readings:
            whole.expect("gradients", 4 * size)
            whole.expect("images", 4 * asked)
        side = job.side(size, len(compare.readings))
        width = len(compare.readings) * width_of(job.parameters, side)
        whole.say(side=side, numbers_each=width, backward_passes=states * len(compare.readings) * (size + asked),
                  memory_bytes=bytes_of(size, width), disk_bytes=4 * states * size * width)  # fmt: skip
        whole.expect("comparing", size * width * min(size, width) + min(size, width) ** 3 / 3, ARITHMETIC)
    whole.expect("pixels", size + asked if baselines else 0, "images")


def _rule(model: nn.Module, perturbation: Any, globs: tuple[str, ...] | None) -> Perturbation | None:
    if perturbation is None:
        return None
    rule = unlearning(model, parameters=globs) if perturbation == "unlearning" else as_perturbation(perturbation)
    if globs is not None and rule.parameters is None:
        rule = Perturbation.from_dict({**rule.to_dict(), "parameters": list(globs)})
    return rule


class _Job:
    """Model, training images and generated images, opened and checked."""

    def __init__(
        self, model: nn.Module, train: Any, images: Any, task: Task, options: Options, globs: tuple[str, ...] | None, ids: Any,
        image_ids: Sequence[Id] | None, side: int | None = None, memory: int | None = None,
    ) -> None:  # fmt: skip
        self.asked_side, self.memory = side, memory
        self.model, self.task, self.options = model, task, options
        self.data, self.asked = train, images
        self.device = device_of(model, options.device)
        rows, asked = (
            open_examples(data, name, task, None, options) for data, name in ((train, "train"), (images, "images"))
        )
        with progress("hashing", len(rows) + len(asked), options.progress) as advance:
            self.digest = rows.seal(range(len(rows)), advance, None, ids)
            asked.seal(range(len(asked)), advance, None, image_ids)
        self.names, self.ids = asked.ids, rows.ids
        self.train = Feed(model, task, rows, self.device, seed=options.seed)
        self.images = Feed(model, task.whole(), asked, self.device, seed=options.seed)
        self.parameters = select(model, globs)
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
        if isinstance(candidates, Mapping):
            place = {value: position for position, value in enumerate(self.ids)}
            missing = [name for name in self.names if name not in candidates]
            if missing:
                raise DataError("candidates", expected="an entry for each image id", got=f"missing {missing[:3]}")
            strange = [value for name in self.names for value in candidates[name] if value not in place]
            if strange:
                raise DataError("candidates", expected="training ids", got=repr(strange[0]))
            lists = [[place[value] for value in candidates[name]] for name in self.names]
        else:
            lists = [list(map(int, entry)) for entry in candidates]
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


def _table(scores: Scores, pixels: Array | None, k: int, turns: list[Turn]) -> pd.DataFrame:
    records, share = [], scores.share
    for q, name in enumerate(scores.query_ids):
        best = ranked(scores.values[q], k)
        best, shown = turns[q] if turns else (best, scores.values[q, best])
        records += [
            {"image": name, "rank": rank, "train": scores.ids[place], "score": float(score),
             "share": float(share[q, place]), "pixel_similarity": np.nan if pixels is None else float(pixels[q, place])}
            for rank, (place, score) in enumerate(zip(best, shown, strict=True), start=1)
        ]  # fmt: skip
    return pd.DataFrame(records, columns=TABLE)


def _baselines(scores: Scores, pixels: Array | None, k: int) -> pd.DataFrame:
    records: list[dict[str, Any]] = []
    for q, name in enumerate(scores.query_ids if pixels is not None else ()):
        there = np.where(np.isfinite(scores.values[q]), pixels[q], np.nan)  # type: ignore[index]
        records += [
            {"image": name, "method": "pixels", "rank": rank, "train": scores.ids[place], "score": float(there[place])}
            for rank, place in enumerate(ranked(there, k), start=1)
        ]  # fmt: skip
    return pd.DataFrame(records, columns=["image", "method", "rank", "train", "score"])
