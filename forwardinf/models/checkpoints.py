"""Several states of one model: each checkpoint read into the tensors that it changes, ready to be lent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from forwardinf.core.errors import FileError, ModelError, SettingError
from forwardinf.core.fingerprint import model_digest
from forwardinf.data import noise
from forwardinf.models.borrowed import restored, same_bits
from forwardinf.models.weights import load_state

DO = "To count the model's own weights among the checkpoints, put the model itself into the list; leave copies out."


class Checkpoints:
    """Checkpoints that have all been read once and found to fit, each another state of the model.

    Only one is in memory at a time, besides those that were given as tensors.

    Args:
        model: The model they are states of. It is written to while a checkpoint is read, and given back bit for bit.
        given: What :func:`forwardinf.models.weights.load_state` takes: paths (a ``.safetensors`` file, a file of tensors
            only, a folder of transformers or diffusers, ``checkpoint-500`` of a Trainer, an adapter's folder for a PEFT
            model), state dicts, modules. The model itself stands for the weights it has.

    Attributes:
        digests: Of the model under each.

    Raises:
        SettingError: Not a list, or an empty one.
        ModelError: Names or shapes differ, a checkpoint changes no tensor, or two are the same.
        FileError: A file is missing, damaged, or would need unpickling.

    Example:
        >>> model, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> sorted(Checkpoints(model, [model, other]).read(1))
        ['bias', 'weight']
    """

    def __init__(self, model: nn.Module, given: Sequence[Any]) -> None:
        """Read each once, so that a bad one is refused before anything long starts."""
        if not isinstance(model, nn.Module):
            raise ModelError("model", expected="a torch.nn.Module", got=type(model).__name__)
        if not isinstance(given, list | tuple) or not given:
            got = "an empty list" if isinstance(given, list | tuple) else type(given).__name__
            raise SettingError("checkpoints", expected="a list of paths, state dicts or modules", got=got)
        strange = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
        if strange:
            raise ModelError(
                "checkpoints", expected="a model whose state is tensors", got=f"{strange[0]}, which is none"
            )
        self.model, self.given = model, list(given)
        self.digests: list[str] = []
        for number in range(len(given)):
            found = self._read(number, digest=True)[1]
            if found in self.digests:
                raise ModelError(f"checkpoints[{number}]", expected="another state of the model",
                                 got=f"the weights of checkpoints[{self.digests.index(found)}]",
                                 do="One that counts twice makes the others look more certain: leave it out.")  # fmt: skip
            self.digests.append(found)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.given)

    def read(self, number: int) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint changes, by name, in the model's own dtype and on its device."""
        return self._read(number, digest=False)[0]

    def _read(self, number: int, *, digest: bool) -> tuple[dict[str, Tensor], str]:
        """Put a checkpoint into the model, take what differs, and give the model back."""
        checkpoint = self.given[number]
        if checkpoint is self.model:
            return {}, model_digest(self.model) if digest else ""
        live = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        kept = {name: tensor.detach().clone() for name, tensor in live.items()}
        state: dict[str, Tensor] = {}
        try:
            with noise.own_state():  # building the module that a folder names draws its first weights
                load_state(self.model, checkpoint)
            found = model_digest(self.model) if digest else ""
            state = {name: t.detach().clone() for name, t in live.items() if not same_bits(t, kept[name])}
        except (FileError, ModelError, SettingError) as error:
            where = error.where if isinstance(checkpoint, str | Path) else f"a {type(checkpoint).__name__}"
            do = DO if "same values" in error.got else error.do
            raise type(error)(
                f"checkpoints[{number}], {where}", expected=error.expected, got=error.got, do=do
            ) from error
        finally:
            restored(live, kept)
        return state, found
