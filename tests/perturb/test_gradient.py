"""Queries' gradients: one at a time by autograd is the reference for many at a time."""

import pytest
import torch
from cases import QUERIES, case, feed, pusher
from close import assert_close

import forwardinf as fi
from forwardinf.perturb.gradient import query_gradient, row_gradients
from forwardinf.perturb.parameters import select


@pytest.mark.parametrize("name", ["cnn", "resnet", "transformer"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_rows_together_are_the_rows_alone(name, batch_size):
    given = case(name, torch.float64)
    asked, chosen = feed(given, given.queries), select(given.model, None)
    found = row_gradients(asked, range(QUERIES), chosen, batch_size)
    for row in range(QUERIES):
        want = query_gradient(asked, [row], chosen, 1)
        got = found.of(row)
        for key, tensor in want.items():
            assert_close(got[key], tensor, rtol=1e-9, why="float64, summed in another order")
        steep = query_gradient(asked, [row], chosen, 1, rooted=True)
        for key, tensor in row_gradients(asked, range(QUERIES), chosen, batch_size, rooted=True).of(row).items():
            if key in steep:
                assert_close(tensor, steep[key], rtol=1e-9, why="float64, summed in another order")
        assert all(not got[key].any() for key in got.keys() - want.keys())
    assert_close(found.away, -asked.measures(range(QUERIES), 1), rtol=1e-12, why="float64 in other batches")


def test_what_a_query_is_asked_is_what_is_differentiated():
    given = case("cnn", torch.float64)
    given.task = fi.Classification(query="margin")
    asked, chosen = feed(given, given.queries), select(given.model, None)
    found = row_gradients(asked, range(1, QUERIES), chosen, 8)
    want = query_gradient(asked, [1], chosen, 1)
    for key, tensor in found.of(1).items():
        assert_close(tensor, want[key], rtol=1e-9, why="float64, summed in another order")


def test_a_row_that_is_not_finite_spoils_no_other():
    given = case("cnn", torch.float64)
    given.queries[0][1] = float("nan")
    asked, chosen = feed(given, given.queries), select(given.model, None)
    found = row_gradients(asked, range(QUERIES), chosen, 8)
    assert found.away[1].isnan()
    assert all(torch.isfinite(tensor).all() for row in (0, 2) for tensor in found.of(row).values())


def test_which_rows_go_together_depends_on_their_numbers_alone(monkeypatch):
    monkeypatch.setattr("forwardinf.perturb.push.TOGETHER", 2)
    given = case("cnn")
    first, later = (pusher(given, fi.Perturbation(), exact=True, together=8) for _ in range(2))
    forwards = [first.gradient(first.check([row], row, skip=False)) for row in range(QUERIES)]
    for row in reversed(range(QUERIES)):
        for key, tensor in later.gradient(later.check([row], row, skip=False)).items():
            assert torch.equal(tensor, forwards[row][key])
