import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import QUERIES, ROWS, attribute, batch_of, case, crossed, keyed, pusher
from close import assert_close
from torch import nn

import forwardinf as fi
from forwardinf.perturb.steps import TINY_SHARE


def pushed(given, rule, row=0):
    pushing = pusher(given, rule)
    query = pushing.check([row], row, skip=False)
    return pushing, query, pushing.push(query)


def by_hand(given, steps, step_of, row=0):
    """Walk up the query's loss with torch.optim.SGD; return the weights reached."""
    model = copy.deepcopy(given.model).eval()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, maximize=True)
    for _ in range(steps):
        optimiser.zero_grad()
        with keyed(given.task, given.queries, row):
            given.task.loss(model, batch_of(given.task, given.queries, row)).sum().backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        optimiser.param_groups[0]["lr"] = float(step_of(norm))
        optimiser.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("name", "steps"), crossed([1, 3], unet=[3]))
def test_lr_is_that_many_steps_of_plain_sgd(name, steps):
    given = case(name, torch.float64)
    _, query, push = pushed(given, fi.Perturbation(lr=2e-3, steps=steps))
    want = by_hand(given, steps, lambda norm: 2e-3)
    for key, tensor in push.sides[0].items():
        start = given.model.get_parameter(key).detach()
        moved = want[key] - start
        if moved.any():
            assert_close(tensor - start, moved, rtol=1e-9, why="float64, the same steps")
        else:  # a shift that a norm takes away again: rounding moves it, or does not
            assert (tensor - start).abs().max() < 1e-15
    assert set(push.sides[0]) == set(want)
    assert query.size == 2e-3


@pytest.mark.parametrize(("name", "steps"), crossed([1, 2, 5], unet=[2]))
def test_k_steps_walk_equal_lengths_each_along_a_direction_of_its_own(name, steps):
    given = case(name, torch.float64)
    size = torch.cat([p.detach().flatten() for p in given.model.parameters()]).norm()
    _, query, push = pushed(given, fi.Perturbation(length=0.05, steps=steps))
    want = by_hand(given, steps, lambda norm: 0.05 / steps * size / norm)
    for key, tensor in push.sides[0].items():
        start = given.model.get_parameter(key).detach()
        moved = want[key] - start
        if moved.any():
            assert_close(tensor - start, moved, rtol=1e-9, why="float64, the same steps")
        else:  # a shift that a norm takes away again: rounding moves it, or does not
            assert (tensor - start).abs().max() < 1e-15
    change = torch.cat([(want[key] - p.detach()).flatten() for key, p in given.model.named_parameters()])
    assert_close(query.length, change.norm() / size, rtol=1e-9, why="the length reached, as the crow flies")
    assert query.length <= 0.05 * (1 + 1e-6)


def test_descent_goes_the_other_way():
    given = case("resnet", torch.float64)
    _, _, up = pushed(given, fi.Perturbation(lr=1e-3))
    _, _, down = pushed(given, fi.Perturbation(lr=1e-3, toward="descent"))
    _, _, both = pushed(given, fi.Perturbation(lr=1e-3, two_sided=True))
    assert len(up.sides) == len(down.sides) == 1
    for key, p in given.model.named_parameters():
        assert_close(up.sides[0][key] - p, p - down.sides[0][key], rtol=1e-9, why="float64")
        assert torch.equal(both.sides[0][key], up.sides[0][key])
        assert torch.equal(both.sides[1][key], down.sides[0][key])


def test_the_sign_moves_every_weight_by_the_same_amount():
    given = case("cnn", torch.float64)
    _, _, push = pushed(given, fi.Perturbation("sign", lr=1e-3))
    for key, p in given.model.named_parameters():
        moved = (push.sides[0][key] - p).abs()
        assert_close(moved[moved > 0], torch.full_like(moved[moved > 0], 1e-3), rtol=1e-9, why="float64")


def test_only_the_parameters_asked_for_move():
    given = case("transformer")
    pushing, _, push = pushed(given, fi.Perturbation(length=0.01, parameters=["blocks.1.*", "norm.bias"]))
    assert set(push.sides[0]) == set(pushing.parameters)
    assert all(name.startswith("blocks.1.") or name == "norm.bias" for name in push.sides[0])


def test_a_parameter_the_query_does_not_touch_is_left_alone():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(64, 10), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x.flatten(1))

    given = case("cnn")
    given.model = Spare()
    _, _, push = pushed(given, fi.Perturbation(length=0.01))
    assert set(push.sides[0]) == {"used.weight", "used.bias"}


def test_a_route_that_changes_on_the_way_is_walked_all_the_same():
    class Routed(nn.Module):
        """Which expert answers depends on the gate; a step can change it, as in a mixture of experts."""

        def __init__(self):
            super().__init__()
            self.gate, self.one, self.other = nn.Linear(64, 1), nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, x):
            x = x.flatten(1)
            gate = self.gate(x)
            return torch.where(gate > 0, self.one(x), self.other(x)) * gate if len(x) > 1 else self.alone(x, gate)

        def alone(self, x, gate):
            return (self.one if gate > 0 else self.other)(x) * gate

    given = case("cnn")
    torch.manual_seed(0)
    given.model = Routed()
    with torch.no_grad():  # the gate starts just above 0 for the query
        image = given.queries[0][:1].flatten(1)
        given.model.gate.bias += 1e-3 - given.model.gate(image)[0]
    one = given.task.loss(given.model, (given.queries[0][:1], given.queries[1][:1]))
    assert one.isfinite()
    names = set()
    for toward in ("ascent", "descent"):
        _, query, push = pushed(given, fi.Perturbation(length=0.2, steps=2, toward=toward))
        names |= set(push.sides[0])
        assert 0 < query.share_moved <= 1
    assert {"one.weight", "other.weight"} <= names, "on one of the two ways the route changed"


# -- narrow weights ----------------------------------------------------------------------------------------------------


def narrow(name):
    given = case(name)
    given.model.to(torch.bfloat16)
    if name != "transformer":
        given.train, given.queries = ((x.bfloat16(), y) for x, y in (given.train, given.queries))
    return given


@pytest.mark.parametrize("name", ["cnn", "resnet", "transformer"])
def test_bfloat16_is_linear_at_a_hundredth_and_ranks_as_float32_does(name):
    wide, scores = attribute(case(name)), attribute(narrow(name))
    assert_close(scores.length, [0.01] * QUERIES, rtol=0.2, why="1e-2 asked for, less what rounding takes or adds")
    for q in range(QUERIES):
        ranks = [torch.from_numpy(s.values[q].copy()).argsort().argsort().double() for s in (wide, scores)]
        assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.8
    assert (scores.rise > 0).all()


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_bfloat16_reports_the_share_of_weights_that_moved(name):
    given = narrow(name)
    _, query, push = pushed(given, fi.Perturbation(length=0.003))
    asked = moved = 0
    model = copy.deepcopy(given.model).eval()
    given.task.loss(model, batch_of(given.task, given.queries, 0)).sum().backward()
    for key, p in model.named_parameters():
        if p.grad is None:
            continue
        asked += int((p.grad != 0).sum())
        moved += int(((push.sides[0][key] != p) & (p.grad != 0)).sum())
    assert query.share_moved == moved / asked
    assert TINY_SHARE < query.share_moved < 1
    assert all(tensor.dtype == torch.bfloat16 for tensor in push.sides[0].values())
    scores = attribute(given, perturbation=fi.Perturbation(length=0.003))
    assert any("of the weights moved after rounding" in note for note in scores.notes) == (query.share_moved < 0.5)


def test_bfloat16_refuses_a_step_that_rounding_swallows():
    with pytest.raises(fi.ModelError, match=r"bfloat16 weights moved.*at least 1e-2"):
        attribute(narrow("transformer"), perturbation=fi.Perturbation(length=1e-5))


def test_bfloat16_steps_add_up_in_float32_masters():
    # Twenty steps that are each lost to rounding must still arrive: the masters are float32.
    given = narrow("transformer")
    _, _, one = pushed(given, fi.Perturbation(lr=2e-3))
    _, _, many = pushed(given, fi.Perturbation(lr=1e-4, steps=20))
    moved = [
        sum(
            float((t.float() - given.model.get_parameter(k).detach().float()).square().sum())
            for k, t in push.sides[0].items()
        )
        for push in (one, many)
    ]
    assert 0.5 < (moved[1] / moved[0]) ** 0.5 < 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_linear_score_is_a_difference_at_the_length_for_its_dtype(dtype):
    given = case("cnn")
    given.model.to(dtype)
    given.train, given.queries = ((x.to(dtype), y) for x, y in (given.train, given.queries))
    scores = attribute(given)
    want = {torch.float32: 1e-4, torch.float64: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert_close(scores.length, [want] * QUERIES, rtol=0.2 if dtype == torch.bfloat16 else 2e-3, why="rounded weights")


def bent(sharpness):
    """A float64 model whose losses, all 1 where it stands, are exp(sharpness · Δw·x): as far from linear as one likes."""
    model = torch.nn.Linear(3, 1, bias=False).double()
    start = torch.tensor([[0.5, -0.25, 0.125]], dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(start)
    x = torch.eye(3, dtype=torch.float64).repeat(4, 1) + 0.1
    return model, x, lambda model, batch: torch.exp(sharpness * batch[0] @ (model.weight - start)[0])


@pytest.mark.parametrize("direction", ["plain", "sign"])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("sharpness", [1.0, 1e5, 1e6])
def test_a_linear_push_is_shortened_until_the_querys_own_rise_is_its_exact_rate(direction, two_sided, sharpness):
    model, x, loss = bent(sharpness)
    rule = {"direction": direction, "two_sided": two_sided}
    scores = fi.attribute(model, (x,), (x[:1],), task=loss, progress=False, perturbation=rule)
    query = sharpness * x[0]
    way = query.sign() if direction == "sign" else query
    assert_close(scores.rise, [query @ way], rtol=0.01, why="what it was shortened for")
    assert_close(scores.values[0], sharpness * x @ way, rtol=0.01, why="no row moves more than the query does")
    shortened = scores.length[0] < 0.99e-6
    assert shortened == (sharpness > (1e5 if two_sided else 1))


def test_a_finite_push_is_never_shortened():
    model, x, loss = bent(1e6)
    rule = {"length": 1e-6}
    scores = fi.attribute(model, (x,), (x[:1],), task=loss, progress=False, perturbation=rule)
    assert_close(scores.length, [1e-6], rtol=1e-6, why="as asked")
    assert scores.rise[0] > 1.1 * scores.step[0] * 1e12 * float(x[0] @ x[0]), "although it is far from straight"


# -- queries without a push --------------------------------------------------------------------------------------------


def saturated(given):
    """One more query, so surely right that its gradient underflows to zero."""
    image = given.queries[0][:1] * 1e5
    with torch.no_grad():
        label = given.model.eval()(image).argmax(1)
    return torch.cat([given.queries[0], image]), torch.cat([given.queries[1], label])


def test_a_query_without_a_gradient_stops_the_run_before_any_reading(tmp_path):
    given = case("cnn")
    with pytest.raises(fi.QueryError, match=r"query 3.*zero gradient") as caught:
        attribute(given, queries=saturated(given), output_dir=tmp_path / "run")
    assert "margin" in caught.value.do
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rule", [fi.Perturbation(), fi.Perturbation(rise=0.3), fi.Perturbation(length=0.01)])
def test_or_is_skipped_with_its_reason_and_leaves_the_others_as_they_were(rule):
    given = case("cnn")
    base = attribute(given, perturbation=rule)
    scores = attribute(given, queries=saturated(given), perturbation=rule, on_bad_query="skip")
    assert scores.status == ["ok", "ok", "ok", "zero gradient"]
    assert np.isnan(scores.values[3]).all()
    assert np.isnan(scores.rise[3])
    assert np.array_equal(scores.values[:3], base.values)
    assert any("1 of 4 queries skipped" in note for note in scores.notes)


def test_a_query_that_is_not_finite_is_refused():
    given = case("cnn")
    images = given.queries[0].clone()
    images[1] = float("nan")
    with pytest.raises(fi.QueryError, match=r"query 1.*not finite"):
        attribute(given, queries=(images, given.queries[1]))


def test_or_is_skipped_too():
    given = case("cnn")
    images = given.queries[0].clone()
    images[1] = float("nan")
    scores = attribute(given, queries=(images, given.queries[1]), on_bad_query="skip")
    assert scores.status[1] == "gradient or loss not finite"
    assert np.isnan(scores.values[1]).all()
    assert np.isfinite(scores.values[[0, 2]]).all()


def test_a_task_that_detaches_its_loss_is_a_query_without_a_gradient():
    def detached(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none").detach()

    with pytest.raises(fi.QueryError, match="detached"):
        attribute(case("cnn"), task=detached)


def test_a_measurement_that_is_one_number_for_all_is_refused():
    class Reduced(fi.Classification):
        def measure(self, model, batch):
            return super().measure(model, batch).mean()

    with pytest.raises(fi.TaskError, match="one number for each of 1 examples"):
        attribute(case("cnn"), task=Reduced())


def test_every_query_reads_all_rows():
    assert attribute(case("cnn")).values.shape == (QUERIES, ROWS)
