"""The one command of the benchmarks: what it lists, what it keeps, and what it writes."""

import json
from types import ModuleType

import pytest

from benchmarks import __main__ as command
from benchmarks import kept, results, runner


@pytest.fixture
def counting(monkeypatch, tmp_path):
    """An evaluation of three parts that counts how often each is run; the last one cannot be."""
    monkeypatch.setattr(kept, "CACHE", tmp_path / "kept")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    module = ModuleType("counting", "How often is a part run?")
    module.ran = []

    def work(name):
        if name == "absent":
            raise runner.CannotRun("not here")
        module.ran.append(name)
        return {"value": len(module.ran)}

    module.options = lambda parser: parser.add_argument("--seed", type=int, default=0)
    module.parts = lambda given: [
        runner.Part(name, lambda name=name: work(name), 1, given.seed, by_name="slow" if name == "slow" else "")
        for name in ("one", "two", "slow", "absent")
    ]
    module.result = lambda given, found: {"results": found}
    return runner.Evaluation("counting", "how often", module)


def test_every_evaluation_is_listed_and_has_what_the_runner_needs(capsys):
    command.main(["--help"])
    told = capsys.readouterr().out
    for name in command.EVALUATIONS:
        assert f"  {name} " in told
        module = command.find(name).module
        assert callable(module.parts)
        assert callable(module.result)
        assert hasattr(module, "tables") == hasattr(module, "PAGE"), name
        assert "--only" in runner.parser(command.find(name)).format_help()
    with pytest.raises(SystemExit, match="usage"):
        command.main(["nothing"])


def test_what_is_kept_is_not_run_again(counting, capsys):
    first = runner.run(counting, ["--only", "one"])
    assert first["results"] == {"one": {"value": 1}}
    assert first["question"] == "how often"
    assert {"machine", "versions", "commit", "date"} <= set(first)
    assert runner.run(counting, [])["results"] == {"one": {"value": 1}, "two": {"value": 2}}
    assert counting.module.ran == ["one", "two"]
    told = capsys.readouterr().err
    assert "about" in told
    assert "absent: not here" in told
    runner.run(counting, ["--collect"])
    assert counting.module.ran == ["one", "two"]
    runner.run(counting, ["--only", "one", "--again"])
    runner.run(counting, ["--only", "o", "w"])
    assert counting.module.ran == ["one", "two", "one"], "a slow part is run only where it is named"
    runner.run(counting, ["--only", "slow"])
    assert counting.module.ran == ["one", "two", "one", "slow"]
    runner.run(counting, ["--only", "one", "--seed", "1"])
    assert counting.module.ran[4:] == ["one"]


def test_parts_that_do_not_last_are_forgotten_once_all_is_written(counting, tmp_path):
    counting.module.LASTING = False
    runner.run(counting, ["--out", str(tmp_path / "elsewhere.json")])
    runner.run(counting, ["--out", str(tmp_path / "elsewhere.json")])
    assert counting.module.ran == ["one", "two"] * 2
    assert set(json.loads((tmp_path / "elsewhere.json").read_text())["results"]) == {"one", "two"}
    assert not (tmp_path / "counting.json").exists()
