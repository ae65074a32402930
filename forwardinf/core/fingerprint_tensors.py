"""What a tensor of any kind adds to a digest: its values; those of its parts, where it is a class of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from forwardinf.core.hasher import Hasher, Inside, Unknowable

PLAIN = (Tensor, nn.Parameter)
SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def feed_tensor(hasher: Hasher, tensor: Tensor, inside: Inside) -> None:
    """Add dtype, shape and values; layout, strides, device and what a gradient needs do not count.

    A subclass (quantised weights, images with a colour space) is told by its parts where it names them
    (``__tensor_flatten__``), else by its values and the attributes beside them, else by its dequantised values.

    Raises:
        Unknowable: None of those can be had, or there are no values (meta device, a lazy layer not run yet).
    """
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        raise Unknowable("a tensor of a lazy layer that has not run yet")
    if tensor.is_meta:
        raise Unknowable("a meta tensor")
    if tensor.is_nested:
        hasher.update(b"nested:")
        hasher.feed([part.detach() for part in tensor.unbind()], inside)
    elif type(tensor) in PLAIN:
        _feed_values(hasher, tensor)
    elif hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        _feed_kind(hasher, tensor)
        hasher.feed([str(context), {name: getattr(tensor, name) for name in names}], inside)
    else:
        _feed_subclass(hasher, tensor, inside)


def _feed_kind(hasher: Hasher, tensor: Tensor) -> None:
    kind = type(tensor)
    hasher.update(f"tensor of {kind.__module__}.{kind.__qualname__}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())


def _feed_subclass(hasher: Hasher, tensor: Tensor, inside: Inside) -> None:
    beside = {name: part for name, part in vars(tensor).items() if name[:1] != "_" or _holds_tensors(part)}
    try:
        _feed_values(hasher, tensor)
    except Exception as error:  # whatever its own operators raise
        if not any(map(_holds_tensors, beside.values())):
            _feed_kind(hasher, tensor)
            _feed_dequantised(hasher, tensor, error)
            return
    if beside:
        _feed_kind(hasher, tensor)
        hasher.feed(beside, inside)


def _feed_dequantised(hasher: Hasher, tensor: Tensor, reason: Exception) -> None:
    try:
        _feed_values(hasher, tensor.dequantize())
    except Exception as error:
        kind = type(tensor)
        raise Unknowable(f"a tensor of type {kind.__module__}.{kind.__qualname__}, which cannot be read") from (
            reason or error
        )


def _holds_tensors(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    inner = inner or getattr(value, "__dict__", {}).values()
    return isinstance(value, Tensor) or any(isinstance(part, Tensor) for part in inner)


def _feed_values(hasher: Hasher, tensor: Tensor) -> None:
    kind = b""
    if tensor.layout in SPARSE:  # by what is stored: written out, a large one would fill the memory
        stored = tensor.detach().to_sparse().coalesce()
        hasher.update(f"{stored.dtype}:{tensor.layout}:{tuple(stored.shape)}:".encode())
        _feed_values(hasher, stored.indices())
        _feed_values(hasher, stored.values())
        return
    if tensor.is_quantized or tensor.layout != torch.strided:
        kind = f"{tensor.dtype}:{tensor.layout}:".encode()
        tensor = tensor.dequantize() if tensor.is_quantized else tensor.to_dense()
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
    flat = plain.flatten()
    if flat.stride(0) != 1:  # none or one element, of an expanded tensor or an empty array
        flat = torch.empty_like(flat, memory_format=torch.contiguous_format).copy_(flat).as_strided(flat.shape, (1,))
    values = flat.view(torch.uint8).numpy().data
    hasher.update(kind + f"tensor:{plain.dtype}:{tuple(plain.shape)}:".encode())  # all can be had: nothing half told
    hasher.update(values)
