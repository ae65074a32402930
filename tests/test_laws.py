"""The laws of the design, each on a CNN, a BatchNorm ResNet, a decoder with tied embeddings and a diffusion U-Net."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import (
    NAMES,
    QUERIES,
    QUICK,
    ROWS,
    Cnn,
    Sketch,
    attribute,
    case,
    crossed,
    feed,
    gradients,
    joined,
    one_by_one,
    size,
    take,
)
from close import assert_close, assert_within
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import forwardinf as fi
from forwardinf.perturb.swap import lend, tensors_of
from forwardinf.score.influence import influence

Push = fi.Perturbation
EVERY = pytest.mark.parametrize("name", NAMES)
MOST = pytest.mark.parametrize("name", QUICK)
FOUR_READINGS = "two runs, each the difference of two readings; the floor itself was seen on a sample of the rows"


@pytest.fixture(autouse=True)
def one_layout(monkeypatch):
    """Layouts are chosen by the clock, and differ by rounding: two calls are compared under the same one."""
    monkeypatch.setattr("forwardinf.read.tune.WORTH", 0.0)


def bits(tensor):
    return tensor.detach().contiguous().cpu().numpy().tobytes()


def state_of(model):
    """Return everything a caller could notice about a model and the generators."""
    numpy_state = np.random.get_state()
    return {
        "tensors": {name: (bits(t), t.data_ptr(), t.dtype) for name, t in tensors_of(model).items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "wanted": {name: p.requires_grad for name, p in model.named_parameters()},
        "grads": {name: None if p.grad is None else (id(p.grad), bits(p.grad)) for name, p in model.named_parameters()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "random": (random.getstate(), numpy_state[1].tobytes(), numpy_state[2:], bits(torch.get_rng_state())),
    }


def assert_untouched(model, before):
    now = state_of(model)
    for what, kept in before.items():
        if isinstance(kept, dict):
            assert kept.keys() == now[what].keys(), f"{what}: other names"
            differs = [name for name in kept if kept[name] != now[what][name]]
            assert not differs, f"{what} of {differs[:3]}"
        else:
            assert kept == now[what], what


def mixed(model):
    """Leave a model as people do: some parts in training mode, one tensor frozen, some old gradients, any random state."""
    model.train()
    for module in list(model.modules())[2::3]:
        module.training = False
    for place, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(place != 1)
        parameter.grad = torch.full_like(parameter, place) if place % 2 else None
    random.seed(11)
    np.random.seed(12)
    torch.manual_seed(13)
    torch.rand(3)
    return model


class Breaking(fi.Task):
    """A task whose loss fails in the middle of a reading under moved weights."""

    def __init__(self, inner, model, error):
        self.inner, self.error, self.readings = inner, error, 0
        self.unit, self.keyed = inner.unit, inner.keyed
        self.originals = [p.detach().clone() for p in model.parameters()]

    def loss(self, model, batch):
        if any(not torch.equal(p, kept) for p, kept in zip(model.parameters(), self.originals, strict=True)):
            self.readings += 1
            if self.readings == 2:
                raise self.error
        return self.inner.loss(model, batch)

    def measure(self, model, batch):
        return self.inner.measure(model, batch)

    def count(self, batch):
        return self.inner.count(batch)

    def collate(self, examples):
        return self.inner.collate(examples)


# -- 1: nothing is left behind -----------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("length", ["no tensor", "the same tensors"])
def test_1_a_push_of_length_zero_scores_exactly_zero(name, length):
    given = case(name)
    reader = feed(given)
    before = reader.losses(range(ROWS), 16)
    same = {n: p.detach().clone() for n, p in given.model.named_parameters()} if length != "no tensor" else {}
    with lend(tensors_of(given.model), same):
        after = reader.losses(range(ROWS), 16)
    for rule in (Push(length=0.01), Push(length=0.01, toward="descent"), Push(length=0.01, two_sided=True), Push()):
        sides = [after, after] if rule.both_sides else [after]
        assert torch.equal(influence(before, sides, rule, step=0.5), torch.zeros_like(before))


PUSHES = {
    "linear": Push(),
    "finite": Push(length=0.01),
    "descent": Push(length=0.01, toward="descent"),
    "sign": Push("sign", length=0.01),
    "two-sided": Push(length=0.01, two_sided=True),
    "rise": Push(rise="0.2x", two_sided=True),
    "three steps": Push(length=0.02, steps=3),
    "lr": Push(lr=1e-3),
    "as published": Push.preset("as_published"),
}


@pytest.mark.parametrize(("name", "push"), crossed(PUSHES, unet=["finite"]))
def test_1_the_model_is_given_back_bit_for_bit(name, push):
    given = case(name)
    mixed(given.model)
    before = state_of(given.model)
    scores = attribute(given, perturbation=PUSHES[push])
    assert_untouched(given.model, before)
    assert np.abs(scores.values).max() > 0, "a push that does nothing gives anything back"


@pytest.mark.parametrize(("name", "push"), crossed(["finite", "two-sided", "as published"], unet=["two-sided"]))
@pytest.mark.parametrize("error", [ValueError("bad luck"), KeyboardInterrupt()], ids=["exception", "interrupt"])
def test_1_the_model_is_given_back_after_a_break_in_mid_reading(name, push, error):
    given = case(name)
    mixed(given.model)
    task = Breaking(given.task, given.model, error)
    before = state_of(given.model)
    with pytest.raises(type(error)):
        attribute(given, task=task, perturbation=PUSHES[push])
    assert task.readings == 2, "the break must come while the model is moved"
    assert_untouched(given.model, before)


@EVERY
def test_1_the_model_is_given_back_after_a_break_in_the_querys_backward(name):
    given = case(name)
    mixed(given.model)

    class Falls(Breaking):
        def measure(self, model, batch):
            if torch.is_grad_enabled():
                raise KeyboardInterrupt
            return self.inner.measure(model, batch)

    before = state_of(given.model)
    with pytest.raises(KeyboardInterrupt):
        attribute(given, task=Falls(given.task, given.model, None))
    assert_untouched(given.model, before)


def test_1_what_a_forward_keeps_for_itself_serves_training_afterwards():
    class Lazy(Cnn):
        scale = None

        def forward(self, x):
            if self.scale is None:  # as rotary embeddings and causal masks are often kept
                self.scale = torch.ones(1, dtype=x.dtype) * 1.0
            return super().forward(x * self.scale)

    given = case("cnn")
    model = Lazy().eval()
    attribute(given, model=model)
    F.cross_entropy(model(given.train[0]), given.train[1]).backward()
    assert model.conv1.weight.grad.abs().sum() > 0


def test_1_a_forward_that_writes_a_buffer_is_refused_and_the_buffer_put_back():
    class Counting(Cnn):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    given, model = case("cnn"), Counting()
    before = state_of(model)
    with pytest.raises(fi.ModelError, match="buffer calls"):
        attribute(given, model=model)
    assert_untouched(model, before)


# -- 2: linear scores are gradient products; finite ones tend to them --------------------------------------------------


LINEAR = {
    "plain": (Push(), lambda g: g, 1e-3,
              "float64, one-sided at ‖Δθ‖/‖θ‖ = 1e-6: the second-order term is 1e-6 times curvature"),
    "plain two-sided": (Push(two_sided=True), lambda g: g, 2e-7,
                        "float64, two-sided: what is left is the float32 in which scores are kept"),
    "sign": (Push("sign"), torch.sign, 1e-3, "float64, one-sided at 1e-6"),
    "sign two-sided": (Push("sign", two_sided=True), torch.sign, 2e-7, "float64, two-sided: float32 storage"),
    "descent": (Push(toward="descent"), lambda g: g, 1e-3, "float64, one-sided at 1e-6"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "which"), crossed(LINEAR, unet=["plain two-sided"]))
def test_2_linear_scores_are_gradient_products(name, which):
    rule, turn, rtol, why = LINEAR[which]
    given = case(name, torch.float64)
    trained, asked = gradients(given, given.train, given.task.loss), gradients(given, given.queries, given.task.loss)
    scores = attribute(given, perturbation=rule)
    assert_close(scores.values, turn(asked) @ trained.T, rtol=rtol, why=why)
    assert_close(scores.rise, (turn(asked) * asked).sum(1), rtol=rtol, why=why)
    assert scores.kind == "linear"


BANDS = {"one-sided": (False, (5, 15), (8, 12)), "two-sided": (True, (25, 150), (80, 120))}


@pytest.mark.parametrize(("name", "sides"), crossed(BANDS, unet=["two-sided"]))
def test_2_finite_scores_tend_to_the_gradient_product(name, sides):
    two_sided, first, second = BANDS[sides]
    # A decade in length: ten times less error one-sided, a hundred times two-sided. Wider bands for the first decade,
    # where higher orders still speak (the U-Net is far from linear at 1e-2).
    given = case(name, torch.float64)
    trained, asked = gradients(given, given.train, given.task.loss), gradients(given, given.queries, given.task.loss)
    size_of_all = float(torch.cat([p.detach().flatten() for p in given.model.parameters()]).norm())
    want = F.normalize(asked) @ trained.T
    errors = []
    for length in (1e-2, 1e-3, 1e-4):
        scores = attribute(given, perturbation=Push(length=length, two_sided=two_sided))
        assert_close(scores.length, [length] * QUERIES, rtol=1e-6, why="the length is reached by one division")
        assert_close(scores.step * asked.norm(dim=1).numpy(), [length * size_of_all] * QUERIES, rtol=1e-6, why="‖Δθ‖₂")
        rates = torch.from_numpy(scores.values).double() / (length * size_of_all)
        errors.append(float((rates - want).abs().max() / want.abs().max()))
    for band, long, short in ((first, *errors[:2]), (second, *errors[1:])):
        assert band[0] < long / short < band[1], f"errors at 1e-2, 1e-3, 1e-4: {errors}"


@MOST
@pytest.mark.parametrize("labels", [["b", "a", "b"], [1, 1, 1]])
def test_2_a_group_is_its_mean_gradient(name, labels):
    given = case(name, torch.float64)
    trained, asked = gradients(given, given.train, given.task.loss), gradients(given, given.queries, given.task.loss)
    names = list(dict.fromkeys(labels))
    of = torch.tensor([[float(label == group) for label in labels] for group in names], dtype=torch.float64)
    means = of / of.sum(1, keepdim=True) @ asked
    scores = attribute(given, groups=labels)
    assert scores.query_ids == names
    assert_close(scores.values, means @ trained.T, rtol=1e-3, why="float64, one-sided at 1e-6")
    assert_close(scores.rise, means.square().sum(1), rtol=1e-3, why="the mean rise of the members")
    assert_close(scores.cross, means @ means.T, rtol=1e-3, why="groups read as the mean of their members")


def _measures():
    def margin(model, batch):
        p = model(batch[0]).softmax(1).gather(1, batch[1][:, None])
        return -torch.log(p / (1 - p)).sum()

    def predicted(model, batch):
        logits = model(batch[0])
        return F.cross_entropy(logits, logits.argmax(1), reduction="none")

    def contrast(model, batch):
        logits = model(batch[0])
        return logits[:, 7] - logits[:, 2]

    return {"margin": margin, "predicted": predicted, ("contrast", 2, 7): contrast}


@pytest.mark.parametrize("name", ["cnn", "resnet"])
@pytest.mark.parametrize("query", _measures(), ids=str)
@pytest.mark.parametrize("form", ["columns", "rows"])
def test_2_what_a_query_is_asked_changes_what_is_moved_not_what_is_read(name, query, form):
    given = case(name, torch.float64)
    given.queries[1][0] = (given.queries[1][0] + 1) % 10  # one that the model gets wrong
    try:
        trained = gradients(given, given.train, given.task.loss)
        asked = gradients(given, given.queries, _measures()[query])
        questions = given.queries if form == "columns" else one_by_one(given.queries)
        for rule in (Push(), Push(rise=0.01)):
            scores = attribute(given, queries=questions, task=fi.Classification(query=query), perturbation=rule)
            if rule.kind == "linear":
                assert_close(scores.values, asked @ trained.T, rtol=1e-3, why="float64, one-sided at 1e-6")
            assert (scores.rise > 0).all(), "ascent lowers what the query is asked about"
        assert_close(
            scores.rise, [0.01] * QUERIES, rtol=0.02, why="the rise is found to 2 %, in the query's own measurement"
        )
    finally:
        given.queries[1][0] = (given.queries[1][0] - 1) % 10


@pytest.mark.parametrize("query", ["labels", "margin"])
def test_2_a_text_can_be_asked_for_its_margin(query):
    given = case("transformer", torch.float64)

    def asks(model, batch):
        rows, mask = batch["input_ids"], batch["attention_mask"]
        p = model(rows, mask)[:, :-1].softmax(2).gather(2, rows[:, 1:, None])[..., 0]
        return -((torch.log(p) if query == "labels" else torch.log(p / (1 - p))) * mask[:, 1:]).sum(1)

    trained, asked = gradients(given, given.train, given.task.loss), gradients(given, given.queries, asks)
    scores = attribute(given, task=fi.CausalLM(query=query))
    assert_close(scores.values, asked @ trained.T, rtol=1e-3, why="float64, one-sided at 1e-6")


# -- 4: how it is read does not matter ---------------------------------------------------------------------------------


def assert_same_scores(one, other, columns=slice(None)):
    floor = np.maximum(one.noise_floor, other.noise_floor)
    assert_within(one.values, other.values[:, columns], atol=6 * floor, why=FOUR_READINGS)
    assert (np.abs(one.values).max(1) > 20 * floor).all(), "scores that drown in the noise prove nothing"


@MOST
@pytest.mark.parametrize("rule", [Push(), Push(length=0.01)], ids=["linear", "finite"])
def test_4_batches_and_shards_do_not_matter(name, rule):
    given = case(name)
    base = attribute(given, perturbation=rule, batch_size=16)
    for settings in ({"batch_size": 1}, {"batch_size": 7}, {"batch_size": ROWS}, {"batch_size": 32, "shard_rows": 5},
                     {"batch_size": 7, "shard_rows": 13}):  # fmt: skip
        again = attribute(given, perturbation=rule, **settings)
        assert_same_scores(again, base)
        floor = base.noise_floor[0] * (base.step[0] if rule.kind == "linear" else 1)
        assert_within(again.baseline, base.baseline, atol=3 * floor, why="two readings, in loss units")


@EVERY
def test_4_batches_do_not_matter_in_float64(name):
    given = case(name, torch.float64)
    one, whole = (attribute(given, batch_size=size, perturbation=Push(length=0.01)) for size in (1, ROWS))
    assert_close(one.values, whole.values, rtol=1e-6, why="float64: all that is left is float32 storage")


@pytest.mark.parametrize(("name", "form"), crossed(["list", "dataset", "loader"], unet=["list"]))
def test_4_the_form_of_the_data_does_not_matter(name, form):
    given = case(name)
    base = attribute(given, perturbation=Push(length=0.01))
    rows = one_by_one(given.train)
    if form == "dataset" and not isinstance(given.train, list):
        rows = Sketch(rows)
    elif form == "loader":
        rows = DataLoader(Sketch(rows), 4, shuffle=True, collate_fn=given.task.collate)
    again = attribute(given, train=rows, queries=one_by_one(given.queries), perturbation=Push(length=0.01))
    assert_same_scores(again, base)


@EVERY
def test_4_workers_do_not_matter_at_all(name):
    given = case(name)
    rows = one_by_one(given.train)
    alone, two = (attribute(given, train=rows, num_workers=n, shard_rows=25) for n in (0, 2))
    assert np.array_equal(alone.values, two.values)
    assert np.array_equal(alone.baseline, two.baseline)


@EVERY
def test_4_order_does_not_matter(name):
    given = case(name)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3)).tolist()
    base = attribute(given, perturbation=Push(length=0.01))
    mixed_up = attribute(given, train=take(given.train, order), perturbation=Push(length=0.01))
    assert_same_scores(mixed_up, base, order)


@EVERY
def test_4_candidates_get_the_scores_they_get_among_all(name):
    given = case(name)
    base = attribute(given, perturbation=Push(length=0.01))
    chosen = [[3, 1, 17], [39, 0, 5], [8, 9, 10]]
    few = attribute(given, candidates=chosen, perturbation=Push(length=0.01))
    for q, rows in enumerate(chosen):
        assert_within(few.values[q, rows], base.values[q, rows], atol=6 * base.noise_floor[q], why=FOUR_READINGS)
        assert np.isnan(np.delete(few.values[q], rows)).all(), "what was not read is NaN, never 0"


# -- 5: randomness belongs to the example ------------------------------------------------------------------------------


class Augmented(Sketch):
    """Random transforms of all three kinds; remembers what it gave out."""

    def __init__(self, rows):
        super().__init__(rows)
        self.given = {}

    def __getitem__(self, row):
        image, label = self.rows[row]
        image = image.roll(random.randrange(3), -1) + 0.1 * np.random.randn() + 0.1 * torch.randn(image.shape)
        image = image.to(self.rows[row][0].dtype)
        self.given.setdefault(row, []).append(image)
        return image, label


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_5_random_transforms_give_the_same_draw_in_every_reading(name):
    given = case(name)
    runs = []
    for workers in (0, 2):
        random.seed(workers)
        np.random.seed(workers)
        torch.manual_seed(workers)
        rows, before = Augmented(one_by_one(given.train)), state_of(given.model)["random"]
        runs.append(attribute(given, train=rows, num_workers=workers, perturbation=Push(length=0.01), cache_dir="off"))
        assert state_of(given.model)["random"] == before, "the caller's generators"
        assert sorted(rows.given) == list(range(ROWS))
        for draws in rows.given.values():
            assert all(torch.equal(draw, draws[0]) for draw in draws)
        if not workers:
            assert min(map(len, rows.given.values())) > QUERIES, "read again for every query"
    assert len({bits(draws[0]) for draws in rows.given.values()}) == ROWS
    assert np.array_equal(runs[0].values, runs[1].values)
    other = attribute(given, train=rows, seed=1, perturbation=Push(length=0.01))
    assert not np.array_equal(other.values, runs[0].values), "another seed, other draws"
    plain = attribute(given, perturbation=Push(length=0.01))
    assert not np.array_equal(plain.values, runs[0].values), "the transforms must be seen"


def test_5_a_transform_with_a_generator_of_its_own_is_refused():
    class Private(Sketch):
        draws = torch.Generator().manual_seed(0)

        def __getitem__(self, row):
            image, label = self.rows[row]
            return image + torch.randn((), generator=self.draws), label

    given = case("cnn")
    with pytest.raises(fi.DataError, match="same content as at the first reading"):
        attribute(given, train=Private(one_by_one(given.train)))


def test_5_diffusion_noise_belongs_to_the_image_not_to_its_place():
    given = case("unet")
    again = take(given.train, [5, 5, 6])
    scores = attribute(given, train=joined(given.train, again), batch_size=8)
    floor = scores.noise_floor[0] * scores.step[0]
    assert_within(scores.baseline[ROWS:], scores.baseline[[5, 5, 6]], atol=3 * floor, why="copies see the same noise")
    apart = np.abs(scores.baseline - attribute(given, train=joined(given.train, again), seed=1).baseline)
    assert apart.min() > 100 * floor, "another seed, other noise for every image"


@EVERY
def test_5_dropout_is_off(name):
    given, training = case(name), case(name)
    training.model.train()
    for module in training.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert np.array_equal(attribute(training).values, attribute(given).values)


# -- 6: eval mode ------------------------------------------------------------------------------------------------------


def test_6_batchnorm_is_frozen_whatever_mode_the_model_came_in():
    given, training = case("resnet"), case("resnet")
    training.model.train()
    buffers = {name: bits(buffer) for name, buffer in training.model.named_buffers()}
    seen = []
    handle = training.model.stages[0].norm1.register_forward_hook(lambda module, *_: seen.append(module.training))
    scores = attribute(training, perturbation=Push("sign", lr=5e-3))
    handle.remove()
    assert seen
    assert not any(seen)
    assert {name: bits(buffer) for name, buffer in training.model.named_buffers()} == buffers
    assert np.array_equal(scores.values, attribute(given, perturbation=Push("sign", lr=5e-3)).values)


def test_6_the_published_behaviour_differs_and_is_the_only_one_in_training_mode():
    given = case("resnet")
    seen = []
    handle = given.model.stages[0].norm1.register_forward_hook(lambda module, *_: seen.append(module.training))
    published = attribute(given, perturbation="as_published")
    handle.remove()
    assert any(seen)
    assert not all(seen), "the readings themselves are in eval mode"
    clean = attribute(given, perturbation=Push("sign", lr=5e-3))
    assert (published.values >= 0).all()
    assert not published.signed
    assert np.abs(published.values - np.abs(clean.values)).max() > 0.05 * np.abs(clean.values).max()


# -- 7: ascent and descent mean the same -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "direction"), crossed(["plain", "sign"], unet=["plain"]))
def test_7_ascent_and_descent_have_the_same_sign(name, direction):
    given = case(name, torch.float64).with_copies()
    up, down = (
        attribute(given, perturbation=Push(direction, length=1e-4, toward=way)) for way in ("ascent", "descent")
    )
    for q in range(QUERIES):
        assert np.corrcoef(up.values[q], down.values[q])[0, 1] > 0.99, "the two differ in the second order only"
        assert up.values[q, ROWS + q] > 0, "a copy of the query is a proponent"
        assert down.values[q, ROWS + q] > 0
    assert (up.rise > 0).all()
    assert (down.rise > 0).all()
    both = attribute(given, perturbation=Push(direction, length=1e-4, two_sided=True))
    assert_close(
        both.values, (up.values + down.values) / 2, rtol=1e-5, why="half the difference of the two sides, float32"
    )


# -- 8: a copy of the query --------------------------------------------------------------------------------------------


COPIES = {
    "linear": Push(),
    "finite": Push(length=0.01),
    "descent": Push(length=0.01, toward="descent"),
    "rise two-sided": Push(rise="0.5x", two_sided=True),
    "sign": Push("sign", length=0.003),
    "three steps": Push(length=0.02, steps=3),
    "linear two-sided": Push(two_sided=True),
}


@pytest.mark.parametrize(("name", "which"), crossed(COPIES, unet=["linear", "rise two-sided"]))
def test_8_an_exact_copy_of_the_query_has_share_one(name, which):
    rule = COPIES[which]
    given = case(name).with_copies()
    scores = attribute(given, perturbation=rule)
    copies = scores.share[range(QUERIES), range(ROWS, ROWS + QUERIES)]
    relative = 6 * scores.noise_floor / scores.rise
    assert (relative < 0.1).all(), "a rise that drowns in the noise proves nothing"
    assert_within(copies, np.ones(QUERIES), atol=relative.max(), why=FOUR_READINGS)
    assert_within(np.diag(scores.cross), scores.rise, atol=6 * scores.noise_floor + 1e-6 * scores.rise,
                  why=FOUR_READINGS + "; cross is kept in float32")  # fmt: skip
    assert_within(
        scores.values[:, ROWS:], scores.cross, atol=6 * scores.noise_floor + 1e-6 * scores.rise, why=FOUR_READINGS
    )


def test_8_a_copy_in_another_form_still_sees_the_same_noise():
    given = case("unet")
    scores = attribute(given, train=TensorDataset(joined(given.train, given.queries)))
    copies = scores.share[range(QUERIES), range(ROWS, ROWS + QUERIES)]
    assert_within(copies, np.ones(QUERIES), atol=0.01, why="noise floor over rise")


# -- 9: what cannot be read twice is not scored ------------------------------------------------------------------------


class Jittery(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        out = self.inner(*args, **kwargs)
        out = out if isinstance(out, torch.Tensor) else out.sample
        return out * (1 + 0.01 * torch.rand(()))


@EVERY
def test_9_a_forward_that_draws_at_random_is_refused_before_anything_is_scored(name, tmp_path):
    given = case(name)
    with pytest.raises(fi.NoiseError, match="differ") as caught:
        attribute(given, model=Jittery(given.model).eval(), output_dir=tmp_path / "run")
    assert caught.value.where
    assert caught.value.do
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def _by_batch(given):
    class Normalised(Breaking):
        def loss(self, model, batch):
            losses = self.inner.loss(model, batch)
            return losses / losses.mean()

    return Normalised(given.task, given.model, None)


@EVERY
def test_9_a_loss_that_depends_on_the_batch_is_refused(name, tmp_path):
    given = case(name)
    with pytest.raises(fi.NoiseError, match="depends on the rest of the batch"):
        attribute(given, task=_by_batch(given), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_9_batch_statistics_left_on_are_refused(tmp_path):
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

        def forward(self, x):
            return self.head(F.batch_norm(self.conv(x), None, None, training=True).mean((2, 3)).relu() * 5)

    given = case("cnn")
    torch.manual_seed(0)
    with pytest.raises(fi.NoiseError, match="depends on the rest of the batch"):
        attribute(given, model=Careless(), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_9_a_collate_that_mixes_examples_is_refused(tmp_path):
    def mixup(rows):
        images, labels = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        return images + torch.rand(()) * images[torch.randperm(len(rows))], labels

    given = case("cnn")
    with pytest.raises(fi.DataError, match="collate"):
        attribute(given, train=one_by_one(given.train), collate_fn=mixup, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_9_the_model_is_given_back_when_it_is_refused():
    given = case("resnet")
    model = mixed(Jittery(given.model))
    before = state_of(model)
    with pytest.raises(fi.NoiseError):
        attribute(given, model=model)
    assert_untouched(model, before)


# -- the cases themselves ----------------------------------------------------------------------------------------------


@EVERY
def test_a_case_is_trained_and_fresh_each_time(name):
    given, again = case(name), case(name)
    assert size(given.train) == ROWS
    assert size(given.queries) == QUERIES
    for parameter in given.model.parameters():
        parameter.detach().zero_()
    assert any(p.abs().sum() > 0 for p in again.model.parameters())
    blank = copy.deepcopy(again.model)
    for module in blank.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    learnt = feed(again).losses(range(ROWS), 16).mean()
    again.model = blank
    assert learnt < 0.9 * feed(again).losses(range(ROWS), 16).mean()
