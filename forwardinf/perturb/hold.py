"""Hold the rest: push on the query while the training examples stay where they are, as well as they can.

The empirical Fisher in example space. With G (N×P) the training gradients, K = GGᵀ and P⁻¹ = GᵀG/N + λI,
P g_q = (g_q − Σᵢ aᵢ gᵢ)/λ where a = (K + λN)⁻¹ G g_q: the query's gradient minus a weighted training gradient. So a
direction is two passes over the training set, for any architecture: one that reads G g_q, one weighted backward.
Beyond a few thousand examples K is replaced by responses to shared probes. Linear scores under P come cheaper by
whitening plain ones (``score/whiten.py``): N(K + λN)⁻¹ s, equal to reading along this direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forwardinf.core.fingerprint import digest
from forwardinf.core.progress import Advance, progress
from forwardinf.data.noise import seed_of
from forwardinf.gradients.directions import Directions
from forwardinf.gradients.dots import dots
from forwardinf.gradients.gram import Part, joined, parts_of, products
from forwardinf.gradients.layer_uses import as_uses
from forwardinf.gradients.per_example import factored
from forwardinf.gradients.products import Products, product_dtype
from forwardinf.gradients.ridge import Ridge
from forwardinf.perturb.direction import Fitting, Tensors
from forwardinf.perturb.gradient import weighted_gradient
from forwardinf.perturb.parameters import Parameters
from forwardinf.perturb.probes import Probes, tables_of
from forwardinf.perturb.shards import Shards, joined_rows
from forwardinf.tasks.feed import Feed

EXACT_EXAMPLES = 5_000  # K is N² numbers and N³/3 multiplications to factor
EXACT_WORK = 1e13  # multiplications that K itself may take: minutes
BLOCK = 2**28  # bytes of per-example gradients held at a time:
EXACT_BLOCKS = 16  # so many of them at most, as everything after a block is read again for it
FEWEST = 64  # whatever they weigh
SEEN = 16  # rows whose gradients tell what others weigh
PROBES = 4_096  # of a sketch, fewer where N × M would not fit:
SKETCH = 2**30  # bytes of responses
SHARD = 1_024  # examples of one part of a sketch


@dataclass
class Held:
    """How the training examples respond to one another: what ``hold`` is fitted to.

    Attributes:
        rows: The training rows that are held: all, or a sample (``fit_examples``).
        whole: Whether they are all, so that linear scores may be whitened with them.
        gram: K, ``(N, N)`` float32, or None.
        responses: R with K ≈ RRᵀ, ``(N, M)`` float32, or None.
    """

    rows: Sequence[int]
    whole: bool
    gram: Tensor | None = None
    responses: Tensor | None = None

    def ridge(self, damping: float | str = "auto", temper: float = 0.0) -> Ridge:
        """Return (K + λN)⁻¹, factored."""
        return Ridge(self.gram, responses=self.responses, damping=damping, temper=temper)


def fit_held(fitting: Fitting, *, probes: int | None = None) -> Held:
    """Return the training examples' inner products, or a sketch of them; kept in the cache, resumed where interrupted.

    Args:
        fitting: Its ``fit_examples`` limits the examples to a sample drawn by its seed.
        probes: Force a sketch by so many probes; default: K itself up to 5,000 examples where that takes minutes at most.

    Cost: K: a forward and an activation-only backward over the training set for each block of gradients that fits into
    256 MiB, and N²/2 inner products; a sketch: about 3 F whatever M.
    """
    rows = _held_rows(fitting)
    units = len(fitting.train.examples.units_of(rows))
    most = exact_examples(fitting, rows) if probes is None else 0
    if probes is None and fitting.perturbation.kind == "finite" and units > most:
        # a direction made from a sketch points elsewhere (what the sketch does not see is not held): a sample it is
        rows = _sample(fitting, most, units=True)
        units = len(fitting.train.examples.units_of(rows))
        fitting.notes.append(f"hold: {units} training examples drawn by the seed are held, not all")
    held = Held(rows, units == fitting.train.examples.units)
    if units <= most:
        kept = Shards(fitting, "gram", digest(list(rows)))
        with progress("fitting: responses to one another", units * (units + 1) // 2, fitting.progress) as advance:
            held.gram = _gram(fitting, rows, units, kept, advance)
        return held
    count = probes or max(64, min(PROBES, 2 ** int(math.log2(max(SKETCH // (4 * units), 1)))))
    with progress("fitting: responses to probes", units, fitting.progress) as advance:
        held.responses = _sketch(fitting, rows, count, advance)
    if probes is None:
        fitting.notes.append(f"hold: {units} examples, so their inner products are estimated by {count} shared probes")
    return held


class Holding:
    """The direction P g_q. Fits first; then about 5 F for each new gradient, 3 F for one seen before; many at once for 6 F.

    Attributes:
        held: What was fitted.
        ridge: (K + λN)⁻¹.
    """

    def __init__(self, fitting: Fitting) -> None:
        """Fit, or recall the fit."""
        self.fitting, rule = fitting, fitting.perturbation
        self.held = fit_held(fitting)
        self.ridge = self.held.ridge(rule.damping, rule.tempering)
        self._seen: dict[str, Tensor] = {}
        self._probes: Probes | None = None

    def respond(self, gradient: Tensors) -> Tensor:
        """Return a gradient's responses to the probes that the sketch was made with, ``(M,)`` float64."""
        assert self.held.responses is not None
        count = self.held.responses.shape[1]
        if self._probes is None:
            self._probes = _probes(self.fitting, count)
        return self._probes.responses(as_uses(gradient), 1)[0].double().cpu() / math.sqrt(count)

    def together(self, gradients: Sequence[Tensors]) -> Directions:
        """Return the directions of several gradients, in two passes for all: about 6 F, and little more for each of them."""
        fitting, ridge, rows = self.fitting, self.ridge, self.held.rows
        shapes = {name: parameter.shape for name, parameter in fitting.parameters.items()}
        dtype, device = product_dtype(fitting.parameters), fitting.train.device
        found, rest = (Directions(shapes, len(gradients), dtype, device) for _ in range(2))
        for place, gradient in enumerate(gradients):
            found.put(place, gradient)
        products, plain = Products(dtype, device), []
        for units, _, uses in factored(fitting.train, rows, fitting.parameters, fitting.batch_size):
            own = torch.zeros(len(units), len(gradients), dtype=torch.float64)
            while uses:  # what a use holds is free as soon as it is done
                own += products.of(uses.pop(), found).double().cpu()
            plain.append(own)
        weights, at = ridge.solve(torch.cat(plain).T * ridge.inverse) * ridge.inverse, 0
        for units, _, uses in factored(fitting.train, rows, fitting.parameters, fitting.batch_size):
            own = weights[:, at : at + len(units)].T.to(device)
            while uses:
                products.add(uses.pop(), own, rest)
            at += len(units)
        return found.less(rest, ridge.damping)

    def __call__(self, gradient: Tensors) -> Tensors:
        """Return (g_q − Σ aᵢgᵢ)/λ, made in place."""
        fitting, ridge = self.fitting, self.ridge
        key = digest({name: tensor.cpu() for name, tensor in gradient.items()})
        if (
            key not in self._seen
        ):  # the weights are N numbers, worth keeping: a query is pushed when checked and when read
            plain = linear_scores(fitting.train, self.held.rows, fitting.parameters, fitting.batch_size, gradient)
            self._seen[key] = ridge.solve(plain * ridge.inverse) * ridge.inverse
        rest = weighted_gradient(fitting.train, self.held.rows, self._seen[key], fitting.parameters, fitting.batch_size)
        for name, tensor in rest.items():
            gradient[name] = gradient[name].sub_(tensor) if name in gradient else tensor.neg_()
        return {name: tensor.div_(ridge.damping) for name, tensor in gradient.items()}


def linear_scores(train: Feed, rows: Sequence[int], parameters: Parameters, batch_size: int, vector: Tensors) -> Tensor:
    """Return gᵢᵀv of every unit in these rows, ``(units,)`` float64. Cost: a forward and an activation-only backward."""
    return torch.cat(
        [dots(uses, vector, len(units)) for units, _, uses in factored(train, rows, parameters, batch_size)]
    )


def _held_rows(fitting: Fitting) -> Sequence[int]:
    """Return all rows, or a sample of them by the seed."""
    size, most = len(fitting.train.examples), fitting.perturbation.fit_examples
    return range(size) if most == "auto" or int(most) >= size else _sample(fitting, int(most))


def _sample(fitting: Fitting, most: int, *, units: bool = False) -> Sequence[int]:
    """Return so many rows drawn by the seed; ``units``: as many as hold so many units at most, but one at least."""
    rows = fitting.train.examples
    draw = torch.Generator().manual_seed(seed_of("hold", fitting.perturbation.seed))
    order = torch.randperm(len(rows), generator=draw)
    if units:
        many = torch.from_numpy(np.diff(rows.offsets))[order].cumsum(0)
        most = max(1, int((many <= most).sum()))
    return sorted(order[:most].tolist())


def exact_examples(fitting: Fitting, rows: Sequence[int]) -> int:
    """Return for how many examples K itself takes minutes at most, from the gradients of a few rows, one at a time.

    One at a time, as batches are padded: what is held must not depend on how many are read together.
    """
    few = rows[:: max(1, len(rows) // SEEN)][:SEEN]
    held = work = count = 0
    for units, _, uses in factored(fitting.train, few, fitting.parameters, 1):
        sizes = [part.size() for part in parts_of(uses, len(units)).values()]
        count += len(units)
        held += len(units) * sum(size for size, _ in sizes)  # bytes
        work += len(units) * sum(each for _, each in sizes)  # multiplications of one inner product
    held, work = max(held // count, 1), max(work // count, 1)
    return min(EXACT_EXAMPLES, math.isqrt(int(2 * EXACT_WORK / work)), max(FEWEST, EXACT_BLOCKS * BLOCK // held))


def _gram(fitting: Fitting, rows: Sequence[int], units: int, kept: Shards, advance: Advance) -> Tensor:
    """Return K. A block of gradients is held at a time, and all that comes after it is read past it."""
    found = torch.zeros(units, units)
    start = 0
    for part in kept.parts:
        found[start : start + len(part), start:] = part
        start += len(part)
        advance(int(part.numel()))
    ends = torch.from_numpy(fitting.train.examples.offsets)[torch.as_tensor(list(rows)) + 1]
    sizes = (ends - torch.from_numpy(fitting.train.examples.offsets)[torch.as_tensor(list(rows))]).cumsum(0).tolist()
    while start < units:
        first = sizes.index(start) + 1 if start else 0
        batches = _batches(fitting, rows[first:])
        block, size, bytes_held = [], 0, 0
        for count, parts in batches:
            block.append((count, parts))
            size += count
            bytes_held += count * sum(part.size()[0] for part in parts.values())
            if bytes_held >= BLOCK:
                break
        own = joined(block)
        pieces = [products(own, own, size, size)]
        advance(size * (size + 1) // 2)
        for count, parts in batches:
            pieces.append(products(own, parts, size, count))
            advance(size * count)
        kept.add(torch.cat(pieces, 1))
        found[start : start + size, start:] = kept.parts[-1]
        start += size
    return found.triu() + found.triu(1).T


def _batches(fitting: Fitting, rows: Sequence[int]) -> Iterator[tuple[int, dict[str, Part]]]:
    for units, _, uses in factored(fitting.train, rows, fitting.parameters, fitting.batch_size):
        yield len(units), parts_of(uses, len(units))


def _sketch(fitting: Fitting, rows: Sequence[int], count: int, advance: Advance) -> Tensor:
    """Return R, a part at a time."""
    parameters, probes = fitting.parameters, _probes(fitting, count)
    kept = Shards(fitting, "probes", count, probes.seed, probes.kind, digest(list(rows)))
    advance(kept.rows)
    for number in range(len(kept.parts), -(-len(rows) // SHARD)):
        found = []
        piece = rows[number * SHARD : (number + 1) * SHARD]
        for units, _, uses in factored(fitting.train, piece, parameters, fitting.batch_size):
            found.append(probes.responses(uses, len(units)).float().cpu())
            advance(len(units))
        kept.add(torch.cat(found) / math.sqrt(count))
    return joined_rows(kept.parts)


def _probes(fitting: Fitting, count: int) -> Probes:
    tables = tables_of(fitting.train.model, fitting.parameters)
    return Probes(fitting.parameters, count, seed=fitting.perturbation.seed, tables=tables)


def passes(queries: int, together: int, steps: int = 1) -> int:
    """Return the forward passes over the training set that the directions of queries take; the fit is not in it.

    Args:
        queries: How many.
        together: How many are made, and kept, at once.
        steps: Of a walk: after the first each takes a direction of its own.
    """
    blocks = -(-queries // together)
    # where one block is not all: when they are checked, and when they are pushed for one another and for the training set
    again = 3 if blocks > 1 else 1
    first = 8 * queries if min(together, queries) == 1 else 6 * blocks * again
    return first + 8 * queries * (steps - 1)
