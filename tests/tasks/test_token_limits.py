import pytest
import torch
from torch import nn

import forwardinf as fi
from forwardinf.core.errors import DataError, TaskError
from forwardinf.data.token_rows import TokenRows
from forwardinf.tasks.token_limits import check_tokens, most_positions, vocabulary_size

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
BART = {
    "vocab_size": 20,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 12,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
KINDS = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 20,
            "n_embd": 8,
            "n_layer": 1,
            "n_head": 2,
            "n_positions": 12,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    "bert": ("BertForSequenceClassification", "BertConfig", {**SMALL, "max_position_embeddings": 12}),
    "roberta": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {**SMALL, "max_position_embeddings": 14, "pad_token_id": 1},
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": 20,
            "hidden_size": 8,
            "word_embed_proj_dim": 8,
            "ffn_dim": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 12,
        },
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
    "marian": ("MarianMTModel", "MarianConfig", {**BART, "decoder_start_token_id": 1}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 20, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "max_position_embeddings": 12},
    ),
    "electra": (
        "ElectraForSequenceClassification",
        "ElectraConfig",
        {**SMALL, "embedding_size": 8, "max_position_embeddings": 12},
    ),
}


def build(kind):
    model, config, settings = KINDS[kind]
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_where_the_model_itself_ends(kind):
    model = build(kind)
    assert most_positions(model) == 12
    for length, fits in ((12, True), (13, False)):
        ids = torch.full((1, length), 5)
        more = {"decoder_input_ids": ids[:, :3]} if kind in ("bart", "marian") else {}
        if fits:
            assert torch.isfinite(model(input_ids=ids, **more).logits).all()
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids, **more)


def llama():
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=12)
    return transformers.LlamaForCausalLM(config)


def test_computed_positions_have_no_end_but_a_note():
    model = llama()
    assert most_positions(model) is None
    rows = TokenRows({"input_ids": [[1] * 13, [2]]}, ["a", "b"], {})
    check_tokens(model, rows, "train")
    assert rows.notes == ["1 of 2 rows are longer than the 12 tokens the model was made for"]


def test_a_picture_tower_has_positions_of_its_own():
    model = nn.ModuleDict(
        {
            "vision_model": nn.ModuleDict({"position_embedding": nn.Embedding(5, 2)}),
            "text_model": nn.ModuleDict({"position_embedding": nn.Embedding(9, 2)}),
            "token_type_embeddings": nn.Embedding(2, 2),
        }
    )
    assert most_positions(model) == 9


def test_a_row_that_is_too_long_is_named_with_its_length_and_the_limit():
    rows = TokenRows({"input_ids": [[1], [1] * 13, [1] * 14]}, ["a", "b", "c"], {})
    with pytest.raises(DataError) as caught:
        check_tokens(build("gpt2"), rows, "queries")
    told = str(caught.value)
    assert told.startswith("queries, row 1: expected at most 12 tokens")
    assert "got 13; 2 of 3 rows are too long" in told
    assert "max_length=12" in told
    answers = TokenRows({"input_ids": [[1]], "labels": [[1] * 13]}, ["a"], {})
    with pytest.raises(DataError, match="got 13"):
        check_tokens(build("bart"), answers, "train")


def test_a_token_of_another_vocabulary_is_named():
    model = build("gpt2")
    assert vocabulary_size(model) == 20
    assert vocabulary_size(nn.Linear(2, 2)) is None
    rows = TokenRows({"input_ids": [[1, 2], [3, 20]], "labels": [[-100, 2], [3, 20]]}, ["a", "b"], {})
    with pytest.raises(DataError, match=r"train, row 1.*below 20.*got 20.*--tokenizer"):
        check_tokens(model, rows, "train")
    check_tokens(model, rows.select([0]), "train")


@pytest.mark.parametrize("rows", [[[1, 2], [3, 25]], [[1, 2], [1] * 13]])
def test_rows_that_came_tokenised_are_an_error_of_ours_too(rows):
    rows = [{"input_ids": ids} for ids in rows]
    with pytest.raises(TaskError, match="train, rows") as caught:
        fi.attribute(build("gpt2"), rows, rows[:1], task=fi.CausalLM(), progress=False)
    assert "tokenizer" in caught.value.do
