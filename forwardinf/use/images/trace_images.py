"""Which training images made this image? Generated images, and the training images that support them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from forwardinf.core.errors import SettingError, choose
from forwardinf.core.progress import ARITHMETIC, Setting, Stages, stages
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Id
from forwardinf.job.options import Options, as_perturbation
from forwardinf.models.borrowed import borrowed
from forwardinf.score.scores import Scores
from forwardinf.tasks.diffusion import Diffusion
from forwardinf.tasks.task import as_task
from forwardinf.use.images.reading import Compare, Images
from forwardinf.use.images.tables import pixels_table, scores_table
from forwardinf.use.jointly import Turn, alone
from forwardinf.use.sketch import (
    DAMPING,
    HOW,
    bytes_of,
    check_damping,
    width_of,
)
from forwardinf.use.traces import Traced, expect_attribution

KEYS_AND_VALUES = ("*attn2.to_k.weight", "*attn2.to_v.weight")  # diffusers' cross-attention
FLIPS = ("none", "max")
READINGS = {"both": ("error", "picture"), "loss": ("error",), "picture": ("picture",)}


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
        job = Images(model, train, images, as_task(task), options, globs, ids, image_ids, side, memory)
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
        table = scores_table(scores, pixels, k, turns)
        return Traced(
            use="trace-images", table=table, baselines=pixels_table(scores, pixels, k), scores=scores,
            how=f"{compare.how}, {reading}{', jointly' if jointly else ''}" if rule is None else rule.told(), notes=job.notes,
            cost={name: round(value, 3) for name, value in (job.clock | {"total_s": time.perf_counter() - began}).items()},
            shown=job.shown(table),
        )  # fmt: skip


def _expect(
    whole: Stages, job: Images, rule: Perturbation | None, compare: Compare, states: int, baselines: bool
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
