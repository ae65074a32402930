"""Inner products of gradients from factors, against gradients formed one at a time; and what is solved with them."""

import pytest
import torch
from cases import NAMES, case
from close import assert_close
from given import Packed, Strange, dense, feed

import forwardinf.gradients.gram as module
from forwardinf.core.errors import ModelError, SettingError
from forwardinf.gradients.dots import dots
from forwardinf.gradients.gram import joined, parts_of, products
from forwardinf.gradients.per_example import factored
from forwardinf.gradients.ridge import Ridge
from forwardinf.perturb.parameters import select

SAME = "float64, the same sum in another order"
ROWS = 9


def blocks(given, size):
    return [
        (len(units), parts_of(uses, len(units)))
        for units, _, uses in factored(feed(given), range(ROWS), select(given.model, None), size)
    ]


def cases():
    return [*NAMES, "tied", "strange", "packed"]


def made(name):
    return {"tied": lambda: Strange(True), "strange": lambda: Strange(False), "packed": Packed}.get(
        name, lambda: case(name, torch.float64)
    )()


@pytest.mark.parametrize("name", cases())
def test_the_gram_matrix(name, monkeypatch):
    monkeypatch.setattr(module, "ENTRIES", 200)
    given = made(name)
    gradients = dense(given, range(ROWS))
    found = blocks(given, 4)
    one, other = joined(found[:2]), joined(found)
    sizes = sum(size for size, _ in found[:2]), sum(size for size, _ in found)
    assert sizes[1] == len(gradients)
    assert_close(products(one, other, *sizes), gradients[: sizes[0]] @ gradients.T, rtol=1e-12, why=SAME)


@pytest.mark.parametrize("name", cases())
def test_products_with_one_vector(name):
    given = made(name)
    chosen = select(given.model, None)
    draw = torch.Generator().manual_seed(0)
    vector = {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in chosen.items()}
    flat = torch.cat([v.flatten() for v in vector.values()])
    found = torch.cat([
        dots(uses, vector, len(units)) for units, _, uses in factored(feed(given), range(ROWS), chosen, 4)
    ])  # fmt: skip
    assert_close(found, dense(given, range(ROWS)) @ flat, rtol=1e-12, why=SAME)


def test_every_form_is_met():
    """So that the comparisons above say something about each."""
    kinds = {(name, type(part).__name__) for name in cases() for part in blocks(made(name), 4)[0][1].values()}
    assert {kind for _, kind in kinds} == {"Dense", "Pairs", "Rows"}


def test_forms_that_differ_between_batches_are_joined_as_they_are():
    given = case("cnn", torch.float64)
    (size, parts), (other, same) = blocks(given, 5)
    formed = {name: module.Dense(part.shape, part.dense()) for name, part in same.items()}
    gradients = dense(given, range(ROWS))
    mixed = joined([(size, parts), (other, formed)])
    assert_close(products(mixed, mixed, ROWS, ROWS), gradients @ gradients.T, rtol=1e-12, why=SAME)
    assert_close(products(parts, formed, size, other), gradients[:size] @ gradients[size:].T, rtol=1e-12, why=SAME)
    missing = {name: part for name, part in same.items() if not name.startswith("conv")}
    holes = joined([(size, parts), (other, missing)])
    assert holes["conv1.weight"].dense()[size:].abs().sum() == 0


# -- solving -----------------------------------------------------------------------------------------------------------

DRAW = torch.Generator().manual_seed(0)
G = torch.randn(30, 12, dtype=torch.float64, generator=DRAW) * torch.rand(30, 1, dtype=torch.float64, generator=DRAW)
S = torch.randn(4, 30, dtype=torch.float64, generator=DRAW)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("form", ["gram", "sketch", "wide sketch"])
def test_the_solution_is_the_dense_one(form, unit, monkeypatch):
    monkeypatch.setattr("forwardinf.gradients.ridge.PIECE", 7)
    wide = torch.cat([G, torch.zeros(30, 40, dtype=torch.float64)], 1)
    ridge = {"gram": lambda: Ridge(G @ G.T, damping=0.7, temper=float(unit)),
             "sketch": lambda: Ridge(responses=G, damping=0.7, temper=float(unit)),
             "wide sketch": lambda: Ridge(responses=wide, damping=0.7, temper=float(unit))}[form]()  # fmt: skip
    u = G / G.norm(dim=1, keepdim=True) if unit else G
    weight = 0.7 * u.square().sum(1).mean()
    want = torch.linalg.solve(u @ u.T + weight * torch.eye(30, dtype=torch.float64), S.T).T
    assert_close(ridge.solve(S), want, rtol=1e-9, why="float64 solves")
    assert_close(ridge.damping, weight / 30, rtol=1e-12, why="float64")
    p = torch.linalg.inv(u.T @ u / 30 + ridge.damping * torch.eye(12, dtype=torch.float64))
    assert_close(ridge.own(), torch.einsum("ip,pq,iq->i", G, p, G), rtol=1e-9, why="float64 solves")


def test_gradients_that_hold_nothing_are_refused():
    with pytest.raises(ModelError, match="not all zero"):
        Ridge(torch.zeros(3, 3))
    with pytest.raises(ModelError, match="finite"):
        Ridge(torch.eye(3) * float("nan"))
    with pytest.raises(SettingError, match="one of gram and responses"):
        Ridge(torch.eye(3), responses=torch.eye(3))
    ridge = Ridge(torch.diag(torch.tensor([1.0, 0.0])), damping=1.0, temper=1.0)
    assert ridge.inverse.tolist() == [1, 0]
