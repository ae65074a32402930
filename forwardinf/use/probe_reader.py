"""A model, or an object that can be perturbed, ready to respond to probes: what fills an index, and what asks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from forwardinf.core.errors import ModelError, SettingError
from forwardinf.core.fingerprint import code_digest, model_digest
from forwardinf.core.progress import progress
from forwardinf.data.examples import Collate, Examples, Id
from forwardinf.data.noise import seed_of
from forwardinf.gradients.layer_uses import as_uses
from forwardinf.job.options import Options, device_of, open_examples
from forwardinf.models.borrowed import borrowed
from forwardinf.perturb.gradient import query_gradient
from forwardinf.perturb.norms import Ruler
from forwardinf.perturb.parameters import Parameters, select
from forwardinf.perturb.probes import WIDEST, Probes, tables_of
from forwardinf.perturb.swap import lend, tensors_of
from forwardinf.read.responses import Lent, by_differences, by_projection
from forwardinf.read.tune import tune
from forwardinf.tasks.feed import Feed
from forwardinf.tasks.task import FunctionTask, Task, as_task

LENGTHS = {torch.float64: 1e-4, torch.float32: 1e-2}  # a random direction bends a loss little, and moves it little
NARROW = 3e-2


class Reader:
    """A model (or an object that can be perturbed), ready to respond to probes."""

    def __init__(
        self, model: nn.Module, task: Task, settings: Mapping[str, Any], options: Options, subject: Any
    ) -> None:
        self.model, self.task, self.options, self.subject = model, task, options, subject
        self.settings = settings
        self.parameters: Parameters = {}
        self.device = torch.device("cpu")
        self._drawn: Probes | None = None
        if subject is None:
            self.device = device_of(model, options.device)
            wanted = any(parameter.requires_grad for parameter in model.parameters())
            patterns = settings["parameters"]
            self.parameters = select(model, patterns if patterns or wanted else ["*"])
            self.ruler, self.live = Ruler(model, self.parameters), tensors_of(model)
            self.tables = tables_of(model, self.parameters)

    @property
    def made_from(self) -> dict[str, Any]:
        """Return fingerprints of what responses depend on beside the data."""
        if self.subject is not None:
            return {"model": f"version {getattr(self.subject, 'version', None)}", "task": "losses", "parameters": []}
        code = code_digest(self.task, getattr(self.task, "version", None))
        return {"model": model_digest(self.model), "task": code, "parameters": sorted(self.parameters)}

    def read(self, data: Any, name: str, collate: Collate | None, ids: str | Sequence[Id] | None) -> tuple[Feed, str]:
        """Return (feed, digest of the content) of data in any form."""
        rows: Examples = open_examples(data, name, self.task, collate, self.options)
        task = self.task.whole() if name == "queries" else self.task
        with progress("hashing", len(rows), self.options.progress) as advance:
            found = rows.seal(range(len(rows)), advance, task.parts if task.packed else None, ids)
        return Feed(self.model, task, rows, self.device, seed=self.options.seed), found

    def tuned(self, rows: Feed) -> tuple[Feed, int]:
        """Return (the feed in its fastest layout, batch size)."""
        asked = None if self.options.batch_size == "auto" else self.options.batch_size
        found = tune(rows, range(len(rows.examples)), asked, len(rows.examples), None)
        return replace(rows, channels_last=found.channels_last), found.batch_size

    def few(self, rows: Feed) -> int:
        """Return a batch size for a few rows."""
        return 16 if self.options.batch_size == "auto" else self.options.batch_size

    def probes(self, count: int) -> Probes:
        """Return the first ``count`` probes."""
        if not self.parameters:
            raise SettingError("how='projected'", expected="a model with gradients", got="an object without",
                               do="how='forward'.")  # fmt: skip
        if self._drawn is None or self._drawn.count != count:
            self._drawn = Probes(self.parameters, count, seed=self.settings["seed"], kind=self.settings["draw"],
                                 tables=self.tables, width=WIDEST)  # fmt: skip
        return self._drawn

    def projected(self, rows: Feed, piece: Sequence[int], count: int, size: int, advance: Callable[[int], None]) -> Any:
        """Yield the responses of these rows to the first ``count`` probes, by their gradients."""
        return by_projection(rows, piece, self.parameters, self.probes(count).responses, size, advance)

    def sides(self, m: int) -> tuple[list[Lent], float]:
        """Return a probe's ways to move the model, and the length of a step."""
        signs = (1, -1) if self.settings["two_sided"] else (1,)
        length = self.settings["length"]
        if self.subject is not None:
            step = 0.01 if length == "auto" else float(length)
            own = seed_of("probe", self.settings["seed"], m)
            return [partial(self.subject.perturb, own, side * step) for side in signs], step
        if length == "auto":
            length = max(LENGTHS.get(parameter.dtype, NARROW) for parameter in self.parameters.values())
        u = self.probes(WIDEST).direction(m)  # how many there are does not matter to one of them
        step = self.ruler.step_for(u, float(length))

        def moved(side: int) -> AbstractContextManager[None]:
            return lend(self.live, {name: torch.add(self.parameters[name].detach().to(tensor.dtype), tensor, alpha=side * step)
                                    .to(self.parameters[name].dtype) for name, tensor in u.items()})  # fmt: skip

        return [partial(moved, side) for side in signs], step

    def queries(self, rows: Feed, count: int, *, forward: bool) -> tuple[Tensor, Tensor]:
        """Return responses ``(Q, M)`` float64 of what each query is asked (the way it falls), and of its own loss."""
        every, size = range(len(rows.examples)), self.few(rows)
        plain = replace(rows, asked=None)  # its own loss is that of the label it has
        if forward:

            def ask() -> Tensor:
                return torch.stack([-rows.measures(every, size), plain.losses(every, size)])

            with progress("queries", count, self.options.progress) as advance:
                before = None if self.settings["two_sided"] else ask()
                both = by_differences(ask, self.sides, range(count), before, advance)
            return both[0], both[1]
        probes = self.probes(count)
        asked = []
        with progress("queries", len(every), self.options.progress) as advance:
            for row in every:
                gradient = query_gradient(rows, [row], self.parameters, 1)
                asked.append(probes.responses(as_uses(gradient), 1)[0].double().cpu())
                advance(1)
        own = [part.double() for part, _ in by_projection(plain, every, self.parameters, probes.responses, size)]
        return torch.stack(asked), torch.cat(own)


@contextmanager
def opened(model: Any, task: Any, settings: Mapping[str, Any], options: Options) -> Iterator[Reader]:
    """Yield what responds to probes, the model borrowed."""
    if isinstance(model, nn.Module):
        if task is None:
            raise SettingError("task", expected="a task, or a function (model, batch) -> (B,)", got="none")
        with borrowed(model) as lent:
            yield Reader(lent, as_task(task), settings, options, None)
        return
    if not callable(getattr(model, "perturb", None)) or not callable(getattr(model, "losses", None)):
        raise ModelError("model", expected="a torch.nn.Module, or an object with perturb(seed, length) and losses(batch)",
                         got=type(model).__name__)  # fmt: skip
    if settings["how"] != "forward":
        raise SettingError(
            "ProbeIndex.build(how=)", expected="'forward' for an object without gradients", got="'projected'"
        )
    spoken = FunctionTask(lambda _, batch: torch.as_tensor(model.losses(batch)))
    yield Reader(nn.Module(), spoken, settings, options, model)
