"""The command line on texts: small language models and their tokenizer, saved; files of rows as people have them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from words import PLAIN, tokenizer

import forwardinf as fi
from forwardinf.data.chat import chat_tokens
from forwardinf.score.store import Folder

transformers = pytest.importorskip("transformers")
# peft 0.21 asks transformers 5.23 for a property that transformers renames
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEXTS = [
    "hi you",
    "who are you",
    "i am a bot",
    "be kind",
    "two plus two is four",
    "bye you",
    "you are kind",
    "am i a bot",
]
TALKS = [
    [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    for ask, answer in (("who are you", "i am a bot"), ("hi", "hi you"), ("two plus two", "four"), ("bye", "bye you"))
]
SMALL = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LINEAR = ("--perturbation", "plain", "--json")


def rows(path, found):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in found))


def gpt(kind="GPT2LMHeadModel", **settings):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=24, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=2,
                                     eos_token_id=3, **settings)  # fmt: skip
    return getattr(transformers, kind)(config).eval()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small decoder, its tokenizer and texts, as the current folder."""
    monkeypatch.chdir(tmp_path)
    gpt().save_pretrained("gpt")
    tokenizer(PLAIN).save_pretrained("gpt")
    rows("texts.jsonl", [{"text": text, "key": f"t{row}", "label": row % 2} for row, text in enumerate(TEXTS)])
    rows("chat.jsonl", [{"messages": talk} for talk in TALKS])
    rows("pairs.jsonl", [{"prompt": f"{ask[0]['content']} ", "completion": ask[1]["content"]} for ask in TALKS])
    return tmp_path


BASIC = ("attribute", "--model", "gpt", "--data", "texts.jsonl", "--queries", "texts.jsonl", "--where", "2,0",
         "--task", "causal-lm")  # fmt: skip


def test_a_text_model_needs_no_word_about_its_tokenizer_and_texts_stand_beside_ids(here, run):
    code, out, err = run(*BASIC, *LINEAR, "--out", "run", "--report", "page.html", "-k", "2")
    assert code == 0, err
    found = json.loads(out)
    assert [query["text"] for query in found["queries"]] == ["i am a bot", "hi you"]
    best = found["queries"][0]["top"][0]
    assert (best["train"], best["text"]) == (2, "i am a bot")
    assert all(
        row["text"] == TEXTS[row["train"]] for query in found["queries"] for row in query["top"] + query["bottom"]
    )
    page = Path("page.html").read_text()
    assert "two plus two is four" in page
    assert "ids 2" not in page


def test_top_shows_the_texts_of_a_run_folder_without_its_model(here, run):
    assert run(*BASIC, *LINEAR, "--out", "run")[0] == 0
    Path("texts.jsonl").unlink()
    code, out, err = run("top", "run", "-k", "2", "--json")
    assert code == 0, err
    assert all(row["text"] == TEXTS[row["train"]] for row in json.loads(out))
    code, _, err = run("top", "run", "-k", "2", "--query", "2", "--opponents")
    assert "i am a bot" in err.partition("opponents")[0]
    assert "hi you" not in err.partition("opponents")[0], "one query was asked for"
    assert any(text in err.partition("opponents")[2] for text in TEXTS)
    Folder(Path("run")).clear()
    assert not Path("run").exists() or not any(Path("run").iterdir())


def test_scores_are_those_of_the_same_rows_in_python(here, run):
    assert run(*BASIC, *LINEAR, "--out", "run")[0] == 0
    words = tokenizer()
    ids = [{"input_ids": words(text)["input_ids"]} for text in TEXTS]
    want = fi.attribute(fi.load_model("gpt"), ids, [ids[2], ids[0]], task=fi.CausalLM(), perturbation="plain")
    np.testing.assert_allclose(fi.load_scores("run").values, want.values, rtol=1e-5)


def test_conversations_count_what_the_assistant_says(here, run):
    code, _, err = run("attribute", "--model", "gpt", "--data", "chat.jsonl", "--queries", "chat.jsonl", "--where", "0:2",
                       "--task", "causal-lm", *LINEAR, "--out", "run")  # fmt: skip
    assert code == 0, err
    words, made = tokenizer(PLAIN), []
    for talk in TALKS:
        ids, labels = chat_tokens(words, talk)
        made.append({"input_ids": ids, "labels": labels})
    want = fi.attribute(fi.load_model("gpt"), made, made[:2], task=fi.CausalLM(), perturbation="plain")
    # float32 gradients, read in batches whose size each call finds by the clock
    np.testing.assert_allclose(fi.load_scores("run").values, want.values, rtol=1e-4)
    out = run("top", "run", "-k", "1", "--json")[1]
    assert json.loads(out)[0]["text"].startswith("user: ")


def test_pairs_count_the_completion(here, run):
    code, out, err = run("attribute", "--model", "gpt", "--data", "pairs.jsonl", "--queries", "pairs.jsonl", "--where", "0:1",
                         "--task", "causal-lm", *LINEAR, "--out", "run")  # fmt: skip
    assert code == 0, err
    ids = tokenizer()("who are you i am a bot")["input_ids"]
    one = {"input_ids": ids, "labels": [-100] * 4 + ids[4:]}
    want = fi.attribute(fi.load_model("gpt"), [one], [one], task=fi.CausalLM(), perturbation="plain")
    assert fi.load_scores("run").values[0, 0] == pytest.approx(want.values[0, 0], rel=1e-4)
    assert json.loads(out)["queries"][0]["text"] == "who are you  → i am a bot"


def test_an_encoder_decoder_takes_pairs(here, run):
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=24, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0,
                                   decoder_start_token_id=0)  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained("t5")
    words = ("attribute", "--model", "t5", "--data", "pairs.jsonl", "--queries", "pairs.jsonl", "--where", "0:1",
             "--task", "seq2seq", "--tokenizer", "gpt")  # fmt: skip
    code, out, err = run(*words, *LINEAR, "-k", "1")
    assert code == 0, err
    assert json.loads(out)["queries"][0]["top"][0]["text"] == "who are you  → i am a bot"
    code, _, err = run(*words[:4], "texts.jsonl", *words[5:])
    assert code == 2
    assert "text=input,output" in err


def test_a_decoder_that_classifies_is_padded_as_its_tokenizer_pads(here, run):
    model = gpt("GPT2ForSequenceClassification", num_labels=2, pad_token_id=0)
    words = tokenizer()
    words.add_special_tokens({"pad_token": "<end>"})
    model.config.pad_token_id = words.pad_token_id
    model.save_pretrained("judge")
    words.save_pretrained("judge")
    code, _, err = run("attribute", "--model", "judge", "--data", "texts.jsonl", "--queries", "texts.jsonl", "--where", "0:2",
                       "--task", "sequence-classification", *LINEAR, "--out", "run")  # fmt: skip
    assert code == 0, err
    one_by_one = [{"input_ids": words(text)["input_ids"], "labels": row % 2} for row, text in enumerate(TEXTS)]
    want = fi.attribute(
        model, one_by_one, one_by_one[:2], task=fi.SequenceClassification(), perturbation="plain", batch_size=1
    )
    np.testing.assert_allclose(fi.load_scores("run").values, want.values, rtol=1e-4, atol=1e-6)


def test_rows_that_came_tokenised_are_shown_in_words(here, run):
    rows("ids.jsonl", [{"input_ids": tokenizer()(text)["input_ids"]} for text in TEXTS])
    code, out, err = run("attribute", "--model", "gpt", "--data", "ids.jsonl", "--queries", "ids.jsonl", "--where", "2,0",
                         "--task", "causal-lm", *LINEAR, "-k", "1")  # fmt: skip
    assert code == 0, err
    assert [query["top"][0]["text"] for query in json.loads(out)["queries"]] == ["i am a bot", "hi you"]


def test_an_adapters_folder_finds_its_bases_tokenizer(here, run):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained("gpt"), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained("adapter")
    assert not list(Path("adapter").glob("tokenizer*"))
    code, out, err = run(BASIC[0], "--model", "adapter", *BASIC[3:], *LINEAR, "-k", "1")
    assert code == 0, err
    assert json.loads(out)["queries"][0]["top"][0]["text"] in TEXTS


def test_a_model_of_ones_own_is_told_which_option_to_give(here, run, monkeypatch):
    Path("own_gpt.py").write_text(
        "import transformers\ndef make():\n    return transformers.GPT2LMHeadModel.from_pretrained('gpt')\n"
    )
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, "own_gpt", raising=False)
    words = (BASIC[0], "--model", "own_gpt:make", *BASIC[3:], "-k", "1", *LINEAR)
    code, _, err = run(*words)
    assert code == 2
    assert "--tokenizer" in err
    assert "tokenizer=" in err
    code, out, err = run(*words, "--tokenizer", "gpt")
    assert code == 0, err
    assert json.loads(out)["queries"][0]["top"][0]["text"] == "i am a bot"
    gpt().save_pretrained("bare")
    code, _, err = run(BASIC[0], "--model", "bare", *BASIC[3:])
    assert code == 1
    assert "--tokenizer" in err
    code, _, err = run("trace", "--model", "own_gpt:make", "--data", "texts.jsonl", "--prompt", "hi")
    assert code == 2
    assert "--tokenizer" in err


def test_a_run_with_a_tokenizer_of_its_own_is_replayed(here, run):
    gpt().save_pretrained("bare")
    words = (BASIC[0], "--model", "bare", *BASIC[3:], "--tokenizer", "gpt", "--perturbation", "plain", "--out", "run")
    assert run(*words)[0] == 0
    code, _, err = run("run", "run/config.yaml", "--out", "again")
    assert code == 0, err
    assert np.array_equal(fi.load_scores("run").values, fi.load_scores("again").values)


def test_texts_that_are_too_long_are_named_and_may_be_cut(here, run):
    rows("long.jsonl", [{"text": "hi"}, {"text": "hi " * 20}, {"text": "bye " * 30}])
    words = (*BASIC[:3], "--data", "long.jsonl", "--queries", "texts.jsonl", *BASIC[7:], "--perturbation", "plain")
    code, _, err = run(*words)
    assert code == 1
    assert "train, row 1: expected at most 16 tokens" in err
    assert "got 22; 2 of 3 rows are too long" in err
    code, _, err = run(*words, "--data-option", "max_length=16")
    assert code == 0, err
    assert "note: train: 2 of 3 rows were cut to max_length=16 tokens" in err
    code, _, err = run(*words, "--data-option", "max_length=16", "--queries", "long.jsonl", "--where", "1,0")
    assert "note: queries: " in err


def test_a_tokenizer_of_another_model_is_refused(here, run):
    torch.manual_seed(0)
    small = transformers.GPT2Config(
        vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3
    )
    transformers.GPT2LMHeadModel(small).save_pretrained("small")
    code, _, err = run(BASIC[0], "--model", "small", *BASIC[3:], "--tokenizer", "gpt")
    assert code == 1
    assert "token ids below 20" in err
    assert "--tokenizer" in err


def test_a_text_model_without_a_task_of_text_is_told_which(here, run):
    code, _, err = run(*BASIC[:-2])
    assert code == 2
    assert "sequence-classification, causal-lm or seq2seq" in err


def test_ids_may_be_a_column_of_the_texts(here, run):
    code, out, err = run(*BASIC, *LINEAR, "--ids", "key", "-k", "1")
    assert code == 0, err
    best = json.loads(out)["queries"][0]["top"][0]
    assert (best["train"], best["text"]) == ("t2", "i am a bot")


def test_the_column_may_be_named_and_two_kinds_must_be(here, run):
    rows("other.jsonl", [{"body": text, "messages": TALKS[0]} for text in TEXTS])
    words = (*BASIC[:3], "--data", "other.jsonl", "--queries", "other.jsonl", *BASIC[7:], *LINEAR, "-k", "1")
    code, out, _ = run(*words, "--data-option", "text=body")
    assert code == 0
    assert json.loads(out)["queries"][0]["text"] == "i am a bot"
    rows("other.jsonl", [{"text": text, "messages": TALKS[0]} for text in TEXTS])
    code, _, err = run(*words)
    assert code == 2
    assert "--data-option text=" in err


def test_self_influence_and_the_uses_read_texts_too(here, run):
    code, out, err = run(
        "self-influence", "--model", "gpt", "--data", "texts.jsonl", "--task", "causal-lm", "--json", "-k", "3"
    )
    assert code == 0, err
    assert all(row["text"] == TEXTS[row["train"]] for row in json.loads(out))
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)).save_pretrained("bert")
    tokenizer().save_pretrained("bert")
    rows("many.jsonl", [{"text": text, "label": row % 2} for row, text in enumerate(3 * TEXTS)])
    code, out, err = run("mislabeled", "--model", "bert", "--data", "many.jsonl", "--task", "sequence-classification",
                         "--report", "page.html", "--json")  # fmt: skip
    assert code == 0, err
    assert len(json.loads(out)["table"]) == 3 * len(TEXTS)
    assert "two plus two is four" in Path("page.html").read_text()


@pytest.mark.parametrize("name", ["ekfac", "sign", "hold"])
def test_a_direction_may_be_named_as_a_perturbation(here, run, name):
    code, _, err = run(*BASIC, "--perturbation", name, "--json", "--out", "run")
    assert code == 0, err
    kept = fi.load_scores("run").perturbation
    assert fi.Perturbation(**kept) == fi.Perturbation(name)
    code, _, err = run(*BASIC, "--perturbation", "ekfca")
    assert code == 2
    assert "'ekfac'" in err


def test_a_configuration_may_name_a_direction(here, run):
    Path("run.yaml").write_text(
        "model: {spec: gpt}\ndata: {spec: texts.jsonl}\nqueries: {spec: texts.jsonl, where: '0:1'}\n"
        "task: {name: causal-lm}\nperturbation: sign\n"
    )
    code, out, err = run("run", "run.yaml", "--json")
    assert code == 0, err
    assert json.loads(out)["queries"][0]["text"] == "hi you"


def test_checkpoints_are_shown_with_texts(here, run):
    other = gpt()
    with torch.no_grad():
        other.transformer.wte.weight.mul_(1.1)
    other.save_pretrained("earlier")
    code, out, err = run(*BASIC, *LINEAR, "--checkpoint", "earlier", "--out", "run", "--report", "page.html", "-k", "1")
    assert code == 0, err
    assert json.loads(out)["queries"][0]["top"][0]["text"] in TEXTS
    assert "i am a bot" in Path("page.html").read_text()
