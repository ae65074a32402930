"""Laws 2 and 8 for every built-in task, each on a real model: downloaded weights where there are data, else trained here."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import Case, attribute, gradients, joined, size, wide
from close import assert_close
from sklearn.datasets import load_diabetes, load_digits
from torch import nn

import forwardinf as fi

WHY = "a two-sided difference of float64 losses of a float64 model, kept in float32"
LONGER = {"backwards": (3e-6, 5e-3)}  # T5 takes its norms and softmaxes in float32 whatever it is given: length, rtol


@pytest.fixture
def examples_of_ours(monkeypatch, data_folder):
    """The loaders in examples/, importable for one test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    yield
    for name in set(sys.modules) - before:
        if name == "common" or name.startswith("models_"):
            sys.modules.pop(name)


def fitted(model, loss, steps, lr):
    """Train on everything at once for a few steps; return the model in eval mode."""
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(model).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval()


def cifar():
    import models_resnet
    from common import cifar_lossless

    images, labels, _ = cifar_lossless()
    x, y = models_resnet.pixels_to_input(images[:15]), torch.from_numpy(labels[:15])
    return models_resnet.load(depth=20), (x, y), fi.Classification()


def stories():
    import models_llama2c
    from common import text

    ids = models_llama2c.Tokenizer().encode(text("tinystories_train_excerpt")[:20_000], bos=False)
    rows = models_llama2c.windows(ids, 64)[:11]
    return models_llama2c.load(), [row[: 64 - 5 * place] for place, row in enumerate(rows)], fi.CausalLM()


def ddpm():
    import models_ddpm
    from common import digits

    net = models_ddpm.load("sd_linear_100ep")
    rows = models_ddpm.pixels_to_input(digits("mnist", "train")[0][:7])
    task = fi.Diffusion(scheduler=net.alpha_t, timesteps=2, target="epsilon")
    return models_ddpm.ByStep(net).eval(), rows, task


def fashion():
    import models_cnn
    from common import digits

    images, labels = digits("fashion_mnist", "train")
    x, y = models_cnn.pixels_to_input(images[:500]), torch.from_numpy(labels[:500])
    return models_cnn.train(x, y, epochs=2), (x[:15], y[:15]), fi.Classification(query="label")


def regression():
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    x, y = x * 20, (y - y.mean()) / y.std()
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
    loss = lambda m: F.mse_loss(m(x).squeeze(1), y)  # noqa: E731
    model = fitted(model, loss, 150, 1e-2)
    assert loss(model) < 0.5, "explains half of the variance"
    return model, (x[:25], y[:25]), fi.Regression()


def many_labels():
    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    digit = torch.tensor(digits.target)
    labels = torch.stack([digit % 2 == 0, digit >= 5, torch.isin(digit, torch.tensor([0, 6, 8, 9]))], 1).float()
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(128, 3))
    fitted(model, lambda m: F.binary_cross_entropy_with_logits(m(x[:600]), labels[:600]), 60, 1e-2)
    with torch.no_grad():
        assert ((model(x[600:]) > 0) == labels[600:].bool()).float().mean() > 0.85
    return model, (x[:20], labels[:20]), fi.MultiLabel()


def ink():
    """Return a network trained to find the ink of digits under noise, at all pixels but the border."""
    clean = torch.tensor(load_digits().images[:600] / 16, dtype=torch.float32)[:, None]
    x, maps = clean + 0.3 * torch.randn(clean.shape), torch.full((600, 8, 8), 255)
    maps[:, 1:-1, 1:-1] = (clean[:, 0, 1:-1, 1:-1] > 0.5).long()
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 2, 3, padding=1))
    task = fi.Segmentation(ignore_index=255)
    fitted(model, lambda m: F.cross_entropy(m(x[:500]), maps[:500], ignore_index=255), 60, 1e-2)
    with torch.no_grad():
        right = model(x[500:]).argmax(1) == maps[500:]
    assert right[maps[500:] != 255].float().mean() > 0.85
    return model, (x[:15], maps[:15]), task


TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def backwards():
    """Return an encoder-decoder trained to spell words backwards, and its words."""
    transformers = pytest.importorskip("transformers")
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=16, d_model=24, d_kv=12, d_ff=48, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, **TOKENS,
    ))  # fmt: skip
    words = [torch.randint(3, 16, (int(torch.randint(2, 6, ())),)) for _ in range(64)]
    rows = [{"input_ids": word, "labels": torch.cat([word.flip(0), torch.tensor([1])])} for word in words]
    task = fi.Seq2Seq()
    batch = task.collate(rows)
    before = float(task.loss(model, batch).detach().mean())
    fitted(model, lambda m: task.loss(m, batch).sum() / task.count(batch).sum(), 60, 1e-2)
    assert float(task.loss(model, batch).detach().mean()) < before / 2
    return model, rows[:12], task


def sentences():
    """Return a BERT trained to tell whether a sentence holds a certain word."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=20, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **TOKENS,
    ))  # fmt: skip
    texts = [torch.randint(3, 20, (int(torch.randint(4, 12, ())),)) for _ in range(128)]
    rows = [{"input_ids": text, "label": int((text < 6).any())} for text in texts]
    task = fi.SequenceClassification()
    batch = task.collate(rows)
    fitted(model, lambda m: task.loss(m, batch).mean(), 60, 5e-3)
    assert task.loss(model, batch).detach().mean() < 0.4
    return model, rows[:15], task


def tags():
    """Return a BERT trained to tell low tokens, high ones behind a low one, and high ones behind a high one."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForTokenClassification(transformers.BertConfig(
        vocab_size=20, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **TOKENS,
    ))  # fmt: skip
    texts = [torch.randint(3, 20, (int(torch.randint(4, 12, ())),)) for _ in range(128)]
    rows = [{"input_ids": text, "labels": (text >= 12) * (1 + (text.roll(1) >= 12))} for text in texts]
    for row in rows:
        row["labels"][0] = -100  # nothing is in front of it
    task = fi.TokenClassification()
    batch = task.collate(rows)
    fitted(model, lambda m: task.loss(m, batch).sum() / task.count(batch).sum(), 80, 5e-3)
    assert task.loss(model, batch).detach().sum() / task.count(batch).sum() < 0.6
    return model, rows[:15], task


REAL = {"cifar": cifar, "fashion": fashion, "stories": stories, "ddpm": ddpm}
TRAINED = {"regression": regression, "many labels": many_labels, "ink": ink, "backwards": backwards, "sentences": sentences,
           "tags": tags}  # fmt: skip
HEAVY = (pytest.mark.data, pytest.mark.whole)
EVERY = pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=HEAVY if name == "ddpm" else pytest.mark.data) for name in REAL), *TRAINED]
)


def build(name, request):
    """Return a model, its training rows, and two queries (the first of which is the last training row too)."""
    if name in REAL:
        request.getfixturevalue("examples_of_ours")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, rows, task = (REAL | TRAINED)[name]()
    count = size(rows)
    queries, train = part(rows, 0, 2), joined(part(rows, 2, count), part(rows, 0, 1))
    return Case(name, model, train, queries, task)


@pytest.fixture
def given(name, request):
    """The same in float64."""
    found = build(name, request)
    return Case(name, found.model.double(), in_double(found.train), in_double(found.queries), found.task)


def part(rows, start, stop):
    return tuple(column[start:stop] for column in rows) if isinstance(rows, tuple) else rows[start:stop]


def in_double(rows):
    """Real numbers in float64; rows in lists hold whole numbers only."""
    return rows if isinstance(rows, list) else wide(rows)


@EVERY
def test_scores_of_a_short_push_are_gradient_products_and_a_copy_has_share_one(given):
    trained, asked = gradients(given, given.train, given.task.loss), gradients(given, given.queries, given.task.loss)
    length, rtol = LONGER.get(given.name, (1e-8, 1e-6))  # so short that no ReLU of a real network switches on the way
    scores = attribute(given, perturbation=fi.Perturbation(length=length, two_sided=True), batch_size=4)
    assert_close(scores.values / scores.step[:, None], asked @ trained.T, rtol=rtol, why=WHY)
    assert scores.share[0, -1] == pytest.approx(1, rel=10 * rtol), "an exact copy of the query"
    assert scores.unit == given.task.unit
    finite = attribute(given, perturbation=fi.Perturbation(rise="0.3x", two_sided=True), batch_size=4)
    assert finite.share[0, -1] == pytest.approx(1, rel=10 * rtol)
    assert set(finite.status) <= {"ok", "capped"}
    assert np.isfinite(finite.values).all()


@EVERY
def test_linear_scores_as_anyone_gets_them_are_gradient_products_to_a_few_per_cent(name, request):
    """The default: one-sided, in the model's own float32. At one length for all, the diffusion model was off by 300 %."""
    given = build(name, request)
    trained, asked = gradients(given, given.train, given.task.loss), gradients(given, given.queries, given.task.loss)
    scores = attribute(given, batch_size=4)
    want = (asked @ trained.T).numpy()
    for got, right, floor in zip(scores.values, want, scores.noise_floor, strict=True):
        off = np.abs(got - right).max() / np.abs(right).max()
        assert off < max(0.04, 3 * floor / np.abs(right).max()), f"off by {off:.2g} of the largest score"
    assert_close(scores.rise, asked.square().sum(1), rtol=0.03, why="shortened until the rise is the rate to 1 %")


@EVERY
def test_a_self_influence_is_a_squared_gradient(given):
    found = fi.self_influence(given.model, given.train, task=given.task, progress=False)
    want = gradients(given, given.train, given.task.loss).square().sum(1)
    assert_close(found.values, want, rtol=1e-9, why="the same gradients in float64")


def test_every_built_in_task_is_here():
    built_in = {
        "Classification",
        "Regression",
        "MultiLabel",
        "SequenceClassification",
        "Seq2Seq",
        "CausalLM",
        "TokenClassification",
        "Segmentation",
        "Diffusion",
    }
    assert built_in == {
        name for name in fi.__all__ if isinstance(getattr(fi, name), type) and issubclass(getattr(fi, name), fi.Task)
    } - {"Task"}
    source = Path(__file__).read_text()
    assert all(f"fi.{name}(" in source for name in built_in)
