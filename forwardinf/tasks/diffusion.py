"""Denoising: the loss of an image over a fixed grid of timesteps, with noise that belongs to the image."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from forwardinf.core.errors import SettingError, TaskError, choose
from forwardinf.core.fingerprint import row_digest
from forwardinf.data.noise import content_of, normal
from forwardinf.tasks.outputs import tensor_of
from forwardinf.tasks.task import Batch, Task

if TYPE_CHECKING:
    from forwardinf.tasks.pipeline import Encoders

FLIPS = ("none", "mean", "mirror")
NOISES = ("auto", "own", "shared")
TARGETS = ("auto", "epsilon", "v_prediction", "sample")


class Diffusion(Task):
    """A denoiser ``model(noisy, timestep)``. Loss: the squared error, mean over pixels, timesteps and noises.

    Args:
        scheduler: A diffusers scheduler (its ``alphas_cumprod`` and ``prediction_type`` are read), or the tensor of
            cumulative alphas ``(T,)`` itself.
        timesteps: Which timesteps, as positions in ``alphas_cumprod``; or how many, spread evenly.
        noises: Draws at each timestep. All are keyed by (seed, content of the example, timestep): the same at every
            reading, and the same for an exact copy.
        target: What the model predicts: ``"epsilon"``, ``"v_prediction"``, ``"sample"``; ``"auto"``: the scheduler says.
        weighting: One weight for each timestep, as in training; None: all 1.
        flips: ``"none"``; ``"mean"``: the mean over the image and its mirror image; ``"mirror"``: training images are read
            as their mirror images, queries as they are.
        noise: ``"own"``: each image has its own; ``"shared"``: all images see the same draw at a timestep, so that what two
            gradients have in common is not drowned by the noise they do not (docs/trace-images.md). ``"auto"``: own, but
            shared where :func:`forwardinf.trace_images` compares gradients.
        latents: Where the images (or latents) are in the batch: a name or position. Default: the batch itself, its
            first column, or ``images``, ``image``, ``pixel_values``, ``latents``.
        condition: Keyword(s) of the model's forward → where its value is in the batch, like
            ``{"class_labels": "label"}``.

    Example:
        >>> task = Diffusion(torch.linspace(0.999, 0.01, 100), timesteps=[10, 50])
        >>> class Zero(nn.Module):
        ...     def forward(self, noisy, timestep):
        ...         return torch.zeros_like(noisy)
        >>> task.loss(Zero(), torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3])
    """

    unit = "squared error"
    keyed = True

    def __init__(
        self,
        scheduler: Any,
        timesteps: int | Sequence[int] = 8,
        noises: int = 1,
        target: str = "auto",
        weighting: Sequence[float] | None = None,
        flips: str = "none",
        noise: str = "auto",
        latents: str | int | None = None,
        condition: Mapping[str, str | int] | None = None,
    ) -> None:
        """Check the settings; see the class."""
        alphas = scheduler if isinstance(scheduler, Tensor) else getattr(scheduler, "alphas_cumprod", None)
        if not isinstance(alphas, Tensor) or alphas.ndim != 1:
            raise SettingError("Diffusion(scheduler=)", expected="a scheduler with alphas_cumprod, or that tensor",
                               got=type(scheduler).__name__)  # fmt: skip
        if target not in TARGETS:
            raise choose("Diffusion(target=)", str(target), TARGETS)
        if flips not in FLIPS:
            raise choose("Diffusion(flips=)", str(flips), FLIPS)
        if noise not in NOISES:
            raise choose("Diffusion(noise=)", str(noise), NOISES)
        if isinstance(noises, bool) or not isinstance(noises, int) or noises < 1:
            raise SettingError("Diffusion(noises=)", expected="a whole number ≥ 1", got=repr(noises))
        self.alphas = alphas.detach().double().cpu()
        if isinstance(timesteps, int):
            # The middles of equal stretches: the ends of a schedule are all noise or none.
            timesteps = [int((place + 0.5) * len(alphas) / timesteps) for place in range(timesteps)]
        self.timesteps = [int(step) for step in timesteps]
        if not self.timesteps or not all(0 <= step < len(alphas) for step in self.timesteps):
            raise SettingError(
                "Diffusion(timesteps=)", expected=f"from 0 to {len(alphas) - 1}", got=str(self.timesteps)
            )
        if target == "auto":
            target = str(getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon"))
            if target not in TARGETS[1:]:
                raise choose("Diffusion(target=): the scheduler's prediction_type", target, TARGETS[1:])
        self.weighting = [1.0] * len(self.timesteps) if weighting is None else [float(value) for value in weighting]
        if len(self.weighting) != len(self.timesteps):
            raise SettingError(
                "Diffusion(weighting=)", expected=f"{len(self.timesteps)} weights", got=str(len(self.weighting))
            )
        self.noises, self.target, self.flips, self.noise = noises, target, flips, noise
        self.latents, self.condition = latents, dict(condition or {})
        self.only: int | None = None  # one of the noises
        self.reads = "error"  # or "picture": the mean square of the picture it sees, in place of its error

    @classmethod
    def from_pipeline(
        cls, pipe: Any, image: str = "image", text: str = "text", **settings: Any
    ) -> tuple[nn.Module, Task]:
        """Return (denoiser, task) of a diffusers pipeline: what ``attribute`` and ``trace_images`` take.

        Images are encoded to latents (the posterior's mean, scaled as in training) and texts to hidden states, once for each
        row, and kept in memory between readings.

        Args:
            pipe: DDPM, Stable Diffusion 1 and 2, latent text-to-image, DiT: a U-Net or DiT with at most one VAE and one text
                encoder, and a scheduler with ``alphas_cumprod``.
            image: The rows' column of images.
            text: The rows' column of texts, or of class numbers for a class-conditional denoiser.
            **settings: As in :class:`Diffusion` (timesteps, noises, target, weighting, flips).

        Raises:
            ModelError: Another kind of pipeline.

        Example:
            >>> model, task = fi.Diffusion.from_pipeline(pipe, image="image", text="caption")  # doctest: +SKIP
        """
        for name in ("scheduler", "latents", "condition"):
            if name in settings:
                raise SettingError(
                    f"from_pipeline({name}=)", expected="nothing: the pipeline says", got=repr(settings[name])
                )
        from forwardinf.tasks.pipeline import Encoders, denoiser_of  # it needs Pillow, which other tasks do not

        denoiser = denoiser_of(pipe)
        return denoiser, PipelineDiffusion(pipe.scheduler, Encoders(pipe, denoiser, image, text), **settings)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error of each image, ``(B,)`` float64."""
        images = self.images_of(batch)
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
            raise TaskError("Diffusion", expected="images as numbers with a fraction, scaled as in training", got=got,
                            do="Scale them first, say to [-1, 1].")  # fmt: skip
        views = {"none": [images], "mean": [images, images.flip(-1)], "mirror": [images.flip(-1)]}[self.flips]
        total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        keys = [b"shared"] * len(images) if self.noise == "shared" else self.contents(batch, images)
        with content_of(keys):
            for step, weight in zip(self.timesteps, self.weighting, strict=True):
                for draw in range(self.noises) if self.only is None else [self.only]:
                    noise = normal(images.shape[1:], size=len(images), draw=step * self.noises + draw).to(images)
                    for view in views:
                        total = total + weight * self._read(model, batch, view, noise, step)
        return total / (len(self.timesteps) * (self.noises if self.only is None else 1) * len(views))

    def contents(self, batch: Batch, images: Tensor) -> list[bytes]:
        """Return what each image's noise is keyed by: the image, whatever else the row holds."""
        return [row_digest(image) for image in images.detach().cpu()]

    def whole(self) -> Diffusion:
        """Return the task that queries are read by: never mirrored alone."""
        return self.varied(flips="none") if self.flips == "mirror" else self

    def varied(self, **settings: Any) -> Diffusion:
        """Return the same task with other ``timesteps`` (a list), ``weighting``, ``noises``, ``noise``, ``flips``, ``reads``."""
        other = copy.copy(self)  # a subclass keeps its encoders
        for name, value in settings.items():
            setattr(other, name, value)
        if "timesteps" in settings and "weighting" not in settings:
            other.weighting = [1.0] * len(other.timesteps)
        return other

    def draws(self) -> list[Diffusion]:
        """Return one task for each (timestep, noise): a denoiser's Fisher is a mean over single draws, not of their mean."""
        return [
            self.varied(timesteps=[step], weighting=[weight], only=number)
            for step, weight in zip(self.timesteps, self.weighting, strict=True)
            for number in range(self.noises)
        ]

    def _read(self, model: nn.Module, batch: Batch, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """Return each image's squared error at a timestep, or the mean square of what is left when the noise is taken away.

        The latter, √ᾱ x̂₀, has no residual in its gradient, which the error's shrinks with as a denoiser learns.
        """
        alpha = float(self.alphas[step])
        signal, spread = alpha**0.5, (1 - alpha) ** 0.5
        noisy = signal * clean + spread * noise
        times = torch.full((len(clean),), step, device=clean.device, dtype=torch.long)
        given = {keyword: _at(batch, place, "condition=") for keyword, place in self.condition.items()}
        raw = model(noisy, times, **given)
        output = tensor_of(raw, name="sample", setting="")
        if output.shape[1] == 2 * clean.shape[1]:  # a DiT that learns its variance too
            output = output.chunk(2, 1)[0]
        if output.shape != clean.shape:
            raise TaskError("Diffusion", expected=f"output of shape {tuple(clean.shape)}", got=str(tuple(output.shape)))
        if self.reads == "picture":
            told, seen = output.double(), noisy.double()
            picture: Tensor = {"epsilon": lambda: seen - spread * told, "sample": lambda: signal * told,
                       "v_prediction": lambda: signal * (signal * seen - spread * told)}[self.target]()  # fmt: skip
            return picture.square().flatten(1).mean(1)
        wanted: Tensor = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - spread * clean}[
            self.target
        ]
        error: Tensor = output.double() - wanted.double()
        return error.square().flatten(1).mean(1)

    def images_of(self, batch: Batch) -> Tensor:
        """Return the images (or latents) of a batch."""
        if self.latents is not None:
            return cast("Tensor", _at(batch, self.latents, "latents="))
        if isinstance(batch, Tensor):
            return batch
        if isinstance(batch, Mapping):
            for name in ("images", "image", "pixel_values", "latents"):
                if name in batch:
                    return batch[name]  # type: ignore[no-any-return]
            raise TaskError("Diffusion", expected="'images' in the batch", got=f"keys {sorted(map(str, batch))}",
                            do="Say which with latents=.")  # fmt: skip
        return batch[0]  # type: ignore[no-any-return]


def _at(batch: Batch, place: str | int, setting: str) -> Any:
    try:
        return batch[place]
    except (KeyError, IndexError, TypeError) as error:
        got = f"keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise TaskError(f"Diffusion({setting})", expected=f"{place!r} in the batch", got=got) from error


class PipelineDiffusion(Diffusion):
    """What :meth:`Diffusion.from_pipeline` returns: a denoising task that brings its frozen encoders."""

    def __init__(self, scheduler: Any, encoders: Encoders, **settings: Any) -> None:
        """Take the pipeline's parts."""
        self.encoders = encoders
        super().__init__(scheduler, latents="latents", condition=encoders.condition, **settings)

    def collate(self, examples: list[Any]) -> Batch:
        """Join rows: images as numbers between −1 and 1, texts as a list, classes as whole numbers."""
        return self.encoders.collate(examples)

    def prepare(self, batch: Batch) -> Batch:
        """Encode images to latents (the mean of the VAE's posterior) and texts to hidden states."""
        return self.encoders.prepare(batch)

    def contents(self, batch: Batch, images: Tensor) -> list[bytes]:
        """Return what each image's noise is keyed by: its pixels."""
        if isinstance(batch, Mapping) and "content" in batch:
            return [bytes(row) for row in batch["content"].tolist()]
        return super().contents(batch, images)
