import numpy as np
import pytest
from close import assert_within
from scipy.stats import spearmanr

import forwardinf as fi

M, N, Q = 30, 12, 4


@pytest.fixture
def planted():
    draw = np.random.default_rng(0)
    masks = draw.random((M, N)) < 0.5
    effects = draw.normal(size=(Q, N))
    return masks, effects, -(masks @ effects.T)  # losses: trained on proponents, a query's loss is lower


def test_planted_effects_score_one_and_their_opposite_minus_one(planted):
    masks, effects, losses = planted
    assert fi.lds(effects, masks, losses, outputs_are="loss").mean == pytest.approx(1)
    assert fi.lds(-effects, masks, losses, outputs_are="loss").mean == pytest.approx(-1)
    assert fi.lds(effects, masks, -losses, outputs_are="measure").mean == pytest.approx(1)


def test_it_is_spearman_by_hand(planted):
    masks, effects, losses = planted
    draw = np.random.default_rng(1)
    scores = effects + draw.normal(0, 2, effects.shape)
    noisy = losses[:, None] + draw.normal(size=(M, 3, Q))
    found = fi.lds(scores, masks, noisy, outputs_are="loss")
    want = []
    for q in range(Q):
        sums = [sum(scores[q, i] for i in range(N) if masks[m, i]) for m in range(M)]
        want.append(spearmanr(sums, [-noisy[m, :, q].mean() for m in range(M)])[0])
    assert_within(found.per_query, want, atol=1e-12, why="float64, another order of additions")
    assert found.mean == pytest.approx(np.mean(want))
    assert found.low < found.mean < found.high
    assert found.ceiling.shape == (Q,)


def test_scores_of_ours_and_tensors_are_taken(planted):
    import torch

    masks, effects, losses = planted
    for scores in (fi.Scores.from_array(effects), torch.from_numpy(effects), effects.tolist()):
        assert fi.lds(scores, masks, losses, outputs_are="loss").mean == pytest.approx(1)


def test_what_it_is_scored_by_has_no_default(planted):
    masks, effects, losses = planted
    with pytest.raises(TypeError, match="outputs_are"):
        fi.lds(effects, masks, losses)
    with pytest.raises(fi.SettingError, match="Did you mean 'loss'"):
        fi.lds(effects, masks, losses, outputs_are="losses")


def test_bad_shapes_are_refused_with_the_fix(planted):
    masks, effects, losses = planted
    with pytest.raises(fi.DataError, match="rows are queries"):
        fi.lds(effects.T, masks, losses, outputs_are="loss")
    with pytest.raises(fi.DataError, match="Transpose"):
        fi.lds(effects, masks, losses.T, outputs_are="loss")
    with pytest.raises(fi.DataError, match="4 queries, 12 training examples"):
        fi.lds(effects[:, :5], masks, losses, outputs_are="loss")
    with pytest.raises(fi.DataError, match="at least 3 subsets"):
        fi.lds(effects, masks[:2], losses[:2], outputs_are="loss")


def test_magnitudes_are_refused(planted):
    masks, effects, losses = planted
    scores = fi.Scores.from_array(effects)
    scores.signed = False
    with pytest.raises(fi.SettingError, match="magnitudes"):
        fi.lds(scores, masks, losses, outputs_are="loss")


def test_a_query_that_was_not_scored_is_left_out_of_the_mean_and_counted(planted):
    masks, effects, losses = planted
    effects = effects.copy()
    effects[1] = np.nan
    found = fi.lds(effects, masks, losses, outputs_are="loss")
    assert np.isnan(found.per_query[1])
    assert found.mean == pytest.approx(1)
    assert "over 3 queries" in repr(found)
    assert found.table["lds"].isna().tolist() == [False, True, False, False]
    assert set(found.to_dict()) == {"mean", "low", "high", "ci", "per_query", "ceiling"}
