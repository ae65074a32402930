"""Wrong labels are found before memorisation and after it, better than by what is free; refusals have their words."""

import json

import numpy as np
import pytest
import torch
from planted import planted

import forwardinf as fi
from forwardinf.tasks.task import Task
from forwardinf.use.demo_uses import auroc


def mislabeled(found, **settings):
    return fi.mislabeled(found.model, found.train, **{"task": fi.Classification(), "progress": False, **settings})


@pytest.mark.parametrize(("epochs", "memorised"), [(6, False), (120, True)])
def test_wrong_labels_come_first_before_and_after_memorisation(epochs, memorised):
    found = planted(epochs, 0.1)
    bad = found.flipped.numpy()
    result = mislabeled(found)
    fit = float((found.model(found.train[0]).argmax(1) == found.train[1]).double()[found.flipped].mean())
    assert (fit > 0.9) == memorised
    ours = auroc(bad, -result.table["label_score"])
    free = {name: auroc(bad, values) for name, values in result.baselines.items()}
    assert ours > 0.98
    assert ours >= max(free.values()) - 0.005, (ours, free)
    if memorised:
        assert ours > free["loss"] + 0.01
        assert any("memorised" in note for note in result.notes)
    assert result.table["label_score"].between(0, 1).all()
    issue = result.table["is_label_issue"].to_numpy()
    assert bad[issue].mean() > 0.8
    assert ((result.table["label_score"] <= result.threshold).to_numpy() == issue).all()
    right = result.table["predicted_label"].to_numpy() == found.truth.numpy()
    assert right[bad & issue].mean() > 0.7
    assert sum(result.weights.values()) == pytest.approx(1, abs=1e-3)


def test_clean_examples_give_the_rate_and_one_more_detector():
    found = planted(6, 0.1)
    result = mislabeled(found, clean=(found.test[0][:100], found.test[1][:100]))
    assert 0 <= result.false_positive_rate <= 0.05
    assert "clean_reaction" in result.table
    wrong = (found.test[0][:100], (found.test[1][:100] + 1) % 10)
    assert mislabeled(found, clean=wrong).false_positive_rate > 0.3  # all of these are issues indeed
    assert mislabeled(found).false_positive_rate is None


def test_the_table_is_shaped_like_cleanlabs(tmp_path):
    found = planted(6, 0.1)
    ids = [f"<b>{n}" for n in range(len(found.truth))]
    result = mislabeled(found, ids=ids)
    columns = ["is_label_issue", "label_score", "given_label", "predicted_label", "loss", "self_influence"]
    assert list(result.table.columns)[:6] == columns
    assert result.table.index.tolist() == ids
    assert result.table["given_label"].tolist() == found.train[1].tolist()
    result.save(tmp_path)
    assert json.loads((tmp_path / "use.json").read_text())["weights"]
    page = result.report(tmp_path / "page.html").read_text()
    assert "<b>" not in page
    assert "data:image/png" in page


def test_two_classes_with_one_logit():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=draw)
    truth = (x[:, 0] > 0).long()
    given = truth.clone()
    given[:20] = 1 - given[:20]
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], given.float()).backward()
        optimiser.step()
    result = fi.mislabeled(model, (x, given.float()), task=fi.Classification(binary=True), progress=False)
    assert auroc((given != truth).numpy(), -result.table["label_score"]) > 0.95
    assert set(result.table["given_label"]) == {0, 1}


class Without(Task):
    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("use", [fi.mislabeled, fi.memorized])
def test_a_task_without_logits_is_told_which_method_is_missing(use):
    found = planted(6, 0.1)
    with pytest.raises(fi.TaskError, match=r"logits\(model, batch\).*Define it|Classification"):
        use(found.model, found.train, task=Without(), progress=False)
    with pytest.raises(fi.TaskError, match=r"logits\(model, batch\)"):
        use(found.model, found.train, task=lambda model, batch: Without().loss(model, batch), progress=False)


def test_what_is_refused():
    found = planted(6, 0.1)
    with pytest.raises(fi.DataError, match="at least 20"):
        fi.mislabeled(found.model, (found.train[0][:5], found.train[1][:5]), task=fi.Classification())
    with pytest.raises(fi.DataError, match="at least 20"):
        mislabeled(found, clean=(found.test[0][:5], found.test[1][:5]))
    with pytest.raises(fi.DataError, match="unique"):
        mislabeled(found, ids=[0] * len(found.truth))
    labels = found.train[1].clone()
    labels[3] = -100
    with pytest.raises(fi.TaskError, match="row 3"):
        fi.mislabeled(found.model, (found.train[0], labels), task=fi.Classification(), progress=False)
    assert np.isfinite(mislabeled(found).table["label_score"]).all()
