"""The command `verify`, run as a user would."""

import json
from pathlib import Path

import pytest


@pytest.mark.whole
def test_verify_in_json_and_in_files_and_again_for_people(here, run):
    words = ("verify", "--quick", "--part", "convex", "--out", "found")
    code, out, err = run(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["experiment"] for row in found["table"]][:2] == ["C = 1/(0.01 n)", "C held fixed"]
    assert found["table"][0]["spearman"] > 0.95
    assert json.loads(Path("found/verify.json").read_text())["table"] == found["table"]
    assert Path("found/verify.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run(*words)  # everything is kept
    assert (code, out) == (0, ""), err
    assert "spearman" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [(("--data", "cats"), "'digits'"), (("--seeds", "a"), "whole numbers"), (("--quick", "--data", "mnist"), "Leave quick out")],
)  # fmt: skip
def test_what_is_refused(here, run, words, told):
    code, out, err = run("verify", *words)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())
