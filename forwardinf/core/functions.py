"""The functions of torch whose use of a parameter is known: what each notes for the per-example gradient.

A new one is a handler here: it calls the function, and hands its output to the watch with the uses it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forwardinf.core.uses import Bag, Convolved, Direct, Lookup, Outer

if TYPE_CHECKING:
    from forwardinf.core.watch import Watch

Handler = Callable[["Watch", Any, tuple[Any, ...], dict[str, Any]], Tensor]


def called(func: Any) -> str:
    """Return a function's name, for people."""
    return str(getattr(func, "__name__", func))


def _sum_to(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Sum ``(B, …)`` over everything that a parameter of this shape was broadcast along, examples apart."""
    while tensor.ndim > len(shape) + 1:
        tensor = tensor.sum(1)
    for axis, size in enumerate(shape):
        if size == 1 and tensor.shape[axis + 1] != 1:
            tensor = tensor.sum(axis + 1, keepdim=True)
    return tensor


def _argument(args: tuple[Any, ...], given: Mapping[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else given.get(name, default)


def _bias(watch: Watch, bias: Any, channels: bool = False) -> Direct | None:
    """Return the use of a bias that was added to an output ``(B, …, out)``, or with ``channels`` ``(B, out, …)``."""
    name = watch.name_of(bias)
    if name is None:
        return None
    if channels:
        return Direct(name, bias.shape, watch.calls, lambda d: d.flatten(2).sum(2))
    return Direct(name, bias.shape, watch.calls, lambda d: d.reshape(len(d), -1, d.shape[-1]).sum(1))


def _linear(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    x, weight, bias = (_argument(args, given, at, name) for at, name in enumerate(("input", "weight", "bias")))
    name = watch.name_of(weight)
    used = None if name is None else Outer(name, weight.shape, watch.calls, watch.by_example(x.detach()))
    return watch.output(func(*args, **given), used, _bias(watch, bias))


def _addmm(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    bias, x, weight = args[:3]
    name = watch.name_of(weight)
    if watch.name_of(x) is not None or given.get("alpha", 1) != 1 or given.get("beta", 1) != 1:
        watch.strange.update({n: called(func) for a in args[:3] if (n := watch.name_of(a)) is not None})
        return func(*args, **given)  # type: ignore[no-any-return]
    used = None if name is None else Outer(name, weight.shape, watch.calls, watch.by_example(x.detach()), turned=True)
    return watch.output(func(*args, **given), used, _bias(watch, bias))


def _matmul(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    x, weight = _argument(args, given, 0, "input"), _argument(args, given, 1, "other")
    name = watch.name_of(weight)
    if name is None or weight.ndim != 2 or watch.name_of(x) is not None:
        watch.strange.update({n: called(func) for a in (x, weight) if (n := watch.name_of(a)) is not None})
        return func(*args, **given)  # type: ignore[no-any-return]
    used = Outer(name, weight.shape, watch.calls, watch.by_example(x.detach()), turned=True)
    return watch.output(func(*args, **given), used)


def _convolution(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    x, weight, bias = (_argument(args, given, at, name) for at, name in enumerate(("input", "weight", "bias")))
    settings = {
        name: _argument(args, given, 3 + at, name, default)
        for at, (name, default) in enumerate({"stride": 1, "padding": 0, "dilation": 1, "groups": 1}.items())
    }
    name = watch.name_of(weight)
    used = None if name is None else Convolved(name, weight.shape, watch.calls, x.detach(), settings)
    return watch.output(func(*args, **given), used, _bias(watch, bias, channels=True))


def _embedding(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    index, weight = args[0], args[1]
    found, name = func(*args, **given), watch.name_of(weight)
    assert name is not None
    if watch.shared(index):
        if index.ndim > 1 and len(index) > 1:  # a table between positions: no axis to put the examples on
            watch.strange[name] = "embedding without examples"
            return found  # type: ignore[no-any-return]
        found, index = watch.spread(found), watch.spread(index)
    index = watch.split(index)
    skipped = _argument(args, given, 2, "padding_idx")
    if skipped is not None and skipped < 0:
        skipped += len(weight)
    use = Lookup(name, weight.shape, watch.calls, index.reshape(len(index), -1), skipped)
    return watch.output(found, use)


def _bag(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    index, weight = args[0], args[1]
    mode = _argument(args, given, 6, "mode", "mean")
    name, found = watch.name_of(weight), func(*args, **given)
    plain = (_argument(args, given, at, what) is None for at, what in ((2, "offsets"), (8, "per_sample_weights")))
    padded = _argument(args, given, 10, "padding_idx")
    assert name is not None
    if index.ndim != 2 or mode not in ("mean", "sum") or not all(plain) or padded is not None:
        watch.strange[name] = called(func)
        return found  # type: ignore[no-any-return]
    use = Bag(name, weight.shape, watch.calls, index, None, 1.0 / index.shape[1] if mode == "mean" else 1.0)
    return watch.output(found, use)


def _normalised(
    watch: Watch, found: Tensor, weight: Any, bias: Any, bare: Callable[[], Tensor], channels: bool
) -> Tensor:
    """Note the scale and the shift of a normalisation; ``bare`` gives its output without them."""

    def parts(d: Tensor, shape: torch.Size) -> Tensor:
        if not channels:
            return _sum_to(d, shape)
        return d.flatten(2).sum(2) if d.ndim > 2 else d

    name, scale = watch.name_of(weight), None
    if name is not None:
        scale = Direct(name, weight.shape, watch.calls, lambda d: parts(d * watch.split(bare()), weight.shape))
    name, shift = watch.name_of(bias), None
    if name is not None:
        shift = Direct(name, bias.shape, watch.calls, lambda d: parts(d, bias.shape))
    return watch.output(found, scale, shift)


def _layer_norm(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    x, shape = args[0].detach(), args[1]
    weight, bias = _argument(args, given, 2, "weight"), _argument(args, given, 3, "bias")
    eps = _argument(args, given, 4, "eps", 1e-5)
    return _normalised(
        watch, func(*args, **given), weight, bias, lambda: F.layer_norm(x, shape, None, None, eps), False
    )


def _rms_norm(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    x, shape = args[0].detach(), args[1]
    weight, eps = _argument(args, given, 2, "weight"), _argument(args, given, 3, "eps")
    return _normalised(watch, func(*args, **given), weight, None, lambda: F.rms_norm(x, shape, None, eps), False)


def _group_norm(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    x, groups = args[0].detach(), args[1]
    weight, bias = _argument(args, given, 2, "weight"), _argument(args, given, 3, "bias")
    eps = _argument(args, given, 4, "eps", 1e-5)
    return _normalised(
        watch, func(*args, **given), weight, bias, lambda: F.group_norm(x, groups, None, None, eps), True
    )


def _batch_norm(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    x = args[0].detach()
    mean, spread = _argument(args, given, 1, "running_mean"), _argument(args, given, 2, "running_var")
    weight, bias = _argument(args, given, 3, "weight"), _argument(args, given, 4, "bias")
    eps = _argument(args, given, 7, "eps", 1e-5)
    if _argument(args, given, 5, "training", False):
        watch.strange.update({n: "batch_norm in training mode" for a in (weight, bias) if (n := watch.name_of(a))})
        return func(*args, **given)  # type: ignore[no-any-return]
    return _normalised(watch, func(*args, **given), weight, bias,
                       lambda: F.batch_norm(x, mean, spread, None, None, False, 0.0, eps), True)  # fmt: skip


def _times(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    return _elementwise(watch, func, args, given, times=True)


def _plus(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    return _elementwise(watch, func, args, given, times=False)


def _elementwise(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any], times: bool) -> Tensor:
    """A parameter multiplied into, or added to, something that has examples."""
    found = func(*args, **given)
    first, second = args[0], _argument(args, given, 1, "other")
    names = watch.name_of(first), watch.name_of(second)
    weight, x = (first, second) if names[0] is not None else (second, first)
    name = names[0] if names[0] is not None else names[1]
    assert name is not None
    if None not in names or not isinstance(x, Tensor) or given.get("alpha", 1) != 1 or found.ndim <= weight.ndim:
        same_axes = isinstance(x, Tensor) and None in names and found.ndim == weight.ndim and len(weight) == 1
        if not same_axes or given.get("alpha", 1) != 1:
            watch.strange.update({n: called(func) for n in names if n is not None})
            return found  # type: ignore[no-any-return]
    other = x.detach()

    def form(d: Tensor) -> Tensor:
        d = d * watch.split(other.expand(found.shape)) if times else d
        shape = weight.shape if d.ndim > weight.ndim else weight.shape[1:]
        return _sum_to(d, shape)

    return watch.output(found, Direct(name, weight.shape, watch.calls, form))


def _part(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    """A part of a parameter, taken out by an index or repeated: once for each example."""
    weight, found = args[0], func(*args, **given)
    name = watch.name_of(weight)
    if (
        name is None
        or not isinstance(found, Tensor)
        or any(watch.name_of(a) for a in args[1:] if isinstance(a, Tensor))
    ):
        watch.strange.update({n: called(func) for a in args if (n := watch.name_of(a)) is not None})
        return found  # type: ignore[no-any-return]
    if found.ndim == 0 or len(found) != watch.size or called(func) == "__getitem__":
        found = watch.spread(found)
    own = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
    places = func(own, *args[1:], **given)
    if places.ndim == found.ndim:  # already once for each example (expand), or a leading axis of one
        places = places.expand(found.shape)[0] if len(places) in (1, watch.size) else places

    def form(d: Tensor) -> Tensor:
        flat = d.reshape(len(d), -1)
        return flat.new_zeros(len(d), weight.numel()).index_add_(1, places.reshape(-1), flat)

    return watch.output(found, Direct(name, weight.shape, watch.calls, form))


def _attention(watch: Watch, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Multi-head attention as one function: its projections are done here, and it gets identities in their place.

    Multiplying by the identity is exact, so masks, heads and kernels stay torch's own.
    """
    names = ("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v",
             "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias")  # fmt: skip
    asked = {**dict(zip(names, args, strict=False)), **given}
    apart = [
        watch.name_of(asked.get(n)) for n in ("bias_k", "bias_v", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    ]
    if any(apart) or asked.get("in_proj_weight") is None or asked["query"].ndim != 3:
        watch.strange.update({n: called(func) for a in asked.values() if (n := watch.name_of(a)) is not None})
        return func(*args, **given)
    width, weight, bias = asked["embed_dim_to_check"], asked["in_proj_weight"], asked["in_proj_bias"]
    for part, name in enumerate(("query", "key", "value")):
        rows = slice(part * width, (part + 1) * width)
        asked[name] = _project(watch, asked[name], weight, bias, rows)
        watch.calls += 1
    one = torch.eye(width, dtype=weight.dtype, device=weight.device)
    out = asked["out_proj_weight"], asked["out_proj_bias"]
    asked.update(in_proj_weight=None, in_proj_bias=None, out_proj_weight=one, out_proj_bias=None,
                 use_separate_proj_weight=True, q_proj_weight=one, k_proj_weight=one, v_proj_weight=one)  # fmt: skip
    found, weights = func(**asked)
    return _project(watch, found, *out, None), weights


def _project(watch: Watch, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice | None) -> Tensor:
    """One projection of attention, sequences first ``(T, B, width)``."""
    taken = (weight, bias) if rows is None else (weight[rows], None if bias is None else bias[rows])
    found = F.linear(x, *taken)
    name, use = watch.name_of(weight), None
    if name is not None:
        use = Outer(name, weight.shape, watch.calls, x.detach().transpose(0, 1), rows=rows)
    name, shift = watch.name_of(bias), None
    if name is not None and bias is not None:

        def form(d: Tensor) -> Tensor:
            whole = d.new_zeros(len(d), len(bias))
            whole[:, slice(None) if rows is None else rows] = d.sum(1)
            return whole

        shift = Direct(name, bias.shape, watch.calls, form)
    return watch.output(found, use, shift, axis=1)


HANDLERS: dict[Any, Handler] = {
    F.linear: _linear, torch.addmm: _addmm, torch.matmul: _matmul, Tensor.matmul: _matmul, Tensor.__matmul__: _matmul,
    torch.conv1d: _convolution, torch.conv2d: _convolution, F.conv1d: _convolution, F.conv2d: _convolution,
    F.embedding: _embedding, F.embedding_bag: _bag, F.layer_norm: _layer_norm, F.rms_norm: _rms_norm,
    F.group_norm: _group_norm, F.batch_norm: _batch_norm, torch.mul: _times, Tensor.mul: _times, Tensor.__mul__: _times,
    Tensor.__rmul__: _times, torch.add: _plus, Tensor.add: _plus, Tensor.__add__: _plus, Tensor.__radd__: _plus,
    Tensor.__getitem__: _part, Tensor.expand: _part, F.multi_head_attention_forward: _attention,
}  # fmt: skip
