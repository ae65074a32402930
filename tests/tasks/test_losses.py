import math
import time

import pytest
import torch
import torch.nn.functional as F
from close import assert_close, assert_within
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardinf.tasks import losses

ROUNDING = "float64 throughout; another order of operations at most"


def slow_cross_entropy(logits, label, weight=None, smoothing=0.0):
    """−log p by the definition, one example at a time, in exact-ish arithmetic."""
    found = []
    for row, target in zip(logits.double().tolist(), label.tolist(), strict=True):
        if target == -100:
            found.append(0.0)
            continue
        top = max(row)
        total = top + math.log(math.fsum(math.exp(value - top) for value in row))
        each = [total - value for value in row]
        scale = weight.tolist() if weight is not None else [1.0] * len(row)
        spread = math.fsum(w * value for w, value in zip(scale, each, strict=True)) / len(row)
        found.append((1 - smoothing) * scale[target] * each[target] + smoothing * spread)
    return torch.tensor(found, dtype=torch.float64)


@given(st.integers(1, 6), st.integers(2, 7), st.floats(0, 0.9), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_cross_entropy_is_minus_log_p(rows, classes, smoothing, weighted, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(rows, classes, generator=draw)
    label = torch.randint(classes, (rows,), generator=draw)
    label[0] = -100 if rows > 1 else label[0]
    weight = torch.rand(classes, generator=draw) + 0.1 if weighted else None
    got = losses.cross_entropy(logits, label, weight=weight, smoothing=smoothing)
    assert got.dtype == torch.float64
    want = slow_cross_entropy(logits, label, weight, smoothing)
    assert_within(
        got, want, atol=1e-13, why="float64 logits up to 20, whose spacing is 4e-15; a loss is their difference"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_of_any_dtype_are_widened_before_anything_else(dtype):
    logits = torch.randn(4, 3).to(dtype)
    label = torch.tensor([0, 1, 2, 0])
    want = F.cross_entropy(logits.double(), label, reduction="none")
    assert_close(losses.cross_entropy(logits, label), want, rtol=1e-14, why=ROUNDING)


def test_the_loss_of_a_saturated_example_still_moves():
    logits = torch.tensor([[20.0, 0.0, 0.0]])
    moved = logits + torch.tensor([[1e-2, 0.0, 0.0]])
    label = torch.tensor([0])
    change = losses.cross_entropy(moved, label) - losses.cross_entropy(logits, label)
    want = 2 * (math.exp(-float(moved[0, 0])) - math.exp(-20.0))  # −log p = log(1 + 2 exp(−z)) ≈ 2 exp(−z) = 4e-9
    assert float(F.cross_entropy(moved, label) - F.cross_entropy(logits, label)) == 0, "float32 sees nothing"
    assert_close(
        change, torch.tensor([want]), rtol=1e-3, why="a change of 4e-11 between numbers whose spacing is 4e-15"
    )


def test_yes_and_no_are_minus_log_p_with_the_weight_on_yes():
    logits, label = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1, 0, 1])
    p = torch.sigmoid(logits.double())
    want = -torch.where(label == 1, 3.0 * p.log(), (1 - p).log())
    got = losses.binary_cross_entropy(logits, label, weight=torch.tensor(3.0))
    assert_close(got, want, rtol=1e-12, why=ROUNDING)
    assert got.dtype == torch.float64


def test_token_losses_are_those_of_each_token_in_pieces_of_any_size(monkeypatch):
    logits, labels = torch.randn(3, 7, 5), torch.randint(5, (3, 7))
    labels[1, 2:] = -100
    want = torch.stack([slow_cross_entropy(row, label) for row, label in zip(logits, labels, strict=True)])
    for size in (1, 5, 20, 21 * 5, 2**18):  # less than a token, one, four, all, more
        monkeypatch.setitem(losses.LOGITS_AT_ONCE, "cpu", size)
        assert_close(losses.token_losses(logits, labels), want, rtol=1e-12, why=ROUNDING)
    assert (losses.token_losses(logits, labels)[1, 2:] == 0).all()


def test_the_backward_of_many_tokens_takes_time_in_proportion_to_them_and_equals_that_of_all_at_once():
    def seconds(tokens, vocabulary=20_000):
        logits = torch.randn(1, tokens, vocabulary, requires_grad=True)
        labels = torch.randint(vocabulary, (1, tokens))
        began = time.process_time()
        losses.token_losses(logits, labels).sum().backward()
        took = time.process_time() - began
        if tokens == 32:
            (want,) = torch.autograd.grad(F.cross_entropy(logits[0].double(), labels[0], reduction="sum"), logits)
            assert_close(logits.grad, want, rtol=1e-6, why="float64 gradients, given back in float32")
        return took

    seconds(32)
    few, many = (min(seconds(tokens) for _ in range(3)) for tokens in (128, 1024))
    assert many < 24 * few, "8 times the tokens; a backward that is quadratic in them takes 64 times as long"


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_losses_of_places_of_any_number_of_dimensions_are_those_of_torch(weight):
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    labels[0, :2] = -100
    wide = None if weight is None else weight.double()
    want = F.cross_entropy(logits.double(), labels, weight=wide, reduction="none")
    assert_close(losses.token_losses(logits.movedim(1, -1), labels, weight=weight), want, rtol=1e-12, why=ROUNDING)


def test_rows_of_one_token_have_no_token_to_predict():
    logits = torch.randn(2, 1, 5)
    assert losses.token_losses(logits[:, :-1], torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)


@given(st.integers(2, 6), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_the_margin_is_the_log_odds_of_the_label(classes, seed):
    logits = 3 * torch.randn(4, classes, generator=torch.Generator().manual_seed(seed))
    label = torch.arange(4) % classes
    p = torch.softmax(logits.double(), 1).gather(1, label[:, None]).squeeze(1)
    want = torch.log(p) - torch.log1p(-p)
    assert_close(losses.margin(logits, label), want, rtol=1e-9, why="1 − p loses digits in the reference")
    loss = losses.cross_entropy(logits, label)
    assert_close(losses.margin_of(loss), want, rtol=1e-9, why="1 − p loses digits")


def test_the_margin_of_a_saturated_example_has_a_gradient():
    logits = torch.tensor([[60.0, 0.0]], requires_grad=True)
    losses.margin(logits, torch.tensor([0])).sum().backward()
    assert_close(logits.grad, torch.tensor([[1.0, -1.0]]), rtol=1e-6, why="log-odds of two classes: their difference")


def test_the_margin_of_what_is_not_counted_is_zero_and_has_no_gradient():
    loss = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    found = losses.margin_of(loss)
    found.sum().backward()
    assert found[0] == 0
    assert torch.isfinite(loss.grad).all()
    assert loss.grad[0] == 0
