"""What is timed: models of three kinds with their examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import forwardinf as fi
from benchmarks.banks import models


class Decoder(nn.Module):
    """A small decoder with tied embeddings."""

    def __init__(self, vocabulary: int = 2048, width: int = 192, layers: int = 4, context: int = 128) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=input_ids.device)
        hidden = self.embed(input_ids) + self.place.weight[:length]
        return F.linear(self.norm(self.blocks(hidden, mask=mask, is_causal=True)), self.embed.weight)


@dataclass
class Work:
    """A model and its training examples; a decoder's have no labels."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor | None = None

    @property
    def task(self) -> fi.Task:
        return fi.CausalLM() if self.labels is None else fi.Classification()

    @property
    def train(self) -> Any:
        return self.inputs if self.labels is None else (self.inputs, self.labels)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def first(self, rows: int) -> Work:
        """Return the same with the first examples only."""
        return Work(self.model, self.inputs[:rows], None if self.labels is None else self.labels[:rows])

    def queries(self, count: int) -> Any:
        """Return examples of the same kind: changed ones of the training set."""
        own = self.inputs[-count:].roll(1, -1)
        return own if self.labels is None else (own, self.labels[-count:])

    def attribute(self, queries: Any, engine: str, cache: str, **settings: Any) -> fi.Scores:
        """Return the scores of a perturbation, by an engine, with a cache of its own."""
        return fi.attribute(self.model, self.train, queries, task=self.task, engine=engine, cache_dir=cache,
                            perturbation=fi.Perturbation(**settings), progress=False)  # fmt: skip

    @torch.inference_mode()
    def bare(self, size: int, channels_last: bool = False) -> Tensor:
        """The floor: one plain forward and its per-example loss over the whole set, nothing else."""
        device, found = next(self.model.parameters()).device, []
        layout = torch.channels_last if channels_last and self.inputs.ndim == 4 else torch.preserve_format
        for start in range(0, len(self.inputs), size):
            batch = self.inputs[start : start + size].to(device, memory_format=layout)
            logits = self.model(batch)
            if self.labels is None:
                each = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
                found.append(each.view(len(batch), -1).sum(1))
            else:
                labels = self.labels[start : start + size].to(device)
                found.append(F.cross_entropy(logits, labels, reduction="none"))
        return torch.cat(found)


def cnn() -> Work:
    """W1: a CNN of 0.46 M parameters on 28×28 images, N = 4,000."""
    torch.manual_seed(0)
    return Work(models.cnn28().eval(), torch.randn(4000, 1, 28, 28), torch.randint(10, (4000,)))


def resnet() -> Work:
    """W2: a ResNet-9 with BatchNorm, 1.6 M parameters, on 32×32 colour images, N = 1,000."""
    torch.manual_seed(0)
    return Work(models.resnet9(256, 2).eval(), torch.randn(1000, 3, 32, 32), torch.randint(10, (1000,)))


def decoder() -> Work:
    """W3: a decoder of 2.2 M parameters, context 128, vocabulary 2,048, N = 250 rows."""
    torch.manual_seed(0)
    return Work(Decoder().eval(), torch.randint(2048, (250, 128)))


MODELS: dict[str, Callable[[], Work]] = {"cnn": cnn, "resnet": resnet, "decoder": decoder}
