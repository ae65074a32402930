"""The functions of torch whose use of a parameter is known: what each notes for the per-example gradient.

A new one is a handler here: it calls the function, asks the recording how examples lie in what came out, and hands the output
over with the uses it stands for. What a handler does not know it leaves to ``recording.unknown``: autograd then forms the
gradient, one example at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forwardinf.gradients.layer_uses import Bag, Convolved, Direct, Lookup, Outer, Patches, Use
from forwardinf.gradients.layouts import Layout
from forwardinf.gradients.recording import Recording

Args = tuple[Any, ...]
Given = dict[str, Any]
Handler = Callable[["Recording", Any, Args, Given], Any]


def _argument(args: Args, given: Mapping[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else given.get(name, default)


def _sum_to(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Sum ``(B, …)`` over everything that a parameter of this shape was broadcast along, examples apart."""
    while tensor.ndim > len(shape) + 1:
        tensor = tensor.sum(1)
    for axis, size in enumerate(shape):
        if size == 1 and tensor.shape[axis + 1] != 1:
            tensor = tensor.sum(axis + 1, keepdim=True)
    return tensor


def _added(d: Tensor) -> Tensor:
    """Return a bias's gradient ``(B, out)`` from what came back, ``(B, …, out)``."""
    return d.reshape(len(d), -1, d.shape[-1]).sum(1)


def _channels(d: Tensor, spatial: int) -> Tensor:
    """Return ``(B, C)`` from ``(B, …, C, *spatial)``, summed over everything else."""
    return d.movedim(-1 - spatial, 1).flatten(2).sum(2) if d.ndim > 2 else d


# -- matrices --------------------------------------------------------------------------------------------------------


def _linear(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    x, weight, bias = (_argument(args, given, at, name) for at, name in enumerate(("input", "weight", "bias")))
    return _affine(recording, func, args, given, x, weight, bias, turned=False)


def _addmm(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    if given.get("alpha", 1) != 1 or given.get("beta", 1) != 1:
        return recording.unknown(func, args, given)
    bias, x, weight = args[:3]
    return _affine(recording, func, args, given, x, weight, bias, turned=True)


def _matmul(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    x, weight = _argument(args, given, 0, "input"), _argument(args, given, 1, "other")
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return recording.unknown(func, args, given)
    return _affine(recording, func, args, given, x, weight, None, turned=True)


def _affine(
    recording: Recording, func: Any, args: Args, given: Given, x: Any, weight: Any, bias: Any, *, turned: bool
) -> Any:
    """A matrix times vectors, and something added. ``turned``: the matrix is (in, out)."""
    (name, over), shift = recording.matrix(weight), recording.parameter(bias)
    source = recording.source(x)  # learned queries: a parameter is what the layer is fed
    known = {id(value) for value, its in ((weight, name), (bias, shift), (x, source)) if its is not None}
    if any(recording.involves(value) and id(value) not in known for value in (x, weight, bias)):
        return recording.unknown(func, args, given)
    found = func(*args, **given)
    layout = recording.layout(func, (name, shift, source), found.shape[:-1])
    uses: list[Use] = []
    if source is not None:
        back, pull, shape = weight.detach() if not turned else weight.detach().T, recording.puller(x), x.shape
        uses.append(Direct(source, recording.shapes[source], recording.number,
                           lambda d: pull((d @ back).reshape(len(d), *shape))))  # fmt: skip
    if name is not None:
        entered = layout.places(x.detach(), recording.size)
        uses.append(Outer(name, recording.shapes[name], recording.number, entered, turned=turned != over))
    if shift is not None:
        uses.append(Direct(shift, bias.shape, recording.number, _added))
    return recording.output(found, layout, uses)


def _attention(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    """Multi-head attention as one function: its projections are done here, and it gets identities in their place.

    Multiplying by the identity is exact, so masks, heads and kernels stay torch's own.
    """
    names = ("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k",
             "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias")  # fmt: skip
    asked = {**dict(zip(names, args, strict=False)), **given}
    apart = ("query", "key", "value", "bias_k", "bias_v", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    if any(recording.involves(asked.get(name)) for name in apart) or asked.get("in_proj_weight") is None:
        return recording.unknown(func, args, given)
    if asked["query"].ndim != 3:
        return recording.unknown(func, args, given)
    width, weight, bias = asked["embed_dim_to_check"], asked["in_proj_weight"], asked["in_proj_bias"]
    for part, name in enumerate(("query", "key", "value")):
        rows = slice(part * width, (part + 1) * width)
        asked[name] = _project(recording, func, asked[name], weight, bias, rows)
    one = torch.eye(width, dtype=weight.dtype, device=weight.device)
    out = asked["out_proj_weight"], asked["out_proj_bias"]
    asked.update(in_proj_weight=None, in_proj_bias=None, out_proj_weight=one, out_proj_bias=None,
                 use_separate_proj_weight=True, q_proj_weight=one, k_proj_weight=one, v_proj_weight=one)  # fmt: skip
    found, weights = func(**asked)
    return _project(recording, func, found, *out, None), weights


def _project(
    recording: Recording, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice | None
) -> Tensor:
    """One projection of attention, by all rows of a weight or some of them."""
    taken = (weight, bias) if rows is None else (weight[rows], None if bias is None else bias[rows])
    found = F.linear(x, *taken)
    name, shift = recording.parameter(weight), recording.parameter(bias)
    layout = recording.layout(func, (name, shift), found.shape[:-1])
    uses: list[Use] = []
    if name is not None:
        entered = layout.places(x.detach(), recording.size)
        uses.append(Outer(name, weight.shape, recording.number, entered, rows=rows))
    if shift is not None and bias is not None:
        size = len(bias)

        def form(d: Tensor) -> Tensor:
            whole = d.new_zeros(len(d), size)
            whole[:, slice(None) if rows is None else rows] = _added(d)
            return whole

        uses.append(Direct(shift, bias.shape, recording.number, form))
    return recording.output(found, layout, uses)


def _convolution(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    x, weight, bias = (_argument(args, given, at, name) for at, name in enumerate(("input", "weight", "bias")))
    settings = {
        name: _argument(args, given, 3 + at, name, default)
        for at, (name, default) in enumerate({"stride": 1, "padding": 0, "dilation": 1, "groups": 1}.items())
    }
    name, shift = recording.parameter(weight), recording.parameter(bias)
    spatial = weight.ndim - 2
    odd = recording.involves(x) or (name is None and recording.involves(weight))
    if odd or (shift is None and recording.involves(bias)) or x.ndim != weight.ndim:
        return recording.unknown(func, args, given)
    if settings["groups"] != 1 and recording.size != len(x):  # several pictures an example, in groups
        return recording.unknown(func, args, given)
    found = func(*args, **given)
    layout = recording.layout(func, (name, shift), found.shape[:1])
    uses: list[Use] = []
    if name is not None:
        uses.append(_kernel(recording, layout, name, weight.shape, x.detach(), settings))
    if shift is not None:
        uses.append(Direct(shift, bias.shape, recording.number, lambda d: _channels(d, spatial)))
    return recording.output(found, layout, uses)


def _kernel(
    recording: Recording, layout: Layout, name: str, shape: torch.Size, x: Tensor, settings: dict[str, Any]
) -> Use:
    """Return a kernel's use; of several pictures an example, it is a matrix times the patches of all of them."""
    if len(x) == recording.size:
        return Convolved(name, shape, recording.number, x, settings)
    patches = Convolved(name, shape, recording.number, x, settings).patches()[:, 0]  # (pictures, places, in)
    return Patches(name, shape, recording.number, layout.places(patches, recording.size))


# -- tables ----------------------------------------------------------------------------------------------------------


def _embedding(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    index, weight = args[0], args[1]
    name = recording.parameter(weight)
    if name is None or not isinstance(index, Tensor):
        return recording.unknown(func, args, given)
    found = func(*args, **given)
    layout = recording.layout(func, (name,), index.shape, may_share=True)
    if layout.kind == "shared":
        return recording.made(found, name)
    found, index = _examples_first(recording, layout, found, index)
    skipped = _argument(args, given, 2, "padding_idx")
    if skipped is not None and skipped < 0:
        skipped += len(weight)
    use = Lookup(name, weight.shape, recording.number, index.reshape(recording.size, -1), skipped)
    return recording.output(found, layout, [use])


def _examples_first(recording: Recording, layout: Layout, found: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return (what was taken out of a table, made each example's own where all share it; whence, examples first)."""
    if layout.kind == "spread":
        found, places = recording.spread(found, places.ndim), recording.spread(places, places.ndim)
    return found, layout.examples_first(places, recording.size)


def _bag(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    index, weight = args[0], args[1]
    mode = _argument(args, given, 6, "mode", "mean")
    plain = (_argument(args, given, at, what) is None for at, what in ((2, "offsets"), (8, "per_sample_weights")))
    padded = _argument(args, given, 10, "padding_idx")
    name = recording.parameter(weight)
    if name is None or index.ndim != 2 or mode not in ("mean", "sum") or not all(plain) or padded is not None:
        return recording.unknown(func, args, given)
    if recording.size != len(index):
        return recording.unknown(func, args, given)
    found = func(*args, **given)
    layout = recording.layout(func, (name,), index.shape[:1])
    use = Bag(name, weight.shape, recording.number, index, None, 1.0 / index.shape[1] if mode == "mean" else 1.0)
    return recording.output(found, layout, [use])


def _taken_out(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    """A part of a parameter, taken out by an index or repeated, for each example its own or the same for all."""
    weight = args[0]
    name = recording.source(weight)
    if name is None or any(recording.involves(value) for value in (*args[1:], *given.values())):
        return recording.unknown(func, args, given)
    found = func(*args, **given)
    if not isinstance(found, Tensor):
        return found
    own = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
    places = func(own, *args[1:], **given)  # the same rearrangement, of the entries' numbers
    layout = recording.layout(func, (name,), found.shape, may_share=True)
    if layout.kind == "shared":
        return recording.made(found, name)
    found, places = _examples_first(recording, layout, found, places)
    pull, shape = recording.puller(weight), weight.shape

    def form(d: Tensor) -> Tensor:
        flat = d.new_zeros(len(d), shape.numel())
        flat = flat.scatter_add_(1, places.reshape(len(d), -1), d.reshape(len(d), -1))
        return pull(flat.view(len(d), *shape))

    return recording.output(found, layout, [Direct(name, recording.shapes[name], recording.number, form)])


# -- scales and shifts -----------------------------------------------------------------------------------------------


def _normalised(
    recording: Recording, func: Any, args: Args, given: Given, weight: Any, bias: Any, bare: Callable[[], Tensor],
    features: int, spatial: int | None = None,
) -> Any:  # fmt: skip
    """Note the scale and the shift of a normalisation.

    Args:
        recording: Takes the uses.
        func: What was called.
        args: With what.
        given: By name.
        weight: The scale, or None.
        bias: The shift, or None.
        bare: Gives the output without them, when a gradient has come back.
        features: How many of the last axes are the features'.
        spatial: Where scale and shift are one number a channel: how many axes follow the channels.
    """
    names = recording.parameter(weight), recording.parameter(bias)
    if recording.involves(args[0]) or any(
        name is None and recording.involves(value) for name, value in zip(names, (weight, bias), strict=True)
    ):
        return recording.unknown(func, args, given)
    found = func(*args, **given)
    layout = recording.layout(func, names, found.shape[: found.ndim - features])
    size = recording.size

    def parts(d: Tensor, shape: torch.Size) -> Tensor:
        return _sum_to(d, shape) if spatial is None else _channels(d, spatial)

    uses: list[Use] = []
    if names[0] is not None:
        uses.append(
            Direct(
                names[0],
                weight.shape,
                recording.number,
                lambda d: parts(d * layout.examples_first(bare(), size), weight.shape),
            )
        )
    if names[1] is not None:
        uses.append(Direct(names[1], bias.shape, recording.number, lambda d: parts(d, bias.shape)))
    return recording.output(found, layout, uses)


def _layer_norm(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    x, shape = args[0].detach(), args[1]
    weight, bias = _argument(args, given, 2, "weight"), _argument(args, given, 3, "bias")
    eps = _argument(args, given, 4, "eps", 1e-5)
    return _normalised(recording, func, args, given, weight, bias,
                       lambda: F.layer_norm(x, shape, None, None, eps), len(shape))  # fmt: skip


def _rms_norm(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    x, shape = args[0].detach(), args[1]
    weight, eps = _argument(args, given, 2, "weight"), _argument(args, given, 3, "eps")
    return _normalised(recording, func, args, given, weight, None,
                       lambda: F.rms_norm(x, shape, None, eps), len(shape))  # fmt: skip


def _group_norm(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    x, groups = args[0].detach(), args[1]
    weight, bias = _argument(args, given, 2, "weight"), _argument(args, given, 3, "bias")
    eps = _argument(args, given, 4, "eps", 1e-5)
    return _normalised(recording, func, args, given, weight, bias,
                       lambda: F.group_norm(x, groups, None, None, eps), x.ndim - 1, x.ndim - 2)  # fmt: skip


def _batch_norm(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    x = args[0].detach()
    mean, spread = _argument(args, given, 1, "running_mean"), _argument(args, given, 2, "running_var")
    weight, bias = _argument(args, given, 3, "weight"), _argument(args, given, 4, "bias")
    eps = _argument(args, given, 7, "eps", 1e-5)
    if _argument(args, given, 5, "training", False) or mean is None:
        return recording.unknown(func, args, given)  # statistics of the batch: examples see one another
    return _normalised(recording, func, args, given, weight, bias,
                       lambda: F.batch_norm(x, mean, spread, None, None, False, 0.0, eps),
                       x.ndim - 1, x.ndim - 2)  # fmt: skip


def _times(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    return _elementwise(recording, func, args, given, lambda d, other, first: d * other)


def _plus(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    return _elementwise(recording, func, args, given, lambda d, other, first: d)


def _minus(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    return _elementwise(recording, func, args, given, lambda d, other, first: d if first else -d)


def _elementwise(
    recording: Recording, func: Any, args: Args, given: Given, slope: Callable[[Tensor, Tensor, bool], Tensor]
) -> Any:
    """A parameter (or what is made of one alone) multiplied into, or added to, something that has examples.

    ``slope`` makes the gradient of it, broadcast as the output is, of what came back, of the other operand, and of whether the
    parameter was the first one.
    """
    one, two = args[0], _argument(args, given, 1, "other")
    first = recording.involves(one)
    weight, x = (one, two) if first else (two, one)
    if recording.source(weight) is None or not isinstance(x, Tensor) or recording.involves(x):
        return recording.derived(func, args, given)
    if given.get("alpha", 1) != 1:
        return recording.unknown(func, args, given)
    return _met(recording, func, args, given, weight, x.detach(), lambda d, other: slope(d, other, first))


def _where(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    """A parameter in some places, something else in the others."""
    if len(args) + len(given) != 3:
        return recording.unknown(func, args, given)
    chosen, one, two = (_argument(args, given, at, name) for at, name in enumerate(("condition", "input", "other")))
    first = recording.involves(one)
    weight, x = (one, two) if first else (two, one)
    if recording.source(weight) is None or recording.involves(x) or recording.involves(chosen):
        return recording.unknown(func, args, given)
    return _met(recording, func, args, given, weight, chosen if first else ~chosen, lambda d, here: d * here)


def _met(
    recording: Recording, func: Any, args: Args, given: Given, weight: Tensor, other: Tensor,
    slope: Callable[[Tensor, Tensor], Tensor],
) -> Any:  # fmt: skip
    """Call a function that broadcasts ``weight`` against what has examples; ``slope(d, other)`` is the gradient of it there."""
    name = str(recording.source(weight))
    found = func(*args, **given)
    full, shape = found.shape, weight.shape  # the shape alone: the output would be kept alive by its own graph
    fixed = len(full) - len(shape)  # axes of the output that the parameter does not have
    broadcast = [n if at < fixed or shape[at - fixed] == 1 else 1 for at, n in enumerate(full)]
    layout = recording.layout(func, (name,), broadcast, may_share=True)
    if layout.kind in ("shared", "spread"):
        return recording.made(found, name)
    size, gather = recording.size, _gathered(recording, layout, weight, fixed)

    def form(d: Tensor) -> Tensor:
        return gather(slope(d, layout.examples_first(other.expand(full), size)))

    return recording.output(found, layout, [Direct(name, recording.shapes[name], recording.number, form)])


def _gathered(recording: Recording, layout: Layout, weight: Tensor, fixed: int) -> Callable[[Tensor], Tensor]:
    """Return what sums ``(B, …)`` over all that ``weight`` was broadcast along, and pulls it back to the parameter's own."""
    shape, pull = weight.shape, recording.puller(weight)
    inner = list(shape)  # what is left of the parameter's shape once the examples' axis is taken out of the output's
    if layout.kind == "axis" and layout.axis >= fixed:
        inner.pop(layout.axis - fixed)
    return lambda d: pull(_sum_to(d, torch.Size(inner)).reshape(len(d), *shape))


def _biased_attention(recording: Recording, func: Any, args: Args, given: Given) -> Any:
    """Attention whose scores are shifted by a parameter, the same for every example: it is repeated for each of them first."""
    query, mask = _argument(args, given, 0, "query"), _argument(args, given, 3, "attn_mask")
    name = recording.source(mask)
    if name is None or any(recording.involves(value) for value in (*args[:3], given.get("key"), given.get("value"))):
        return recording.unknown(func, args, given)
    repeated = mask.expand(*query.shape[:-2], *mask.shape[-2:])
    layout = recording.layout(func, (name,), query.shape[:1])
    form = _gathered(recording, layout, mask, query.ndim - mask.ndim)
    use = Direct(name, recording.shapes[name], recording.number, form)
    repeated = recording.output(repeated, layout, [use])
    if len(args) > 3:
        return func(*args[:3], repeated, *args[4:], **given)
    return func(*args, **{**given, "attn_mask": repeated})


HANDLERS: dict[Any, Handler] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.conv1d, torch.conv2d, F.conv1d, F.conv2d), _convolution),
    F.embedding: _embedding,
    F.embedding_bag: _bag,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _times),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__), _plus),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), _minus),
    **dict.fromkeys((Tensor.__getitem__, Tensor.expand, Tensor.expand_as, Tensor.repeat), _taken_out),
    **dict.fromkeys((torch.broadcast_to, Tensor.broadcast_to, torch.index_select, Tensor.index_select), _taken_out),
    F.multi_head_attention_forward: _attention,
    F.scaled_dot_product_attention: _biased_attention,
    **dict.fromkeys((torch.where, Tensor.where), _where),
}
