"""The index of responses: equal to autograd's products, whichever way it is filled, and to itself after an interruption."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from cases import QUERIES, ROWS, attribute, case, crossed, gradients, take
from close import assert_close, assert_within
from given import Packed

import forwardinf as fi
from forwardinf.perturb.parameters import select
from forwardinf.perturb.probes import WIDEST, Probes, tables_of
from forwardinf.score.whiten import whitened
from forwardinf.use.response_files import ResponseFiles

PROBES = 64


def build(tmp_path, given, **settings):
    settings = {"task": given.task, "probes": PROBES, "progress": False, "batch_size": 8, "two_sided": True, **settings}
    train = settings.pop("train", given.train)
    return fi.ProbeIndex.build(tmp_path / settings.pop("name", "index"), given.model, train, **settings)


def ask(index, given, **settings):
    queries = settings.pop("queries", given.queries)
    return index.query(given.model, queries, **{"task": given.task, "progress": False, **settings})


def directions(given, count=PROBES, kind="structured"):
    """Return the probes as a matrix (M, P)."""
    chosen = select(given.model, None)
    probes = Probes(chosen, count, kind=kind, tables=tables_of(given.model, chosen), width=WIDEST)
    return torch.stack([torch.cat([probes.direction(m)[n].flatten() for n in chosen]).double() for m in range(count)])


@pytest.mark.parametrize(("name", "how"), crossed(["projected", "forward"], unet=["forward"]))
def test_responses_are_gradients_along_the_probes(tmp_path, name, how):
    given = case(name, torch.float64)
    given.train, size = (take(given.train, range(6)), 6) if name == "unet" else (given.train, ROWS)
    count = PROBES if name == "cnn" else 8
    want = gradients(given, given.train, given.task.loss) @ directions(given, count).T
    index = build(tmp_path, given, how=how, length=1e-5, probes=count)
    assert (index.size, index.probes, index.nbytes) == (size, count, 4 * size * count)
    assert_close(index.responses(), want, rtol=1e-6 if how == "projected" else 2e-5,
                 why="kept in float32; forward: a difference there and back at a length of 1e-5")  # fmt: skip


def test_gaussian_probes_too(tmp_path):
    given = case("cnn", torch.float64)
    want = gradients(given, given.train, given.task.loss) @ directions(given, kind="gaussian").T
    assert_close(build(tmp_path, given, draw="gaussian").responses(), want, rtol=1e-6, why="kept in float32")


def test_one_way_is_half_the_work_and_nearly_the_same(tmp_path):
    given = case("cnn", torch.float64)
    both = build(tmp_path, given, how="forward")
    one = build(tmp_path, given, how="forward", two_sided=False, name="one")
    assert_close(one.responses(), both.responses(), rtol=2e-2, why="first order in a length of 1e-4")
    assert not torch.equal(one.responses(), both.responses())


@pytest.mark.parametrize("name", ["cnn", "transformer"])
@pytest.mark.parametrize("how", ["projected", "forward"])
@pytest.mark.parametrize("compare", ["whitened", "cosine", "covariance"])
def test_a_copy_has_cosine_one_and_share_one(tmp_path, name, how, compare):
    given = case(name).with_copies()
    scores = ask(build(tmp_path, given, how=how, probes=PROBES if name == "cnn" else 24), given, compare=compare)
    copies = scores.share[range(QUERIES), range(ROWS, ROWS + QUERIES)]
    assert_within(
        copies, np.ones(QUERIES), atol=2e-2 if how == "forward" else 1e-3, why="float32 losses at a length of 1e-2"
    )
    assert scores.kind == "probe"
    assert scores.unit == ("nats" if compare == "covariance" else None)
    if compare == "cosine":
        assert scores.values.max() <= 1 + 1e-5
        assert scores.top(1)["train"].tolist() == list(range(ROWS, ROWS + QUERIES))


def test_scores_are_those_of_the_sketch(tmp_path):
    given = case("cnn", torch.float64)
    index = build(tmp_path, given)
    r = gradients(given, given.train, given.task.loss) @ directions(given).T
    q = gradients(given, given.queries, given.task.loss) @ directions(given).T
    plain = q @ r.T / PROBES
    scores = ask(index, given, compare="covariance")
    assert_close(scores.values, plain, rtol=1e-5, why="responses kept in float32")
    assert_close(scores.rise, q.square().sum(1) / PROBES, rtol=1e-5, why="the same")
    assert_close(scores.cross, q @ q.T / PROBES, rtol=1e-5, why="the same")
    want = whitened(plain, responses=r / PROBES**0.5)
    assert_close(ask(index, given, temper=0.0).values, want, rtol=1e-4, why="responses kept in float32, then inverted")
    lengths = [x.norm(dim=1) / PROBES**0.5 for x in (r, q)]
    both = lengths[1][:, None] ** -0.5 * lengths[0] ** -0.5
    tempered = whitened(plain, responses=r / PROBES**0.5, temper=0.5) * both
    assert_close(ask(index, given).values, tempered, rtol=1e-4, why="the same")


def test_many_probes_give_what_hold_gives(tmp_path):
    given = case("cnn", torch.float64)
    lengths = gradients(given, given.train, given.task.loss).norm(dim=1).numpy()
    exact = attribute(given, perturbation=fi.Perturbation("hold"), engine="factored").values / lengths**0.5
    found = ask(build(tmp_path, given, probes=4096), given).values
    for one, other in zip(exact, found, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.98


def test_queries_may_respond_either_way(tmp_path):
    given = case("resnet", torch.float64)
    index = build(tmp_path, given)
    for compare in ("cosine", "whitened"):
        one, other = (ask(index, given, compare=compare, how=how) for how in ("projected", "forward"))
        assert_close(one.values, other.values, rtol=2e-2, why="a difference at the relative length of 1e-4")


def test_what_a_query_is_asked_counts_and_its_own_loss_is_read(tmp_path):
    given = case("cnn", torch.float64)
    index, task = build(tmp_path, given), fi.Classification(query="margin")
    r = gradients(given, given.train, given.task.loss) @ directions(given).T
    asked = gradients(given, given.queries, lambda m, b: -task.measure(m, b)) @ directions(given).T
    own = gradients(given, given.queries, given.task.loss) @ directions(given).T
    for how in ("projected", "forward"):
        scores = ask(index, given, task=task, compare="covariance", how=how)
        assert_close(scores.values, asked @ r.T / PROBES, rtol=1e-3, why="forward: a length of 1e-4")
        assert_close(scores.cross, asked @ own.T / PROBES, rtol=1e-3, why="the same")


@pytest.mark.parametrize("how", ["projected", "forward"])
def test_an_interrupted_filling_goes_on(tmp_path, how, monkeypatch):
    monkeypatch.setattr("forwardinf.use.response_files.ROWS", 8)
    given, put, asked = case("cnn"), ResponseFiles.put, []
    whole = build(tmp_path, given, how=how, name="whole")

    def killed(files, tile, values):
        asked.append(tile)
        if len(asked) == 2:
            raise KeyboardInterrupt
        put(files, tile, values)

    monkeypatch.setattr(ResponseFiles, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, given, how=how)
    assert "pieces are missing: make the call that was interrupted again" in repr(fi.ProbeIndex(tmp_path / "index"))
    with pytest.raises(fi.FileError, match="pieces missing"):
        fi.ProbeIndex(tmp_path / "index").responses()
    index = build(tmp_path, given, how=how)
    assert len(asked) == len(set(asked)) + 1  # one tile was lost, no other is read again
    rtol = 1e-4 if how == "projected" else 2e-2  # batch sizes are found anew
    assert_close(index.responses(), whole.responses(), rtol=rtol, why="float32 in other batches")
    before = len(asked)
    build(tmp_path, given, how=how)
    assert len(asked) == before


@pytest.mark.parametrize("how", ["projected", "forward"])
def test_it_grows_by_probes_and_by_examples(tmp_path, how):
    given = case("cnn")
    few, more = (tuple(column[rows] for column in given.train) for rows in (range(24), range(24, ROWS)))
    whole = build(tmp_path, given, how=how, name="whole")
    index = build(tmp_path, given, how=how, train=few, probes=20)
    index.append(given.model, more, task=given.task, batch_size=8, progress=False)
    assert index.ids == list(range(ROWS))
    assert_close(index.losses, whole.losses, rtol=1e-5, why="float32 in other batches")
    wide = build(tmp_path, given, how=how, train=few)  # the first part only: the other is completed by its own call
    with pytest.raises(fi.FileError, match="pieces missing"):
        wide.responses()
    wide.append(given.model, more, task=given.task, batch_size=8, progress=False)
    rtol = 1e-4 if how == "projected" else 2e-2
    assert_close(wide.responses(), whole.responses(), rtol=rtol, why="float32 losses in other batches")
    assert_close(wide.responses(20), whole.responses()[:, :20], rtol=rtol, why="the same")
    with pytest.raises(fi.DataError, match="not taken"):
        wide.append(given.model, given.queries, task=given.task, ids=[3, 100, 101], progress=False)


def test_documents_packed_in_rows_are_examples(tmp_path):
    given = Packed()
    index = build(tmp_path, given)
    assert index.size == len(index.losses) > 9
    assert torch.isfinite(index.responses()).all()


class Frozen(torch.nn.Module):
    """A model without gradients."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner.requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            return self.inner(x)


def test_a_model_without_gradients_is_indexed_by_forward_passes(tmp_path):
    given = case("cnn", torch.float64).with_copies()
    want = build(tmp_path, given, how="forward", name="whole").responses()
    given.model = Frozen(given.model)
    index = build(tmp_path, given, how="forward")
    assert index.settings["parameters"] is None
    scores = ask(index, given)
    assert_within(scores.share[range(QUERIES), range(ROWS, ROWS + QUERIES)], np.ones(QUERIES), atol=1e-2, why="finite")
    assert_close((index.responses() ** 2).sum(1), (want**2).sum(1), rtol=0.7, why="the same model under other draws")


class Opaque:
    """Something that can be perturbed, and says its losses."""

    version = "one"

    def __init__(self, given):
        self.given = given
        self.weights = list(given.model.eval().requires_grad_(False).parameters())

    @contextmanager
    def perturb(self, seed, length):
        kept = [weight.clone() for weight in self.weights]
        draw = torch.Generator().manual_seed(seed)
        for weight in self.weights:
            weight += length * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
        yield
        for weight, before in zip(self.weights, kept, strict=True):
            weight.copy_(before)

    def losses(self, batch):
        with torch.no_grad():
            return self.given.task.loss(self.given.model, batch).numpy()


def test_an_object_with_perturb_and_losses_is_enough(tmp_path):
    given = case("cnn", torch.float64).with_copies()
    thing = Opaque(given)
    index = fi.ProbeIndex.build(
        tmp_path / "i", thing, given.train, probes=48, how="forward", length=1e-5, progress=False
    )
    scores = index.query(thing, given.queries, compare="cosine", progress=False)
    copies = scores.values[range(QUERIES), range(ROWS, ROWS + QUERIES)]
    assert_within(copies, np.ones(QUERIES), atol=1e-4, why="float64, the same losses in other batches")
    exact = gradients(case("cnn", torch.float64).with_copies(), given.train, given.task.loss)
    assert_close((index.responses() ** 2).mean(1), exact.square().sum(1), rtol=0.5, why="48 draws")
    with pytest.raises(fi.SettingError, match="'forward'"):
        fi.ProbeIndex.build(tmp_path / "j", thing, given.train, probes=4)
    with pytest.raises(fi.ModelError, match="perturb"):
        fi.ProbeIndex.build(tmp_path / "j", object(), given.train, probes=4, how="forward")


def test_another_model_or_setting_is_refused(tmp_path):
    given = case("cnn")
    index = build(tmp_path, given)
    with torch.no_grad():
        given.model.head.bias += 1
    for call in (lambda: ask(index, given), lambda: build(tmp_path, given)):
        with pytest.raises(fi.RunMismatch, match="model"):
            call()
    fresh = case("cnn")
    with pytest.raises(fi.RunMismatch, match="settings"):
        build(tmp_path, fresh, seed=1)
    with pytest.raises(fi.RunMismatch, match="data"):
        build(tmp_path, fresh, train=take(fresh.train, range(12)))
    with pytest.raises(fi.SettingError, match="ProbeIndex"):
        attribute(fresh, engine="probes")
    for wrong in ({"how": "fast"}, {"draw": "normal"}, {"probes": 0}):
        with pytest.raises(fi.SettingError):
            build(tmp_path, fresh, **wrong)
    for wrong in ({"compare": "dot"}, {"how": "fast"}):
        with pytest.raises(fi.SettingError):
            ask(index, fresh, **wrong)


def test_a_damaged_piece_is_refused_and_the_call_that_built_it_mends_it(tmp_path):
    given = case("cnn")
    whole = build(tmp_path, given).responses()
    (file,) = (tmp_path / "index").glob("tile-*")
    content = bytearray(file.read_bytes())
    for bad in (bytes(content[:-4]), bytes([*content[:-1], content[-1] ^ 1]), b""):
        file.write_bytes(bad)
        with pytest.raises(fi.FileError, match="damaged"):
            fi.ProbeIndex(tmp_path / "index").responses()
        index = build(tmp_path, given)
        assert any("damaged" in note for note in index.notes)
        assert torch.equal(index.responses(), whole)
    (tmp_path / "index" / "part-000.safetensors").write_bytes(b"")
    with pytest.raises(fi.FileError, match="damaged"):
        fi.ProbeIndex(tmp_path / "index")
    with pytest.raises(fi.FileError, match="expected an index, got none"):
        fi.ProbeIndex(tmp_path / "nowhere")


def test_stale_responses_are_read_anew(tmp_path):
    """Another code's responses, with a good checksum under the same name."""
    given = case("cnn")
    index = build(tmp_path, given)
    whole, (tile,) = index.responses().clone(), index._files.of(0)
    index._files.drop(tile)
    index._files.put(tile, 1.01 * whole)
    again = build(tmp_path, given)
    assert "is not what the model gives now" in again.notes[0]
    assert torch.equal(again.responses(), whole)


def test_the_disk_is_asked_before(tmp_path):
    files = ResponseFiles(tmp_path)
    with pytest.raises(fi.FileError, match="room for"):
        files.room_for(10**9, 10**6)
    assert fi.ProbeIndex.nbytes_of(1000, 1024) == 4_096_000


def test_a_query_that_does_not_respond(tmp_path):
    given = case("cnn", torch.float64)
    index = build(tmp_path, given)
    given.task = fi.Classification()
    images = given.queries[0].clone()
    labels = given.queries[1].clone()
    labels[1] = -100
    with pytest.raises(fi.QueryError, match="query 1"):
        ask(index, given, queries=(images, labels))
    scores = ask(index, given, queries=(images, labels), on_bad_query="skip")
    assert np.isnan(scores.values[1]).all()
    assert np.isfinite(scores.values[[0, 2]]).all()
    assert scores.status[1] == "does not respond"


def test_scores_are_saved_and_read_back(tmp_path):
    given = case("cnn")
    scores = ask(build(tmp_path, given), given)
    back = fi.load_scores(scores.save(tmp_path / "kept"))
    assert back.kind == "probe"
    assert np.array_equal(back.values, scores.values)
