"""The demonstration finds what it planted."""

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageColor
from rich.console import Console

from forwardinf.use.demo import demonstrate
from forwardinf.use.demo_planted import FLIPPED, plant
from forwardinf.view.demo import demo

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


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


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Run the demonstration once: what it returns, its folder, what it prints, and what it found."""
    found, told, folder = [], io.StringIO(), tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORWARDINF_CACHE", str(folder / "cache"))
        patch.setattr("forwardinf.view.demo.demonstrate", lambda **how: found.append(demonstrate(**how)) or found[0])
        state = torch.get_rng_state()
        returned = demo(folder, Console(file=told))
        assert torch.equal(torch.get_rng_state(), state)
    return returned, folder, told.getvalue(), found[0]


@pytest.mark.slow
def test_the_demonstration_finds_copies_and_culprits(shown):
    found, folder, told, _ = shown
    json.dumps(found, default=str)
    table = {row["ranking"]: row for row in found["found"]}
    copies, culprits = [key for key in found["found"][0] if key != "ranking"]
    assert found["accuracy"] > 0.95
    assert table["forwardinf: share nearest to 1"][copies] == 1.0
    assert table["forwardinf: highest score"][culprits] > 0.95
    assert table["random (free)"][culprits] < 0.8
    page = (folder / "report.html").read_text()
    assert "labelled" in page
    assert page.count("data:image/png") > 50
    assert "own copy ranked first" in told
    caption = " ".join(README.read_text().split())  # the numbers there are those of `make demo`
    best, near = table["forwardinf: highest score"][culprits], table["pixel neighbour (free)"][culprits]
    assert f"{found['flipped']} of {found['training']:,} training labels were flipped" in caption
    assert f"(AUROC {best:.3f}; nearest pixels, the free baseline, {near:.2f})".replace(" 0.", " .") in caption
    assert f"{best:.3f}" in told, "and those that it prints"


def test_the_picture_shows_wrong_predictions_beside_their_proponents(shown):
    spec = importlib.util.spec_from_file_location("make_demo_picture", ROOT / "docs" / "make_demo_picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with Image.open(module.PICTURE) as committed:
        size, colours = committed.size, committed.convert("RGB").getcolors(1 << 16)
    drawn = module.draw(shown[3])
    assert drawn.size == size, "run `make docs`"
    frames = {colour: count for count, colour in colours}
    flipped = ImageColor.getrgb(module.FLIPPED)
    assert frames[flipped] == pytest.approx({c: n for n, c in drawn.getcolors(1 << 20)}[flipped], rel=0.1), (
        "run `make docs`"
    )


@pytest.mark.whole
def test_another_seed_finds_its_culprits_too():
    found = demonstrate(seed=1, progress_bar=False)
    best = found.found.set_index("ranking").iloc[:, 1]
    assert best["forwardinf: highest score"] > 0.9
    assert best["forwardinf: highest score"] > best["pixel neighbour (free)"]
