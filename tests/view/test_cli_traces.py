"""The commands of the generative uses, run as a user would: a saved model, a saved tokenizer, files of rows."""

import json
from pathlib import Path

import pandas as pd
import pytest
from texts_cases import decoder, stated, texts, tokenizer

pytest.importorskip("transformers")
BASIC = ("trace", "--model", "gpt", "--data", "texts.jsonl", "--prompt", "hal lives in", "--answer", "quito")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with a model, its tokenizer and texts, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORWARDINF_CACHE", str(tmp_path / "cache"))
    decoder().save_pretrained("gpt")
    tokenizer().save_pretrained("gpt")
    Path("texts.jsonl").write_text(
        "".join(json.dumps({"text": text, "key": f"t{row}"}) + "\n" for row, text in enumerate(texts()))
    )
    return tmp_path


def test_trace_in_json_and_in_files(there, run):
    code, out, err = run(*BASIC, "--ids", "key", "--keep", "4", "--out", "found", "--report", "t.html", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["table"][0]["train"] in {f"t{row}" for row in stated()}
    assert len(pd.read_parquet("found/table.parquet")) == 4
    assert "quito" in Path("t.html").read_text()


def test_trace_names_a_set_on_request(there, run):
    words = ("--jointly", "--curvature", "none", "--reading", "root", "--spans", "0", "--keep", "3", "--json")
    code, out, err = run(*BASIC, *words)
    assert code == 0, err
    found = json.loads(out)
    assert found["how"] == "unit-whitened, root, jointly"
    assert [row["rank"] for row in found["table"]] == [1, 2, 3]


def test_plan_says_what_a_trace_takes_and_keeps_to_the_memory_that_is_allowed(there, run):
    code, out, err = run("plan", *BASIC, "--memory", "2", "--out", "found", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["documents"] == found["sketched"] == len(texts())
    assert found["memory_bytes"] <= 2 * 2**20
    assert found["backward_passes"] == 2 * len(texts()) + 1
    assert set(found["parts"]) >= {"fitting", "gradients", "questions", "comparing", "hidden states"}
    assert found["parts"]["gradients"]["work"] == 4 * len(texts())
    assert not Path("found").exists()
    assert not Path("cache/sketches").exists()
    code, out, err = run("plan", *BASIC, "--candidates", "bm25")
    assert (code, out) == (0, ""), err
    assert "memory_bytes" in err


def test_trace_for_people_goes_to_stderr(there, run):
    Path("asked.jsonl").write_text(json.dumps({"prompt": "hal lives in", "answer": "quito", "id": "hal"}) + "\n")
    code, out, err = run(*BASIC[:5], "--questions", "asked.jsonl", "--how", "cosine", "-k", "2", "--spans", "0")
    assert (code, out) == (0, ""), err
    assert "hal lives in" in err
    assert "positive = proponent" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [((*BASIC[:5],), "--prompt or --questions"), ((*BASIC, "--how", "best"), "how"),
     ((*BASIC, "--curvature", "fisher"), "curvature"),
     ((*BASIC, "--jointly", "--how", "dot"), "jointly"), ((*BASIC, "--fuse", "x"), "--fuse"),
     ((*BASIC, "--text", "a,b,c"), "--text"), ((*BASIC, "--text", "body"), "'body'"),
     (("trace-images", "--data", "texts.jsonl", "--queries", "texts.jsonl"), "--pipeline"),
     (("trace-images", "--data", "texts.jsonl", "--queries", "texts.jsonl", "--pipeline", "gpt"), "model_index.json")],
)  # fmt: skip
def test_what_is_refused_is_one_line_and_an_exit_code(there, run, words, told):
    code, out, err = run(*words)
    assert code in (1, 2)
    assert out == ""
    assert told in err.replace("\n", " ")
