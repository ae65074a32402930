"""How long a change is: ‖Δθ‖/‖θ‖; for LoRA adapters ‖ΔW‖/‖W‖ of the weights they adapt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.perturb.direction import Tensors, norm
from forwardinf.perturb.parameters import Parameters
from forwardinf.perturb.swap import lend


class Ruler:
    """Measures relative lengths of changes to ``parameters``, as they are now.

    An adapter's own tensors say little about how far the model moves (B may be near zero): what counts is the change
    of the product BA, beside the weight it is added to.
    """

    def __init__(self, model: nn.Module, parameters: Parameters) -> None:
        """Find the adapted layers and the size of what moves."""
        self.parameters = parameters
        by_tensor = {parameter: name for name, parameter in parameters.items()}
        self.adapted: list[tuple[Any, str, list[str], str | None]] = []
        inside: set[str] = set()
        module: Any
        for module in model.modules():
            for adapter in getattr(module, "active_adapters", ()) if hasattr(module, "get_delta_weight") else ():
                base, below = module.get_base_layer().weight, set(module.get_base_layer().parameters())
                names = [by_tensor[p] for p in module.parameters() if p in by_tensor and p not in below]
                if names and base.is_floating_point():
                    weight = by_tensor.get(base)  # where it moves too, the two changes add up in one effective weight
                    self.adapted.append((module, adapter, names, weight))
                    inside.update(names if weight is None else [*names, weight])
        self.plain = [name for name in parameters if name not in inside]
        squares = norm({name: parameters[name].detach() for name in self.plain}) ** 2
        for module, *_ in self.adapted:
            squares += float(module.get_base_layer().weight.detach().double().square().sum())
        self.size = float(squares**0.5)

    @torch.no_grad()
    def relative(self, change: Tensors, step: float = 1.0) -> float:
        """Return the relative length of ``step · change``."""
        squares = (step * norm({name: change[name] for name in self.plain if name in change})) ** 2
        for module, adapter, names, weight in self.adapted:
            before = module.get_delta_weight(adapter)
            with lend(self.parameters, {name: self._at(name, change[name], step) for name in names if name in change}):
                moved = (module.get_delta_weight(adapter) - before).double()
            if weight is not None and weight in change:
                moved += step * change[weight].double()
            squares += float(moved.square().sum())
        return float(squares**0.5 / self.size) if self.size else float("inf")

    def step_for(self, change: Tensors, length: float) -> float:
        """Return the step that makes ``step · change`` this long, to 1e-6 (one division where no adapter moves)."""
        own: float = self.size
        if self.adapted:
            own = norm({name: parameter.detach() for name, parameter in self.parameters.items()})
        step = length * own / norm(change)
        for _ in range(60 if self.adapted else 0):  # BA is quadratic in the step, nearly linear where it matters
            got = self.relative(change, step)
            if abs(got - length) <= 1e-6 * length:
                break
            step *= length / got if got else 2.0
        return step

    def _at(self, name: str, delta: Tensor, step: float) -> Tensor:
        parameter = self.parameters[name].detach()
        return torch.add(parameter.to(delta.dtype), delta, alpha=step).to(parameter.dtype)
