"""Which training images made this image? Attribution in small diffusion models, against what is known and by retraining.

customised   the shared MNIST DDPM is fine-tuned on a few images ("attribution by customisation", Wang et al. 2023): every image
             it then samples was made by those exemplars; they are ranked among 2,000 training images.
conditioned  the same with a class-conditional U-Net with cross-attention, where Attribution by Unlearning moves keys and values.
removal      a small DDPM is trained again, with the same seeds, without the images that a method names.
fresh        the same for other generated images: readings, damping and what is named jointly were chosen on the first.
halves       the same, on random halves of the images: does a method's sum over what was left out foretell every image's loss?
timesteps    how far rankings depend on how many timesteps are read.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.images.bench import KINDS, Size
from benchmarks.images.customised import conditioned, customised
from benchmarks.images.removal import fresh, halves, removal
from benchmarks.images.tables import tables as tables
from benchmarks.images.timesteps import timesteps
from benchmarks.kept import place
from benchmarks.runner import Found, Part

PAGE = "trace-images"
PARTS: dict[str, Callable[[Size], Any]] = {
    "removal": removal, "fresh": fresh, "halves": halves, "customised": customised, "conditioned": conditioned,
    "timesteps": timesteps,
}  # fmt: skip
MINUTES = {"removal": 26, "fresh": 14, "halves": 10, "timesteps": 8, "customised": 22, "conditioned": 8}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="of customised models")
    parser.add_argument("--quick", action="store_true", help="without unlearning on the shared DDPM")


def name(given: Namespace) -> str:
    return "trace_images"


def parts(given: Namespace) -> list[Part]:
    os.environ.setdefault("FORWARDINF_CACHE", str(place("trace-images", "library")))
    size = Size(kinds=tuple(given.kinds), slow=not given.quick)

    def run(part: str) -> dict[str, Any]:
        return {"found": PARTS[part](size), "size": asdict(size)}

    return [Part(part, partial(run, part), 60 * MINUTES[part], asdict(size)) for part in PARTS]


def result(given: Namespace, found: Found) -> Found:
    return found
