"""The trunk engine: the same losses as whole forwards, by the last layers alone; what cannot be cut is refused by name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import QUERIES, ROWS, attribute, case, crossed, feed
from close import assert_close
from given import Packed
from torch import nn

import forwardinf as fi
from forwardinf.perturb.parameters import select
from forwardinf.read import cut as module
from forwardinf.read.cut import capture, find_cut, rest
from forwardinf.read.trunk import TrunkEngine, TrunkFiles

SAME = "float64, the same operations on the same numbers"
LAST = {"cnn": "head.*", "resnet": ("stages.1.*", "head.*"), "transformer": "blocks.1.linear*", "unet": "conv_out.*"}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path / "cache"))


RULES = {"rise": {"rise": 0.1, "two_sided": True}, "linear": {"length": "linear"}}


@pytest.mark.parametrize(("name", "which"), crossed(RULES, unet=["linear"]))
def test_scores_are_those_of_whole_forwards(name, which):
    given = case(name, torch.float64)
    rule = fi.Perturbation(parameters=LAST[name], **RULES[which])
    want = attribute(given, perturbation=rule)
    for there in (0, ROWS):  # the second finds its trunk in the cache
        found = attribute(given, perturbation=rule, engine="trunk")
        assert found.plan["engine"] == "trunk"
        assert found.plan["trunk_rows"] == there
        assert found.plan["trunk_bytes"] > 0
        assert_close(found.values, want.values, rtol=1e-6, why=SAME)
        assert_close(found.rise, want.rise, rtol=1e-9, why=SAME)
        assert_close(found.cross, want.cross, rtol=1e-6, why=SAME)
    assert "kept on disk" in " ".join(found.notes)
    assert found.cost["forwards"] == QUERIES**2 * (2 if rule.both_sides else 1)  # the queries' own; no other whole one


def test_a_run_that_lost_a_piece_reads_it_again(tmp_path):
    given = case("resnet", torch.float64)
    rule = fi.Perturbation(parameters=LAST["resnet"], length=0.05)
    want = attribute(given, perturbation=rule, engine="trunk", output_dir=tmp_path / "run", shard_rows=20)
    (tmp_path / "run" / "done.json").unlink()
    lost = sorted((tmp_path / "run" / "scores").glob("b-*/s-00001.parquet"))
    assert lost
    lost[0].unlink()
    found = attribute(given, perturbation=rule, engine="trunk", output_dir=tmp_path / "run", shard_rows=20)
    assert np.array_equal(found.values, want.values)


def test_only_the_rest_is_run():
    given = case("resnet", torch.float64)
    reader, ran = feed(given), []
    cut = find_cut(reader, select(given.model, ("head.*",)), range(8))
    assert cut.name == "head"
    assert set(cut.trunk) == {"stages"}
    want, kept = capture(reader, cut, range(8))
    given.model.stages[0].conv1.register_forward_hook(lambda *_: ran.append(1))
    assert torch.equal(rest(reader, cut, range(8), kept), want)
    assert not ran
    assert "forward" not in vars(given.model)
    assert "forward" not in vars(given.model.head)


def test_a_cut_that_is_known_is_the_only_one_tried(monkeypatch):
    given, tried = case("resnet", torch.float64), []
    reader, moved = feed(given), select(given.model, LAST["resnet"])
    one = module._tried
    monkeypatch.setattr(module, "_tried", lambda *args: tried.append(args[1].name) or one(*args))
    cut = find_cut(reader, moved, range(8))
    searched = len(tried)
    assert find_cut(reader, moved, range(8), at=cut.name) == cut
    assert tried[searched:] == [cut.name]
    with pytest.raises(fi.ModelError, match="where an earlier plan cut"):
        find_cut(reader, moved, range(8), at="elsewhere")


def test_candidates_are_parts_of_batches():
    given = case("cnn", torch.float64)
    rule, wanted = fi.Perturbation(parameters="head.*", length=0.05), [[1, 25], [0, 39], [20]]
    want = attribute(given, perturbation=rule, candidates=wanted)
    found = attribute(given, perturbation=rule, candidates=wanted, engine="trunk")
    assert np.array_equal(np.isnan(found.values), np.isnan(want.values))
    assert_close(np.nan_to_num(found.values), np.nan_to_num(want.values), rtol=1e-6, why=SAME)


def test_documents_packed_in_rows():
    given = Packed()
    parameters = select(given.model, ("blocks.0.linear2.*",))
    reader = feed(given)
    reader.examples.seal(range(9), lambda done: None, given.task.parts)
    cut = find_cut(reader, parameters, range(4))
    assert cut.name == "blocks.0"  # torch's fast path never calls what is inside


def test_files_are_checked_and_damaged_ones_are_read_again(tmp_path):
    given = case("cnn")
    reader = feed(given)
    cut = find_cut(reader, select(given.model, ("head.*",)), range(8))
    files = TrunkFiles(tmp_path)
    engine = TrunkEngine(reader, 16, cut, files)
    want = engine.losses(range(ROWS))
    assert (engine.forwards, len(list((tmp_path / "16").iterdir()))) == (ROWS, 3)
    assert torch.equal(engine.losses(range(ROWS)), want)
    assert engine.forwards == ROWS
    path = tmp_path / "16" / "b-000001.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    again = TrunkEngine(reader, 16, cut, TrunkFiles(tmp_path))
    assert torch.equal(again.losses(range(ROWS)), want)
    assert again.forwards == 16
    assert torch.equal(again.losses([3, 17, 18, 39]), want[[3, 17, 18, 39]])
    with pytest.raises(fi.FileError, match="room for"):
        files.need(2**60)


class Skip(nn.Module):
    """The first layer goes around the last."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        hidden = self.first(x)
        return hidden + self.last(F.relu(hidden))


class Shared(nn.Module):
    """A layer of the trunk serves again after the cut; an activation writes in place to what the trunk gave."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.mid, self.last = (
            nn.Linear(4, 3),
            nn.ReLU(inplace=True),
            nn.Linear(3, 3),
            nn.Linear(3, 3),
        )

    def forward(self, x):
        hidden = F.relu_(self.mid(self.act(self.first(x))))
        return self.last(self.act(self.last(hidden)))


class Direct(nn.Module):
    """The model itself uses a parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.first(x) * self.scale


class Tied(nn.Module):
    """What moves is used by the trunk too, without a call."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.first(x @ self.last.weight))


class Wayward(nn.Module):
    """Where the forward goes depends on the first layer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        hidden = self.first(x)
        if not bool(hidden.isfinite().all()):
            raise ValueError("not finite")
        return self.last(hidden)


def small(model, width=4):
    torch.manual_seed(0)
    given = case("cnn")
    given.model, given.train, given.queries = (
        model().double(),
        (torch.randn(20, width).double(), torch.arange(20) % 3),
        (torch.randn(3, width).double(), torch.tensor([0, 1, 2])),
    )
    return given


def test_layers_that_serve_twice_and_in_place_functions():
    given = small(Shared)
    rule = fi.Perturbation(parameters="last.*", length=0.05)
    want = attribute(given, perturbation=rule, batch_size=8)
    found = attribute(given, perturbation=rule, batch_size=8, engine="trunk")
    assert_close(found.values, want.values, rtol=1e-6, why=SAME)


@pytest.mark.parametrize(
    ("model", "width", "parameters", "told"),
    [
        (Skip, 4, "last.*", "goes around it"),
        (Direct, 4, "scale", "the model itself uses"),
        (Skip, 4, "first.*", "module 'first': expected layers that run before"),
        (Tied, 3, "last.*", "goes around it"),
        (Wayward, 4, "last.*", "raises ValueError before it"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(model, width, parameters, told):
    given = small(model, width)
    before = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    with pytest.raises(fi.ModelError, match=told):
        attribute(given, perturbation=fi.Perturbation(parameters=parameters, length=0.05), engine="trunk", batch_size=8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.model.state_dict().items())
    assert "forward" not in vars(given.model)


def test_other_refusals():
    given = case("cnn")
    with pytest.raises(fi.SettingError, match="as_published"):
        attribute(given, perturbation="as_published", engine="trunk")
    given.task = lambda model, batch: F.cross_entropy(model.head(model.conv2(model.conv1(batch[0])).flatten(1)[:, :32]), batch[1],
                                                      reduction="none")  # fmt: skip
    with pytest.raises(fi.ModelError, match="calls its parts"):
        attribute(given, perturbation=fi.Perturbation(parameters="head.*"), engine="trunk")
