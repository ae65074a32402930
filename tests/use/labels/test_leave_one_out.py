"""Closed forms against refitting without the row; weights from agreement against detectors of known quality."""

import numpy as np
import pytest
import torch
from cases import case, gradient, size
from close import assert_close

import forwardinf as fi
from forwardinf.job.options import Options
from forwardinf.use.inputs import open_inputs
from forwardinf.use.labels.consensus import loadings, ranks, weights
from forwardinf.use.labels.leave_one_out import RIDGES, leave_one_out, margin
from forwardinf.use.labels.neighbours import neighbours_labels
from forwardinf.use.labels.readings import readings


def refit(features, labels, ridge, without, asked):
    """Ridge regression of one-hot labels in kernel form, without one row, from scratch."""
    kept = [row for row in range(len(features)) if row != without]
    scale = features.square().sum(1).mean()
    kernel = features @ features.T / scale
    onehot = torch.nn.functional.one_hot(labels, 3).double()
    alpha = torch.linalg.solve(kernel[kept][:, kept] + ridge * torch.eye(len(kept)).double(), onehot[kept])
    return (asked @ features[kept].T / scale) @ alpha


@pytest.mark.parametrize("width", [5, 60])  # fewer features than rows, and more
def test_without_a_row_is_what_refitting_without_it_gives(width):
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(20, width, generator=draw).double()
    labels, queries = torch.arange(20) % 3, torch.randn(4, width, generator=draw).double()
    found = leave_one_out(features, labels, 3)
    assert found.ridge in RIDGES
    want = torch.stack([refit(features, labels, found.ridge, row, features[row]) for row in range(20)])
    assert_close(found.predicted, want, rtol=1e-8, why="float64, one solution each")
    whole = refit(features, labels, found.ridge, None, queries)
    assert_close(found.predict(queries), whole, rtol=1e-8, why="float64")
    classes = torch.tensor([0, 2, 1, 1])
    gap = torch.stack([whole - refit(features, labels, found.ridge, row, queries) for row in range(20)], 1)
    want = gap[torch.arange(4)[:, None], torch.arange(20), classes[:, None]]
    assert_close(found.influence(queries, classes), want, rtol=1e-7, why="float64, differences of near numbers")


def test_the_ridge_is_the_one_that_predicts_best_without_the_row():
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(40) % 3
    features = torch.nn.functional.one_hot(labels, 3).float() + 0.4 * torch.randn(40, 3, generator=draw)
    found = leave_one_out(features, labels, 3)
    onehot = torch.nn.functional.one_hot(labels, 3).double()
    errors = {}
    for ridge in RIDGES:
        rows = [refit(features.double(), labels, ridge, row, features[row].double()) for row in range(40)]
        errors[ridge] = float((torch.stack(rows) - onehot).square().mean())
    assert found.ridge == min(errors, key=errors.get)
    assert found.error == pytest.approx(min(errors.values()), rel=1e-6)


def test_margins_by_hand():
    found = margin(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]), torch.tensor([0, 1]))
    assert_close(found, [-0.5, 0.5], rtol=1e-6, why="float32")


def test_responses_of_the_logits_are_the_kernel_of_all_classes():
    given = case("cnn")
    three = fi.Classification(
        logits=lambda output: output[:, :3]
    )  # as many classes as directions: nothing is estimated
    rows = (given.train[0], given.train[1] % 3)
    start = open_inputs(given.model.eval(), three, Options(), None, "head.*")  # 330 weights: fewer than probes
    found, _ = readings(start, start.feed(rows, "train"))
    want = torch.zeros(size(rows), size(rows), dtype=torch.float64)
    for c in range(3):
        values = [three.logits(given.model, (x[None], y[None]))[0, c] for x, y in zip(*rows, strict=True)]
        one = torch.stack([gradient(given.model, value, {"head.weight", "head.bias"}) for value in values])
        want += one @ one.T
    assert_close(found.logits.double() @ found.logits.double().T, want, rtol=1e-5, why="float32")
    assert_close(found.loss, three.loss(given.model, rows), rtol=1e-5, why="float32")


def test_neighbours_labels_by_hand():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 1.0]])
    found = neighbours_labels(features, torch.tensor([0, 0, 1, 1, 1, 0]), 2, k=2)
    assert_close(found[0], [0.5, 0.5], rtol=1e-12, why="its neighbours are rows 1 and 2")
    assert_close(found[5], [0.0, 1.0], rtol=1e-12, why="its neighbours are rows 3 and 4, not itself")


def test_agreement_tells_good_detectors_from_bad_ones_without_labels():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=5000)
    quality = [0.9, 0.7, 0.5, 0.2, 0.0]
    detectors = np.stack([ranks(q * truth + np.sqrt(1 - q * q) * draw.normal(size=5000)) for q in quality])
    found = loadings(detectors)
    assert np.abs(found - quality).max() < 0.06
    share = weights(detectors)
    assert share.sum() == pytest.approx(1)
    pooled = share @ detectors
    corr = [np.corrcoef(one, truth)[0, 1] for one in (pooled, *detectors)]
    assert corr[0] > max(corr[1:])
    assert weights(np.stack([detectors[0], detectors[1]])) == pytest.approx([0.5, 0.5])


def test_ranks_share_ties_and_put_nan_last():
    assert ranks([3.0, 1.0, 3.0, float("nan")]).tolist() == [0.75, 0.375, 0.75, 0.125]
