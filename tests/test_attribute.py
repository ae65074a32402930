import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import assert_close, assert_within
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import forwardinf as fi

N, Q = 12, 4
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3
QX, QY = torch.randn(Q, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 1, 2])
TWO_RUNS = "two runs, each the difference of two readings"


def net(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def attribute(model=None, train=(X, Y), queries=(QX, QY), **settings):
    settings = {"task": fi.Classification(), "progress": False, "engine": "forward",
                "perturbation": fi.Perturbation(), **settings}  # fmt: skip
    return fi.attribute(model or net(), train, queries, **settings)


def exact(**settings):
    """In float64, where a difference stands for a derivative to about 1e-6."""
    return attribute(net(torch.float64), (X.double(), Y), (QX.double(), QY), **settings)


def assert_same(got, want):
    assert_within(got.values, want.values, atol=4 * want.noise_floor, why=TWO_RUNS)


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["b", "a", "b", "c"], np.array(["b", "a", "b", "c"]), ("b", "a", "b", "c")])
def test_groups_are_distinct_labels_in_first_seen_order(labels):
    scores = attribute(groups=labels)
    assert scores.query_ids == ["b", "a", "c"]
    assert scores.values.shape == (3, N)
    assert scores.cross.shape == (3, 3)


def test_labels_may_be_numbers_from_a_tensor():
    assert attribute(groups=torch.tensor([7, 3, 7, 7])).query_ids == [7, 3]


def test_a_groups_linear_score_is_the_mean_of_its_members():
    grouped, single = exact(groups=["b", "a", "b", "c"]), exact()
    want = np.stack([single.values[[0, 2]].mean(0), single.values[1], single.values[3]])
    assert_close(grouped.values, want, rtol=1e-4, why="linear in the query's gradient; float32 values")


def test_a_groups_measurements_are_means_of_its_members():
    grouped, single = exact(groups=["b", "a", "b", "c"]), exact()
    assert_close(grouped.query_baseline[0], single.query_baseline[[0, 2]].mean(), rtol=1e-12, why="float64 mean of two")
    want = single.cross[[0, 2]][:, [0, 2]].mean()
    assert_close(grouped.cross[0, 0], want, rtol=1e-4, why="a mean over pairs, by differences")
    assert_close(grouped.rise, np.diag(grouped.cross), rtol=1e-4, why="the mean's own rise, measured twice")


def test_one_group_of_all_and_one_group_each_are_fine():
    assert attribute(groups=["all"] * Q).values.shape == (1, N)
    assert_same(attribute(groups=list(range(Q))), attribute())


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(fi.DataError, match="groups: expected 4 labels, one for each query, got 3"):
        attribute(groups=["a"] * 3)
    with pytest.raises(fi.SettingError, match="query_ids: expected none beside groups"):
        attribute(groups=["a"] * Q, query_ids=list("abcd"))


# -- candidates --------------------------------------------------------------------------------------------------------

CHOSEN = [[0, 5], [11, 2, 3], [4], [4, 6]]
LISTS = {
    "lists": CHOSEN,
    "tuples": tuple(map(tuple, CHOSEN)),
    "lists with repeats, unsorted": [[5, 0, 5], [3, 2, 11, 2], [4, 4], [6, 4]],
    "a mapping of ids": {"q0": ["r0", "r5"], "q1": ["r11", "r2", "r3"], "q2": ["r4"], "q3": ["r6", "r4"]},
    "arrays": [np.array(entry) for entry in CHOSEN],
}


@pytest.mark.parametrize("form", LISTS)
def test_candidates_in_every_form_give_the_scores_of_a_full_reading_and_nan_elsewhere(form):
    names = {"ids": [f"r{n}" for n in range(N)], "query_ids": [f"q{n}" for n in range(Q)]}
    some, every = exact(candidates=LISTS[form], **names), exact(**names)
    for query, entry in enumerate(CHOSEN):
        there = np.isin(np.arange(N), entry)
        assert np.array_equal(np.isnan(some.values[query]), ~there)
        assert_close(some.values[query, there], every.values[query, there], rtol=1e-5, why="float64, other batches")
    read = np.unique(np.concatenate(CHOSEN))
    assert np.array_equal(np.isnan(some.baseline), ~np.isin(np.arange(N), read))
    assert_close(some.cross, every.cross, rtol=1e-6, why="the queries are read whole")


@pytest.mark.parametrize("form", [np.array, torch.tensor, np.ndarray.tolist])
def test_candidates_may_be_a_matrix(form):
    matrix = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    scores = attribute(candidates=form(matrix))
    assert (~np.isnan(scores.values)).sum(1).tolist() == [2] * Q


BAD_CANDIDATES = {
    "a position beyond the end": ([[0], [1], [2], [12]], "expected positions from 0 to 11, got 12"),
    "a negative position": ([[0], [1], [2], [-1]], "expected positions from 0 to 11, got -1"),
    "none for a query": ([[0], [], [2], [3]], "candidates of query 1: expected at least one"),
    "too few lists": ([[0]], "expected a list for each of 4 queries, got 1"),
    "an unknown query": ({0: [0], 1: [0], 2: [0], 3: [0], 9: [0]}, r"unknown \[9\]"),
    "a missing query": ({0: [0]}, r"missing \[1, 2, 3\]"),
    "an unknown id": ({0: [0], 1: [0], 2: [0], 3: ["x"]}, "candidates of query 3: expected training ids, got 'x'"),
}


@pytest.mark.parametrize("bad", BAD_CANDIDATES)
def test_candidates_that_do_not_fit_are_refused(bad):
    candidates, message = BAD_CANDIDATES[bad]
    with pytest.raises(fi.DataError, match=message):
        attribute(candidates=candidates)


def test_candidates_groups_and_keep_work_together():
    scores = attribute(candidates=[[0, 1, 2], [3, 4]], groups=["a", "a", "b", "b"], keep=1)
    assert scores.top(1)["query"].tolist() == ["a", "b"]
    assert set(scores.top(1)["train"]) <= {0, 1, 2, 3, 4}


# -- ids and keep ------------------------------------------------------------------------------------------------------


def test_ids_and_query_ids_reach_the_result():
    scores = attribute(ids=[f"r{n}" for n in range(N)], query_ids=["a", "b", "c", "d"])
    assert scores.ids[3] == "r3"
    assert scores.to_pandas().loc["r3", "b"] == scores.values[1, 3]


def test_other_ids_are_another_call_for_a_run_folder(tmp_path):
    attribute(output_dir=tmp_path / "run")
    with pytest.raises(fi.RunMismatch) as caught:
        attribute(output_dir=tmp_path / "run", ids=[f"r{n}" for n in range(N)])
    assert set(caught.value.differs) == {"ids"}


@pytest.mark.parametrize("keep", ["auto", "all"])
def test_a_small_result_is_kept_whole(keep):
    assert attribute(keep=keep).kept == "all"


@pytest.mark.parametrize(("name", "value"), [
    ("keep", 0), ("keep", -1), ("keep", "some"), ("keep", True), ("keep", 1.5), ("batch_size", 0), ("batch_size", "big"),
    ("shard_rows", 0), ("num_workers", -1), ("num_workers", True), ("progress", "yes"), ("on_bad_query", "ignore"),
    ("engine", "fast"), ("seed", -1), ("seed", "a"), ("seed", True), ("output_dir", 5), ("cache_dir", 5),
])  # fmt: skip
def test_an_option_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(fi.SettingError) as caught:
        attribute(**{name: value})
    assert caught.value.where == name
    assert repr(value) in caught.value.got


def test_a_misspelt_engine_gets_a_guess():
    with pytest.raises(fi.SettingError, match=r"Did you mean 'forward'\?"):
        attribute(engine="foward")


def test_an_unknown_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="perturbations"):
        attribute(perturbations="linear")


# -- bad queries -------------------------------------------------------------------------------------------------------


def with_dead_query():
    return QX, torch.tensor([0, -100, 1, 2])  # a label that is not counted: no loss, no gradient


def test_a_query_without_gradient_stops_the_run_before_any_reading(tmp_path):
    with pytest.raises(
        fi.QueryError, match="query 'b': expected a finite gradient that is not zero, got zero gradient"
    ) as caught:
        attribute(queries=with_dead_query(), query_ids=list("abcd"), output_dir=tmp_path / "run")
    assert "query='margin'" in caught.value.do
    assert "on_bad_query='skip'" in caught.value.do
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{}, {"keep": 2}, {"shard_rows": 3}, {"perturbation": {"length": 0.01}}])
def test_a_query_without_gradient_may_be_skipped_and_says_so(settings):
    scores = attribute(queries=with_dead_query(), on_bad_query="skip", **settings)
    assert scores.status == ["ok", "zero gradient", "ok", "ok"]
    assert 1 not in set(scores.top(2)["query"])
    assert np.isnan(scores.rise[1])
    assert any("1 of 4 queries skipped" in note for note in scores.notes)
    if "keep" not in settings:
        assert np.isnan(scores.values[1]).all()
        want = attribute(queries=(QX[[0, 2, 3]], QY[[0, 2, 3]]), **settings)
        assert_within(scores.values[[0, 2, 3]], want.values, atol=4 * want.noise_floor, why=TWO_RUNS)


@pytest.mark.parametrize("bad", ["inf", "nan"])  # tanh makes a finite loss of the one, not of the other
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_a_query_that_is_not_finite_may_be_skipped_too(bad, batch_size):
    queries = QX.clone()
    queries[1, 0] = float(bad)
    scores = attribute(queries=(queries, QY), on_bad_query="skip", batch_size=batch_size)
    assert scores.status[1] == "gradient or loss not finite"
    assert np.isnan(scores.values[1]).all()
    assert np.isnan(scores.cross[1]).all()
    assert np.isnan(scores.query_baseline[1]) == (bad == "nan")
    usable = [0, 2, 3]
    want = attribute(queries=(QX[usable], QY[usable]), batch_size=batch_size)
    assert_within(scores.values[usable], want.values, atol=4 * want.noise_floor, why=TWO_RUNS)
    assert_within(scores.cross[usable][:, usable], want.cross, atol=4 * want.noise_floor, why=TWO_RUNS)


def test_a_query_that_becomes_infinite_on_the_way_still_stops_the_run():
    """Only what was set aside may be anything: beside it, a loss that is not finite is an error as ever."""
    queries = QX.clone()
    queries[1, 0] = float("nan")

    def loss(model, batch):
        found = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        pushed = not torch.equal(next(model.parameters()), net()[0].weight)
        return torch.where(batch[0][:, 0] == QX[2, 0], found / (0 if pushed else 1), found)

    with pytest.raises(fi.TaskError, match="expected a finite number, got inf"):
        attribute(queries=(queries, QY), on_bad_query="skip", task=loss, engine="forward")


def test_all_queries_skipped_is_a_result_without_numbers():
    scores = attribute(queries=(QX, torch.full((Q,), -100)), on_bad_query="skip")
    assert np.isnan(scores.values).all()
    assert len(scores.top(3)) == 0


# -- the perturbation in every form ------------------------------------------------------------------------------------


def test_the_perturbation_may_be_a_name_a_mapping_or_settings():
    plain, best = attribute(), attribute(perturbation=fi.Perturbation("gfim", reading="auto"))
    for given in ({}, {"length": "linear"}, fi.Perturbation("plain")):
        assert_same(attribute(perturbation=given), plain)
    for given in (None, "linear", {"preset": "linear"}):
        assert_same(attribute(perturbation=given), best)
    finite = attribute(perturbation={"length": 0.02, "two_sided": True})
    assert finite.kind == "finite"
    assert finite.perturbation["two_sided"] is True


@pytest.mark.parametrize(("given", "message"), [
    ("lineer", "Did you mean 'linear'"), ({"lenght": 1}, "Did you mean 'length'"), (0.1, "perturbation: expected"),
    (fi.Perturbation, "perturbation: expected"), (["linear"], "perturbation: expected"),
])  # fmt: skip
def test_a_perturbation_that_is_none_is_refused(given, message):
    with pytest.raises(fi.SettingError, match=message):
        attribute(perturbation=given)


def test_a_parameter_pattern_that_matches_nothing_shows_names_that_there_are():
    with pytest.raises(fi.SettingError, match="expected a pattern that matches a parameter name, got 'head") as caught:
        attribute(perturbation={"parameters": "head.*"})
    assert "0.weight" in caught.value.do


def test_parameters_confine_what_moves():
    only_last = attribute(perturbation={"parameters": "2.*"})
    model = net()
    gradient = [torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), [model[2].weight, model[2].bias])
                for x, y in [*zip(X, Y, strict=True), *zip(QX, QY, strict=True)]]  # fmt: skip
    flat = torch.stack([torch.cat([part.flatten() for part in pair]) for pair in gradient])
    assert_close(
        only_last.values, flat[N:] @ flat[:N].T, rtol=2e-2, why="products of gradients, by differences in float32"
    )


# -- the model ---------------------------------------------------------------------------------------------------------


def test_a_model_without_parameters_is_refused():
    with pytest.raises(fi.ModelError, match="model: expected parameters, got none"):
        attribute(nn.Flatten(), task=lambda model, batch: batch[0].sum(1))


def test_a_frozen_model_says_how_to_choose_what_moves():
    frozen = net().requires_grad_(False)
    with pytest.raises(fi.ModelError, match="expected parameters with requires_grad, got none") as caught:
        attribute(frozen)
    assert "Perturbation(parameters='*')" in caught.value.do
    assert_same(attribute(frozen, perturbation={"parameters": "*"}), attribute())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_model_half_in_training_mode_is_given_back_so_and_read_in_eval_mode():
    def dropping():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))

    model, want = dropping().train(), attribute(dropping().eval())
    model[2].eval()
    model[0].weight.requires_grad_(False)
    flags = [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
    got = attribute(model, perturbation={"parameters": "*"})
    assert ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]) == flags
    assert_same(got, want)
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("bad", [lambda x: x, None, "model.pt", nn.Linear])
def test_what_is_no_model_is_refused(bad):
    with pytest.raises(fi.ModelError, match=r"model: expected a torch\.nn\.Module"):
        fi.attribute(bad, (X, Y), (QX, QY), task=fi.Classification())


def test_a_model_without_data_is_refused():
    with pytest.raises(fi.ModelError, match="expected data, got the meta device") as caught:
        attribute(net().to("meta"))
    assert "Load the weights" in caught.value.do


def test_a_device_where_the_model_is_not_is_refused():
    assert attribute(device="cpu").values.shape == (Q, N)
    with pytest.raises(
        fi.SettingError, match=r"device: expected 'auto' or 'cpu', where the model is, got 'cuda'"
    ) as caught:
        attribute(device="cuda")
    assert "model.to(" in caught.value.do


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precisions_agree_with_float32_as_far_as_they_can(dtype):
    got = attribute(net(dtype), (X.to(dtype), Y), (QX.to(dtype), QY))
    error = np.abs(got.values - attribute().values).max() / np.abs(attribute().values).max()
    assert error < (0.25 if dtype != torch.float64 else 1e-2), (
        "two 8-bit readings, a step of 1e-2; or float32's differences"
    )


class Odd(nn.Module):
    """A model whose batch and output are of odd forms."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, rows):
        return None, {"deep": self.inner(rows["a"]["x"])}


def test_nested_batches_and_outputs_can_be_named():
    rows = [{"in": {"a": {"x": x}}, "out": {"y": int(y)}} for x, y in zip(X, Y, strict=True)]
    queries = [{"in": {"a": {"x": x}}, "out": {"y": int(y)}} for x, y in zip(QX, QY, strict=True)]
    task = fi.Classification(
        inputs=lambda b: [b["in"]], label=lambda b: b["out"]["y"], logits=lambda out: out[1]["deep"]
    )
    assert_same(attribute(Odd(), rows, queries, task=task), attribute())


# -- bare callables ----------------------------------------------------------------------------------------------------


def test_a_bare_callable_with_a_closure_is_a_task():
    weight = torch.tensor([1.0, 2.0, 3.0])

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], weight=weight, reduction="none")

    got = attribute(task=loss)
    assert got.unit == "loss"
    assert_same(got, attribute(task=fi.Classification(weight=weight)))


def test_what_a_callable_closes_over_is_part_of_the_baselines_name():
    found = []
    for factor in (1.0, 2.0):
        scores = attribute(
            task=lambda model, batch, k=factor: k * F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        )
        found.append(scores.baseline)
    assert_close(found[1], 2 * found[0], rtol=1e-6, why="float32 losses")


def test_a_callable_that_cannot_be_told_runs_but_has_no_run_folder(tmp_path):
    import threading

    lock = threading.Lock()

    def loss(model, batch):
        with lock:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    assert_same(attribute(task=loss), attribute())
    with pytest.raises(fi.SettingError, match="output_dir: expected a task whose code can be told apart"):
        attribute(task=loss, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- loaders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_is_its_dataset_in_index_order(shuffle):
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=shuffle, drop_last=True)
    queries = DataLoader(TensorDataset(QX, QY), batch_size=3, shuffle=shuffle)
    scores = attribute(train=loader, queries=queries)
    assert_same(scores, attribute())
    assert sum("read in index order" in note for note in scores.notes) == 2


# -- what is said, and where -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [True, False, "auto"])
def test_nothing_is_ever_said_on_stdout(capsys, progress):
    attribute(progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert bool(err) == (progress is True)
    assert all(line.startswith("forwardinf: ") for line in err.splitlines())


def test_logging_is_quiet_at_warning(caplog):
    with caplog.at_level(logging.WARNING):
        attribute(train=DataLoader(TensorDataset(X, Y), shuffle=True))
    assert caplog.text == ""


def test_a_result_says_how_it_came_about():
    scores = attribute()
    assert scores.status == ["ok"] * Q
    assert scores.plan["engine"] == "forward"
    assert scores.cost["forwards"] >= N * Q
    assert set(scores.cost) >= {"fit_s", "setup_s", "read_s", "forwards", "peak_bytes"}
    assert set(scores.made_from) >= {"model", "data", "queries", "task", "perturbation", "seed"}
    assert (scores.kind, scores.unit, scores.signed) == ("linear", "nats", True)
    assert (scores.noise_floor > 0).all()
    assert_close(
        scores.query_baseline, F.cross_entropy(net()(QX), QY, reduction="none"), rtol=1e-5, why="float32 logits"
    )


def test_the_data_a_caller_passed_is_left_as_it_was():
    before = X.clone(), Y.clone()
    attribute(perturbation="finite")
    assert torch.equal(X, before[0])
    assert torch.equal(Y, before[1])
