"""Controls that must fail: shuffled scores, another query's scores, the scores of a model that has learnt nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
from torch import nn

from forwardinf.core.errors import ModelError
from forwardinf.data import noise
from forwardinf.truth.agreement import Array
from forwardinf.truth.evaluation import CONTROL

RANDOM, OTHER_QUERY, UNTRAINED = f"{CONTROL}shuffled", f"{CONTROL}another query's", f"{CONTROL}untrained model's"


def free_controls(methods: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Return, for each table ``(Q, N)``, its rows shuffled, and its rows given to other queries."""
    found: dict[str, Array] = {}
    draw = np.random.default_rng(seed)
    for name, table in methods.items():
        called = "" if len(methods) == 1 else f"{name}, "
        found[called + RANDOM] = draw.permuted(table, axis=1)
        if len(table) > 1:  # shifted by a random amount: no query keeps its own
            found[called + OTHER_QUERY] = np.roll(table, int(draw.integers(1, len(table))), axis=0)
    return found


def redrawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of the model with every layer's weights drawn anew by its own ``reset_parameters``.

    Raises:
        ModelError: Some parameter belongs to a module without ``reset_parameters``.
    """
    fresh = copy.deepcopy(model)
    with noise.own_state():
        noise.seed_all(seed)
        for name, module in fresh.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif hasattr(module, "_reset_parameters"):
                module._reset_parameters()
            elif any(True for _ in module.parameters(recurse=False)):
                raise ModelError(
                    f"module {name or type(module).__name__}", expected="reset_parameters(), to draw its weights anew",
                    got=type(module).__name__, do="Define it, or leave attribute_fn= out.",
                )  # fmt: skip
    return fresh
