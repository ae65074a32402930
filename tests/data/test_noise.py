import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardinf.data.noise import belonging_to, content_of, normal, own_state, seed_all, seed_of

KEYS = st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=5)


def drawn(keys, seed=0, shape=(3,), draw=0):
    with belonging_to(keys, seed):
        return normal(shape, size=len(keys), draw=draw)


@given(KEYS, st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_noise_belongs_to_the_example_whatever_its_company(keys, seed):
    together = drawn(keys, seed)
    alone = torch.cat([drawn([key], seed) for key in keys])
    assert torch.equal(together, alone)
    assert torch.equal(drawn(keys[::-1], seed), together.flip(0))


def test_seed_example_and_draw_each_change_the_noise():
    base = drawn([b"a"])
    for other in (drawn([b"b"]), drawn([b"a"], seed=1), drawn([b"a"], draw=1)):
        assert not torch.equal(base, other)


def test_noise_is_standard_normal():
    values = drawn([str(n).encode() for n in range(200)], shape=(500,))
    # 100,000 draws: the mean's standard error is .003, the variance's .0045; five of them each
    assert abs(float(values.mean())) < 0.016
    assert abs(float(values.var()) - 1) < 0.023
    assert values.dtype == torch.float32
    assert values.shape == (200, 500)


def test_outside_a_reading_the_place_in_the_batch_is_the_key():
    assert torch.equal(normal((2,), size=3)[:2], normal((2,), size=2))
    assert normal((2,), size=0).shape == (0, 2)


def test_blocks_may_nest_and_end():
    outside = normal((2,), size=1)
    with belonging_to([b"a"], 0):
        inside = normal((2,), size=1)
        with belonging_to([b"b"], 0):
            assert not torch.equal(normal((2,), size=1), inside)
        assert torch.equal(normal((2,), size=1), inside)
    assert torch.equal(normal((2,), size=1), outside)


def test_content_takes_the_place_of_the_row_under_the_same_seed():
    with belonging_to([b"row"], 7), content_of([b"image"]):
        assert torch.equal(normal((2,), size=1), drawn([b"image"], seed=7, shape=(2,)))


def test_noise_for_another_number_of_examples_is_an_error():
    with belonging_to([b"a", b"b"], 0), pytest.raises(RuntimeError, match=r"noise for 3 examples .* in a batch of 2"):
        normal((2,), size=3)


def test_drawing_noise_leaves_the_callers_generator_alone():
    before = torch.get_rng_state()
    drawn([b"a"])
    assert torch.equal(torch.get_rng_state(), before)


def test_states_are_given_back_also_after_an_error():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def draws_and_fails():
        with own_state():
            seed_all(5)
            random.random(), np.random.rand(), torch.rand(1)
            raise KeyError

    before = state()
    with pytest.raises(KeyError):
        draws_and_fails()
    assert state() == before


def test_seeding_all_makes_every_generator_repeat_itself():
    with own_state():
        seed_all(2**62)
        first = random.random(), float(np.random.rand()), float(torch.rand(()))
        seed_all(2**62)
        assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == first


@given(st.lists(st.integers() | st.text() | st.binary(), min_size=1, max_size=3))
def test_a_seed_fits_every_generator_and_depends_on_its_parts(parts):
    seed = seed_of(*parts)
    assert 0 <= seed < 2**63
    assert seed == seed_of(*parts)
    assert seed != seed_of(*parts, 0)


def test_seeds_do_not_run_together():
    assert seed_of(1, 23) != seed_of(12, 3)
    assert seed_of("1") != seed_of(1)
    assert len({seed_of(0, n) for n in range(10_000)}) == 10_000
