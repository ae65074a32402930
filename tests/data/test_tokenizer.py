import contextlib
import json

import pytest
from words import PLAIN, tokenizer

from forwardinf.core.errors import FileError, SettingError
from forwardinf.data.tokenizer import has_tokenizer, load_tokenizer

transformers = pytest.importorskip("transformers")


def gpt(folder):
    config = transformers.GPT2Config(vocab_size=24, n_embd=8, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def adapter(folder, base):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))


def test_a_tokenizer_comes_from_its_folder_with_its_template(tmp_path):
    tokenizer(PLAIN).save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found("hi you")["input_ids"] == tokenizer()("hi you")["input_ids"]
    assert found.get_chat_template() == PLAIN


def test_an_adapters_tokenizer_is_its_bases(tmp_path, monkeypatch):
    gpt(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    adapter(tmp_path / "adapter", str(tmp_path / "base"))
    assert load_tokenizer(tmp_path / "adapter")("hi")["input_ids"] == tokenizer()("hi")["input_ids"]
    adapter(tmp_path / "base" / "beside", "..")
    assert load_tokenizer(tmp_path / "base" / "beside")("hi")["input_ids"] == tokenizer()("hi")["input_ids"]
    adapter(tmp_path / "second", str(tmp_path / "adapter"))
    assert load_tokenizer(tmp_path / "second")("hi")["input_ids"] == tokenizer()("hi")["input_ids"]


def test_an_adapters_own_tokenizer_comes_first(tmp_path):
    adapter(tmp_path / "adapter", "/nowhere")
    tokenizer(name="own").save_pretrained(tmp_path / "adapter")
    assert has_tokenizer(tmp_path / "adapter")
    assert load_tokenizer(tmp_path / "adapter")("hi")["input_ids"] == tokenizer()("hi")["input_ids"]


def test_a_model_folder_without_one_is_refused_and_says_what_to_give(tmp_path):
    gpt(tmp_path)  # transformers itself makes an empty tokenizer of this
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("hi you")["input_ids"] == []
    with pytest.raises(FileError, match="--tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer=" in caught.value.do


def test_one_without_a_vocabulary_is_refused(tmp_path):
    gpt(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(FileError, match="--tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", '{"model": 3}'])
def test_a_damaged_one_is_an_error_of_ours(tmp_path, content):
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(FileError, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_code_beside_a_tokenizer_is_not_run(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with contextlib.suppress(
        FileError
    ):  # a transformers that knows a class by another file may read it without the code
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_word_that_leads_to_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileError, match="folder it lies in"):
        load_tokenizer("tokenizer.json")
    with pytest.raises(FileError, match="nothing at this path"):
        load_tokenizer("./nowhere")
    with pytest.raises(SettingError, match="--tokenizer"):
        load_tokenizer("my_module:Net")
    with pytest.raises(FileError, match="--tokenizer"):
        load_tokenizer("nobody/nothing-of-this-name")
