"""Two rankings joined by reciprocal ranks, as they are by default and with the setting that is best on some questions."""

from collections.abc import Sequence
from itertools import product

from benchmarks.text.candidates import Array, measured
from benchmarks.text.webnlg import Question
from forwardinf.use.text.fuse import CONSTANT, WEIGHT, reciprocal

OURS = ("unit-whitened", "whitened", "cosine through K-FAC", "unit-whitened through K-FAC")  # fused with the free ones
WEIGHTS, CONSTANTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), (1.0, 3.0, 10.0, 30.0, 60.0)


def fused(one: list[Array], other: list[Array], weight: float, constant: float) -> list[Array]:
    """Return the fusion of two methods, the second one weighted."""
    return [reciprocal([a, b], [1.0, weight], constant) for a, b in zip(one, other, strict=True)]


def fusions(
    found: dict[str, list[Array]], chosen: list[Array], asked: Sequence[Question], tune: list[int]
) -> dict[str, str]:
    """Add the fusions to the rankings; return the weight and constant of those that are tuned."""
    settings = {}
    for ours in ("hidden states", *OURS):
        for free in ("BM25, masked", "BM25, filled", "hidden states"):
            if ours == free or ours not in found:
                continue
            name = f"{ours} + {free}"
            found[name] = fused(found[ours], found[free], WEIGHT, CONSTANT)
            one, other, places = ([each[q] for q in tune] for each in (found[ours], found[free], chosen))
            some = [asked[q] for q in tune]

            def good(setting: tuple[float, float], one=one, other=other, places=places, some=some) -> float:
                values = measured(fused(one, other, *setting), places, some)
                return float(values["MRR"].mean()) + float(values["P@10"].mean())

            best = max(product(WEIGHTS, CONSTANTS), key=good)
            found[f"{name}, tuned"] = fused(found[ours], found[free], *best)
            settings[f"{name}, tuned"] = f"weight {best[0]:g}, constant {best[1]:g}"
    return settings
