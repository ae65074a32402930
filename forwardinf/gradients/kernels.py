"""Per-example gradients of a convolution's kernel, written into memory that is there already."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from forwardinf.gradients.layer_uses import Convolved

PIECE = 4 * 2**20  # elements of an intermediate: below what the system takes back at every release
MANY_PLACES = 100  # from here on the library's own kernel for a convolution's weights beats patches


def form_kernels(use: Convolved, piece: slice, room: Tensor, cut: Tensor | None = None) -> None:
    """Write the kernel's gradient of these examples into ``room``, ``(B, elements)``; ``cut``: the patches of all, if known."""
    part = Convolved(use.name, use.shape, use.call, use.entered[piece], use.settings)
    part.back = use.came_back[piece]
    places = part.back.shape[2:].numel()
    if not by_patches(part, room):
        for inner in pieces(len(room), max(use.shape.numel(), part.entered[0].numel())):
            _by_kernel(part, inner, room[inner])
        return
    groups = use.settings["groups"]
    unfolded = use.shape[1:].numel() * groups * places
    for inner in pieces(len(room), unfolded):
        one = Convolved(use.name, use.shape, use.call, part.entered[inner], use.settings)
        one.back = part.back[inner]
        a, d = (one.patches() if cut is None else cut[piece][inner]), one.by_place()
        target = room[inner].view(-1, use.shape[0] // groups, use.shape[1:].numel())
        left, right = d.flatten(0, 1).to(room.dtype).transpose(1, 2), a.flatten(0, 1).to(room.dtype)
        torch.bmm(left, right, out=target)


def by_patches(use: Convolved, room: Tensor) -> bool:
    """Return whether a kernel's gradient is a product with patches, rather than taken by the library's own kernel."""
    many = use.came_back.shape[2:].numel() >= MANY_PLACES
    return not (many and room.device.type == "cpu" and room.dtype == use.entered.dtype)


def _by_kernel(use: Convolved, piece: slice, room: Tensor) -> None:
    """Let the library's weight-gradient kernel take every example for a group of its own."""
    x, d, settings = use.entered[piece], use.came_back[piece], use.settings
    kernel = use.shape[2:]
    stride, dilation, padding = (_axes(settings[name], len(kernel)) for name in ("stride", "dilation", "padding"))
    if isinstance(settings["padding"], str):
        total = [m * (k - 1) if settings["padding"] == "same" else 0 for m, k in zip(dilation, kernel, strict=True)]
        sides = [side for whole in reversed(total) for side in (whole // 2, whole - whole // 2)]
        x, padding = F.pad(x, sides), [0] * len(kernel)
    size = len(x)
    found = torch.ops.aten.convolution_backward(
        d.reshape(1, size * d.shape[1], *d.shape[2:]), x.reshape(1, size * x.shape[1], *x.shape[2:]),
        x.new_empty(size * use.shape[0], *use.shape[1:]), None, stride, padding, dilation, False, [0] * len(kernel),
        size * settings["groups"], [False, True, False],
    )[1]  # fmt: skip
    room.copy_(found.reshape(size, -1))


def _axes(value: int | tuple[int, ...] | list[int] | str, axes: int) -> list[int]:
    if isinstance(value, str):
        return [0] * axes
    values = list(value) if isinstance(value, tuple | list) else [value] * axes
    return values * axes if len(values) == 1 else values


def pieces(size: int, each: int, limit: int = PIECE) -> Iterator[slice]:
    """Cut examples so that ``each`` elements of every one stay below the limit together."""
    step = max(1, limit // max(each, 1))
    for start in range(0, size, step):
        yield slice(start, start + step)
