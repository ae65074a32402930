"""Gradients, scores and uses on real architectures, tiny and untrained: equal to autograd one example at a time."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, N, built
from cases import Case, feed
from close import assert_close

import forwardinf as fi
from forwardinf.gradients.per_example import factored, per_example_gradients, recorder_of
from forwardinf.perturb.parameters import select
from forwardinf.tasks.task import Classification, as_task

pytest.importorskip("transformers")
pytest.importorskip("diffusers")
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
ONLY_SINGLE = ("Mixtral",)  # a kernel of torch that has no float64
FLOAT32_INSIDE = ("Gemma", *ONLY_SINGLE)  # norms that round to float32 whatever the model is in
ASKED = 3
# Seconds each: all of them by `make test-architectures`, one of each kind here.
KINDS = ("BERT", "DeBERTa v2", "GPT-2", "Llama", "Mixtral", "Mamba", "T5", "ViT", "ConvNeXt", "ResNet", "nn.TransformerEncoder",
         "nn.GRU", "deep sets", "several crops", "(T, B, C) outputs")  # fmt: skip
EVERY = [pytest.param(name, marks=() if name in KINDS else pytest.mark.whole) for name in ARCHITECTURES]
# Both presets and two uses take ten seconds each.
BOTH = tuple(ARCHITECTURES) if os.environ.get("FORWARDINF_ALL_ARCHITECTURES") else ("BERT", "nn.GRU", "several crops")


def wide(data):
    if isinstance(data, torch.Tensor):
        return data.double() if data.is_floating_point() else data
    if isinstance(data, dict):
        return {name: wide(value) for name, value in data.items()}
    return type(data)(wide(value) for value in data)


def given(name):
    """Return the case in float64 where it can be."""
    model, rows, task = built(name)
    model = copy.deepcopy(model)
    if name not in ONLY_SINGLE:
        model, rows = model.double(), wide(rows)
    return Case(name, model, rows, rows, as_task(task))


def dense(case, parameters):
    """Return (N, P): every example's gradient by autograd, alone."""
    found = []
    for gradient, _ in per_example_gradients(feed(case), range(N), parameters):
        found.append(torch.cat([gradient.get(n, torch.zeros_like(p)).flatten() for n, p in parameters.items()]))
    return torch.stack(found).double()


def first(rows, count):
    return tuple(column[:count] for column in rows) if isinstance(rows, tuple) else rows[:count]


def how(case, parameters):
    """Return, in a few words, how gradients are taken."""
    reader = feed(case)
    list(factored(reader, range(N), parameters, N))
    recorder = recorder_of(reader, parameters)
    if not recorder.reason:
        return "in batches"
    return "one at a time" + (
        f"; autograd: {len(recorder.odd)} of {len(parameters)} parameters" if recorder.odd else ""
    )


@pytest.mark.parametrize("name", EVERY)
def test_gradients_and_scores_are_autograds(name):
    case = given(name)
    parameters = select(case.model, None)
    want = dense(case, parameters)
    loose = name in FLOAT32_INSIDE
    for size in (1, 6):
        got = torch.zeros_like(want)
        for units, _, uses in factored(feed(case), range(N), parameters, size):
            starts = dict(zip(parameters, np.cumsum([0, *(p.numel() for p in parameters.values())]), strict=False))
            for use in uses:
                at = starts[use.name]
                got[list(units), at : at + use.shape.numel()] += use.flat().double()
        assert_close(got, want, rtol=1e-4 if loose else 1e-9, why="rounding in another order")
    scores = fi.attribute(case.model, case.train, first(case.train, ASKED), task=case.task, engine="factored",
                          perturbation=fi.Perturbation(), progress=False)  # fmt: skip
    assert_close(scores.values, want[:ASKED] @ want.T, rtol=1e-3 if loose else 1e-5, why="products in float32 or wider")


@pytest.mark.parametrize("name", BOTH)
def test_presets_and_uses_read_it_whatever_the_batch(name):
    model, rows, task = built(name)
    asked = first(rows, ASKED)
    settings = {"task": task, "progress": False}
    for rule in ("linear", "finite"):
        one, more = (fi.attribute(copy.deepcopy(model), rows, asked, perturbation=rule, batch_size=size, **settings).values
                     for size in (1, 7))  # fmt: skip
        assert np.isfinite(one).all()
        assert_close(
            more, one, rtol=2e-2, why="float32, a length found by bisection, curvature fitted in other batches"
        )
    if isinstance(task, Classification):
        assert len(fi.mislabeled(copy.deepcopy(model), rows, **settings).table) == N
        assert fi.leaks(copy.deepcopy(model), rows, asked, **settings).table["query"].nunique() == ASKED


@pytest.mark.parametrize("name", EVERY)
def test_the_page_says_how_each_is_read(name):
    told = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in PAGE.read_text("utf-8").splitlines()
            if line.startswith("| ")}  # fmt: skip
    assert set(ARCHITECTURES) <= set(told)
    case = given(name)
    assert told[name] == how(case, select(case.model, None))
