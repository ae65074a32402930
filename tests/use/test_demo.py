"""The demonstration finds what it planted."""

import json

import pytest
import torch

from forwardinf.use.demo import FLIPPED, demonstrate, plant
from forwardinf.view.demo import demo


def test_planted_data_is_what_it_says():
    planted = plant(0)
    images, labels = planted.train
    assert len(planted.flipped) == round(FLIPPED * (len(labels) - len(planted.copies)))
    for row, place in planted.copies.items():
        assert torch.equal(images[place], planted.test[0][row])
        assert labels[place] == planted.test[1][row]
    again = plant(0)
    assert torch.equal(labels, again.train[1])
    assert not torch.equal(labels, plant(1).train[1])


@pytest.mark.slow
def test_the_demonstration_finds_copies_and_culprits(tmp_path, capsys):
    from rich.console import Console

    state = torch.get_rng_state()
    found = demo(tmp_path, Console(stderr=True))
    assert torch.equal(torch.get_rng_state(), state)
    json.dumps(found, default=str)
    table = {row["ranking"]: row for row in found["found"]}
    copies, culprits = [key for key in found["found"][0] if key != "ranking"]
    assert found["accuracy"] > 0.95
    assert table["forwardinf: share nearest to 1"][copies] == 1.0
    assert table["forwardinf: highest score"][culprits] > 0.95
    assert table["random (free)"][culprits] < 0.8
    page = (tmp_path / "report.html").read_text()
    assert "labelled" in page
    assert page.count("data:image/png") > 50
    assert "own copy ranked first" in capsys.readouterr().err


def test_another_seed_finds_its_culprits_too():
    found = demonstrate(seed=1, progress_bar=False)
    best = found.found.set_index("ranking").iloc[:, 1]
    assert best["forwardinf: highest score"] > 0.9
    assert best["forwardinf: highest score"] > best["pixel neighbour (free)"]
