"""On a GPU every score is what the CPU gives.

Skipped where there is none, and where it is hidden: ``CUDA_VISIBLE_DEVICES=0 pytest tests/use/test_gpu.py``.
"""

import copy

import numpy as np
import pytest
import torch
from cases import NAMES, attribute, case
from close import assert_close
from planted import planted
from texts_cases import decoder, encoder_decoder, pairs, texts, tokenizer

import forwardinf as fi

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
ENGINES = ("forward", "factored")
DIRECTIONS = ("plain", "sign", "diagonal", "kfac", "ekfac", "gfim", "cg", "hold")
SUMS = "float64 sums in another order"
FUSED = "torch's transformer layer is another kernel where no gradient is asked for, off by 1.6e-4 on an H200"
FLOATS = "float32 sums in another order, and TF32 is off by default"


def on_gpu(model):
    return copy.deepcopy(model).cuda()


def both(given, **settings):
    """Return the same scores from the GPU and from the CPU."""
    return attribute(given, model=on_gpu(given.model), **settings), attribute(given, **settings)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_every_engine_gives_the_cpus_scores(name, engine):
    got, want = both(case(name, torch.float64), engine=engine)
    assert_close(
        got.values, want.values, rtol=1e-5, why=f"{SUMS}; forward: differences at a small length, kept in float32"
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_every_direction_gives_the_cpus_scores(name, direction):
    got, want = both(case(name, torch.float64), perturbation=fi.Perturbation(direction), engine="auto")
    rtol, why = (5e-4, FUSED) if name == "transformer" else (1e-4, f"{SUMS}; signs and factors pass them on")
    assert_close(got.values, want.values, rtol=rtol, why=why)


@pytest.mark.parametrize("setting", [
    {"rise": 0.5, "two_sided": True}, {"rise": 0.5, "steps": 3}, {"direction": "gfim", "rise": 0.5, "reading": "auto"},
])  # fmt: skip
def test_finite_pushes_give_the_cpus_scores(setting):
    got, want = both(case("cnn", torch.float64), perturbation=fi.Perturbation(**setting))
    assert_close(got.values, want.values, rtol=1e-4, why=f"{SUMS}; the search for the rise stops within its tolerance")


def test_a_trunk_and_the_default_in_float32():
    given = case("cnn")
    last = fi.Perturbation(parameters="head*")
    got, want = both(given, perturbation=last, engine="trunk")
    assert_close(got.values, want.values, rtol=1e-3, why=FLOATS)
    got, want = both(given, perturbation="linear", engine="auto")
    assert_close(got.values, want.values, rtol=1e-2, why=f"{FLOATS}; whitening passes them on")


def test_self_influence_and_the_index_of_probes(tmp_path):
    given = case("cnn", torch.float64)
    found = [fi.self_influence(model, given.train, task=given.task, progress=False)
             for model in (on_gpu(given.model), given.model)]  # fmt: skip
    assert_close(found[0].values, found[1].values, rtol=1e-5, why=SUMS)
    index = [fi.ProbeIndex.build(tmp_path / name, model, given.train, task=given.task, probes=64, progress=False)
             for name, model in (("gpu", on_gpu(given.model)), ("cpu", given.model))]  # fmt: skip
    assert_close(index[0].responses(), index[1].responses(), rtol=1e-5, why="kept in float32")
    asked = [one.query(model, given.queries, task=given.task, progress=False).values
             for one, model in zip(index, (on_gpu(given.model), given.model), strict=True)]  # fmt: skip
    assert_close(asked[0], asked[1], rtol=1e-4, why="responses kept in float32, whitened")


def test_uses_on_images_give_the_cpus_tables():
    found = planted()
    queries = tuple(torch.cat([a[:20], b[:40]]) for a, b in zip(found.train, found.test, strict=True))
    clean = tuple(part[100:] for part in found.test)
    for use in (
        lambda model: fi.leaks(model, found.train, queries, task=fi.Classification(), clean=clean, progress=False),
        lambda model: fi.mislabeled(model, found.train, task=fi.Classification(), progress=False),
        lambda model: fi.memorized(model, found.train, task=fi.Classification(), progress=False),
    ):
        got, want = (use(model).table for model in (on_gpu(found.model), found.model))
        assert len(got) == len(want)
        numbers = [name for name in want.columns if want[name].dtype.kind == "f"]
        order = np.sort(want[numbers[0]].to_numpy()), np.sort(got[numbers[0]].to_numpy())
        assert_close(order[1], order[0], rtol=1e-2, why=f"{FLOATS}; {numbers[0]} over the table, sorted")


@pytest.mark.parametrize("model", [decoder, encoder_decoder])
def test_traces_of_texts_give_the_cpus_scores(model):
    train, prompts = (texts(), ["hal lives in"]) if model is decoder else (pairs(), ["where lives hal ?"])
    text = {} if model is decoder else {"text": ("question", "answer")}
    got, want = (fi.trace(each, train, prompts, tokenizer=tokenizer(), answers=["quito"], spans=2, progress=False, **text)
                 for each in (on_gpu(model()), model()))  # fmt: skip
    assert_close(got.scores.values, want.scores.values, rtol=1e-3, why=FLOATS)
    assert got.table["train"][:2].tolist() == want.table["train"][:2].tolist()


def test_traces_of_images_give_the_cpus_scores():
    given = case("unet")
    for settings in ({}, {"perturbation": "unlearning"}):
        got, want = (fi.trace_images(model, given.train, given.queries, task=given.task, progress=False, **settings)
                     for model in (on_gpu(given.model), given.model))  # fmt: skip
        assert_close(got.scores.values, want.scores.values, rtol=1e-2, why=f"{FLOATS}; differences of losses")


@pytest.mark.parametrize("kind", [torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM])
def test_recurrent_layers_have_gradients_in_eval_mode(kind):
    given = case("cnn", torch.float64)

    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = kind(8, 6, batch_first=True), torch.nn.Linear(6, 10)

        def forward(self, x):
            return self.head(self.recurrent(x.squeeze(1))[0][:, -1])

    torch.manual_seed(0)
    given.model = Recurrent().double().eval()
    got, want = both(given)
    assert_close(got.values, want.values, rtol=1e-5, why=SUMS)
