"""Code by the back door: every place where a word can stand, against every trick that makes a word run something.

What is attacked is a folder that somebody gave you: a run folder with its configuration, and whatever else lies there. Each trick
leaves a mark when its code runs. Quick form: each place and each trick at least once; ``FORWARDINF_ALL_ATTACKS=1``: all pairs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import forwardinf as fi
from forwardinf.data.import_gate import code_from, import_name, is_code
from forwardinf.view.cli import main

ALL = os.environ.get("FORWARDINF_ALL_ATTACKS") == "1"
MARK = "code-ran"
EVIL = f"""
from pathlib import Path
Path({MARK!r}).write_text("imported")
import torch
def main(*_, **__):
    Path({MARK!r}).write_text("called")
    return torch.nn.Linear(2, 2)
train = test = Net = rows = load = main
"""
GOOD = {
    "model": {"spec": "good_net:Net"}, "data": {"spec": "rows.npz"}, "queries": {"spec": "rows.npz:test"},
    "task": {"name": "classification"}, "perturbation": {"preset": "linear", "direction": "plain"},
}  # fmt: skip
COMMAND = f"touch {MARK}"

# Each trick: the word, and options that would make the call do harm.
TRICKS = {
    "a module in the folder": ("evil:main", {}),
    "a prefix that is a module": ("data:main", {}),
    "a prefix and a split": ("data:train", {}),
    "a package in the folder": ("pack.inner:main", {}),
    "a shell": ("os:system", {"command": COMMAND}),
    "a subprocess": ("subprocess:getoutput", {"cmd": COMMAND}),
    "eval": ("builtins:eval", {"source": f"open({MARK!r}, 'w')"}),
    "exec through a module": ("evil:__builtins__.exec", {}),
    "a module through a package": ("torch:os.system", {"command": COMMAND}),
    "C under Python": ("posix:system", {"command": COMMAND}),
    "a debugger": ("pdb:run", {"statement": "1"}),
    "an installer": ("runpy:run_path", {"path_name": "evil.py"}),
    "a shadow of an extra": ("timm:main", {}),
}
# Each place: how the word gets into the configuration.
PLACES = {
    "model": lambda c, word, options: c["model"].update(spec=word, options=options),
    "data": lambda c, word, options: c["data"].update(spec=word, options=options),
    "queries": lambda c, word, options: c["queries"].update(spec=word, options=options),
    "task": lambda c, word, options: c["task"].update(name=word, options=options),
    "tokenizer": lambda c, word, _: c["model"].update(tokenizer=word),
    "weights": lambda c, word, _: c["model"].update(weights=word),
    "checkpoints": lambda c, word, _: c.update(checkpoints=[word]),
    "direction": lambda c, word, _: c["perturbation"].update(direction=word),
    "preset": lambda c, word, _: c["perturbation"].update(preset=word),
    "where": lambda c, word, _: c["queries"].update(where=word),
    "a reader's tokenizer": lambda c, word, _: c["data"].update(options={"tokenizer": word}),
    "collate": lambda c, word, _: c.update(options={"collate_fn": word}),
    "engine": lambda c, word, _: c.update(options={"engine": word}),
    "ids": lambda c, word, _: c.update(options={"ids": word}),
    "a task's option": lambda c, word, _: c["task"].update(options={"logits": word}),
}
PAIRS = [(place, trick) for i, place in enumerate(PLACES) for j, trick in enumerate(TRICKS)
         if ALL or i < 4 or (i + j) % len(TRICKS) == 0]  # fmt: skip


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A folder that somebody gave: the current one, not on Python's path, with files named like every word."""
    monkeypatch.chdir(tmp_path)
    before, loaded = list(sys.path), set(sys.modules)
    for name in ("evil.py", "data.py", "timm.py", "good_net.py"):
        Path(name).write_text(EVIL)
    Path("pack").mkdir()
    Path("pack/__init__.py").write_text(EVIL)
    Path("pack/inner.py").write_text(EVIL)
    rng = np.random.default_rng(0)
    arrays = {f"{n}_{s}": v for s in ("train", "test")
              for n, v in (("x", rng.normal(size=(8, 2)).astype("float32")), ("y", np.arange(8) % 2))}  # fmt: skip
    np.savez("rows.npz", **arrays)
    for word, _ in TRICKS.values():
        Path(word).write_bytes(Path("rows.npz").read_bytes())  # a file of that name turns nothing into data
    yield tmp_path
    sys.path[:] = before
    for name in set(sys.modules) - loaded:
        if name.partition(".")[0] in ("evil", "data", "timm", "pack", "good_net"):
            del sys.modules[name]


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["forwardinf", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, capsys.readouterr().err

    return call


def config_with(place, trick):
    config = json.loads(json.dumps(GOOD))
    config["model"]["spec"] = "no/such/model"  # what is good in it needs no code either
    PLACES[place](config, *TRICKS[trick])
    return config


@pytest.mark.parametrize(("place", "trick"), PAIRS)
def test_no_word_of_a_configuration_runs_code_without_being_asked(given, run, place, trick):
    folder = Path("gift")
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config_with(place, trick)))
    (folder / "run.json").write_text(json.dumps({"format": "forwardinf.run/1", "made_from": {}, "about": {}}))
    for words in (["run", "gift/config.yaml"], ["resume", "gift"]):
        code, err = run(*words)
        assert code in (1, 2), err
        assert err.startswith("forwardinf: "), err
        assert not Path(MARK).exists(), err


@pytest.mark.parametrize("place", ["model", "data", "queries", "task"])
@pytest.mark.parametrize("trick", [trick for trick, (word, _) in TRICKS.items() if word.partition(":")[0] in (
    "os", "subprocess", "builtins", "posix", "pdb", "runpy", "torch") or "__" in word])  # fmt: skip
def test_pythons_own_modules_are_refused_even_where_code_is_allowed(given, place, trick):
    Path("evil.py").write_text("def main(): return [1]")
    word, options = TRICKS[trick]
    calls = {"model": lambda: fi.load_model(word, factory_options=options), "task": lambda: import_name(word, "task")}
    with code_from("here"), pytest.raises(fi.SettingError):
        calls.get(place, lambda: fi.load_data(word, **options))()
    assert not Path(MARK).exists()


@pytest.mark.parametrize(
    "word", ["held:partial", "held:method", "held:Odd", "held:says_none", "held:deep.system", "held:fill"]
)
def test_only_what_can_give_what_is_asked_is_called(given, word):
    Path("held.py").write_text(
        "import os, functools, pathlib\n"
        f"partial = functools.partial(os.system, {COMMAND!r})\n"
        f"method = pathlib.Path({MARK!r}).touch\n"
        f"class Odd:\n    def __init__(self): open({MARK!r}, 'w')\n"
        f"def says_none() -> None: open({MARK!r}, 'w')\n"
        "deep, fill = os, [].append\n"
    )
    with code_from("here"), pytest.raises(fi.SettingError):
        fi.load_model(word)
    assert not Path(MARK).exists()
    del sys.modules["held"]


def test_what_python_calls_imports_nothing_from_the_current_folder(given):
    for load in (fi.load_model, fi.load_data):
        with pytest.raises(fi.SettingError, match="no module 'evil'"):
            load("evil:main")
    assert not Path(MARK).exists()


def test_what_the_command_line_names_is_found_but_stands_in_for_no_package(given, run):
    Path("yaml.py").write_text(EVIL)
    code, err = run("doctor", "--model", "yaml:main")  # installed, and here
    assert code != 0
    assert not Path(MARK).exists(), err
    Path("lonely.py").write_text("import torch\ndef main(): return torch.nn.Linear(2, 2)")
    assert run("doctor", "--model", "lonely:main")[0] == 0
    assert Path.cwd() == Path(sys.path[-1]), "last: what lies here is found after everything else"


@pytest.mark.parametrize("flag", ["--model", "--data", "--queries", "--task", "--clean"])
def test_what_is_named_on_the_command_line_is_refused_where_it_is_pythons(given, run, flag):
    words = {"--model": "lonely:main", "--data": "rows.npz", "--queries": "rows.npz:test", "--clean": "rows.npz"}
    Path("lonely.py").write_text("import torch\ndef main(): return torch.nn.Linear(2, 2)")
    words[flag] = "subprocess:getoutput"
    code, err = run("leaks", *(part for pair in words.items() for part in pair))
    assert code == 2, err
    assert "subprocess" in err


def test_every_word_of_a_form_is_told_by_its_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = ["a:b", "a.b:c.d", "os:system", "data:main"]
    none = ["data.npz:test", "x.jsonl.gz:train", "./a:b", "a/b:c", "~:x", "a:b:c", "a b:c", " os:system", ":x"]
    forms = {**dict.fromkeys(code, True), **dict.fromkeys(none, False)}
    for word, code in forms.items():
        assert is_code(word) == code, word
        if "/" not in word and not word.startswith("~"):
            Path(word).touch()
            assert is_code(word) == code, word


def test_a_configuration_cannot_choose_where_this_machine_keeps_its_caches(given, run):
    config = json.loads(json.dumps(GOOD))
    config["options"] = {"cache_dir": "elsewhere"}
    config["model"] = {"spec": "lonely:main"}
    Path("lonely.py").write_text("import torch\ndef main(): return torch.nn.Linear(2, 2)")
    Path("config.yaml").write_text(yaml.safe_dump(config))
    code, err = run("run", "config.yaml", "--allow-code")
    assert code == 2, err
    assert "cache_dir" in err
    assert not Path("elsewhere").exists()


# A run folder is data


@pytest.fixture
def finished(given):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    x, y = torch.randn(8, 2), torch.arange(8) % 2
    fi.attribute(model, (x, y), (x[:2], y[:2]), task=fi.Classification(), output_dir="gift", progress=False)
    return Path("gift")


@pytest.mark.parametrize("name", ["scores", "base", "train.parquet", "queries.parquet", "run.json"])
def test_reading_a_run_folder_opens_nothing_outside_it(finished, run, name):
    (finished / name).rename("outside")
    (finished / name).symlink_to(Path("outside").resolve())
    code, err = run("top", "gift")
    assert code == 1, err
    assert "a link to" in err
    with pytest.raises(fi.FileError, match="a link to"):
        fi.load_scores("gift")


def test_starting_a_folder_over_deletes_nothing_outside_it(finished):
    Path("mine").mkdir()
    Path("mine/s-1.parquet").write_text("precious")
    for file in (finished / "base").iterdir():
        file.unlink()
    (finished / "base").rmdir()
    (finished / "base").symlink_to(Path("mine").resolve())
    x, y = torch.randn(8, 2), torch.arange(8) % 2
    with pytest.raises(fi.FileError, match="a link to"):
        fi.attribute(torch.nn.Linear(2, 2), (x, y), (x[:2], y[:2]), task=fi.Classification(), output_dir="gift", overwrite=True,
                     progress=False)  # fmt: skip
    assert Path("mine/s-1.parquet").read_text() == "precious"


# Folders of models and data


def folder_of(config, name="config.json"):
    Path("model").mkdir(exist_ok=True)
    Path("model", name).write_text(json.dumps(config))
    save_file({"weight": torch.ones(1)}, "model/model.safetensors")
    return "model"


@pytest.mark.parametrize("config", [
    {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "attn_implementation": "somebody/kernel"},
    {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "text_config": {"_attn_implementation": "somebody/kernel:f"}},
    {"architectures": ["Own"], "model_type": "own", "auto_map": {"AutoModel": "evil.main"}},
    {"architectures": ["TrainingArguments"], "model_type": "gpt2"},
    {"architectures": ["pipeline"], "model_type": "gpt2"},
])  # fmt: skip
def test_a_models_settings_bring_no_code(given, config):
    with pytest.raises(fi.FileError):
        fi.load_model(folder_of(config))
    assert not Path(MARK).exists()


def test_an_adapters_settings_bring_no_code(given):
    config = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT", "base_model_name_or_path": ".",
              "tokenizer_name_or_path": ".", "tokenizer_kwargs": {"trust_remote_code": True}}  # fmt: skip
    with pytest.raises(fi.FileError, match="trust_remote_code"):
        fi.load_model(folder_of(config, "adapter_config.json"))


def test_a_pipelines_parts_come_from_no_module_of_the_folder(given, run):
    pytest.importorskip("diffusers")
    sys.path.append(str(given))  # as a module named on the command line would
    Path("pipe").mkdir()
    index = {"_class_name": "DDPMPipeline", "unet": ["evil", "main"], "scheduler": ["diffusers", "DDPMScheduler"]}
    Path("pipe/model_index.json").write_text(json.dumps(index))
    code, err = run("trace-images", "--pipeline", "pipe", "--data", "rows.npz", "--queries", "rows.npz")
    assert code == 1, err
    assert "'evil'" in err
    assert not Path(MARK).exists()


def test_pillow_runs_no_other_program(given, monkeypatch):
    for label in "ab":
        Path("images", label).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(f"images/{label}/x.png")
    Path("images/a/x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("Ghostscript"))
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("Ghostscript"))
    with pytest.raises(fi.DataError):
        fi.load_data("images")[0]


def test_python_dash_m_does_not_look_here_first(given):
    Path("typer.py").write_text(EVIL)
    done = subprocess.run([sys.executable, "-m", "forwardinf", "--version"], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(fi.__file__).parents[1])})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not Path(MARK).exists()
