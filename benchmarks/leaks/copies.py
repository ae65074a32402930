"""Near copies: what may happen to an example on its way into a test set. Images in [0, 1]; texts as lists of words."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SYNONYMS = [
    ("movie", "film"), ("funny", "amusing"), ("good", "fine"), ("great", "excellent"), ("bad", "poor"),
    ("story", "tale"), ("smart", "clever"), ("dull", "boring"), ("director", "filmmaker"), ("picture", "feature"),
    ("enough", "sufficiently"), ("best", "finest"), ("love", "adore"), ("makes", "renders"), ("kids", "children"),
    ("comedy", "farce"), ("little", "small"), ("big", "large"), ("never", "not"), ("but", "yet"), ("is", "'s"),
    ("and", "&"), ("very", "quite"), ("seems", "appears"), ("nearly", "almost"), ("entertaining", "enjoyable"),
    ("performances", "acting"), ("characters", "people"), ("work", "piece"), ("while", "although"),
]  # fmt: skip
OTHER = {a: b for pair in SYNONYMS for a, b in (pair, pair[::-1])}


def noise(images: Tensor, sigma: float = 0.1) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return (images + sigma * torch.randn(images.shape, generator=draw)).clamp(0, 1)


def brightness(images: Tensor, by: float = 0.8) -> Tensor:
    return images * by


def jpeg(images: Tensor, quality: int = 50) -> Tensor:
    return torch.stack([_through_jpeg(image, quality) for image in images])


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    pixels = image.mul(255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    found = np.asarray(Image.open(file), dtype=np.float32) / 255
    return torch.from_numpy(found.reshape(*pixels.shape)).permute(2, 0, 1).contiguous()


def shift(images: Tensor) -> Tensor:
    """One pixel to the right and down; the edge is repeated."""
    return F.pad(images, (1, 0, 1, 0), mode="replicate")[..., :-1, :-1]


def crop(images: Tensor) -> Tensor:
    """A margin of an eighth of the side cut off (one pixel of 8×8), the rest brought back to size."""
    side = images.shape[-1]
    edge = max(1, side // 16)
    inner = images[..., edge : side - edge, edge : side - edge]
    return F.interpolate(inner, size=(side, side), mode="bilinear", align_corners=False)


IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda images: images, "noise σ = .1": noise, "brightness × .8": brightness, "JPEG quality 50": jpeg,
    "shift 1 px": shift, "crop": crop,
}  # fmt: skip


def drop(texts: Sequence[list[str]], share: float) -> list[list[str]]:
    """Leave out words at random, at least one."""
    draw, found = np.random.default_rng(0), []
    for text in texts:
        count = min(len(text) - 1, max(1, round(share * len(text))))
        gone = set(draw.choice(len(text), count, replace=False).tolist())
        found.append([word for place, word in enumerate(text) if place not in gone])
    return found


def synonyms(texts: Sequence[list[str]]) -> list[list[str]]:
    """Replace words by others of like meaning, from a short table; a text with none of them loses its last word."""
    swapped = [[OTHER.get(word, word) for word in text] for text in texts]
    return [new if new != old else old[:-1] or old for new, old in zip(swapped, texts, strict=True)]


def swap(texts: Sequence[list[str]]) -> list[list[str]]:
    """Exchange every second word with the next."""
    return [[word for pair in zip(text[1::2], text[::2], strict=False) for word in pair] + text[len(text) // 2 * 2 :]
            for text in texts]  # fmt: skip


def cut(texts: Sequence[list[str]]) -> list[list[str]]:
    """Keep the first three quarters."""
    return [text[: max(1, len(text) * 3 // 4)] for text in texts]


TEXTS: dict[str, Callable[[Sequence[list[str]]], list[list[str]]]] = {
    "exact": list, "one word dropped": lambda texts: drop(texts, 0), "a fifth dropped": lambda texts: drop(texts, 0.2),
    "synonyms": synonyms, "words swapped": swap, "last quarter cut": cut,
}  # fmt: skip
