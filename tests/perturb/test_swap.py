import pytest
import torch
from cases import NAMES, Decoder, case
from close import assert_close

from forwardinf.core.errors import ModelError
from forwardinf.perturb.swap import lend, tensors_of


def bits(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(model, kept):
    now = model.state_dict()
    assert now.keys() == kept.keys()
    differs = [name for name in kept if not torch.equal(now[name], kept[name])]
    assert not differs, differs


def moved_by(model, amount):
    return {name: parameter.detach() + amount for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_lent_is_there_inside_and_gone_outside(name):
    model = case(name).model
    kept, places = bits(model), [p.data_ptr() for p in model.parameters()]
    moved = moved_by(model, 0.1)  # θ + 0.1 − 0.1 is not θ in floating point: only an exchange gives it back
    with lend(tensors_of(model), moved):
        for key, parameter in model.named_parameters():
            assert torch.equal(parameter, kept[key] + 0.1), key
        assert [p.data_ptr() for p in model.parameters()] == places, "written in place: ties and optimisers hold"
    assert_same(model, kept)
    assert [p.data_ptr() for p in model.parameters()] == places


def test_it_can_be_lent_any_number_of_times():
    model = case("cnn").model
    kept, moved = bits(model), moved_by(case("cnn").model, 0.1)
    want = {name: tensor.clone() for name, tensor in moved.items()}
    for _ in range(3):
        with lend(tensors_of(model), moved):
            assert all(torch.equal(p, want[name]) for name, p in model.named_parameters())
        assert_same(model, kept)
    assert all(torch.equal(moved[name], want[name]) for name in want)


def test_what_the_block_did_to_lent_tensors_is_undone():
    model = case("cnn").model
    kept = bits(model)
    with lend(tensors_of(model), moved_by(model, 0.1)):
        for parameter in model.parameters():
            parameter.detach().zero_()
    assert_same(model, kept)


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit()], ids=lambda e: type(e).__name__
)
def test_an_error_inside_gives_everything_back(error):
    model = case("resnet").model
    kept = bits(model)
    with pytest.raises(type(error)), lend(tensors_of(model), moved_by(model, 0.1)):
        raise error
    assert_same(model, kept)


def test_an_unknown_name_is_refused_before_anything_is_written():
    model = case("cnn").model
    kept = bits(model)
    with (
        pytest.raises(ModelError, match="parameter nowhere: expected a tensor of the model"),
        lend(tensors_of(model), {**moved_by(model, 0.1), "nowhere": torch.zeros(1)}),
    ):
        pytest.fail("the block must not run")
    assert_same(model, kept)


@pytest.mark.parametrize("change", [lambda t: t[:1], lambda t: t.double(), lambda t: t.sum()])
def test_another_shape_or_dtype_is_refused_before_anything_is_written(change):
    model = case("cnn").model
    kept, moved = bits(model), moved_by(model, 0.1)
    moved["head.bias"] = change(moved["head.bias"])
    with pytest.raises(ModelError, match=r"parameter head\.bias"), lend(tensors_of(model), moved):
        pytest.fail("the block must not run")
    assert_same(model, kept)


def test_buffers_can_be_lent_and_tied_tensors_appear_once():
    model = case("resnet").model
    kept = bits(model)
    name = "stages.0.norm1.running_mean"
    with lend(tensors_of(model), {name: torch.full_like(kept[name], 7.0)}):
        assert_close(model.get_buffer(name), torch.full_like(kept[name], 7.0), rtol=0, why="copied")
    assert_same(model, kept)
    tied = Decoder()
    assert "lm_head.weight" not in tensors_of(tied)
    with lend(tensors_of(tied), {"tokens.weight": torch.zeros_like(tied.tokens.weight)}):
        assert not tied.lm_head.weight.any()
    assert tied.lm_head.weight is tied.tokens.weight
    assert tied.lm_head.weight.any()


def test_a_push_of_length_nothing_moves_nothing():
    model = case("cnn").model
    kept = bits(model)
    with lend(tensors_of(model), {}):
        assert_same(model, kept)
    assert_same(model, kept)
