"""What is known by heart: wrong labels that a model fits, and copies of queries that its predictions rest on."""

import pytest
import torch
from close import assert_close
from planted import fitted, planted

import forwardinf as fi
from forwardinf.use.demo_uses import auroc


def test_wrong_labels_that_the_model_fits_are_known_by_heart(tmp_path):
    found = planted(120, 0.1)
    result = fi.memorized(found.model, found.train, task=fi.Classification(), progress=False)
    bad = found.flipped.numpy()
    ours = auroc(bad, result.table["memorization"])
    assert ours > 0.97
    assert ours > auroc(bad, result.table["self_influence"])
    assert ours > auroc(bad, result.table["loss"])
    assert result.table["memorization"][bad].mean() > 0.25
    assert result.table["memorization"][~bad].median() < 0.1
    assert result.table["is_memorized"].tolist() == (result.table["memorization"] >= 0.25).tolist()
    assert list(result.table.columns) == ["memorization", "self_influence", "loss", "is_memorized"]
    assert result.false_positive_rate is None
    assert len(result.pairs) == 0
    result.save(tmp_path)
    assert (tmp_path / "pairs.parquet").is_file()


@pytest.mark.whole
def test_a_query_with_an_odd_label_rests_on_its_own_copy(tmp_path):
    found = planted()
    odd = (found.test[0][:10], (found.test[1][:10] + 1) % 10)  # nothing else in the training set says so
    train = (torch.cat([found.train[0], odd[0]]), torch.cat([found.train[1], odd[1]]))
    model = fitted(*train, epochs=60)
    result = fi.memorized(model, train, odd, task=fi.Classification(), progress=False, k=3,
                          query_ids=[f"<i>{n}" for n in range(10)])  # fmt: skip
    first = result.pairs.groupby("query", sort=False).first()
    assert first["train"].tolist() == list(range(400, 410))
    assert (first["influence"] > 0.05).all()
    assert result.pairs.groupby("query")["influence"].apply(lambda values: values.is_monotonic_decreasing).all()
    page = result.report(tmp_path / "page.html").read_text()
    assert "<i>" not in page
    assert "rest on" in page


def test_the_column_is_what_self_influence_says_and_decides_nothing():
    found = planted(6, 0.1)
    train = tuple(part[:80] for part in found.train)
    settings = {"task": fi.Classification(), "progress": False}
    tables = {}
    for direction in ("plain", "gfim", fi.Perturbation("plain", reading="loss")):
        rule = direction if isinstance(direction, fi.Perturbation) else fi.Perturbation(direction, reading="auto")
        result = fi.memorized(found.model, train, direction=direction, **settings)
        want = fi.self_influence(found.model, train, direction=rule, **settings)
        assert_close(result.table["self_influence"], want.values, rtol=1e-4, why="float32, formed in another way")
        assert result.units["self_influence"] == f"{want.unit} per unit step"
        tables[str(direction)] = result.table.drop(columns="self_influence")
    first, *others = tables.values()
    assert all(first.equals(table) for table in others)
    with pytest.raises(fi.SettingError, match="nonsense"):
        fi.memorized(found.model, train, direction="nonsense", **settings)
