"""Four small trained models with their data and task: what every law is checked on. Built once, in seconds.

Each has 40 training examples and 3 queries that are not among them. ``case("cnn")`` gives a fresh copy every time.
"""

import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

import forwardinf as fi
from forwardinf.data import noise
from forwardinf.data.examples import examples
from forwardinf.perturb.direction import Fitting
from forwardinf.perturb.parameters import select
from forwardinf.perturb.push import Pusher
from forwardinf.tasks.feed import Feed

NAMES = ("cnn", "resnet", "transformer", "unet")
QUICK = (
    *NAMES[:3],
    pytest.param("unet", marks=pytest.mark.whole),
)  # where the U-Net, by far the slowest, is seen nearby
ROWS, QUERIES = 40, 3


@dataclass
class Case:
    name: str
    model: nn.Module
    train: Any
    queries: Any
    task: Any

    def double(self):
        """Return the case in float64, whole numbers as they are."""
        return replace(
            self, model=copy.deepcopy(self.model).double(), train=wide(self.train), queries=wide(self.queries)
        )

    def with_copies(self):
        """Return the case with the queries appended to the training set."""
        return replace(self, train=joined(self.train, self.queries))


def crossed(values, unet=()):
    """Return every name with every value, to be parametrised over; the U-Net ``whole`` but with the values that are given."""
    return [
        pytest.param(name, value, id=f"{value}-{name}",
                     marks=pytest.mark.whole if name == "unet" and value not in unet else ())
        for value in values for name in NAMES
    ]  # fmt: skip


def case(name, dtype=torch.float32):
    """Return a fresh copy of a trained case."""
    built = BUILD[name]()
    fresh = replace(built, model=copy.deepcopy(built.model))
    return fresh.double() if dtype == torch.float64 else fresh


def attribute(given, **settings):
    """Call the front door with this case's model, data and task; quiet.

    Plain gradients, which need no fit, read by forward passes, unless the test says otherwise: "auto" goes by the clock, and
    two runs that are compared may have been read by different engines.
    """
    settings = {"task": given.task, "progress": False, "batch_size": 20, "engine": "forward",
                "perturbation": fi.Perturbation(), **settings}  # fmt: skip
    model = settings.pop("model", given.model)
    train, queries = settings.pop("train", given.train), settings.pop("queries", given.queries)
    return fi.attribute(model, train, queries, **settings)


# -- data in every form ------------------------------------------------------------------------------------------------


def wide(data):
    if isinstance(data, torch.Tensor):
        return data.double() if data.is_floating_point() else data
    return type(data)(wide(part) for part in data)


def size(data):
    return len(data[0]) if isinstance(data, tuple) else len(data)


def take(data, rows):
    """Return these rows in the form the data has."""
    if isinstance(data, tuple):
        return tuple(column[torch.as_tensor(rows)] for column in data)
    return data[torch.as_tensor(rows)] if isinstance(data, torch.Tensor) else [data[row] for row in rows]


def joined(one, other):
    if isinstance(one, tuple):
        return tuple(torch.cat(pair) for pair in zip(one, other, strict=True))
    return torch.cat([one, other]) if isinstance(one, torch.Tensor) else [*one, *other]


def one_by_one(data):
    """Return the rows as a list: read by position and joined by the task's collate."""
    if isinstance(data, tuple):
        return [tuple(column[row] for column in data) for row in range(len(data[0]))]
    return list(data)


def feed(given, data=None, **settings):
    """Return the parts that read and push: the case's model (put in eval mode), task and data."""
    rows = examples(given.train if data is None else data, task_collate=given.task.collate)
    return Feed(given.model.eval(), given.task, rows, torch.device("cpu"), **settings)


def pusher(given, perturbation, queries=None, batch_size=8, **settings):
    """Return what pushes this case's queries (or other ones, given as a feed) under a setting."""
    train = feed(given)
    fitting = Fitting(perturbation, train, select(given.model, perturbation.parameters), batch_size)
    return Pusher(feed(given, given.queries) if queries is None else queries, fitting, **settings)


class Sketch(Dataset):
    """Rows as a map-style dataset."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


# -- the slow obvious answer -------------------------------------------------------------------------------------------


def gradient(model, values, names=None):
    """Return the gradient of ``values.sum()`` as one flat float64 vector over the parameters (those named)."""
    chosen = [p for name, p in model.named_parameters() if names is None or name in names]
    grads = torch.autograd.grad(values.sum(), chosen, allow_unused=True)
    return torch.cat([
        torch.zeros(p.numel(), dtype=torch.float64) if g is None else g.double().flatten()
        for p, g in zip(chosen, grads, strict=True)
    ])  # fmt: skip


def keyed(task, data, row):
    """Return the context in which this row's noise is drawn, as a reading does it."""
    key = examples(data, task_collate=task.collate).keys([row])
    return noise.belonging_to(key, 0)


def batch_of(task, data, row):
    """Return one row as a batch of one."""
    if isinstance(data, list):
        return task.collate([data[row]])
    return take(data, [row])


def gradients(given, data, ask):
    """Return ``(rows, P)``: the gradient of ``ask(model, batch)`` of each row, one at a time, in eval mode."""
    model = copy.deepcopy(given.model).eval()
    found = []
    for row in range(size(data)):
        with keyed(given.task, data, row):
            found.append(gradient(model, ask(model, batch_of(given.task, data, row))))
    return torch.stack(found)


# -- the four ----------------------------------------------------------------------------------------------------------


class Cnn(nn.Module):
    def __init__(self, drop=0.2):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.drop, self.head = nn.Dropout(drop), nn.Linear(8 * 4, 10)

    def forward(self, x):
        x = F.avg_pool2d(F.gelu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.gelu(self.conv2(x)), 2)
        return self.head(self.drop(x.flatten(1)))


class Block(nn.Module):
    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        inner = self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))
        return F.silu(inner + self.skip(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(Block(1, 6, 1), Block(6, 10, 2))
        self.head = nn.Linear(10, 10)

    def forward(self, x):
        return self.head(self.stages(x).mean((2, 3)))


class Decoder(nn.Module):
    """Token and position embeddings, two pre-norm blocks, output tied to the token embedding; dropout as in training."""

    def __init__(self, vocabulary=20, width=12, longest=16, heads=2, blocks=2):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.3)

    def forward(self, input_ids, attention_mask=None):
        length = input_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).triu(1)
        padding = None if attention_mask is None else attention_mask == 0
        x = self.tokens(input_ids) + self.places(torch.arange(length, device=input_ids.device))
        for block in self.blocks:
            x = block(x, src_mask=causal, src_key_padding_mask=padding)
        return self.lm_head(self.norm(x))


def digits():
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return images, torch.tensor(labels)


def _fit(model, loss_of, steps, lr, train_rows, batch=20):
    """A few steps of AdamW on random batches, in training mode."""
    draw = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        rows = torch.randperm(train_rows, generator=draw)[:batch].tolist()
        loss = loss_of(model, rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval()


def _seeded(build):
    """Build with torch's generator seeded, and give the caller's state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _images(name, make, steps, lr):
    images, labels = digits()
    train, queries = (images[:ROWS], labels[:ROWS]), (images[100 : 100 + QUERIES], labels[100 : 100 + QUERIES])

    def build():
        return _fit(make(), lambda m, rows: F.cross_entropy(m(train[0][rows]), train[1][rows]), steps, lr, ROWS)

    return Case(name, _seeded(build), train, queries, fi.Classification())


@cache
def _cnn():
    return _images("cnn", Cnn, 60, 1e-2)


@cache
def _resnet():
    return _images("resnet", ResNet, 30, 1e-2)


def sentences(rows, seed):
    """Counting up or down in steps of one to three, modulo 17, from 6 to 14 tokens: structure that can be learnt."""
    draw = torch.Generator().manual_seed(seed)

    def one():
        start, step, length = (
            int(torch.randint(low, high, (), generator=draw)) for low, high in ((0, 17), (1, 4), (6, 15))
        )
        return 3 + (start + step * torch.arange(length)) % 17

    return [one() for _ in range(rows)]


@cache
def _transformer():
    task = fi.CausalLM()
    train, queries = sentences(ROWS, 0), sentences(QUERIES, 7)

    def build():
        def loss(model, rows):
            batch = task.collate([train[row] for row in rows])
            return task.loss(model, batch).sum() / task.count(batch).sum()

        return _fit(Decoder(), loss, 80, 1e-2, ROWS)

    return Case("transformer", _seeded(build), train, queries, task)


@cache
def _unet():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100)
    task = fi.Diffusion(scheduler, timesteps=[10, 50])
    images = digits()[0]

    def build():
        model = diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
            attention_head_dim=8,  # attention is in the block in the middle
        )  # fmt: skip

        def loss(model, rows):
            clean = images[rows]
            noise, times = torch.randn_like(clean), torch.randint(0, 100, (len(rows),))
            return F.mse_loss(model(scheduler.add_noise(clean, noise, times), times).sample, noise)

        return _fit(model, loss, 60, 5e-3, ROWS)

    return Case("unet", _seeded(build), images[:ROWS], images[100 : 100 + QUERIES], task)


BUILD = {"cnn": _cnn, "resnet": _resnet, "transformer": _transformer, "unet": _unet}
