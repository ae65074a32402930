"""Randomness that belongs to an example, not to a batch: every reading of one example sees the same draw."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

_KEYS: ContextVar[tuple[int, Sequence[bytes]] | None] = ContextVar("forwardinf_keys", default=None)


def seed_of(*parts: object) -> int:
    """Return a seed in [0, 2⁶³) that depends on every part, and on nothing else."""
    text = "\x1f".join(part.hex() if isinstance(part, bytes) else repr(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def own_state() -> Iterator[None]:
    """Give the caller's Python, NumPy and torch (CPU and CUDA) generators back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators: what ``dataset[i]`` may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextmanager
def belonging_to(keys: Sequence[bytes], seed: int) -> Iterator[None]:
    """Within the block, :func:`normal` draws for these examples, one key each, in the order of the batch.

    The key is the digest of the example's content, so an exact copy of an example sees the same noise.
    """
    token = _KEYS.set((seed, keys))
    try:
        yield
    finally:
        _KEYS.reset(token)


@contextmanager
def content_of(keys: Sequence[bytes]) -> Iterator[None]:
    """Within the block the noise belongs to these keys, under the reading's own seed: for a task that knows what counts."""
    seed, _ = _KEYS.get() or (0, ())
    with belonging_to(keys, seed):
        yield


@contextmanager
def repeated(times: int) -> Iterator[None]:
    """Within the block the batch holds its examples this many times over, each copy with the same noise."""
    seed, keys = _KEYS.get() or (0, [b"0"])
    with belonging_to([*keys] * times, seed):
        yield


def normal(shape: Sequence[int], *, size: int, draw: int = 0) -> Tensor:
    """Return standard-normal noise, shape ``(size, *shape)`` float32 on the CPU, one draw for each example of the batch.

    Tasks that add noise call this instead of ``torch.randn``. The same ``(seed, example, draw)`` always gives the same
    numbers, whatever the batch. Outside a reading (a task called by hand) the example's place in the batch is its key.

    Args:
        shape: Shape of one example's noise.
        size: Number of examples in the batch.
        draw: Which of several draws for the same example.

    Example:
        >>> with belonging_to([b"a", b"b"], seed=0):
        ...     both = normal((3,), size=2)
        >>> with belonging_to([b"b"], seed=0):
        ...     alone = normal((3,), size=1)
        >>> torch.equal(both[1], alone[0])
        True
    """
    seed, keys = _KEYS.get() or (0, [str(place).encode() for place in range(size)])
    if len(keys) != size:
        raise RuntimeError(f"noise for {size} examples was asked for in a batch of {len(keys)}")
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed_of(seed, k, draw))) for k in keys]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def uniform(counts: Sequence[int], *, draw: int = 0) -> list[Tensor]:
    """Return numbers from [0, 1) float64 on the CPU, ``counts[i]`` of them for the i-th example of the batch.

    Keyed as in :func:`normal`, so that neither the batch nor padding changes what an example is given.
    """
    seed, keys = _KEYS.get() or (0, [str(place).encode() for place in range(len(counts))])
    if len(keys) != len(counts):
        raise RuntimeError(f"numbers for {len(counts)} examples were asked for in a batch of {len(keys)}")
    return [
        torch.rand(
            count, generator=torch.Generator().manual_seed(seed_of(seed, key, "uniform", draw)), dtype=torch.float64
        )
        for key, count in zip(keys, counts, strict=True)
    ]
