import json
import time

import pytest
import torch
from cases import attribute, case, feed
from torch import nn

from forwardinf.core.errors import ModelError
from forwardinf.read.tune import may_turn, tune
from forwardinf.tasks.task import Classification

PLENTY = 10**6  # rows to be read: everything can be afforded


class Sleepy(nn.Module):
    """Takes ``each`` seconds a call and ``per(rows)`` on top; counts its calls."""

    def __init__(self, each, per=lambda rows: 0.0, room=10**9):
        super().__init__()
        self.head, self.each, self.per, self.room, self.sizes = nn.Linear(4, 3), each, per, room, []

    def forward(self, x):
        if len(x) > self.room:
            raise RuntimeError("out of memory")
        self.sizes.append(len(x))
        time.sleep(self.each + self.per(len(x)))
        return self.head(x)


def asked(model, rows=600):
    given = case("cnn")
    given.model, given.task = model, Classification()
    given.train = torch.zeros(rows, 4), torch.zeros(rows, dtype=torch.long)
    return feed(given)


def test_it_picks_the_size_that_reads_fastest():
    steep = Sleepy(0.004, lambda rows: 0.0 if rows <= 64 else 0.02 * rows / 64)
    assert tune(asked(steep), range(600), None, PLENTY, None).batch_size == 64
    assert 512 not in steep.sizes, "past the best it stops"


def test_it_picks_a_small_size_where_the_model_likes_it_small():
    found = tune(asked(Sleepy(0.001, lambda rows: 0.0002 * rows**2)), range(600), None, PLENTY, None)
    assert found.batch_size <= 8


@pytest.mark.parametrize("room", [600, 100, 5, 1])
def test_it_picks_what_fits(room):
    found = tune(asked(Sleepy(0.004, room=room)), range(600), None, PLENTY, None)
    assert found.batch_size == max(size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if size <= room)
    with pytest.raises(ModelError, match="room for one example"):
        tune(asked(Sleepy(0.001, room=0)), range(600), None, PLENTY, None)


def test_a_size_that_was_asked_for_is_kept_unless_it_does_not_fit():
    model = Sleepy(0.0005)
    assert tune(asked(model), range(600), 48, PLENTY, None).batch_size == 48
    assert set(model.sizes) == {48}
    assert tune(asked(Sleepy(0.0005, room=20)), range(600), 48, PLENTY, None).batch_size == 12


def test_it_reads_no_more_than_can_be_won_back():
    model = Sleepy(0.2)
    tune(asked(model), range(600), None, 1600, None)
    assert sum(model.sizes) <= 0.08 * 1600
    assert max(model.sizes) == 32
    few = Sleepy(0.2)
    tune(asked(few), range(600), None, 200, None)
    assert sum(few.sizes) <= 0.08 * 200


def test_few_rows_are_enough():
    model = Sleepy(0.001)
    assert tune(asked(model, 3), range(3), None, PLENTY, None).batch_size <= 3
    assert max(model.sizes) <= 3


def test_it_remembers(tmp_path):
    first = tune(asked(Sleepy(0.002)), range(600), None, 1000, tmp_path / "t" / "kept.json")
    model = Sleepy(0.002)
    assert tune(asked(model), range(600), None, 1000, tmp_path / "t" / "kept.json") == first
    assert not model.sizes


@pytest.mark.parametrize("text", ["", "{", '{"format": "forwardinf.tuning/2"}', '{"format": "forwardinf.tuning/1"}', "[]",
                                  '{"format": "forwardinf.tuning/2", "tuning": {"batch": 3}}'])  # fmt: skip
def test_a_damaged_memory_is_made_anew(tmp_path, text):
    path = tmp_path / "kept.json"
    path.write_text(text)
    model = Sleepy(0.0005)
    found = tune(asked(model), range(600), 48, 1000, path)
    assert model.sizes
    assert json.loads(path.read_text())["tuning"]["batch_size"] == found.batch_size == 48


def test_a_call_remembers_its_tuning_for_the_next(cache):
    given = case("cnn")
    first = attribute(given, batch_size="auto", engine="forward")
    kept = list((cache / "tuning").glob("*.json"))
    assert len(kept) == 1
    again = attribute(given, batch_size="auto", engine="forward")
    assert list((cache / "tuning").glob("*.json")) == kept
    for name in ("batch_size", "channels_last", "seconds_per_row"):
        assert first.plan[name] == again.plan[name]


def test_the_layout_is_tried_for_convolutions_only():
    given = case("cnn")
    plain = tune(asked(Sleepy(0.0005)), range(600), 16, PLENTY, None)
    assert not plain.channels_last
    seen = set()
    handle = given.model.conv1.register_forward_pre_hook(
        lambda module, inputs: seen.add(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    images = given.train[0].repeat(1, 1, 1, 1)
    given.train = images.expand(-1, 1, -1, -1), given.train[1]
    tune(feed(given), range(40), 16, PLENTY, None)
    handle.remove()
    assert seen


@pytest.mark.parametrize(("layer", "may"), [
    (nn.Conv2d(6, 12, 1, stride=2), False), (nn.Conv2d(12, 12, 1, stride=2, groups=2), False), (nn.Conv2d(6, 12, 1), True),
    (nn.Conv2d(6, 12, 3, stride=2), True), (nn.Conv2d(64, 128, 1, stride=2), True), (nn.Linear(3, 2), False),
])  # fmt: skip
def test_a_layout_in_which_a_backward_damages_memory_is_never_tried(layer, may):
    assert may_turn(nn.Sequential(nn.Conv2d(3, 6, 3), layer) if isinstance(layer, nn.Conv2d) else layer) is may
