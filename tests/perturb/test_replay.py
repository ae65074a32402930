import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import QUERIES, ROWS, attribute, case, feed, keyed, pusher, size, take
from close import assert_close
from scipy.stats import spearmanr
from torch import nn

import forwardinf as fi
from forwardinf.data.noise import seed_of
from forwardinf.perturb import replay as replaying
from forwardinf.perturb.gradient import query_gradient
from forwardinf.perturb.norms import Ruler
from forwardinf.perturb.parameters import select
from forwardinf.perturb.replay import mirrored
from forwardinf.perturb.swap import lend, tensors_of


def pushed(given, rule, row=0, **more):
    pushing = pusher(given, rule, **more)
    query = pushing.check([row], row, skip=False)
    return query, pushing.push(query)


def by_hand(given, steps, lr, batch, sign, seed=0, row=0):
    """Train on with torch.optim.SGD, one example's loss at a time; return the weights reached."""
    model = copy.deepcopy(given.model).eval()
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    draw, rows = torch.Generator().manual_seed(seed_of("replay", seed)), []

    def loss(data, place):
        rows = take(data, [place])
        with keyed(given.task, data, place):
            return given.task.loss(model, given.task.collate(rows) if isinstance(rows, list) else rows).sum()

    for _ in range(steps):
        if len(rows) < batch:
            rows = torch.randperm(size(given.train), generator=draw).tolist()
        now, rows = rows[:batch], rows[batch:]
        optimiser.zero_grad()
        (sum(loss(given.train, place) for place in now) / batch - sign * loss(given.queries, row) / batch).backward()
        optimiser.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("name", "batch"), [("cnn", 40), ("resnet", 16), ("transformer", 16)])
def test_replay_is_plain_sgd_with_the_query_as_one_more_example_of_every_batch(name, batch, monkeypatch):
    monkeypatch.setattr(replaying, "BATCH", batch)
    given = case(name, torch.float64)
    _, push = pushed(given, fi.Perturbation(replay=4, lr=0.02), batch_size=9)
    assert len(push.sides) == 2
    for side, sign in zip(push.sides, (1, -1), strict=True):
        want = by_hand(given, 4, 0.02, batch, sign)
        for key, tensor in side.items():
            start = given.model.get_parameter(key).detach()
            assert_close(tensor - start, want[key] - start, rtol=1e-9, why="float64, the same steps")


def test_one_step_is_the_plain_two_sided_step_of_one_example_in_a_batch():
    given = case("transformer", torch.float64)
    query, push = pushed(given, fi.Perturbation(replay=1, lr=0.05))
    chosen = select(given.model, None)
    gradient = query_gradient(feed(given, given.queries), [0], chosen, 8)
    for name, tensor in gradient.items():
        half = (push.sides[0][name] - push.sides[1][name]) / 2
        assert_close(half, 0.05 / ROWS * tensor, rtol=1e-8, why="float64; training on is common to both sides")
    assert_close(push.step, 0.05 / ROWS, rtol=1e-8, why="the factor on the query's gradient")
    assert query.rise > 0


def test_the_model_is_as_it_was_and_the_same_call_gives_the_same_bits():
    given = case("resnet")
    before = {name: tensor.clone() for name, tensor in tensors_of(given.model).items()}
    rule = fi.Perturbation(replay=5)
    one, other = attribute(given, perturbation=rule), attribute(given, perturbation=rule)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(given.model).items())
    assert np.array_equal(one.values, other.values)
    assert (one.kind, one.plan["sides"]) == ("finite", 2)
    assert (one.rise > one.noise_floor).all(), "it moves away from the query"


def test_an_exact_copy_of_the_query_has_share_one():
    given = case("cnn", torch.float64).with_copies()
    found = attribute(given, perturbation=fi.Perturbation(replay=5, lr=0.05))
    assert_close(np.diag(found.share[:, ROWS:]), np.ones(QUERIES), rtol=1e-6, why="the same forward in another batch")


def test_the_order_follows_the_seed_and_wraps_into_new_epochs(monkeypatch):
    monkeypatch.setattr(replaying, "BATCH", 6)
    seen = list(replaying._batches(20, 7, 0))
    assert all(len(rows) == 6 for rows in seen)
    assert [len({row for rows in part for row in rows}) for part in (seen[:3], seen[3:6])] == [18, 18]
    assert seen == list(replaying._batches(20, 7, 0))
    assert seen != list(replaying._batches(20, 7, 1))


def test_a_rate_at_which_training_diverges_is_refused():
    with pytest.raises(fi.ModelError, match="smaller lr"):
        pushed(case("cnn"), fi.Perturbation(replay=8, lr=1e30))


def test_narrow_weights_train_in_wide_masters_or_are_refused():
    given = case("cnn")
    given.model = given.model.bfloat16()
    given.train, given.queries = ((data[0].bfloat16(), data[1]) for data in (given.train, given.queries))
    with pytest.raises(fi.ModelError, match="bfloat16 weights differ"):
        pushed(given, fi.Perturbation(replay=1, lr=1e-6))
    _, push = pushed(given, fi.Perturbation(replay=20, lr=0.05))
    assert {tensor.dtype for side in push.sides for tensor in side.values()} == {torch.bfloat16}
    wide = case("cnn")
    _, want = pushed(wide, fi.Perturbation(replay=20, lr=0.05))
    moved = [torch.cat([(p.sides[0][n] - p.sides[1][n]).float().flatten() for n in p.sides[0]]) for p in (push, want)]
    assert F.cosine_similarity(*moved, dim=0) > 0.7, "rounded once, at the end; not at every step"


@pytest.mark.parametrize(
    "settings",
    [{"length": 0.1}, {"rise": 0.5}, {"length": "linear"}, {"two_sided": False}, {"toward": "descent"}, {"steps": 2},
     {"direction": "sign"}, {"behaviour": "as_published"}],
)  # fmt: skip
def test_what_replay_cannot_be_combined_with_is_refused(settings):
    with pytest.raises(fi.SettingError):
        fi.Perturbation(
            **({"replay": 3} if set(settings) & {"length", "rise"} else {"replay": 3, "lr": 0.1}) | settings
        )


def test_the_rate_has_a_default_and_survives_json():
    rule = fi.Perturbation(replay=3)
    assert (rule.lr, rule.kind, rule.both_sides, rule.length) == (0.01, "finite", True, None)
    assert fi.Perturbation.from_dict(rule.to_dict()) == rule


# -- exact leave-one-out on a convex model -----------------------------------------------------------------------------

N, D, CLASSES, ASKED = 120, 8, 3, 4


class Convex:
    """Multinomial regression on features of unequal scale, labels drawn: an optimum exists without a regulariser."""

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        scale = torch.logspace(0, -0.7, D, dtype=torch.float64)
        x = torch.randn(N + ASKED, D, generator=draw, dtype=torch.float64) * scale
        truth = torch.randn(D, CLASSES, generator=draw, dtype=torch.float64)
        y = torch.distributions.Categorical(logits=x @ truth)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            y = y.sample()
        self.x, self.y = x, y
        self.train, self.queries = (x[:N], y[:N]), (x[N:], y[N:])
        self.task = fi.Classification()
        self.weights = torch.ones(N, dtype=torch.float64)
        self.model = self.linear(self.fit(self.weights))

    def linear(self, theta):
        model = nn.Linear(D, CLASSES).double()
        with torch.no_grad():
            model.weight.copy_(theta[:, :D])
            model.bias.copy_(theta[:, D])
        return model

    def fit(self, weights, extra=None, weight=0.0, start=None):
        """Return the optimum by Newton's method, to 1e-12."""
        x, y, w = self.x[:N], self.y[:N], weights
        if extra is not None:
            x, y, w = (torch.cat(pair) for pair in ((x, extra[0]), (y, extra[1]), (w, w.new_full((1,), weight))))
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        theta = torch.zeros(CLASSES, D + 1, dtype=torch.float64) if start is None else start.clone()
        for _ in range(30):
            p = (x @ theta.T).softmax(1)
            slope = ((p - F.one_hot(y, CLASSES)) * w[:, None]).T @ x
            if slope.norm() < 1e-11:
                return theta
            curve = torch.diag_embed(p) - p[:, :, None] * p[:, None]
            hessian = torch.einsum("n,nab,ni,nj->aibj", w, curve, x, x).reshape(theta.numel(), -1)
            theta = theta - (torch.linalg.pinv(hessian, rtol=1e-10, hermitian=True) @ slope.flatten()).view_as(theta)
        raise AssertionError(f"no optimum: {slope.norm():.1e}")

    def losses(self, theta):
        return F.cross_entropy(self.x[N:] @ theta[:, :D].T + theta[:, D], self.y[N:], reduction="none")


@functools.cache
def convex():
    """Return the problem and its exact leave-one-out: how much each query's loss rises without each example."""
    given = Convex()
    full = given.fit(given.weights)
    without = []
    for place in range(N):
        weights = given.weights.clone()
        weights[place] = 0
        without.append(given.losses(given.fit(weights, start=full)) - given.losses(full))
    return given, torch.stack(without, 1).numpy()


def agreement(values, truth):
    return float(np.mean([spearmanr(*pair)[0] for pair in zip(values, truth, strict=True)]))


def replayed(given, steps, lr):
    """Return what each query's two sides do to the training losses, ``(Q, N)``."""
    pushing, reader, values = pusher(given, fi.Perturbation(replay=steps, lr=lr), batch_size=N), feed(given), []
    for place in range(ASKED):
        push = pushing.push(pushing.check([place], place, skip=False))
        values.append(difference(given, reader, push))
    return values


def difference(given, reader, push):
    sides = []
    for moved in push.sides:
        with lend(tensors_of(given.model), moved):
            sides.append(reader.losses(range(N), N))
    return ((sides[0] - sides[1]) / 2).numpy()


@pytest.mark.whole
def test_replay_ranks_as_leave_one_out_does_better_with_every_step(monkeypatch):
    given, truth = convex()
    monkeypatch.setattr(replaying, "BATCH", N)
    got = [agreement(attribute(given).values, truth)]
    got += [agreement(replayed(given, steps, 4.0), truth) for steps in (5, 20, 60)]
    assert got == sorted(got), got
    assert got[0] < 0.75, "a case where the plain step is not good enough"
    assert got[-1] > 0.98, got


def test_replay_in_batches_is_nearly_as_good():
    given, truth = convex()
    got = agreement(replayed(given, 60, 2.0), truth)
    assert got > 0.95, got


def retrain(given, seen=None):
    def train_fn(indices, seed, extra, weight):
        assert list(indices) == list(range(N))
        seen.append((seed, weight)) if seen is not None else None
        return given.linear(given.fit(given.weights, extra, weight))

    return train_fn


def test_mirrored_retraining_ranks_as_leave_one_out_does():
    given, truth = convex()
    ruler, reader, seen = Ruler(given.model, select(given.model, None)), feed(given), []
    values = []
    for place in range(ASKED):
        extra = take(given.queries, [place])
        push = mirrored(retrain(given, seen), given.model, ruler, range(N), extra, weight=0.5, seed=3)
        values.append(difference(given, reader, push) / push.step)
    got = agreement(values, truth)
    assert got > 0.98, got
    assert seen[:2] == [(3, -0.5), (3, 0.5)]
    assert 0 < push.length < 0.1
    ratio = np.abs(values).sum() / np.abs(truth).sum()
    assert 0.75 < ratio < 1, "one example's weight; removing one moves the optimum further, by its leverage"


@pytest.mark.parametrize(
    ("train_fn", "error", "message"),
    [
        (lambda *a: None, fi.TaskError, "a trained torch.nn.Module"),
        (lambda *a: nn.Linear(3, 2, bias=False), fi.ModelError, "another set, like bias"),
        (lambda *a: copy.deepcopy(convex()[0].model), fi.TaskError, "the same one for both"),
    ],
)
def test_a_train_function_that_does_not_do_its_part_is_refused(train_fn, error, message):
    given, _ = convex()
    ruler = Ruler(given.model, select(given.model, None))
    with pytest.raises(error, match=message):
        mirrored(train_fn, given.model, ruler, range(N), None, weight=1.0)
