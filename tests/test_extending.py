"""A direction, an engine, a task, a data format and a use are added from outside, used by name, and taken away again.

They are those of docs/extending.md: the page's own code is run.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from close import assert_close

import forwardinf as fi
from forwardinf.core.registry import Registry
from forwardinf.data.registry import READERS, add_reader
from forwardinf.perturb.registry import DIRECTIONS, add_direction
from forwardinf.read.registry import ENGINES, add_engine
from forwardinf.tasks.registry import TASKS, add_task
from forwardinf.use.registry import USES, add_use
from forwardinf.view.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
REGISTRIES = {"direction": DIRECTIONS, "engine": ENGINES, "task": TASKS, "reader": READERS, "use": USES}
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NET = "import torch\n\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 2)\n"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the page's code has made, before its last block takes what it added away again."""
    before, back = {what: list(found) for what, found in REGISTRIES.items()}, Path.cwd()
    folder, names = tmp_path_factory.mktemp("page"), {}
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        for block in BLOCKS[:-1]:
            exec(compile(block, "docs/extending.md", "exec"), names)
        Path("toy_net.py").write_text(NET)
        yield names
    finally:
        exec(compile(BLOCKS[-1], "docs/extending.md", "exec"), names)
        sys.path.remove(str(folder))
        os.chdir(back)
        assert {what: list(found) for what, found in REGISTRIES.items()} == before


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["forwardinf", *words, "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        if stop.value.code:
            return stop.value.code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return call


def test_an_added_direction_is_taken_by_its_name_for_rates_and_for_lengths(page):
    scores, finite = page["scores"], page["finite"]
    assert scores.perturbation["direction"] == finite.perturbation["direction"] == "clipped"
    assert (scores.kind, finite.kind) == ("linear", "finite")
    plain = fi.attribute(page["model"], page["train"], page["queries"], task=fi.Classification(), perturbation="plain")
    assert not np.allclose(plain.values, scores.values, rtol=0.01)
    assert np.corrcoef(plain.values.ravel(), scores.values.ravel())[0, 1] > 0.8
    with pytest.raises(fi.SettingError, match="Did you mean 'clipped'"):
        fi.Perturbation("cliped")


def test_an_added_engine_reads_what_the_forward_engine_reads(page):
    settings = {"task": fi.Classification(), "perturbation": "clipped"}
    want = fi.attribute(page["model"], page["train"], page["queries"], engine="forward", **settings)
    assert page["alone"].plan["engine"] == "one-by-one"
    assert_close(page["alone"].values, want.values, rtol=1e-2, why="losses of single examples, rounded otherwise")


def test_an_added_exact_engine_reads_directions(page):
    def opens(reading):
        opened.append(reading.of)
        return ENGINES["factored"].opens(reading)

    def plans(asked, plan, ground):
        found, note = ENGINES["factored"].plans(asked, plan, ground)
        return replace(found, engine="twice"), note

    opened, settings = [], {"task": fi.Classification(), "perturbation": "plain"}
    add_engine("twice", opens, plans, exact=True)
    try:
        found = fi.attribute(page["model"], page["train"], page["queries"], engine="twice", **settings)
    finally:
        ENGINES.remove("twice")
    want = fi.attribute(page["model"], page["train"], page["queries"], engine="factored", **settings)
    assert set(opened) == {"train", "queries"}
    assert found.plan["engine"] == "twice"
    assert np.array_equal(found.values, want.values)
    assert np.array_equal(found.baseline, want.baseline)


def test_an_added_task_reader_direction_and_engine_are_words_of_the_command_line(page, run):
    found = run("attribute", "--model", "toy_net:net", "--data", "some.points", "--queries", "data:test", "--task", "hinge",
                "--task-option", "margin=2", "--perturbation", "clipped", "--engine", "one-by-one")  # fmt: skip
    assert len(found["queries"]) == 10
    assert found["unit"] == page["hinge"].unit == "margin"
    code, told = run("attribute", "--model", "toy_net:net", "--data", "some.points", "--queries", "data:test", "--task", "hinge",
                     "--task-option", "marign=2")  # fmt: skip
    assert code == 2
    assert "--task-option for hinge" in told


def test_an_added_reader_reads_by_its_ending_and_refuses_what_does_not_apply(page):
    assert page["inputs"].shape == (10, 4)
    assert torch.equal(page["labels"], page["y"][50:])
    with pytest.raises(fi.SettingError, match="scale"):
        fi.load_data("some.points", scale=2)
    with pytest.raises(fi.FileError, match="nothing at this path"):
        fi.load_data("none.points")


def test_an_added_use_has_a_command_and_its_page(page, run, capsys, monkeypatch):
    words = ["use", "lonely", "--model", "toy_net:net", "--data", "some.points", "--option", "share=0.2"]
    found = run(*words, "--out", "tables", "--report", "lonely.html")
    assert found["use"] == "lonely"
    assert found["is_lonely"] == 10
    assert Path("tables/use.json").is_file()
    assert "the loneliest first" in Path("lonely.html").read_text()
    assert run(*words, "--option", "shore=0.2")[0] == 2
    code, told = run("use", "lonley", *words[2:])
    assert code == 2
    assert "Did you mean 'lonely'" in told
    monkeypatch.setattr(sys, "argv", ["forwardinf", *words])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "the loneliest first" in capsys.readouterr().err


def test_the_built_in_uses_are_entries_like_any_other(page, run):
    found = run("use", "mislabeled", "--model", "toy_net:net", "--data", "some.points")
    assert found["use"] == "mislabeled"


def test_a_command_of_ones_own_knows_what_its_file_adds(page):
    block = re.search(r"```bash\n(.*?)```", PAGE, re.DOTALL)[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "-euc", block], capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "PATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert fi.load_scores("runs/mine").unit == "squared error"


ADD = {
    "direction": lambda name: add_direction(name, lambda fitting: None),
    "engine": lambda name: add_engine(name, lambda reading: None),
    "task": lambda name: add_task(name, fi.Classification),
    "reader": lambda name: add_reader(name, ".none", lambda path, settings: None),
    "use": lambda name: add_use(name, lambda model, train, task: None),
}


@pytest.mark.parametrize("what", ADD)
def test_a_name_that_is_taken_is_refused(what):
    for taken in (*REGISTRIES[what], *REGISTRIES[what].reserved):
        with pytest.raises(fi.SettingError, match="taken"):
            ADD[what](taken)
    for wrong in ("", "Big", "two words", "a:b", 3, None, []):
        with pytest.raises(fi.SettingError, match="small letters"):
            ADD[what](wrong)
    ADD[what]("toy")
    REGISTRIES[what].remove("toy")
    with pytest.raises(fi.SettingError):
        REGISTRIES[what].remove("toy")


def test_a_registry_finds_guesses_and_takes_any_question():
    found = Registry("colour")
    found.add("red", 1)
    assert found["red"] == found.named("red") == 1
    assert [3 in found, [] in found, "red" in found] == [False, False, True]
    with pytest.raises(fi.SettingError, match=r"where: .*Did you mean 'red'"):
        found.named("rde", "where")


def test_presets_and_auto_are_names_that_nothing_added_can_take():
    assert set(DIRECTIONS.reserved) == {"linear", "finite", "unlearning", "as_published"}
    assert "auto" in ENGINES.reserved
