"""What is read of a classifier's examples, once, for both label uses: predictions, features, responses of loss and logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forwardinf.core.errors import DataError
from forwardinf.core.progress import Stages, progress
from forwardinf.data.examples import Batch
from forwardinf.tasks.feed import Asks, Feed
from forwardinf.tasks.task import Classification, Task, prediction_of
from forwardinf.use.features import Features, Look
from forwardinf.use.inputs import Inputs, predictions
from forwardinf.use.responses import Probes, responses_each, unit

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
        losses: ``(N, M)``: responses of the loss; ``(N, 0)`` where they are not wanted.
        features: Inputs, early and last features, centred (on the training set's mean) and of unit length; none where they
            are not wanted.
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


def readings(
    given: Inputs, feed: Feed, centre: Features | None = None, *, looks: bool = True, reaction: bool = False
) -> tuple[Readings, Features]:
    """Read everything of some examples; also return the means that their features were centred on.

    Args:
        given: Model, task and parameters.
        feed: The examples.
        centre: What features are centred on; None: on their own means.
        looks: Whether features are wanted.
        reaction: Whether responses of the loss are wanted.

    Cost: 1 F for predictions and features; one forward, and about 3 F for the loss and for each of at most four directions of
    the logits.
    """
    size, name, layers = len(feed.examples), feed.examples.name, None if looks else dict[str, str]()
    with progress(f"{name}: predictions", size, given.options.progress) as advance, Look(feed, layers) as look:
        probabilities, labels = predictions(feed, given.batch_size, advance, look.at if looks else lambda ask: ask)
    raw = look.features()
    signs = directions(given, probabilities.shape[1])
    draw, seed = given.options.seed, given.options.seed + 1
    probes = [Probes(given.parameters, LOSS_PROBES, draw) if reaction else None]
    probes += [Probes(given.parameters, WIDTH // len(signs), seed)] * len(signs)
    with progress(f"{name}: responses", size, given.options.progress) as advance:
        loss, *logits = responses_each(feed, given.parameters, _asks(given.task, signs), probes, advance=advance)
    means = {view: values.mean(0) for view, values in raw.items()} if centre is None else centre
    centred = {view: unit(values - means[view]) for view, values in raw.items() if view in means}
    found = torch.cat([each.values for each in logits], 1)
    return Readings(probabilities, labels, loss.asked, loss.square, found, loss.values, centred), means


def expect_readings(whole: Stages, feed: Feed) -> None:
    """Say what :func:`readings` will do of these examples, for a call's progress."""
    size, name = len(feed.examples), feed.examples.name
    whole.expect(f"{name}: predictions", size)
    whole.expect(f"{name}: responses", (1 + 3 * (DIRECTIONS + 1)) * size)


def directions(given: Inputs, classes: int) -> Tensor:
    """Return what stands for the logits, ``(D, C)``: each of a few, or a few sums of all with random signs.

    Σ over directions of products estimates Σ_c ⟨∇f_c(x), ∇f_c(x′)⟩. Two classes differ by one logit less the other.
    """
    binary = isinstance(given.task, Classification) and given.task.binary
    if binary or classes == 2:
        return torch.tensor([[-1.0, 1.0]])
    if classes <= DIRECTIONS:
        return torch.eye(classes)
    draw = torch.Generator().manual_seed(given.options.seed)
    return torch.randint(2, (DIRECTIONS, classes), generator=draw).float() * 2 - 1


def _asks(task: Task, signs: Tensor) -> Asks:
    """Return what is differentiated: the loss, then the logits along each direction."""

    def all_of(model: nn.Module, batch: Batch) -> list[Tensor]:
        loss, logits = loss_and_logits(task, model, batch)
        return [loss, *(logits @ sign for sign in signs.to(logits))]

    return Asks(all_of)


def loss_and_logits(task: Task, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (losses ``(B,)``, logits ``(B, C)``): of one forward where the task says how both follow from it, else of two."""
    ours = isinstance(task, Classification) and type(task).logits is Classification.logits
    halves = prediction_of(task, model, batch) if ours else None
    if halves is None or not isinstance(task, Classification):
        return task.loss(model, batch), task.logits(model, batch)
    return halves.loss(halves.output), task.as_classes(halves.output)


def checked_size(feed: Feed, least: int) -> None:
    """Refuse a training set too small to say anything of its rows by the others."""
    if len(feed.examples) < least:
        raise DataError(feed.examples.name, expected=f"at least {least} examples", got=str(len(feed.examples)))
