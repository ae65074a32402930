"""The command line, run as a user would: real files, real exit codes, JSON on stdout, people on stderr."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import forwardinf as fi

BASIC = ["--model", "cli_net:Net", "--weights", "net.safetensors", "--data", "digits.npz", "--queries", "data:test"]


def test_attribute_writes_a_run_folder_and_prints_json_on_stdout_only(here, run):
    code, out, err = run(
        "attribute", *BASIC, "--where", "0:3", "--out", "runs/a", "--report", "a.html", "-k", "2", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert [entry["query"] for entry in found["queries"]] == [0, 1, 2]
    assert len(found["queries"][0]["top"]) == 2
    assert found["unit"] == "√nats"  # the preset reads a classifier by its root
    assert Path("a.html").read_text().startswith("<!")
    kept = fi.load_scores("runs/a")
    assert kept.top(1, 0)["train"].item() == found["queries"][0]["top"][0]["train"]


def test_checkpoints_are_combined_and_a_run_folder_replays_them(here, run):
    weights = load_file("net.safetensors")
    save_file({name: tensor * 0.9 for name, tensor in weights.items()}, "early.safetensors")
    both = ["--checkpoint", "early.safetensors", "--checkpoint", "net.safetensors"]
    code, _, err = run("attribute", *BASIC, "--where", "0:2", "--out", "both", *both)
    assert code == 1, err
    assert "checkpoints[1]" in err, "the second is the model itself"
    save_file({name: tensor * 0.8 for name, tensor in weights.items()}, "earlier.safetensors")
    both[3] = "earlier.safetensors"
    code, _, err = run("attribute", *BASIC, "--where", "0:2", "--out", "both", *both, "--json")
    assert code == 0, err
    scores = fi.load_scores("both")
    assert scores.uncertainty is not None
    code, _, err = run(
        "attribute", *BASIC, "--where", "0:2", "--out", "one", "--json", *both[:2], "--combine", "standardized"
    )
    assert code == 0, err
    assert not np.allclose(fi.load_scores("one").values, scores.values)
    code, _, err = run("run", "both/config.yaml", "--allow-code", "--out", "again", "--json")
    assert code == 0, err
    assert np.array_equal(fi.load_scores("again").values, scores.values)


def test_the_engine_may_be_chosen_and_both_agree(here, run):
    found = {}
    for engine in ("forward", "factored"):
        code, _, err = run("attribute", *BASIC, "--where", "0:3", "--out", engine, "--engine", engine, "--json")
        assert code == 0, err
        scores = fi.load_scores(engine)
        assert scores.plan["engine"] == engine
        found[engine] = scores.values
    largest = np.abs(found["factored"]).max()
    assert np.abs(found["forward"] - found["factored"]).max() < 0.02 * largest, "a difference beside the exact rate"
    code, _, err = run("attribute", *BASIC, "--engine", "fatcored")
    assert code == 2
    assert "'factored'" in err


def test_tables_for_people_go_to_stderr(here, run):
    code, out, err = run("attribute", *BASIC, "--where", "0:2", "-k", "1")
    assert (code, out) == (0, "")
    assert "proponents" in err
    assert "positive = proponent" in err


def test_queries_chosen_by_being_misclassified_keep_their_positions_as_ids(here, run):
    code, out, err = run("attribute", *BASIC, "--where", "misclassified", "--json", "-k", "1")
    assert code == 0, err
    model = fi.load_model("cli_net:Net", weights="net.safetensors")
    with np.load("digits.npz") as file, torch.no_grad():
        wrong = model(torch.from_numpy(file["x_test"])).argmax(1).numpy() != file["y_test"]
    assert [entry["query"] for entry in json.loads(out)["queries"]] == np.flatnonzero(wrong).tolist()


def test_a_run_folder_replays_from_its_own_config(here, run):
    run("attribute", *BASIC, "--where", "0:3", "--out", "runs/a", "--perturb", "length=1e-2")
    config = yaml.safe_load(Path("runs/a/config.yaml").read_text())
    assert config["perturbation"]["length"] == 0.01
    code, _, err = run("run", "runs/a/config.yaml", "--out", "runs/b")
    assert code == 2
    assert "--allow-code" in err
    assert not Path("runs/b").exists()
    code, _, err = run("run", "runs/a/config.yaml", "--out", "runs/b", "--allow-code")
    assert code == 0, err
    assert np.array_equal(fi.load_scores("runs/a").values, fi.load_scores("runs/b").values)
    code, out, _ = run(
        "run",
        "runs/a/config.yaml",
        "--set",
        "perturbation.length=null",
        "--set",
        "perturbation.rise=0.5",
        "--allow-code",
        "--json",
    )
    assert (code, json.loads(out)["kind"]) == (0, "finite")


def test_resume_needs_a_command_line_run_and_returns_what_is_finished(here, run):
    run("attribute", *BASIC, "--where", "0:3", "--out", "runs/a")
    code, out, err = run("resume", "runs/a", "--allow-code", "--json", "-k", "1")
    assert code == 0, err
    assert json.loads(out)["cost"]["forwards"] < 300 * 3  # nothing is read again
    code, _, err = run("resume", "runs/a")
    assert code == 2
    assert "--allow-code" in err
    fi.Scores.from_array([[1.0]]).save("saved")
    code, _, err = run("resume", "saved")
    assert code == 1
    assert "same Python call" in err
    assert run("resume", "nowhere")[0] == 1


def test_another_run_in_the_same_folder_is_refused_unless_overwritten(here, run):
    run("attribute", *BASIC, "--where", "0:3", "--out", "runs/a")
    code, _, err = run("attribute", *BASIC, "--where", "0:2", "--out", "runs/a")
    assert code == 1
    assert "queries: kept" in err
    code, _, err = run("attribute", *BASIC, "--where", "0:2", "--out", "runs/a", "--overwrite")
    assert code == 0, err
    assert len(fi.load_scores("runs/a").query_ids) == 2


def test_top_reads_a_folder_without_the_model(here, run):
    run("attribute", *BASIC, "--where", "0:3", "--out", "runs/a")
    code, out, _ = run("top", "runs/a", "-k", "2", "--query", "1", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["rank"] for row in rows] == [1, 2]
    code, out, _ = run("top", "runs/a", "-k", "1", "--opponents", "--json")
    assert all(row["score"] < 0 for row in json.loads(out))
    code, out, _ = run("top", "runs/a", "-k", "1", "--query", "2", "--query", "0", "--json")
    assert [row["query"] for row in json.loads(out)] == [2, 0]
    code, _, err = run("top", "runs/a", "--query", "99")
    assert code == 2
    assert "99" in err


def test_plan_says_what_a_run_costs_and_reads_no_training_set(here, run):
    code, out, err = run("plan", *BASIC, "--where", "0:3", "--perturbation", "finite", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["forwards"] == 3 * 2 * 300
    assert found["seconds"]["total"] >= 0
    code, _, err = run("plan", *BASIC, "--where", "0:3")
    assert "batch_size" in err


def test_self_influence_writes_a_table_with_the_loss_beside_it(here, run):
    code, out, err = run(
        "self-influence",
        "--model",
        "cli_net:Net",
        "--weights",
        "net.safetensors",
        "--data",
        "digits.npz",
        "-k",
        "3",
        "--out",
        "self.csv",
        "--json",
    )
    assert code == 0, err
    rows = json.loads(out)
    assert rows[0]["self_influence"] >= rows[1]["self_influence"]
    assert {"train", "self_influence", "loss"} <= set(rows[0])
    assert len(Path("self.csv").read_text().splitlines()) == 301


def test_a_task_may_be_a_function_of_the_users(here, run):
    code, out, err = run(
        "attribute", *BASIC, "--where", "0:2", "--task", "cli_net:absolute", "--perturb", "direction=plain", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["unit"] == "loss"


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (["--task", "clasification"], 2, "'classification'"),
        (["--perturbation", "finit"], 2, "'finite'"),
        (["--perturb", "lenght=0.1"], 2, "'length'"),
        (["--perturb", "length"], 2, "name=value"),
        (["--weights", "none.safetensors"], 1, "none.safetensors"),
        (["--data", "none.npz"], 1, "none.npz"),
        (["--queries", "data:tset"], 2, "test"),
        (["--where", "0:9999"], 2, "9999"),
        (["--model", "cli_net:Nett"], 2, "Net"),
        (["--task-option", "querry=label"], 2, "querry"),
        (["--keep", "some"], 2, "keep"),
        (["--data-option", "scal=2"], 2, "scale"),
    ],
)
def test_mistakes_are_one_line_with_a_guess_and_leave_nothing_behind(here, run, change, code, told):
    got, out, err = run("attribute", *BASIC, "--out", "runs/x", *change)
    assert told in err
    assert out == ""
    assert got in (code, 1, 2)
    assert got != 0
    assert err.strip().count("\n") <= 1, err
    assert not Path("runs/x").exists() or not any(Path("runs/x").iterdir())


def test_doctor_is_happy_here_and_says_so_in_json(here, run):
    code, out, _ = run("doctor", "--model", "cli_net:Net", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["versions"]["torch"] == torch.__version__ or found["versions"]["torch"].startswith("2.")
    assert any("parameters" in finding["what"] for finding in found["findings"])


def test_version_and_help_do_not_wait_for_torch():
    for words in (["--version"], ["--help"]):
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, "-X", "importtime", "-m", "forwardinf", *words],
                capture_output=True,
                text=True,
                check=True,
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert " torch" not in {line.rpartition("|")[2] for line in done.stderr.splitlines()}
        assert min(times) < 1.5, times  # CPU seconds: .1 to .2 on a quiet machine; caches that others fill cost some
    assert "proponents" in done.stdout


def test_a_config_file_with_an_unknown_name_gets_a_guess(here, run):
    Path("run.yaml").write_text(
        "model: {spec: 'cli_net:Net', wieghts: x}\ndata: {spec: digits.npz}\nqueries: {spec: 'data:test'}\n"
    )
    code, _, err = run("run", "run.yaml", "--allow-code")
    assert code == 2
    assert "'weights'" in err
    Path("run.yaml").write_text("format: forwardinf.config/9\nmodel: {spec: a}\n")
    code, _, err = run("run", "run.yaml", "--allow-code")
    assert code == 1
    assert "forwardinf.config/1" in err
    Path("run.yaml").write_text("[1, 2]")
    assert run("run", "run.yaml")[0] == 1


def test_plan_says_what_the_fit_and_the_queries_take(here, run):
    code, out, err = run("plan", *BASIC, "--where", "0:3", "--json")
    assert code == 0, err
    found = json.loads(out)["seconds"]
    assert found["fit, unless kept"] > 0
    assert found["queries"] > 0
    assert found["total"] == pytest.approx(sum(each for name, each in found.items() if name != "total"), abs=0.05)


def test_groups_candidates_collate_and_where_things_are_kept_are_flags_too(here, run):
    labels = np.load("digits.npz")["y_test"]
    Path("groups.txt").write_text("".join(f"digit {label}\n" for label in labels[:6]))
    folders = ("--cache-dir", "kept", "--device", "cpu", "--num-workers", "0", "--shard-rows", "100")
    code, out, err = run("attribute", *BASIC, "--where", "0:6", "--groups", "groups.txt", *folders, "--json")
    assert code == 0, err
    assert [one["query"] for one in json.loads(out)["queries"]] == list(
        dict.fromkeys(f"digit {label}" for label in labels[:6])
    )
    assert list(Path("kept").rglob("*.safetensors"))
    Path("few.json").write_text(json.dumps({"0": [1, 2, 3], "1": [4]}))
    code, out, err = run("attribute", *BASIC, "--where", "0:2", "--candidates", "few.json", "--json", "-k", "9")
    assert code == 0, err
    assert [sorted(row["train"] for row in one["top"]) for one in json.loads(out)["queries"]] == [[1, 2, 3], [4]]
    np.save("few.npy", np.array([[1, 2], [3, 4]]))
    code, out, err = run("attribute", *BASIC, "--where", "0:2", "--candidates", "few.npy", "--json", "-k", "9")
    assert [sorted(row["train"] for row in one["top"]) for one in json.loads(out)["queries"]] == [[1, 2], [3, 4]]
    Path("cli_join.py").write_text(
        "import torch\ndef joined(rows):\n    return torch.utils.data.default_collate(rows)\n"
    )
    code, out, err = run(
        "attribute", *BASIC, "--where", "0:2", "--collate", "cli_join:joined", "--out", "runs/c", "--json"
    )
    assert code == 0, err
    code, out, err = run("resume", "runs/c")  # what joins rows is code too
    assert code == 2
    assert "cli_join:joined" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--candidates", "none.json"), "none.json"),
        (("--candidates", "list.json"), "JSON object"),
        (("--groups", "colour"), "a file with a label a line"),
        (("--collate", "os:system"), "module of Python itself"),
        (("--device", "cuda"), "where the model is"),
    ],
)
def test_what_is_refused_of_them(here, run, words, told):
    Path("list.json").write_text("[1, 2]")
    code, out, err = run("attribute", *BASIC, "--where", "0:2", *words)
    assert code in (1, 2)
    assert out == ""
    assert told in err
