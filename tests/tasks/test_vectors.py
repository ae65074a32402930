import pytest
import torch
import torch.nn.functional as F
from close import assert_close
from torch import nn

import forwardinf as fi

SAME = "float64 from the same float32 logits on"
B, C = 5, 3
X = torch.randn(B, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 1, 0])


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.fixture
def net():
    return seeded(lambda: nn.Linear(4, C))


@pytest.mark.parametrize(("error", "loss"), [("squared", F.mse_loss), ("absolute", F.l1_loss), ("huber", F.huber_loss)])
def test_regression_is_the_mean_error_over_outputs(error, loss):
    model, target = seeded(lambda: nn.Linear(4, 2)), torch.randn(B, 2)
    task = fi.Regression(error=error)
    want = loss(model(X).double(), target.double(), reduction="none").mean(1)
    assert_close(task.loss(model, (X, target)), want, rtol=1e-14, why=SAME)
    assert task.unit == f"{error} error"


@pytest.mark.parametrize("target_shape", [(B,), (B, 1)])
@pytest.mark.parametrize("flat", [True, False])
def test_a_column_against_a_flat_target_is_not_broadcast(target_shape, flat):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 1), *([nn.Flatten(0)] if flat else [])))
    target = torch.randn(B)
    want = (model(X).double().flatten() - target.double()) ** 2
    assert_close(fi.Regression().loss(model, (X, target.view(target_shape))), want, rtol=1e-14, why=SAME)


@pytest.mark.parametrize("shape", [(B, 3), (B, 3, 2), (B, 6), (B - 1, 2)])
def test_targets_of_another_shape_are_refused_even_where_the_numbers_would_fit(shape):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))))
    with pytest.raises(fi.TaskError, match="Regression: expected output of the targets' shape"):
        fi.Regression().loss(model, (X, torch.zeros(shape)))


def test_whole_number_targets_are_numbers():
    model = seeded(lambda: nn.Linear(4, 1))
    want = (model(X).double().flatten() - Y.double()) ** 2
    assert_close(fi.Regression().loss(model, (X, Y)), want, rtol=1e-14, why=SAME)


def test_an_unknown_error_is_refused_with_a_guess():
    with pytest.raises(fi.SettingError, match="Did you mean 'squared'"):
        fi.Regression(error="square")


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_many_labels_are_the_mean_of_yes_or_no_losses(net, weight):
    label = F.one_hot(Y)
    want = F.binary_cross_entropy_with_logits(
        net(X).double(), label.double(), pos_weight=None if weight is None else weight.double(), reduction="none"
    )
    assert_close(fi.MultiLabel(weight=weight).loss(net, (X, label)), want.mean(1), rtol=1e-13, why=SAME)


def test_many_labels_of_another_shape_are_refused(net):
    with pytest.raises(fi.TaskError, match=r"labels of the output's shape \(5, 3\), got \(5,\)"):
        fi.MultiLabel().loss(net, (X, Y))
