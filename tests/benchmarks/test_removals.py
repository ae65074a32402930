"""The evaluations of trace_images and trace, in small: what they say, and that a second run trains nothing again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from close import assert_close

pytest.importorskip("diffusers")

from benchmarks import kept, page
from benchmarks.images import customised, denoisers, removal, rows, tables, timesteps
from benchmarks.images.bench import Bench, Size
from benchmarks.images.custom_models import customised_ddpm
from benchmarks.text import removal as texts
from benchmarks.text import retraining
from benchmarks.text.tables import removal_tables
from benchmarks.text.webnlg import Recipe
from forwardinf.score.whiten import whitened

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"), pytest.mark.data]
SMALL = Size(
    images=40, width=16, steps=40, queries=2, removed=10, seeds=(0,), randoms=1, halves=3, judged=2, samples=2, alike=3,
    customise=10, grid=(1, 4), reference=4, timesteps=2, timesteps_conv=1, timesteps_slow=1, fit=5, unlearned=1,
    conditioned_steps=2, classified=5,
)  # fmt: skip


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch, data_folder):
    monkeypatch.setattr(kept, "CACHE", tmp_path / "kept")
    monkeypatch.setattr(page, "DOCS", tmp_path / "docs")
    return tmp_path


def ran(*names):
    """Return what these parts find, as the runner keeps it."""
    parts = {"removal": removal.removal, "fresh": removal.fresh, "halves": removal.halves, "timesteps": timesteps.timesteps,
             "conditioned": customised.conditioned}  # fmt: skip
    return {name: {"found": json.loads(json.dumps(parts[name](SMALL)))} for name in names}


@pytest.mark.whole
@pytest.mark.slow
def test_removal_in_small(folders, monkeypatch):
    found = ran("removal")
    lines = {row["row"]: row for row in found["removal"]["found"]["rows"]}
    assert set(lines) == {rows.RANDOM, *removal.REMOVED_BY}
    assert all(len(row["per query"]) == 2 for row in lines.values())
    assert lines[rows.RANDOM]["above random"]["mean"] == 0
    assert f"| {rows.OURS} |" in tables.tables(found)
    monkeypatch.setattr(denoisers, "train", None)
    assert ran("removal") == found, "kept: nothing is trained or read again"


@pytest.mark.slow
@pytest.mark.whole
def test_every_part_in_small(folders, monkeypatch):
    found = ran("removal", "fresh", "halves", "timesteps")
    lines = {row["row"]: row for row in found["removal"]["found"]["rows"]}
    assert set(lines) == {rows.RANDOM, *removal.REMOVED_BY}
    assert all(len(row["per query"]) == 2 for row in lines.values())
    assert lines[rows.RANDOM]["above random"]["mean"] == 0
    assert {path.stem for path in (folders / "docs").iterdir()} == {"trace-images-regenerated", "trace-images-removal"}
    assert {row["row"] for row in found["fresh"]["found"]["rows"]} == {
        rows.RANDOM,
        rows.PIXELS,
        rows.OURS,
        rows.JOINTLY,
    }
    foretold = {row["row"]: row for row in found["halves"]["found"]["rows"]}
    assert foretold[rows.PIXELS]["above pixel neighbours"]["mean"] == 0
    assert {rows.OURS, rows.HOLD, rows.ABU} <= set(foretold)
    grid = found["timesteps"]["found"]["models"][1]["grid"]
    assert [line["timesteps"] for line in grid] == [1, 4]
    assert all(0 <= line[rows.OURS]["Recall@10"]["mean"] <= 1 for line in grid)
    told = tables.tables(found)
    assert f"| {rows.OURS} |" in told
    assert "**customised to trousers**" in told
    monkeypatch.setattr(denoisers, "train", None)
    again = ran("removal", "fresh", "halves", "timesteps")
    assert again == found, "kept: nothing is trained or read again"


@pytest.mark.slow
@pytest.mark.whole
def test_customised_models_in_small():
    found = ran("conditioned")["conditioned"]["found"]
    found += [customised.ranked(customised_ddpm("item", small), small)
              for small in [replace(SMALL, images=12, samples=2, customise=2, alike=2)]]  # fmt: skip
    for model, exemplars in zip(found, (8, 1), strict=True):
        assert model["exemplars"] == exemplars
        assert {row["row"] for row in model["rows"]} >= {rows.RANDOM, rows.PIXELS, rows.OURS, rows.ABU_LINEAR}
        assert all(0 <= row["mAP"]["mean"] <= 1 for row in model["rows"])
    assert [row["mAP"]["count"] for row in found[0]["rows"] if row["row"] == rows.ABU] == [1], (
        "asked for the first sample"
    )
    assert "Customised: item, MNIST DDPM" in tables.tables({"customised": {"found": found}})


def test_what_is_left_out_of_training_does_not_count():
    bench = Bench.of(SMALL)
    without = bench.model(0, [1, 2, 3])
    bench.images[1:4] = 0.7
    other = bench.model(0, [1, 2, 3])
    for one, two in zip(without.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(bench.model(0).leave.weight, other.leave.weight)


def test_held_sketches_are_the_scores_of_hold():
    draw = torch.Generator().manual_seed(0)
    train, asked = torch.randn(30, 50, generator=draw), torch.randn(4, 50, generator=draw)
    found = rows.by_gradients({"error": train}, {"error": asked})[rows.HOLD]
    plain = asked.double() @ train.double().T
    tempers = [rows.double().norm(dim=1) ** -0.5 for rows in (asked, train)]
    want = whitened(plain, responses=train, temper=0.5) * tempers[0][:, None] * tempers[1]
    assert_close(found, want / 30, rtol=1e-5, why="float32 rows; the same up to N")


def test_recall_and_precision_are_what_they_are_called():
    scores = np.array([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0], [np.nan] * 5])
    found = customised.measured(scores, [0, 2])
    assert found["mAP"][:2] == pytest.approx([(1 + 2 / 3) / 2, (1 / 3 + 2 / 5) / 2])
    assert found["Recall@10"][:2].tolist() == [1, 1]
    assert np.isnan(found["mAP"][2])


@pytest.mark.whole
def test_removed_texts_in_small():
    recipe = Recipe(vocabulary=300, width=8, layers=1, heads=2, epochs=1, batch=32, kept=())
    small = retraining.Size(rows=retraining.ROWS, facts=3, texts=30, lexical=3, removed=3, seeds=(0,), recipe=recipe)
    found = texts.evaluate(small)
    lines = {row["row"]: row for row in found["rows"]}
    assert set(lines) == {texts.RANDOM, *retraining.ROWS}
    assert lines[retraining.TRUE]["P@10"]["mean"] == 1
    assert all(len(row["per fact"]) == 3 for row in lines.values())
    assert f"| {retraining.OURS} |" in removal_tables(found)
