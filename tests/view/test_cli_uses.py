"""The commands of the uses, run as a user would."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_cli import BASIC


def test_leaks_in_json_and_in_files(here, run):
    code, out, err = run(
        "leaks", *BASIC, "--where", "0:5", "--pairs", "2", "--out", "found", "--report", "l.html", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert len(found["table"]) == 10
    assert found["calibration"] == "uncalibrated"
    assert len(pd.read_parquet("found/table.parquet")) == 10
    assert Path("l.html").read_text().startswith("<!")


def test_mislabeled_and_memorized_for_people_go_to_stderr(here, run):
    words = [word for word in BASIC if word not in ("--queries", "data:test")]
    code, out, err = run("mislabeled", *words, "--clean", "data:test", "-k", "3")
    assert (code, out) == (0, ""), err
    assert "label_score" in err
    assert "model_margin" in err  # the free alternative beside it
    assert "false-positive rate" in err
    code, out, err = run("memorized", *words, "--queries", "data:test", "--where", "0:4", "-k", "2")
    assert (code, out) == (0, ""), err
    assert "memorization" in err
    assert "influence" in err


@pytest.mark.parametrize("use", ["leaks", "mislabeled", "memorized"])
def test_plan_says_what_a_use_takes_and_does_none_of_it(here, run, use):
    words = BASIC if use == "leaks" else [word for word in BASIC if word not in ("--queries", "data:test")]
    code, out, err = run("plan", use, *words, "--json", "--out", "found")
    assert code == 0, err
    found = json.loads(out)
    assert found["use"] == use
    assert found["training_rows"] > 0
    assert found["backward_passes"] >= found["training_rows"]
    assert found["memory_bytes"] > 0
    assert found["seconds"] > 0
    assert all(part["work"] > 0 and part["seconds"] >= 0 for part in found["parts"].values())
    assert not Path("found").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [(("leaks", *BASIC, "--candidates", "nearby"), "'neighbours'"), (("leaks", *BASIC, "--fdr", "2"), "between 0 and 1"),
     (("mislabeled", *BASIC[:6], "--task", "cli_net:absolute"), "logits(model, batch)")],
)  # fmt: skip
def test_what_is_refused_is_one_line_and_an_exit_code(here, run, words, told):
    code, out, err = run(*words)
    assert code in (1, 2)
    assert out == ""
    assert told in err.replace("\n", " ")
    assert sys.modules.get("cli_net") is not None
