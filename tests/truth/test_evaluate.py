import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import assert_close, assert_within
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import nn

import forwardinf as fi
from forwardinf.truth.bank import Bank
from forwardinf.truth.controls import redrawn
from forwardinf.truth.retrain import half_subsets, retrain

N, Q, DECAY = 40, 6, 1.0


def digits(classes=3):
    """Three kinds of digits, shrunk to 16 numbers: a convex problem that fits in milliseconds."""
    images, labels = load_digits(return_X_y=True)
    rows = np.flatnonzero(labels < classes)
    small = torch.tensor(images[rows]).view(-1, 1, 8, 8)
    small = F.avg_pool2d(small, 2).flatten(1) / 16
    return small, torch.tensor(labels[rows])


X, Y = digits()
TRAIN, QUERIES = (X[:N], Y[:N]), (X[100 : 100 + Q], Y[100 : 100 + Q])


def fit(positions, seed):
    """Softmax regression to its optimum by Newton's method, float64, dense Hessian. The seed changes nothing."""
    x, y = TRAIN[0][positions], TRAIN[1][positions]
    x1, theta = torch.cat([x, torch.ones(len(x), 1)], 1), torch.zeros(3, 17, dtype=torch.float64)
    for _ in range(12):
        p = (x1 @ theta.T).softmax(1)
        gradient = (p - F.one_hot(y, 3)).T @ x1 + DECAY * theta
        spread = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        hessian = torch.einsum("nab,ni,nj->aibj", spread, x1, x1).reshape(51, 51) + DECAY * torch.eye(51)
        theta = theta - torch.linalg.solve(hessian, gradient.flatten()).view(3, 17)
    assert gradient.abs().max() < 1e-9, "converged"
    model = nn.Linear(16, 3).double()
    with torch.no_grad():
        model.weight.copy_(theta[:, :16])
        model.bias.copy_(theta[:, 16])
    return model


def newton_scores():
    """gᵢᵀ H⁻¹ g_q at the optimum, by a dense Hessian."""
    model = fit(np.arange(N), 0)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def losses(theta, x, y):
        return F.cross_entropy(x @ theta[:48].view(3, 16).T + theta[48:], y, reduction="none")

    hessian = torch.autograd.functional.hessian(lambda t: losses(t, *TRAIN).sum() + DECAY / 2 * t.square().sum(), flat)
    gradients = [
        torch.autograd.functional.jacobian(lambda t, data=data: losses(t, *data), flat) for data in (TRAIN, QUERIES)
    ]
    return (gradients[1] @ torch.linalg.solve(hessian, gradients[0].T)).numpy()


SCORES = newton_scores()


def evaluate(scores=SCORES, **given):
    settings = {"task": fi.Classification(), "train_fn": fit, "progress": False, **given}
    return fi.evaluate(scores, settings.pop("queries", QUERIES), **settings)


def mean_of(found, scores, truth, metric):
    return found.table.set_index(["scores", "truth", "metric"]).loc[(scores, truth, metric), "mean"]


def counting(train_fn=fit, fail_at=None):
    """Return (train_fn, calls): remembers its calls; raises at one of them."""
    calls = []

    def counted(positions, seed):
        calls.append((tuple(positions), seed))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return train_fn(positions, seed)

    counted.version = "counted fit"
    return counted, calls


# -- truths ------------------------------------------------------------------------------------------------------------


def test_newton_scores_rank_as_exact_leave_one_out_does_on_a_convex_model():
    found = evaluate(leave_out=N)
    assert found.left_out == list(range(N))
    assert mean_of(found, "scores", "loo", "spearman") > 0.98, "scores tell what retraining does"
    assert mean_of(found, "scores", "loo", "pearson") > 0.95
    assert mean_of(found, "scores", "loo", "top 10") > 0.8
    assert abs(mean_of(found, "control: shuffled", "loo", "spearman")) < 0.2


def test_leave_one_out_is_what_retraining_by_hand_gives():
    found = evaluate(leave_out=[3, 17, 30])
    query = fi.Classification().loss
    before = query(fit(np.arange(N), 0), QUERIES)
    for column, place in enumerate([3, 17, 30]):
        after = query(fit(np.delete(np.arange(N), place), 0), QUERIES)
        assert_within(
            found.leave_one_out[:, column], (after - before).detach(), atol=1e-12, why="the same float64 fits"
        )
    want = [spearmanr(row[[3, 17, 30]], realised)[0] for row, realised in zip(SCORES, found.leave_one_out, strict=True)]
    assert_within(found.per_query["scores", "loo", "spearman"], want, atol=1e-12, why="by definition")


def test_newton_scores_predict_random_halves_and_controls_do_not():
    found = evaluate(subsets=40)
    assert mean_of(found, "scores", "lds", "spearman") > 0.9
    assert abs(mean_of(found, "control: shuffled", "lds", "spearman")) < 0.25
    assert mean_of(found, "control: another query's", "lds", "spearman") < 0.7
    assert set(found.baselines["scores"]) == {"control: shuffled", "control: another query's"}
    assert found.bank.masks.sum(1).tolist() == [N // 2] * 40
    again = fi.lds(SCORES, found.bank.masks, found.bank.outputs, outputs_are="measure")
    assert again.mean == mean_of(found, "scores", "lds", "spearman")


def test_removing_proponents_hurts_more_than_removing_at_random():
    found = evaluate({"newton": SCORES, "opposite": -SCORES}, remove=(4, 8), remove_queries=4)
    curve = found.curve.set_index(["scores", "k"])
    assert curve.loc[("newton", 8), "fall"] > curve.loc[("newton", 4), "fall"] > 0
    assert curve.loc[("newton", 4), "excess_low"] > 0
    assert curve.loc[("opposite", 4), "excess"] < 0
    assert curve.loc[("newton", 4), "random_fall"] == curve.loc[("opposite", 4), "random_fall"]
    best = np.argsort(-SCORES[1], kind="stable")[:4]
    model = fit(np.setdiff1d(np.arange(N), best), 0)
    query = fi.Classification().loss
    after = (query(model, QUERIES) - query(fit(np.arange(N), 0), QUERIES)).detach()[1]
    few = evaluate(SCORES[:2], queries=tuple(part[:2] for part in QUERIES), remove=(4,))
    assert few.curve["queries"].item() == 2
    one = evaluate(SCORES[1:2], queries=tuple(part[1:2] for part in QUERIES), remove=(4,))
    assert_within([one.curve["fall"].item()], [float(after)], atol=1e-12, why="the same float64 fits")
    assert one.curve["flipped"].item() in (0.0, 1.0)


def test_a_query_measure_other_than_the_loss_is_what_is_held_against():
    margin = fi.Classification(query="margin")
    found = evaluate(leave_out=[1, 2, 3], task=margin)
    plain = evaluate(leave_out=[1, 2, 3])
    assert np.abs(found.leave_one_out - plain.leave_one_out).max() > 1e-3
    model = fit(np.arange(N), 0)
    asked = fi.Classification(query="predicted")
    with pytest.raises(fi.SettingError, match="model="):
        evaluate(leave_out=[1, 2], task=asked)
    wrong = (QUERIES[0], (QUERIES[1] + 1) % 3)  # asked by their prediction, labels do not matter
    found = evaluate(leave_out=[1, 2, 3], task=asked, model=model, queries=wrong)
    predicted = model(QUERIES[0]).argmax(1)
    want = F.cross_entropy(
        fit(np.delete(np.arange(N), 2), 0)(QUERIES[0]), predicted, reduction="none"
    ) - F.cross_entropy(model(QUERIES[0]), predicted, reduction="none")
    assert_close(found.leave_one_out[:, 1], want, rtol=1e-6, why="measured in the task's own float64")


def test_a_task_without_logits_has_falls_but_no_flips():
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    found = evaluate(task=loss, remove=(4,), remove_queries=2)
    assert found.curve["fall"].item() > 0
    assert np.isnan(found.curve["flipped"].item())


def test_scores_of_an_untrained_model_are_a_control_and_the_model_stays_as_it_was():
    model = fit(np.arange(N), 0)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []

    def scores_of(given):
        seen.append(given)
        return fi.attribute(given, TRAIN, QUERIES, task=fi.Classification(), progress=False)

    found = evaluate(leave_out=N, model=model, attribute_fn=scores_of)
    assert seen[0] is not model
    assert not torch.equal(seen[0].weight, model.weight)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert mean_of(found, "control: untrained model's", "loo", "spearman") < mean_of(found, "scores", "loo", "spearman")
    assert "untrained model" in found.notes[0]
    with pytest.raises(fi.SettingError, match="model="):
        evaluate(leave_out=2, attribute_fn=scores_of)


def test_weights_are_redrawn_the_same_way_under_one_seed_and_never_left_as_they_were():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    state = torch.get_rng_state()
    one, other, third = redrawn(model, 0), redrawn(model, 0), redrawn(model, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one[3].weight, other[3].weight)
    assert not torch.equal(one[3].weight, third[3].weight)
    assert not torch.equal(one[0].weight, model[0].weight)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    with pytest.raises(fi.ModelError, match="reset_parameters"):
        redrawn(nn.Sequential(Own()))


# -- a bank of one's own -----------------------------------------------------------------------------------------------


@pytest.fixture
def planted():
    draw = np.random.default_rng(0)
    masks, effects = draw.random((40, 12)) < 0.5, draw.normal(size=(5, 12))
    return Bank(masks, masks @ effects.T, "measure"), effects


def test_planted_scores_are_perfect_and_a_folder_does_as_well(planted, tmp_path):
    bank, effects = planted
    noisy = effects + np.random.default_rng(1).normal(size=effects.shape)
    found = fi.evaluate({"planted": effects, "noisy": fi.Scores.from_array(noisy)}, bank=bank.save(tmp_path / "b"))
    assert mean_of(found, "planted", "lds", "spearman") == pytest.approx(1)
    assert 0.3 < mean_of(found, "noisy", "lds", "spearman") < 0.95
    assert len(found.table) == 2 * 6, "two methods with two controls each; two metrics"
    assert found.curve.empty


def test_the_result_is_saved_and_is_json(planted, tmp_path):
    bank, effects = planted
    found = fi.evaluate(effects, bank=bank)
    folder = found.save(tmp_path / "e")
    kept = json.loads((folder / "evaluation.json").read_text())
    assert len(kept.pop("checksum")) == 32
    assert kept == json.loads(json.dumps(found.to_dict()))
    assert kept["table"][0]["mean"] == pytest.approx(1)
    assert kept["table"][0]["ceiling"] is None, "one seed: NaN is no JSON"
    assert fi.load_bank(folder / "bank").masks.shape == (40, 12)
    assert (folder / "table.csv").read_text().startswith("scores,truth,metric")
    assert found.threshold is None
    assert found.false_positive_rate is None


# -- retraining --------------------------------------------------------------------------------------------------------


def test_a_killed_run_resumes_and_equals_an_uninterrupted_one(tmp_path):
    whole = evaluate(subsets=8, seeds=2, leave_out=[0, 5], remove=(3,), remove_queries=2)
    failing, calls = counting(fail_at=12)
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            subsets=8, seeds=2, leave_out=[0, 5], remove=(3,), remove_queries=2, train_fn=failing, output_dir=tmp_path
        )
    assert len(calls) == 12
    resuming, more = counting()
    found = evaluate(
        subsets=8, seeds=2, leave_out=[0, 5], remove=(3,), remove_queries=2, train_fn=resuming, output_dir=tmp_path
    )
    assert len(calls) - 1 + len(more) == 16 + 2 + 4 + 2 + 4, "subsets, full, left out, random, best: none twice"
    assert found.bank.outputs.tobytes() == whole.bank.outputs.tobytes()
    assert found.table.equals(whole.table)
    assert found.curve.equals(whole.curve)
    idle, none = counting()
    evaluate(subsets=8, seeds=2, leave_out=[0, 5], remove=(3,), remove_queries=2, train_fn=idle, output_dir=tmp_path)
    assert none == []


def test_every_subset_training_has_a_seed_of_its_own_and_paired_ones_share_theirs():
    counted, calls = counting()
    evaluate(subsets=4, seeds=2, leave_out=[0, 5], train_fn=counted, seed=7)
    subsets, full, left_out = calls[:8], calls[8:10], calls[10:]
    assert len({seed for _, seed in subsets}) == 8
    assert [seed for _, seed in full] == [7, 8]
    assert {seed for _, seed in left_out} == {7, 8}
    assert not {seed for _, seed in subsets} & {7, 8}


def test_another_runs_folder_is_refused(tmp_path):
    evaluate(subsets=3, output_dir=tmp_path)
    with pytest.raises(fi.RunMismatch, match="members"):
        evaluate(subsets=4, output_dir=tmp_path)
    with pytest.raises(fi.RunMismatch, match="train_fn"):
        evaluate(subsets=3, output_dir=tmp_path, train_fn=counting()[0])
    (tmp_path / "other" / "trainings" / "subsets").mkdir(parents=True)
    (tmp_path / "other" / "trainings" / "subsets" / "mine.txt").write_text("keep me")
    with pytest.raises(fi.FileError, match="other files"):
        evaluate(subsets=3, output_dir=tmp_path / "other")


def test_a_damaged_training_is_named(tmp_path):
    evaluate(subsets=3, output_dir=tmp_path)
    path = tmp_path / "trainings" / "subsets" / "t-00001-s-000.npz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(fi.FileError, match="t-00001-s-000"):
        evaluate(subsets=3, output_dir=tmp_path)


def test_generators_are_seeded_for_each_training_and_given_back():
    def noisy(positions, seed):
        return nn.Linear(16, 3).double()  # drawn from the global generator

    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = evaluate(subsets=3, train_fn=noisy)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    assert evaluate(subsets=3, train_fn=noisy).bank.outputs.tobytes() == one.bank.outputs.tobytes()


def test_the_time_is_said_first(capsys):
    evaluate(subsets=3, progress=True)
    told = capsys.readouterr().err
    assert "subsets: training 3 times, about 0 s" in told


def test_half_subsets_are_halves_differ_and_repeat():
    masks = half_subsets(11, 50, 0.5, 3)
    assert masks.sum(1).tolist() == [6] * 50
    assert len({row.tobytes() for row in masks}) > 45
    np.testing.assert_array_equal(masks, half_subsets(11, 50, 0.5, 3))
    assert 0.3 < masks.mean(0).min() <= masks.mean(0).max() < 0.8
    for bad in ((0, 0.5), (5, 0.0), (5, 1.0)):
        with pytest.raises(fi.SettingError):
            half_subsets(11, *bad, 0)


@pytest.mark.parametrize(
    ("train_fn", "told"),
    [
        (lambda positions, seed: None, "Return the model"),
        (lambda positions, seed: nn.Linear(16, 3).double().requires_grad_(False).apply(_ruin), "diverged"),
    ],
)
def test_a_training_that_went_wrong_is_refused(train_fn, told):
    with pytest.raises(fi.Error, match=told):
        evaluate(subsets=3, train_fn=train_fn)


def _ruin(module):
    module.weight.fill_(float("nan"))


def test_outputs_that_change_their_kind_are_refused():
    kinds = iter([{"a": np.zeros(2)}, {"a": np.zeros(3)}])
    with pytest.raises(fi.DataError, match="same outputs"):
        retrain(lambda rows, seed: 1, [[0], [1]], lambda model: next(kinds), seeds=[[0], [0]], progress_bar=False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "nothing"),
        ({"subsets": 3, "train_fn": None}, "train_fn="),
        ({"subsets": 3, "queries": None}, "queries"),
        ({"subsets": 3, "bank": Bank(np.ones((3, N), bool), np.zeros((3, Q)), "loss")}, "both"),
        ({"leave_out": N + 1}, "from 0 to 40"),
        ({"leave_out": [1, 1]}, "different positions"),
        ({"leave_out": [1]}, "ranked"),
        ({"leave_out": True}, "from 0 to 40"),
        ({"remove": (0,)}, "from 1 to 39"),
        ({"remove": (3, 3)}, "different numbers"),
        ({"subsets": 3, "queries": (QUERIES[0][:2], QUERIES[1][:2])}, "6 queries"),
        ({"scores": {}}, "scores"),
        ({"scores": SCORES[0]}, "shape"),
        ({"scores": {"a": SCORES, "b": SCORES.T}}, "rows are queries"),
        ({"bank": Bank(np.ones((3, 5), bool), np.zeros((3, Q)), "loss")}, "5 training examples"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(given, told):
    with pytest.raises(fi.Error, match=told):
        evaluate(**given)
