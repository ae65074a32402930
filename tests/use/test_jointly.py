"""Who counts together: at every turn what is named is what a solve without those named before it would name."""

import numpy as np
import pytest
import torch
from close import assert_close
from texts_cases import decoder, texts, tokenizer

import forwardinf as fi
from forwardinf.use.jointly import jointly
from forwardinf.use.sketch import Whitening, compared


def rows(count, width, seed=0):
    """Return gradients among which three say nearly the same."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(count, width, generator=draw)
    for place in (5, 7):
        found[place] = found[3] + 0.05 * torch.randn(width, generator=draw)
    return found


def by_refitting(train, query, ridge, count):
    """Return (places, gains): the whitening is made anew for every turn, and for every example that might leave next."""
    left, order, gains = list(range(len(train))), [], []
    for _ in range(count):
        lost = {}
        for place in left:
            rest = train[[other for other in left if other != place]]
            without = torch.linalg.inv(rest.T @ rest + ridge * torch.eye(train.shape[1], dtype=torch.float64))
            lost[place] = float(train[place] @ without @ query)  # what it adds to a model that lacks it
        order.append(max(lost, key=lost.get))
        gains.append(lost[order[-1]])
        left.remove(order[-1])
    return order, gains


@pytest.mark.parametrize(("count", "width"), [(30, 8), (12, 40)])  # through GᵀG, and through GGᵀ
@pytest.mark.parametrize("how", ["whitened", "unit-whitened"])
def test_every_turn_is_what_refitting_without_the_earlier_ones_says(count, width, how):
    train, queries = rows(count, width), rows(count, width)[3:5] + 0.1
    scale = (lambda g: torch.nn.functional.normalize(g.double())) if how == "unit-whitened" else torch.Tensor.double
    ridge = Whitening(scale(train).float(), 0.3).ridge
    for query, (places, gains) in zip(queries, jointly(compared(train, queries, how, 0.3), 5), strict=True):
        want = by_refitting(scale(train), scale(query[None])[0], ridge, 5)
        assert places.tolist() == want[0]
        assert_close(gains, want[1], rtol=1e-4, why="rows in float32 against float64, five downdates")


def test_look_alikes_are_named_together_and_the_first_is_worth_more_than_its_own_score():
    train = rows(30, 40)
    found = compared(train, train[3:4], "whitened", 0.05)
    alone = found.scores[0]
    ((places, gains),) = jointly(found, 3)
    assert set(places.tolist()) == {3, 5, 7}
    assert gains[0] > float(alone[places[0]])
    assert (np.diff(gains) > 0).all(), "each next one has fewer to stand in for it"


def test_candidates_and_places():
    train, query = rows(30, 40), rows(30, 40)[3:4]
    found = compared(train, query, "whitened")
    ((places, _),) = jointly(found, 9, [np.array([101, 103, 107])], np.arange(100, 130))
    assert sorted(places.tolist()) == [101, 103, 107]


@pytest.mark.whole
def test_a_trace_names_documents_jointly(tmp_path, monkeypatch):
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path))
    given = {"tokenizer": tokenizer(), "answers": ["quito"], "progress": False, "k": 5, "spans": 0}
    plain, joint = (
        fi.trace(decoder(), texts(), ["hal lives in"], jointly=together, **given) for together in (False, True)
    )
    assert joint.how == "unit-whitened through kfac, margin, jointly"
    assert_close(joint.scores.values, plain.scores.values, rtol=1e-6, why="the same scores, kept sketches")
    assert len(set(joint.table["train"])) == 5
    assert (joint.table["score"] > 0).all()
    first = joint.table.iloc[0]
    assert first["score"] > joint.scores.values[0, joint.scores.ids.index(first["train"])], (
        "what leaves for good takes more with it"
    )


@pytest.mark.parametrize(("settings", "told"), [
    ({"how": "cosine"}, "expected how='whitened' or 'unit-whitened', got 'cosine'"),
    ({"perturbation": "linear"}, "expected no perturbation"),
    ({"fuse": "bm25"}, "expected no fuse"),
    ({"checkpoints": []}, "expected no checkpoints"),
    ({"per_token": True}, "expected no per_token"),
])  # fmt: skip
def test_what_cannot_be_named_jointly_is_refused(settings, told):
    with pytest.raises(fi.SettingError, match=told):
        fi.trace(decoder(), texts(), ["hal lives in"], tokenizer=tokenizer(), answers=["quito"], jointly=True, progress=False,
                 **settings)  # fmt: skip
