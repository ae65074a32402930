"""The diagonal of the Fisher against one gradient at a time; linear scores with a dense P."""

import pytest
import torch
from cases import NAMES, ROWS, attribute, case
from close import assert_close
from curvature import OWN, Given, fitting, matrix, one_by_one, scores_by_hand, values
from torch import nn

import forwardinf as fi
from forwardinf.core.errors import ModelError
from forwardinf.perturb.diagonal import diagonal, diagonal_blocks


@pytest.mark.parametrize(("name", "fisher"), [(n, "true") for n in NAMES[:3]] + [(n, "empirical") for n in NAMES])
def test_it_is_the_mean_square_of_every_gradient(name, fisher):
    fit = fitting(name, "diagonal", fisher=fisher)
    gradients, blocks = one_by_one(fit), diagonal_blocks(fit)
    assert {block.part.name for block in blocks} == set(fit.parameters)
    want = {b.part.key: b.part.of(torch.stack([g[b.part.name] for g in gradients]).square().mean(0)) for b in blocks}
    got = torch.cat([block.values.flatten() for block in blocks])
    assert_close(got, torch.cat([want[block.part.key].flatten() for block in blocks]), rtol=1e-9, why=OWN)


def test_the_direction_is_damped_by_a_share_of_the_mean_over_everything_that_moves():
    fit = fitting("cnn", "diagonal", fisher="empirical", damping=2)
    gradients = one_by_one(fit)
    squares = {name: matrix(gradients, name).square().mean(0) for name in fit.parameters}
    mean = torch.cat(list(squares.values())).mean()
    got = diagonal(fit)({name: tensor.clone() for name, tensor in gradients[0].items()})
    for name, tensor in gradients[0].items():
        assert_close(got[name].flatten(), tensor.flatten() / (squares[name] + 2 * mean), rtol=1e-9, why=OWN)


def test_numbers_without_curvature_stand_on_the_damping_alone():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    given = Given(model, (torch.tensor([[1, 2], [2, 3], [4, 1]]), torch.tensor([0, 1, 2])))
    fit = fitting(given, "diagonal")
    direction = diagonal(fit)
    moved = direction({"0.weight": torch.ones(9, 4, dtype=torch.float64)})["0.weight"]
    assert_close(
        moved[[0, 5, 8]], torch.ones(3, 4).double() / direction.damping, rtol=1e-12, why="never looked up: g / λ"
    )
    assert bool((moved[[1, 2, 3, 4]] < 1 / direction.damping).all())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(20, 6), nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, ids):
        return self.head(self.cell(self.embed(ids))[0][:, -1])


def test_layers_that_are_not_known_are_read_one_by_one_and_named():
    ids = torch.randint(0, 20, (9, 5), generator=torch.Generator().manual_seed(0))
    fit = fitting(Given(Recurrent(), (ids, torch.arange(9) % 3)), "diagonal", batch_size=4)
    gradients, blocks = one_by_one(fit), diagonal_blocks(fit)
    assert len(blocks) == len(fit.parameters)
    for block in blocks:
        want = matrix(gradients, block.part.name).square().mean(0)
        assert_close(block.values.flatten(), want, rtol=1e-9, why=OWN)
    assert len(fit.notes) == 1
    assert "cell.weight_hh_l0 (used by lstm())" in fit.notes[0]
    assert "embed" not in fit.notes[0]


def test_a_model_without_any_gradient_is_refused():
    given = Given(nn.Linear(4, 3), (torch.zeros(5, 4).double(), torch.zeros(5, dtype=torch.int64)))
    fit = fitting(given, "diagonal", fisher="empirical")
    fit.train.model.bias.requires_grad_(False)
    fit.parameters.pop("bias")  # inputs of zero: the weight has no gradient
    with pytest.raises(ModelError, match="mean diagonal above 0"):
        diagonal(fit)


@pytest.mark.parametrize("name", NAMES[:3])
def test_linear_scores_are_those_of_a_dense_matrix(name):
    given, rule = case(name, torch.float64), fi.Perturbation("diagonal")
    fit = fitting(case(name, torch.float64), "diagonal")
    gradients = one_by_one(fit)
    squares = {n: matrix(gradients, n).square().mean(0).view(p.shape) for n, p in fit.parameters.items()}
    damping = diagonal(fit).damping
    want = scores_by_hand(given, rule, lambda g: {n: t / (squares[n] + damping) for n, t in g.items()})
    got = values(attribute(given, perturbation=rule))
    assert got.shape == (3, ROWS)
    assert_close(got, want, rtol=1e-3, why="a difference at ‖Δθ‖/‖θ‖ = 1e-6 against the rate itself")


def test_a_task_without_a_known_prediction_is_fitted_on_its_labels_and_says_so():
    given = case("unet", torch.float64)
    scores = attribute(given, perturbation=fi.Perturbation("diagonal"))
    assert any("empirical Fisher: Diffusion" in note for note in scores.notes)
    scores = attribute(given, perturbation=fi.Perturbation("diagonal", fisher="empirical"))
    assert not any("empirical Fisher" in note for note in scores.notes)
