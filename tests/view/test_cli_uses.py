"""The commands of the uses, run as a user would."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_cli import BASIC, here, run  # noqa: F401  (fixtures)


def test_leaks_in_json_and_in_files(here, run):  # noqa: F811
    code, out, err = run(
        "leaks", *BASIC, "--where", "0:5", "--pairs", "2", "--out", "found", "--report", "l.html", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert len(found["table"]) == 10
    assert found["calibration"] == "uncalibrated"
    assert len(pd.read_parquet("found/table.parquet")) == 10
    assert Path("l.html").read_text().startswith("<!")


def test_mislabeled_and_memorized_for_people_go_to_stderr(here, run):  # noqa: F811
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


@pytest.mark.parametrize(
    ("words", "told"),
    [(("leaks", *BASIC, "--candidates", "nearby"), "'neighbours'"), (("leaks", *BASIC, "--fdr", "2"), "between 0 and 1"),
     (("mislabeled", *BASIC[:6], "--task", "cli_net:absolute"), "logits(model, batch)")],
)  # fmt: skip
def test_what_is_refused_is_one_line_and_an_exit_code(here, run, words, told):  # noqa: F811
    code, out, err = run(*words)
    assert code in (1, 2)
    assert out == ""
    assert told in err.replace("\n", " ")
    assert sys.modules.get("cli_net") is not None
