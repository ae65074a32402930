"""What stands before the denoiser of a diffusers pipeline: images become latents and texts conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from forwardinf.core.errors import DataError, ModelError
from forwardinf.core.fingerprint import row_digest
from forwardinf.models.borrowed import borrowed
from forwardinf.tasks.batches import Batch
from forwardinf.tasks.outputs import innermost, keywords_of

KNOWN = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")


class Encoders:
    """The frozen parts of a pipeline that stand before its denoiser, and what they make of rows.

    Rows are mappings with an image (PIL, or numbers: 0…255 as whole numbers, else −1…1 as ``(C, H, W)``) and a text or class.

    Attributes:
        condition: Keywords of the denoiser's forward, and where their values are in an encoded batch.
    """

    def __init__(self, pipe: Any, denoiser: nn.Module, image: str, text: str) -> None:
        """Take the pipeline's parts; see :meth:`Diffusion.from_pipeline`."""
        self.vae: Any = getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
        self.encoder: Any = getattr(pipe, "text_encoder", None) or getattr(pipe, "bert", None)
        self.tokenizer: Any = getattr(pipe, "tokenizer", None)
        self.image, self.text = image, text
        channels = getattr(getattr(self.vae, "config", None), "in_channels", None) or denoiser.config.in_channels  # type: ignore[union-attr]
        self.mode = "L" if channels == 1 else "RGB"
        self.classes = self.encoder is None and _takes_classes(denoiser)
        known = "encoder_hidden_states" if self.encoder is not None else "class_labels" if self.classes else ""
        self.condition = {known: known} if known else {}

    def collate(self, examples: list[Any]) -> Batch:
        """Join rows: images as numbers between −1 and 1, texts as a list, classes as whole numbers."""
        rows = [self._row(example) for example in examples]
        missing = [name for name in (self.image, *self._needs) if any(name not in row for row in rows)]
        if missing:
            raise DataError("image rows", expected=f"a column {missing[0]!r}", got=f"{sorted(map(str, rows[0]))}",
                            do="Say which with from_pipeline(image=, text=).")  # fmt: skip
        images = [_numbers(row[self.image], self.mode) for row in rows]
        if len({image.shape for image in images}) > 1:
            raise DataError("image rows", expected="images of one size",
                            got=" and ".join(sorted({str(tuple(image.shape)) for image in images})[:2]),
                            do="Resize them as in training.")  # fmt: skip
        batch: dict[str, Any] = {self.image: torch.stack(images)}
        if self.encoder is not None:
            batch[self.text] = [str(row[self.text]) for row in rows]
        elif self.classes:
            batch[self.text] = torch.tensor([int(row[self.text]) for row in rows])
        return batch

    def _row(self, example: Any) -> Mapping[Any, Any]:
        """Return a row by name; of a row without names the image comes first, then the text or class."""
        if isinstance(example, Mapping):
            return example
        return dict(
            zip((self.image, self.text), example if isinstance(example, tuple | list) else [example], strict=False)
        )

    @property
    def _needs(self) -> tuple[str, ...]:
        return (self.text,) if self.encoder is not None or self.classes else ()

    def prepare(self, batch: Batch) -> Batch:
        """Encode images to latents (the mean of the VAE's posterior) and texts to hidden states."""
        if not isinstance(batch, Mapping):
            batch = {self.image: batch[0] if isinstance(batch, tuple | list) else batch}
        images = batch[self.image]
        found: dict[str, Tensor] = {"latents": images if self.vae is None else self._latents(images)}
        if self.vae is not None:  # latents differ in their last bits from batch to batch: noise is keyed by the pixels
            digests = [list(row_digest(image)) for image in images.detach().cpu()]
            found["content"] = torch.tensor(digests, dtype=torch.uint8)
        if self.encoder is not None:
            found["encoder_hidden_states"] = self._hidden(batch[self.text])
        elif self.classes:
            found["class_labels"] = batch[self.text]
        return found

    def _latents(self, images: Tensor) -> Tensor:
        with borrowed(self.vae), torch.no_grad():
            place = next(self.vae.parameters())
            encoded = self.vae.encode(images.to(place.device, place.dtype))
        latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        config = self.vae.config
        shift, scale = getattr(config, "shift_factor", None) or 0.0, getattr(config, "scaling_factor", None) or 1.0
        return (latents - shift) * scale

    def _hidden(self, texts: list[str]) -> Tensor:
        longest = min(int(self.tokenizer.model_max_length), 512)
        tokens = self.tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        with borrowed(self.encoder), torch.no_grad():
            place = next(self.encoder.parameters()).device
            hidden: Tensor = self.encoder(tokens["input_ids"].to(place))[0]
        return hidden


def denoiser_of(pipe: Any) -> nn.Module:
    """Return the denoiser of a pipeline.

    Raises:
        ModelError: It has none that is known, or parts that are not.
    """
    denoiser = getattr(pipe, "unet", None)
    denoiser = denoiser if denoiser is not None else getattr(pipe, "transformer", None)
    if not isinstance(denoiser, nn.Module) or type(denoiser).__name__ not in KNOWN:
        raise ModelError("from_pipeline(pipe)", expected=f"a pipeline with one of {', '.join(KNOWN)}",
                         got=type(pipe).__name__ if denoiser is None else type(denoiser).__name__,
                         do="Encode the data yourself and use fi.Diffusion(scheduler, latents=, condition=).")  # fmt: skip
    for name in ("text_encoder_2", "image_encoder", "controlnet"):
        if getattr(pipe, name, None) is not None:
            raise ModelError("from_pipeline(pipe)", expected="one text encoder at most", got=f"{name} too",
                             do="Encode the data yourself and use fi.Diffusion(scheduler, latents=, condition=).")  # fmt: skip
    return denoiser


def _takes_classes(denoiser: nn.Module) -> bool:
    taken = keywords_of(innermost(denoiser))
    config: Any = denoiser.config
    given = getattr(config, "num_class_embeds", None) or getattr(config, "num_embeds_ada_norm", None)
    return bool(given) and taken is not None and "class_labels" in taken


def _numbers(image: Any, mode: str) -> Tensor:
    """Return an image as ``(C, H, W)`` float32 between −1 and 1."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert(mode))
    array = torch.as_tensor(np.array(image) if isinstance(image, list) else image)
    if array.ndim == 2:
        array = array[None] if not array.is_floating_point() or mode == "L" else array
    elif array.ndim == 3 and not array.is_floating_point() and array.shape[-1] in (1, 3):
        array = array.movedim(-1, 0)
    if array.ndim != 3:
        raise DataError(
            "image rows", expected="images (C, H, W), or (H, W, C) of whole numbers", got=str(tuple(array.shape))
        )
    return array.float() if array.is_floating_point() else array.float() / 127.5 - 1
