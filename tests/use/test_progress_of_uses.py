"""Every long call shows one progress, from its beginning to its end: nothing that takes time goes without a name."""

from contextlib import contextmanager

import pytest
import torch
from planted import planted
from texts_cases import decoder, texts, tokenizer

import forwardinf as fi
from forwardinf.core import progress as module

PARTS = {
    "leaks": {"train: features", "queries: features", "clean: features", "train: responses", "queries: responses",
              "clean: responses", "whitening", "queries: matching", "clean: matching", "free alternatives"},
    "neighbours": {"neighbours"},
    "mislabeled": {"train: predictions", "train: responses", "clean: responses",
                   "predictions by the others", "neighbours"},
    "memorized": {"train: responses", "queries: responses", "fitting gfim", "self-influence", "predictions by the others",
                  "pairs"},
    "self_influence": {"fitting kfac", "self-influence"},
    "build": {"losses", "responses"},
    "query": {"queries", "comparing"},
    "trace": {"answers", "hidden states", "fitting kfac", "gradients", "questions", "comparing", "changes of tokens"},
    "trace by a push": {"queries", "baseline", "reading"},
    "trace_images": {"gradients", "images", "comparing", "pixels"},
}  # fmt: skip


class Recorder:
    """A screen that remembers what it was shown."""

    def __init__(self):
        self.shown = []

    def show(self, stages, soon, *, last):
        self.shown.append((stages, stages.told, stages.left()))


@pytest.fixture
def recorder(monkeypatch, tmp_path):
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path / "cache"))
    made = Recorder()

    @contextmanager
    def screen(setting):
        yield made if setting else None

    monkeypatch.setattr(module, "_screen", screen)
    return made


def leaks(**settings):
    found = planted()
    clean = (found.test[0][:20], found.test[1][:20])
    return fi.leaks(
        found.model,
        found.train,
        (found.train[0][:3], found.train[1][:3]),
        task=fi.Classification(),
        clean=clean,
        **settings,
    )


def labels(use, **settings):
    found = planted(6, 0.1)
    rest = dict.fromkeys(settings.pop("also", ()), (found.test[0][:20], found.test[1][:20]))
    return use(found.model, found.train, task=fi.Classification(), **rest, **settings)


def traced(**settings):
    pytest.importorskip("transformers")
    return fi.trace(decoder(), texts(), ["hal lives in"], tokenizer=tokenizer(), answers=["quito"], **settings)


def images(tmp_path):
    draw = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16))
    loss = lambda model, batch: (model(batch[0]) - batch[0].flatten(1)).square().mean(1)  # noqa: E731
    data = torch.randn(30, 1, 4, 4, generator=draw)
    return fi.trace_images(model, (data,), (data[:2],), task=loss)


def build(tmp_path, **settings):
    found = planted()
    return fi.ProbeIndex.build(
        tmp_path / "index", found.model, found.train, task=fi.Classification(), probes=16, **settings
    )


def query(tmp_path):
    found, index = planted(), build(tmp_path, progress=False)
    return index.query(found.model, (found.test[0][:2], found.test[1][:2]), task=fi.Classification())


CALLS = {
    "leaks": lambda _: leaks(),
    "neighbours": lambda _: leaks(candidates="neighbours"),
    "mislabeled": lambda _: labels(fi.mislabeled, also=["clean"]),
    "memorized": lambda _: labels(fi.memorized, also=["queries"], direction="gfim"),
    "self_influence": lambda _: labels(fi.self_influence, direction="kfac"),
    "build": build,
    "query": query,
    "trace": lambda _: traced(),
    "trace by a push": lambda _: traced(perturbation=fi.Perturbation(rise=0.5), spans=0),
    "trace_images": images,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_shows_one_progress_until_its_end(recorder, tmp_path, call):
    CALLS[call](tmp_path)
    whole = recorder.shown[-1][0]
    assert all(stages is whole for stages, _, _ in recorder.shown), "one progress, not one after the other"
    assert recorder.shown[-1][1].endswith("done")
    named = {told for _, told, _ in recorder.shown}
    for part in PARTS[call]:
        assert any(part in told for told in named), (part, sorted(named))
    assert all(stage.seconds > 0 and stage.done == 1 for stage in whole.expected), "what was announced was done"
    before_the_end = [left for _, _, left in recorder.shown[:-1]]
    assert before_the_end[-1] < 0.5 * max(left for left in before_the_end if left is not None) + 1e-3
    assert any(left is not None for left in before_the_end), "a time left was told"


def test_a_call_that_is_told_to_be_silent_is(recorder):
    leaks(progress=False)
    labels(fi.memorized, progress=False)
    assert recorder.shown == []
