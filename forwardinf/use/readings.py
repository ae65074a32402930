"""What is read of a classifier's examples, once, for both label uses: predictions, features, responses of loss and logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError
from forwardinf.core.examples import Batch
from forwardinf.core.feed import Feed
from forwardinf.core.progress import Stages, progress
from forwardinf.core.task import Classification
from forwardinf.use.features import Features, features, find_layers
from forwardinf.use.opened import Opened, predictions
from forwardinf.use.responses import Ask, Probes, responses, unit

DIRECTIONS = (
    4  # directions in the space of logits that stand for all classes (three do as well as ten: docs/mislabeled.md)
)
WIDTH = 2048  # responses of the logits for each example
LOSS_PROBES = 512


@dataclass(frozen=True)
class Readings:
    """What :func:`readings` returns; N examples, C classes.

    Attributes:
        probabilities: ``(N, C)`` float64: the model's own.
        labels: ``(N,)`` int64: as given.
        loss: ``(N,)`` float64, nats.
        self_influence: ``(N,)`` float64: ‖gᵢ‖².
        logits: ``(N, F)``: responses of the logits.
        losses: ``(N, M)``: responses of the loss.
        features: Inputs, early and last features, centred (on the training set's mean) and of unit length.
    """

    probabilities: Tensor
    labels: Tensor
    loss: Tensor
    self_influence: Tensor
    logits: Tensor
    losses: Tensor
    features: Features

    @property
    def classes(self) -> int:
        """C."""
        return self.probabilities.shape[1]

    def views(self) -> dict[str, Tensor]:
        """The features that labels are predicted from: the responses first."""
        return {"responses": self.logits, **self.features}


def readings(given: Opened, feed: Feed, centre: Features | None = None) -> tuple[Readings, Features]:
    """Read everything of some examples; also return the means that their features were centred on.

    Cost: 2 F for predictions and features, about 4 F for the loss and for each of at most four directions of the logits.
    """
    size, name = len(feed.examples), feed.examples.name
    with progress(f"{name}: predictions", size, given.options.progress) as advance:
        probabilities, labels = predictions(feed, given.batch_size, advance)
    asks = directions(given, probabilities.shape[1])
    total = (len(asks) + 1) * size
    with progress(f"{name}: features", size, given.options.progress) as advance:
        raw = features(feed, given.batch_size, advance, find_layers(feed))
    with progress(f"{name}: responses", total, given.options.progress) as advance:
        probes = Probes(given.parameters, LOSS_PROBES, given.options.seed)
        loss = responses(feed, given.parameters, probes, advance=advance)
        probes = Probes(given.parameters, WIDTH // len(asks), given.options.seed + 1)
        logits = [responses(feed, given.parameters, probes, ask=ask, advance=advance).values for ask in asks]
    means = {view: values.mean(0) for view, values in raw.items()} if centre is None else centre
    centred = {view: unit(values - means[view]) for view, values in raw.items() if view in means}
    return Readings(probabilities, labels, loss.asked, loss.square, torch.cat(logits, 1), loss.values, centred), means


def expect_readings(whole: Stages, feed: Feed) -> None:
    """Say what :func:`readings` will do of these examples, for a call's progress."""
    size, name = len(feed.examples), feed.examples.name
    whole.expect(f"{name}: predictions", size)
    whole.expect(f"{name}: features", size)
    whole.expect(f"{name}: responses", 4 * (DIRECTIONS + 1) * size)


def directions(given: Opened, classes: int) -> list[Ask]:
    """Return what stands for the logits: each of a few, or a few sums of all with random signs, shared by all examples.

    Σ over directions of products estimates Σ_c ⟨∇f_c(x), ∇f_c(x′)⟩. Two classes differ by one logit less the other.
    """
    binary = isinstance(given.task, Classification) and given.task.binary
    if binary or classes == 2:
        signs = torch.tensor([[-1.0, 1.0]])
    elif classes <= DIRECTIONS:
        signs = torch.eye(classes)
    else:
        draw = torch.Generator().manual_seed(given.options.seed)
        signs = torch.randint(2, (DIRECTIONS, classes), generator=draw).float() * 2 - 1

    def along(sign: Tensor) -> Ask:
        def ask(model: nn.Module, batch: Batch) -> Tensor:
            logits = given.task.logits(model, batch)
            return logits @ sign.to(logits)

        return ask

    return [along(sign) for sign in signs]


def checked_size(feed: Feed, least: int) -> None:
    """Refuse a training set too small to say anything of its rows by the others."""
    if len(feed.examples) < least:
        raise DataError(feed.examples.name, expected=f"at least {least} examples", got=str(len(feed.examples)))
