"""Fits add up over shards, go on after a kill, are kept between calls, and are never mistaken for another."""

import pytest
import torch
from cases import ROWS, attribute, case
from close import assert_close
from curvature import OWN, fitting

import forwardinf as fi
from forwardinf.core.files import written
from forwardinf.gradients.moments import add_moments
from forwardinf.perturb import fits
from forwardinf.perturb.diagonal import add_squares, diagonal_blocks
from forwardinf.perturb.fisher import fisher_feed
from forwardinf.perturb.fits import sampled_rows, sweep
from forwardinf.perturb.kronecker import ekfac, ekfac_blocks

ADDS = {"squares": add_squares, "moments": add_moments}


@pytest.fixture
def passes(monkeypatch):
    """Count the batches that fits read."""
    seen, whole = [], fits.factored

    def counted(feed, rows, *rest):
        for found in whole(feed, rows, *rest):
            seen.append(list(found[0]))
            yield found

    monkeypatch.setattr(fits, "factored", counted)
    return seen


@pytest.mark.parametrize("add", ADDS.values(), ids=ADDS)
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_sums_of_two_shards_add_up_to_the_whole(name, add):
    fit = fitting(name)
    feed = fisher_feed(fit)[0]
    whole, one, other = (sweep(fit, feed, rows, add) for rows in (range(ROWS), range(13), range(13, ROWS)))
    assert (one.units, other.units, whole.units) == (13, ROWS - 13, ROWS)
    for key, total in whole.tensors.items():
        assert_close(one.tensors[key] + other.tensors[key], total, rtol=1e-9, why=OWN)


class Killed(Exception):
    pass


@pytest.mark.parametrize("direction", ["diagonal", "ekfac"])
def test_a_killed_fit_goes_on_and_ends_the_same_byte_for_byte(direction, tmp_path, monkeypatch, passes):
    monkeypatch.setattr(fits, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(fits, "NOT_WRITING", 0.0)
    blocks = {"diagonal": diagonal_blocks, "ekfac": ekfac_blocks}[direction]
    want = blocks(fitting("cnn", direction, key="a", cache=tmp_path / "whole"))
    read = len(passes)
    left, whole = [3], fits.write_kept

    def write(path, *rest):
        whole(path, *rest)
        left[0] -= path.name.endswith(".partial.safetensors")
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(fits, "write_kept", write)
    passes.clear()
    with pytest.raises(Killed):
        blocks(fitting("cnn", direction, key="a", cache=tmp_path / "cut"))
    got = blocks(
        fitting("cnn", direction, batch_size=7 if direction == "ekfac" else 11, key="a", cache=tmp_path / "cut")
    )
    assert len(passes) == read  # nothing twice, in the pieces it was begun with
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.values, other.values)
        assert one.part == other.part
    names = {path.name for path in (tmp_path / "whole").rglob("*")}
    assert names == {path.name for path in (tmp_path / "cut").rglob("*")}
    for name in names - {"fits"}:
        assert (tmp_path / "whole/fits" / name).read_bytes() == (tmp_path / "cut/fits" / name).read_bytes()


def test_a_second_call_fits_nothing_and_tells_the_same(tmp_path, passes):
    given = case("cnn")
    first = attribute(given, perturbation=fi.Perturbation("ekfac"), cache_dir=tmp_path)
    read = len(passes)
    assert read > 0
    again = attribute(case("cnn"), perturbation=fi.Perturbation("ekfac"), cache_dir=tmp_path)
    assert len(passes) == read
    assert (again.values == first.values).all()
    assert again.notes == first.notes
    attribute(case("cnn"), perturbation=fi.Perturbation("ekfac", damping=3, rise=0.1), cache_dir=tmp_path)
    assert len(passes) == read  # damping and length are no part of a fit
    attribute(case("cnn"), perturbation=fi.Perturbation("kfac"), cache_dir=tmp_path)
    assert len(passes) == read  # K-FAC is EK-FAC's first pass


CHANGES = {
    "the labels": {"fisher": "empirical"}, "the seed of the labels": {"seed": 1}, "the sample": {"fit_examples": 20},
    "what moves": {"parameters": "head.*"},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_fit_depends_on_names_it(change, tmp_path, passes):
    diagonal_blocks(fitting("cnn", "diagonal", key="a", cache=tmp_path))
    passes.clear()
    diagonal_blocks(fitting("cnn", "diagonal", key="a", cache=tmp_path, **change))
    assert passes
    passes.clear()
    diagonal_blocks(fitting("cnn", "diagonal", key="b", cache=tmp_path))
    assert passes


def test_a_damaged_fit_is_fitted_again(tmp_path, passes):
    want = diagonal_blocks(fitting("cnn", "diagonal", key="a", cache=tmp_path))
    (path,) = (tmp_path / "fits").iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    passes.clear()
    got = diagonal_blocks(fitting("cnn", "diagonal", key="a", cache=tmp_path))
    assert passes
    assert all(torch.equal(one.values, other.values) for one, other in zip(got, want, strict=True))
    with written(path) as part:
        part.write_bytes(b"not ours")
    passes.clear()
    diagonal_blocks(fitting("cnn", "diagonal", key="a", cache=tmp_path))
    assert passes


def test_what_cannot_be_named_is_not_kept(tmp_path):
    diagonal_blocks(fitting("cnn", "diagonal", key=None, cache=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_sample_is_drawn_by_the_seed_in_order():
    rows = sampled_rows(fitting("cnn", "diagonal", fit_examples=15))
    assert rows == sorted(set(rows))
    assert len(rows) == 15
    assert rows != list(range(15))
    assert rows == sampled_rows(fitting("cnn", "diagonal", fit_examples=15))
    assert rows != sampled_rows(fitting("cnn", "diagonal", fit_examples=15, seed=1))
    assert list(sampled_rows(fitting("cnn", "diagonal"))) == list(range(ROWS))
    few = diagonal_blocks(fitting("cnn", "diagonal", fit_examples=15))
    assert not torch.equal(few[0].values, diagonal_blocks(fitting("cnn", "diagonal"))[0].values)


def test_notes_of_a_kept_fit_are_told_again(tmp_path):
    told = []
    for _ in range(2):
        fit = fitting("unet", "diagonal", key="a", cache=tmp_path)
        diagonal_blocks(fit)
        told.append(fit.notes)
    assert told[0] == told[1]
    assert "empirical Fisher" in told[0][0]


def test_the_model_is_left_as_it_was():
    given = case("transformer")
    given.model.train()
    given.model.tokens.weight.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad, p.grad) for name, p in given.model.named_parameters()}
    state = torch.get_rng_state()
    attribute(given, perturbation=fi.Perturbation("ekfac", parameters="*"))
    assert given.model.training
    assert torch.equal(state, torch.get_rng_state())
    for name, parameter in given.model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert (parameter.requires_grad, parameter.grad) == before[name][1:]


def test_how_labels_are_drawn_belongs_to_the_example():
    """Twice the same example, twice the same label; and a fit does not depend on the order or the batch."""
    given = case("cnn", torch.float64)
    one = ekfac(fitting(given, "ekfac", batch_size=40))
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    given.train = (given.train[0][order], given.train[1][order])
    other = ekfac(fitting(given, "ekfac", batch_size=3))
    assert_close(other.damping, one.damping, rtol=1e-9, why="float64, the same labels in another order")
