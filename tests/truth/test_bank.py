import json

import numpy as np
import pytest
from close import assert_within

import forwardinf as fi
from forwardinf.truth.bank import Bank, load_bank


def bank(trainings=40, size=13, queries=5, seeds=2, noise=0.0, outputs_are="loss"):
    """Return (bank, effects): each query's loss falls by the sum of its effects over those that were trained on."""
    draw = np.random.default_rng(0)
    masks = draw.random((trainings, size)) < 0.5
    effects = draw.normal(size=(queries, size))
    good = (masks @ effects.T)[:, None] + noise * draw.normal(size=(trainings, seeds, queries))
    return Bank(
        masks, -good if outputs_are == "loss" else good, outputs_are, {"margin": good + 1}, {"seed": 0}
    ), effects


def test_a_bank_comes_back_as_it_was(tmp_path):
    made, _ = bank()
    found = load_bank(made.save(tmp_path / "b"))
    np.testing.assert_array_equal(found.masks, made.masks)
    np.testing.assert_array_equal(found.outputs, made.outputs)
    np.testing.assert_array_equal(found.more["margin"], made.more["margin"])
    assert found.outputs_are == "loss"
    assert found.meta["seed"] == 0
    assert np.load(tmp_path / "b" / "masks.npy").shape == (40, 2), "13 examples are two bytes"


def test_a_bank_of_ones_own_is_three_plain_files(tmp_path):
    made, effects = bank()
    np.save(tmp_path / "masks.npy", made.masks.astype(np.int64))
    np.save(tmp_path / "outputs.npy", made.outputs.mean(1))
    (tmp_path / "meta.json").write_text(json.dumps({"format": "forwardinf.bank/1", "outputs_are": "loss"}))
    found = fi.load_bank(tmp_path)
    assert fi.lds(effects, found.masks, found.outputs, outputs_are=found.outputs_are).mean > 0.999


def test_other_outputs_are_measures(tmp_path):
    made, _ = bank()
    margin = made.named("margin")
    assert margin.outputs_are == "measure"
    np.testing.assert_allclose(margin.goodness, made.goodness + 1)
    assert made.named("loss") is made
    with pytest.raises(fi.SettingError, match="Did you mean 'margin'"):
        made.named("margins")


def test_some_queries_of_a_bank():
    made, _ = bank()
    few = made.queries([3, 1])
    np.testing.assert_array_equal(few.outputs, made.outputs[..., [3, 1]])
    np.testing.assert_array_equal(few.more["margin"], made.more["margin"][..., [3, 1]])


def test_the_ceiling_is_what_the_true_answer_scores_under_noise():
    made, effects = bank(trainings=3000, noise=3.0)
    reached = fi.lds(effects, made.masks, made.outputs, outputs_are="loss").per_query
    why = "3,000 subsets: a correlation's error is about .02; ranks of normal numbers correlate a little less than they do"
    assert_within(made.ceiling(), reached, atol=0.05, why=why)
    assert reached.max() < 0.85, "else the noise was too small to tell"


def test_there_is_no_ceiling_with_one_seed_and_none_above_noise():
    made, _ = bank(seeds=1)
    assert np.isnan(made.ceiling()).all()
    draw = np.random.default_rng(0)
    noise = Bank(np.ones((50, 3), bool), draw.normal(size=(50, 2, 40)), "loss")
    assert (noise.ceiling() == 0).any(), "halves that disagree: nothing to reach"


@pytest.mark.parametrize(
    ("masks", "outputs", "told"),
    [
        (np.ones(3, bool), np.zeros((3, 2)), "shape"),
        (np.array([[0, 2], [1, 0]]), np.zeros((2, 2)), "truth values"),
        (np.ones((3, 4), bool), np.zeros((2, 3)), "Transpose"),
        (np.ones((3, 4), bool), np.zeros(3), "shape"),
        (np.ones((3, 4), bool), np.full((3, 2), np.nan), "NaN"),
    ],
)
def test_what_is_no_bank_is_refused(masks, outputs, told):
    with pytest.raises(fi.DataError, match=told):
        Bank(masks, outputs, "loss")


def test_outputs_must_say_what_they_are():
    with pytest.raises(fi.SettingError, match="'loss', 'measure'"):
        Bank(np.ones((3, 4), bool), np.zeros((3, 2)), "logit")


def test_files_that_are_not_a_bank_are_refused(tmp_path):
    with pytest.raises(fi.FileError, match="a bank"):
        load_bank(tmp_path)
    folder = bank()[0].save(tmp_path / "b")
    (folder / "outputs.npy").write_bytes((folder / "outputs.npy").read_bytes()[:-8])
    with pytest.raises(fi.FileError, match=r"outputs\.npy"):
        load_bank(folder)
    np.save(folder / "outputs.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(fi.FileError, match="pickle"):
        load_bank(folder)
