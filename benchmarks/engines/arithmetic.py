"""How many multiplications a piece of work takes: what a ratio of times is held against.

Counted by torch as the work runs: matrix products and convolutions, nothing else (no pooling, no attention kernels on a CPU,
no elementwise work). One formula is put right: torch counts a grouped convolution's weight gradient once for each group
(2.13), which is how per-example gradients of a convolution are formed here.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Any


def multiplications(work: Callable[[], Any]) -> int:
    """Run ``work`` and return what it multiplied."""
    backward = torch.ops.aten.convolution_backward
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused call, of which nothing is counted
    try:
        with FlopCounterMode(display=False, custom_mapping={backward: _convolution_backward}) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def _convolution_backward(
    back: Shape, entered: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool,
    _output_padding: Any, _groups: int, wanted: list[bool], *_: Any, **__: Any,
) -> int:  # fmt: skip
    """As many as the forward took, for each of the two gradients that is wanted; twice that in additions and all."""
    places = entered if transposed else back
    forward = places[0] * math.prod(places[2:]) * math.prod(weight)
    return 2 * forward * (bool(wanted[0]) + bool(wanted[1]))
