import logging
import time

import pytest

import forwardinf as fi
from forwardinf.core.errors import FileError, SettingError
from forwardinf.data.places import expanded, is_path, look_on_hub, nearest
from forwardinf.data.read_hub import read_hub
from forwardinf.models.pretrained import config_of

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two models in it, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/checkpoint-100", "runs/checkpoint-200", "gpt2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


@pytest.fixture
def online(monkeypatch):
    """The hub may be asked, as far as settings go; asking it fails the test."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)

    def never(*given, **settings):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(hub, "hf_hub_download", never)


@pytest.mark.parametrize(
    "word",
    [
        "runs/checkpont-100",
        "./gpt",
        "gpt2/",
        "/nowhere/model",
        "~/nowhere/model",
        "a/b/c",
        "model.gguf",
        "runs\\last",
        "C:model",
        "..",
        "data.jsonl",
    ],
)
def test_what_is_meant_as_a_path_is_one(here, word):
    assert is_path(word)


@pytest.mark.parametrize("word", ["gtp2", "openai-community/gpt2", "Qwen/Qwen2.5-0.5B", "bert-base-uncased", "a/b.c"])
def test_what_may_be_a_hub_id_is_none(here, word):
    assert not is_path(word)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("runs/checkpont-100", "Did you mean 'runs/checkpoint-100'?"),
        ("run/checkpoint-200", "Did you mean 'runs/checkpoint-200'?"),
        ("run/last", "Did you mean 'runs'?"),
        ("GTP2", "Did you mean 'gpt2'?"),
        ("runs/zzz", "In runs: checkpoint-100, checkpoint-200."),
        ("notes.txt/x", ""),
    ],
)
def test_the_nearest_path_is_named(here, word, told):
    assert nearest(word) == told


def test_many_names_are_cut_and_hidden_ones_left_out(tmp_path):
    for name in ("a", "b", "c", "d", "e", "f", ".git"):
        (tmp_path / name).mkdir()
    assert nearest(tmp_path / "zzz").endswith(": a, b, c, d, e ….")


@pytest.mark.parametrize("word", ["runs/checkpont-100", "./gtp2", "gtp2/", "/nowhere/at/all", "~/nowhere-at-all"])
def test_a_mistyped_folder_is_said_at_once_and_never_looked_for_on_the_hub(here, online, word):
    began = time.process_time()
    with pytest.raises(FileError, match="nothing at this path") as caught:
        fi.load_model(word)
    assert time.process_time() - began < 1
    if "checkpont" in word:
        assert caught.value.do == "Did you mean 'runs/checkpoint-100'?"
    with pytest.raises(FileError, match="nothing at this path"):
        read_hub(word, {})


def test_a_word_of_no_form_never_reaches_the_hub(here, online):
    with pytest.raises(SettingError, match="none of these"):
        fi.load_model("what is this?")


def test_it_is_said_before_the_hub_is_asked(here, monkeypatch, caplog):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    with caplog.at_level(logging.WARNING):
        look_on_hub("model", "gtp2", "a model")
    assert "asking the Hugging Face hub" in caplog.text
    assert "Did you mean 'gpt2'?" in caplog.text


def test_nothing_is_said_where_the_hub_is_not_asked(here, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        look_on_hub("model", "owner/name", "a model")  # offline: the cache is read
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *given: "somewhere")
        look_on_hub("model", "owner/name", "a model")
    assert caplog.text == ""


def test_a_hub_that_cannot_be_reached_is_asked_once(here, monkeypatch):
    asked = []

    def unreachable(source, name):
        asked.append(name)
        raise hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    with pytest.raises(FileError, match="cannot be reached"):
        fi.load_model("owner/name")
    assert len(asked) == 1, "each try takes half a minute"
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda source, name: "x" if name == "config.json" else None)
    assert config_of("owner/name", "adapter_config.json") is None, "the cache holds the model, and it is no adapter"


def test_a_home_folder_is_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/model") == str(tmp_path / "model")
    assert expanded("model") == "model"
    (tmp_path / "model").mkdir()
    with pytest.raises(FileError, match=r"config\.json"):
        fi.load_model("~/model")


def test_mistyped_weights_get_a_hint(here):
    (here / "best.safetensors").write_bytes(b"")
    with pytest.raises(FileError, match=r"Did you mean 'best\.safetensors'"):
        fi.load_model(
            "torch.nn:Linear", factory_options={"in_features": 2, "out_features": 1}, weights="bset.safetensors"
        )


def test_an_adapter_whose_base_has_moved_says_so(here):
    pytest.importorskip("peft")
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "/old/machine/base"}')
    with pytest.raises(FileError, match="adapter 'adapter'") as caught:
        fi.load_model("adapter")
    assert "/old/machine/base" in caught.value.got
    assert "base_model_name_or_path" in caught.value.do
