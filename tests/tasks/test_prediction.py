"""The loss in two halves: the halves make the whole, and drawn labels have the Gauss–Newton matrix on average."""

import pytest
import torch
from cases import sentences
from close import assert_close
from torch import nn

import forwardinf as fi
from forwardinf.data import noise
from forwardinf.tasks.task import prediction_of

DRAWS = 4000
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
MANY = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 1]])
WEIGHT = torch.tensor([0.5, 2.0, 1.0])
SUPERVISED = {
    "classes": (fi.Classification(), 3, torch.tensor([0, 2, 1])),
    "not counted": (fi.Classification(), 3, torch.tensor([0, -100, 1])),
    "weights": (fi.Classification(weight=WEIGHT), 3, torch.tensor([0, 2, 1])),
    "smoothed": (fi.Classification(label_smoothing=0.3), 3, torch.tensor([0, 2, 1])),
    "weights, smoothed": (fi.Classification(weight=WEIGHT, label_smoothing=0.3), 3, torch.tensor([0, 2, 1])),
    "yes or no": (fi.Classification(binary=True), 1, torch.tensor([0, 1, 1])),
    "yes or no, weighted": (fi.Classification(binary=True, weight=torch.tensor(3.0)), 1, torch.tensor([0, 1, 1])),
    "many labels": (fi.MultiLabel(), 3, MANY),
    "many labels, weighted": (fi.MultiLabel(weight=WEIGHT), 3, MANY),
    "numbers": (fi.Regression(), 2, torch.randn(3, 2)),
}  # fmt: skip


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 20)

    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids)


def halves(task, model, batch):
    found = prediction_of(task, model, batch)
    assert found is not None
    return found


@pytest.mark.parametrize("name", SUPERVISED)
def test_drawn_gradients_have_the_hessian_of_the_loss_as_their_second_moment(name):
    task, wide, labels = SUPERVISED[name]
    torch.manual_seed(1)
    model = nn.Linear(4, wide).double()
    batch = X.double().repeat(DRAWS, 1), labels.repeat(DRAWS, *[1] * (labels.ndim - 1))  # by place: each draws its own
    found = halves(task, model, batch)
    assert torch.equal(found.loss(found.output), task.loss(model, batch))
    output = found.output.detach().requires_grad_()
    few = halves(task, model, (X.double(), labels))
    want = torch.autograd.functional.hessian(lambda out: few.loss(out).sum(), few.output.detach())
    want = torch.stack([want.reshape(3, output[0].numel(), 3, -1)[row, :, row] for row in range(3)])
    (grad,) = torch.autograd.grad(found.drawn(output, 0).sum(), output)
    grad = grad.reshape(DRAWS, 3, -1)
    assert_close(
        torch.einsum("nbi,nbj->bij", grad, grad) / DRAWS,
        want,
        rtol=0.12,
        why="Monte Carlo: 4,000 draws",
    )


def test_tokens_are_drawn_where_labels_count_and_nowhere_else():
    task, rows = fi.CausalLM(), sentences(4, 0)
    batch, model = task.collate(rows), Words().double()
    found = halves(task, model, batch)
    assert torch.equal(found.loss(found.output), task.loss(model, batch))
    output = found.output.detach().requires_grad_()
    (grad,) = torch.autograd.grad(found.drawn(output, 0).sum(), output)
    counted = batch["attention_mask"][:, 1:].bool()
    assert bool((grad[:, :-1].abs().sum(-1) > 0)[counted].all())
    assert not bool(grad[:, :-1][~counted].any())
    assert not bool(grad[:, -1].any())
    chosen = (grad[:, :-1].argmin(-1))[counted]  # p − one-hot is negative at the drawn token alone
    assert len(chosen.unique()) > 5


def test_an_example_draws_the_same_in_any_batch_and_under_any_padding():
    task, model, rows = fi.CausalLM(), Words().double(), sorted(sentences(6, 0), key=len)
    keys = [str(len(row)).encode() + bytes([place]) for place, row in enumerate(rows)]

    def drawn(places, side):
        task.padding_side = side
        found = halves(task, model, task.collate([rows[place] for place in places]))
        with noise.belonging_to([keys[place] for place in places], 3):
            return found.drawn(found.output, 0)

    together = drawn(range(6), "right")
    for place in range(6):
        assert_close(drawn([place], "right"), together[place : place + 1], rtol=1e-12, why="float64, same labels")
    assert_close(drawn(range(6), "left"), together, rtol=1e-12, why="float64, same labels, padding in front")
    with noise.belonging_to(keys, 4):
        found = halves(task, model, task.collate(rows))
        assert not torch.allclose(found.drawn(found.output, 0), together)


def test_a_loss_of_ones_own_is_not_taken_for_its_base_class():
    class Focal(fi.Classification):
        def loss(self, model, batch):
            return super().loss(model, batch) ** 2

    class Squared(Focal):
        pass

    model, batch = nn.Linear(4, 3), (X, torch.tensor([0, 1, 2]))
    assert prediction_of(Focal(), model, batch) is None
    assert prediction_of(Squared(), model, batch) is None
    assert prediction_of(fi.Regression(error="huber"), nn.Linear(4, 1), (X, torch.ones(3, 1))) is None
    assert prediction_of(type("Named", (fi.Classification,), {})(), model, batch) is not None
