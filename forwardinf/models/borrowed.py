"""Borrow the user's model: eval mode, buffers frozen; give it back bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from forwardinf.core import machine
from forwardinf.core.errors import ModelError
from forwardinf.core.uninterrupted import Lending, surely
from forwardinf.data import noise
from forwardinf.models.surroundings import undisturbed

WRITES = "A forward that writes to its own weights makes every reading depend on the one before: build a model that does not."
PLAIN = (Tensor, nn.Parameter)  # other classes need not have copies, nor be compared
SLOTS = ("_parameters", "_buffers", "_modules")
LARGE = 16 * 2**20  # bytes of weights from which freed memory is worth returning

_ONE = threading.RLock()  # one call at a time: generators and switches around a model belong to the whole process
_LENT: dict[int, Loan] = {}  # by the model's id


def borrowed(model: nn.Module) -> Loan:
    """Lend the model, out of its wrappers: in eval mode, and afterwards flags, buffers and generators are as they were.

    What is around it is switched off meanwhile (:mod:`forwardinf.models.surroundings`). No signal cuts giving back short, and a
    sum over the weights is held against the one before on every way out. Another thread that borrows waits until this one is
    done: generators and switches are the process's. Layers that fold weights when they are put into eval mode are given back
    unfolded.

    Raises:
        ModelError: A parameter has no data (meta device), or the model writes to its weights when it runs (``max_norm``), or
            the block ended well but a reading had written to a buffer (it is put back all the same).
    """
    if not isinstance(model, nn.Module):
        raise ModelError("model", expected="a torch.nn.Module", got=type(model).__name__)
    model = bare(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ModelError(f"parameter {name}", expected="data", got="a lazy layer that has not run yet",
                             do="Run the model on a batch first.")  # fmt: skip
        if tensor.is_meta:
            raise ModelError(f"parameter {name}", expected="data", got="the meta device", do="Load the weights first.")
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise ModelError(f"{name or 'model'}.max_norm", expected="weights that reading leaves alone",
                             got=f"max_norm={module.max_norm}: looking a row up writes it shorter",
                             do="Shorten the rows once (torch.renorm), then set max_norm = None.")  # fmt: skip
    return Loan(model)


class Loan(Lending[nn.Module]):
    """One model lent; see :func:`borrowed`."""

    def __init__(self, model: nn.Module) -> None:
        """Name the model; nothing is touched yet."""
        self.model = model
        self._stack = ExitStack()
        self._taken = self._seen = False

    def take(self) -> nn.Module:
        """Wait for other threads, keep what could change, and put the model into eval mode."""
        self._stack = ExitStack()
        _ONE.acquire()
        self._stack.callback(_ONE.release)
        self._stack.enter_context(noise.own_state())
        self._stack.enter_context(undisturbed(self.model))
        self._training = {module: module.training for module in self.model.modules()}
        self._wanted = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        self._slots = [(module, name, dict(getattr(module, name))) for module in self._training for name in SLOTS]
        self._buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        folding = [module for module in self._training if type(module).train is not nn.Module.train]
        self._attributes = [(module, dict(vars(module))) for module in folding]
        self._folded = [(p, p.detach().clone()) for p in {p: 0 for module in folding for p in module.parameters()}]
        self._before = sums(self.model)
        self._outer = _LENT.get(id(self.model))
        self._seen = False if self._outer is None else self._outer._seen
        self._taken = True
        _LENT[id(self.model)] = self
        self.model.eval()
        return self.model

    def give_back(self, failed: bool) -> None:
        """Put back what changed; then, where the block had no error of its own, say what had."""
        if not self._taken:
            self._stack.close()
            return
        told: list[ModelError] = []
        try:
            surely([self._unfold, partial(self._put_back, told), self._flags])
        finally:
            self._taken = False
            if self._outer is None:
                _LENT.pop(id(self.model), None)
            else:
                _LENT[id(self.model)] = self._outer
            self._stack.close()
        if told and not failed:
            raise told[0]

    def _unfold(self) -> None:
        """Give layers that fold their weights in eval mode what they held before: tensors, and flags that say so."""
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)
        replaced = False
        for module, name, kept in self._slots:
            here = getattr(module, name)
            if list(here) != list(kept) or any(here[key] is not kept[key] for key in kept):
                replaced = True
                here.clear()
                here.update(kept)
        self._replaced = replaced and not self._attributes
        with torch.no_grad():
            for parameter, original in self._folded:
                if not same_bits(parameter, original):
                    parameter.copy_(original)

    def _put_back(self, told: list[ModelError]) -> None:
        written = restored(dict(self.model.named_buffers()), self._buffers)
        if written:
            told.append(_wrote(f"buffer {written[0]}", "It was put back."))
        if self._replaced:
            told.append(_wrote("model", "Its parameters are the same again."))
        if sums(self.model) != self._before:
            told.append(_wrote("parameters", "They could not be put back: load the weights again."))

    def _flags(self) -> None:
        for module, was in self._training.items():
            module.training = was
        for parameter, was in self._wanted.items():
            parameter.requires_grad_(was)

    @contextmanager
    def first_forward(self) -> Iterator[None]:
        """Hold the weights against a copy at the first forward of the loan: what it wrote is put back, and refused.

        Where the copy has no room beside the weights (host memory), only the sums are held against each other.
        """
        if self._seen:
            yield
            return
        self._seen = True
        live = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        size = sum(tensor.nbytes for tensor in live.values())
        room = machine.free_bytes(torch.device("cpu"))
        kept = (
            {name: tensor.detach().cpu().clone() for name, tensor in live.items() if type(tensor) in PLAIN}
            if size < room / 2 or not room
            else {}
        )
        try:
            yield
        finally:
            now = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            replaced = [name for name in live if now.get(name) is not live[name]]
            written = restored(live, kept)
            del kept
            if size > LARGE:
                machine.give_back_freed()
        if written or replaced:
            name = (written or replaced)[0]
            raise _wrote(f"{'buffer' if name in self._buffers else 'parameter'} {name}", "It was put back.")


def first_forward(model: nn.Module) -> AbstractContextManager[None]:
    """Within the block a borrowed model's first forward is watched; later ones, and those of other modules, are not."""
    loan = _LENT.get(id(model))
    return nullcontext() if loan is None else loan.first_forward()


def restored(live: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> list[str]:
    """Put back what differs; return the names."""
    changed = [
        name for name, tensor in live.items() if name in kept and not same_bits(tensor, kept[name].to(tensor.device))
    ]
    with torch.no_grad():
        surely(partial(live[name].copy_, kept[name]) for name in changed)
    return changed


def _wrote(where: str, do: str) -> ModelError:
    return ModelError(where, expected="readings that leave it alone in eval mode", got="another value after reading",
                      do=f"{WRITES} {do}")  # fmt: skip


def sums(model: nn.Module) -> list[int]:
    """Return two sums over the bits of every parameter's storage: what a write changes. One pass, at the speed of memory."""
    found, met = list[int](), set[int]()
    for parameter in model.parameters():
        try:
            storage = parameter.untyped_storage()
            if storage.data_ptr() in met:
                continue
            met.add(storage.data_ptr())
            whole = torch.empty(0, dtype=torch.uint8, device=parameter.device).set_(storage)
        except (RuntimeError, NotImplementedError):  # a class of its own without a storage
            continue
        words = whole[: len(whole) // 8 * 8].view(torch.int64)
        found += [int(words.sum()), int(words[::2].sum()), int(whole[len(words) * 8 :].sum())]
    return found


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile``, ``DataParallel`` and their like: the same weights, read without the wrapper."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, NaN being equal to NaN."""
    return torch.equal(one, other) or (
        one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
    )
